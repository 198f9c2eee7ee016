"""Sequence length warm-up (Li, Zhang, He 2021, arXiv 2108.06084)."""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.times import Time
from raytrain_plus.task import Batch


class SeqLengthWarmup(Aspect):
    """Train on the first tokens of sequences, more and more of them, up to whole sequences.

    The rest of a sequence is not trained on. A length counts a column's entries: if the last entry
    is a target only (columns of T + 1 tokens), the model sees one token fewer.

    Attributes:
        duration: when sequences have their whole length. Default "0.3dur".
        start: the length at the start of the run, in entries, at least 2. Default 8.
        multiple: lengths between `start` and the whole are rounded down to a multiple of this.
            Default 8.
        columns: the batch's columns to cut, of shape (n, length, ...), all of one length. Default:
            the task's `tokens`.
    """

    duration: Time = "0.3dur"
    start: int = Field(default=8, ge=2)
    multiple: int = Field(default=8, ge=1)
    columns: tuple[str, ...] = ()

    def batch(self, step: Step) -> Advice:
        """Cut the sequences of a part."""
        end = step.clock.step_of(self.duration)
        columns = self.columns or (() if step.tokens is None else (step.tokens,))
        whole = _whole_length(step.batch, columns)
        length = sequence_length(step.number, end, whole, start=self.start, multiple=self.multiple)
        if length == whole:
            return
        step.batch.update(truncate(step.batch, columns, length))
        yield


def sequence_length(
    step: int, warmup_steps: int, whole: int, *, start: int = 8, multiple: int = 8
) -> int:
    """Return the length at a step: linear from `start` to `whole`, a multiple of `multiple`.

    Args:
        step: committed steps.
        warmup_steps: the first step with whole sequences.
        whole: the length of whole sequences, the largest that is returned.
        start: the length at step 0, the smallest that is returned, unless whole sequences are
            shorter. Default 8.
        multiple: lengths between `start` and `whole` are rounded down to a multiple of this.
            Default 8.
    """
    if step >= warmup_steps or start >= whole:
        return whole
    grown = start + (whole - start) * step // warmup_steps
    return max(start, grown // multiple * multiple)


def truncate(batch: Batch, columns: Sequence[str], length: int) -> Batch:
    """Return the first `length` entries of the sequences in some columns; no copies.

    Args:
        batch: tensors by name.
        columns: the names of the columns to cut, of shape (n, length, ...).
        length: number of entries to keep.
    """
    return {name: batch[name][:, :length] for name in columns}


def _whole_length(batch: Batch, columns: Sequence[str]) -> int:
    shapes = {n: tuple(v.shape) for n, v in batch.items() if isinstance(v, Tensor)}
    lengths = {shapes[n][1] for n in columns if len(shapes.get(n, ())) >= 2}
    known = all(len(shapes.get(n, ())) >= 2 for n in columns)
    if not columns or not known or len(lengths) != 1:
        raise AspectError(
            f"SeqLengthWarmup cannot cut the columns {list(columns)} of a batch that has {shapes}: "
            "name columns of shape (n, length, ...), all of one length, with `columns`, or set the "
            "task's `tokens`"
        )
    return lengths.pop()

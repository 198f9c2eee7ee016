"""Labels as class probabilities, and their mixing (Zhang et al. 2017, arXiv 1710.09412)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from raytrain_plus.algorithms.aspect import Advice, AspectError, Step


class Mixing(NamedTuple):
    """How samples were mixed, each with one partner from the same logical rank's part.

    Attributes:
        partners: the index of each sample's partner, shape (n,).
        own: the sample's own share, in [0, 1], shape (n,); the rest is the partner's.
    """

    partners: Tensor
    own: Tensor


def soft_labels(labels: Tensor, logits: Tensor, ignore_index: int = -100) -> Tensor:
    """Return labels as class probabilities; labels that are soft already are returned unchanged.

    Args:
        labels: class indices of shape (n,) and any integer type, or probabilities of shape
            (n, classes).
        logits: shape (n, classes); gives the number of classes and the dtype.
        ignore_index: the index that means "no label".

    Returns:
        Probabilities of shape (n, classes). For a sample without a label all are zero, so that its
        cross entropy is zero, as with `ignore_index`.

    Raises:
        AspectError: the labels or the logits have another shape or dtype, or a label is not a
            class.
    """
    _check_logits(logits, logits)
    soft = labels.is_floating_point()
    if labels.shape != (logits.shape if soft else logits.shape[:1]):
        raise AspectError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not go with outputs "
            f"of shape {tuple(logits.shape)}: they must be class indices, integers of shape (n,), "
            "or probabilities, floating, of shape (n, classes)"
        )
    if soft:
        return labels.to(logits.dtype)
    classes = logits.shape[1]
    indices = labels.to(torch.int64)
    known = indices != ignore_index
    wrong = known & ((indices < 0) | (indices >= classes))
    if bool(wrong.any()):
        raise AspectError(
            f"label {int(indices[wrong][0])} is not a class: the outputs are of {classes} classes, "
            f"so labels are 0 to {classes - 1}, or {ignore_index} (the task's `ignore_index`) "
            "for none"
        )
    if bool(known.all()):
        return functional.one_hot(indices, classes).to(logits.dtype)
    return (functional.one_hot(indices.where(known, 0), classes) * known[:, None]).to(logits.dtype)


def labels_that_count(labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Return which samples have a label, also if an algorithm has made the labels soft.

    A task returns this as weights with its losses, so that samples without a label do not count in
    the mean.

    Args:
        labels: class indices of any shape, or class probabilities of shape (n, classes).
        ignore_index: the index that means "no label".

    Returns:
        Whether there is a label: bool, of the indices' shape, or (n,) for probabilities.
    """
    if labels.is_floating_point():
        return (labels != 0).any(dim=-1)
    return labels.to(torch.int64) != ignore_index


def mix_labels(labels: Tensor, mixing: Mixing, logits: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the class probabilities of mixed samples.

    Args:
        labels: labels of the samples before mixing, as `soft_labels` accepts them.
        mixing: how the samples were mixed.
        logits: shape (n, classes); gives the number of classes and the dtype.
        ignore_index: the index that means "no label"; such a sample adds nothing to a mixture.

    Returns:
        Probabilities of shape (n, classes).

    Raises:
        AspectError: the numbers of labels and of mixed samples differ, or a label cannot be made
            soft.
    """
    if len(labels) != len(mixing.partners):
        raise AspectError(
            f"{len(mixing.partners)} samples were mixed and the loss is given {len(labels)} "
            "labels: an algorithm that drops samples must do so before they are mixed; name it in "
            "`runs_after` of the one that mixes"
        )
    soft = soft_labels(labels, logits, ignore_index)
    own = mixing.own.to(logits.device, logits.dtype)[:, None]
    return own * soft + (1 - own) * soft[mixing.partners]


def loss_of_mixed(step: Step, mixing: Mixing | None) -> Advice:
    """Advise around a loss: mix its labels as the samples were mixed, if at all."""
    if mixing is None:
        return
    labels, logits = labels_of(step), logits_of(step)
    mixed = mix_labels(labels, mixing, logits, step.ignore_index)
    known, before = known_share(step, labels), step.notes.get(_KNOWN)
    if known is not None:
        own = mixing.own.to(known.device, known.dtype)
        known = own * known + (1 - own) * known[mixing.partners]
    step.batch[step.target], step.notes[_KNOWN] = mixed, known
    yield
    step.batch[step.target], step.notes[_KNOWN] = labels, before


_KNOWN = "known labels"


def known_share(step: Step, labels: Tensor) -> Tensor | None:
    """Return the share of each sample's label that is known: below 1 if a part is ignored.

    Args:
        step: the step; its notes say which labels were mixed.
        labels: the step's labels.

    Returns:
        Shares in [0, 1], shape (n,), or None if all are known.
    """
    noted: Tensor | None = step.notes.get(_KNOWN)
    if noted is not None or labels.is_floating_point():
        return noted
    known = labels.to(torch.int64) != step.ignore_index
    return None if bool(known.all()) else known.to(torch.float32)


def labels_of(step: Step) -> Tensor:
    """Return the labels of a step's batch.

    Raises:
        AspectError: the batch has no such column, or the column is not a tensor.
    """
    labels = step.batch.get(step.target)
    if not isinstance(labels, Tensor):
        got = "no such column" if labels is None else f"a {type(labels).__name__} there"
        raise AspectError(
            f"labels are in the column {step.target!r}, and the batch has {got}: set the task's "
            "`target`, or leave out the algorithms that mix or smooth labels"
        )
    return labels


def logits_of(step: Step) -> Tensor:
    """Return the logits in a step's outputs: the outputs, or their entry or attribute `logits`.

    Raises:
        AspectError: the outputs hold no logits of shape (n, classes).
    """
    outputs = step.outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    found = found if isinstance(found, Tensor) else getattr(found, "logits", found)
    return _check_logits(found, outputs)


def _check_logits(logits: Any, outputs: Any) -> Tensor:
    if isinstance(logits, Tensor) and logits.ndim == 2:
        return logits
    got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(outputs).__name__}"
    raise AspectError(
        "soft labels need outputs of shape (n, classes), or a mapping or an object that calls them "
        f"`logits`, and the model's are {got}: leave out the algorithms that mix or smooth labels"
    )

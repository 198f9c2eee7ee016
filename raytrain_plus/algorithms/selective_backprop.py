"""Selective backpropagation (Jiang et al. 2019, arXiv 1910.00762)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.times import Time, check_order
from raytrain_plus.task import Batch


class SelectiveBackprop(Aspect):
    """Train on the samples of each batch that have the larger losses.

    The paper keeps a sample with a probability that is a power of its loss's percentile. Here a
    fixed number of each logical rank's samples is kept, so that parts cost the same. They are drawn
    without replacement, with probabilities by that power. The step's gradient is the mean over the
    kept samples. Samples of weight zero (the task's) are kept only if there are not enough others.

    Attributes:
        keep: the fraction of samples that is kept, in (0, 1]; 1 keeps all. Default 0.5.
        beta: the power of the loss's rank. 0 draws uniformly; larger values prefer large losses
            more. Default 1.0.
        start: when selection begins. Default "0.5dur".
        finish: when it ends. Default "0.9dur".
        interval: number of steps from one selection to the next; the others are ordinary steps.
            Default 2.
        how: "score" computes the losses in an extra forward in evaluation mode, and cuts the batch
            before the ordinary forward. "reuse" uses the losses of the ordinary forward, and gives
            dropped samples a weight of zero, which saves no time. "auto" is the one that computes
            less. Default "auto".
        scale: the resolution of images while they are scored, in (0, 1]. Default 1.0.
        chunk: number of rows that are scored at once, to save memory; 0 for all. Default 0.
        column: the column of images, for `scale`; None for the only one. Default None.
    """

    runs_before = ("*",)  # other aspects need not work on dropped samples

    keep: float = Field(default=0.5, gt=0, le=1)
    beta: float = Field(default=1.0, ge=0)
    start: Time = "0.5dur"
    finish: Time = "0.9dur"
    interval: int = Field(default=2, ge=1)
    how: Literal["score", "reuse", "auto"] = "auto"
    scale: float = Field(default=1.0, gt=0, le=1)
    chunk: int = Field(default=0, ge=0)
    column: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_order(self.start, self.finish)
        if self.how == "reuse" and (self.scale != 1 or self.chunk):
            raise AspectError(
                f"scale={self.scale} and chunk={self.chunk} are for a scoring pass, and "
                "how='reuse' has none: leave them out, or set how='score'"
            )
        return self

    @property
    def reuses(self) -> bool:
        """Whether the losses come from the ordinary forward, not from a scoring pass."""
        if self.how != "auto":
            return self.how == "reuse"
        # A backward costs as much as two forwards.
        return self.scale**2 + 3 * self.keep >= 3

    def batch(self, step: Step) -> Advice:
        """Score the batch and cut it."""
        if self.reuses or not self._selects(step):
            return
        losses, weights = self._scores(step)
        kept = select_by_loss(losses, self.keep, step.generator(self), self.beta, weights)
        step.batch = rows_of(step.batch, kept)
        yield

    def loss(self, step: Step) -> Advice:
        """Give dropped samples a weight of zero."""
        if not self.reuses or not self._selects(step):
            return
        yield
        assert step.losses is not None
        check_apart(self, step.losses)
        weights = torch.ones_like(step.losses) if step.weights is None else step.weights
        losses = (step.losses * weights).detach()
        generator = step.generator(self)
        kept = select_by_loss(losses, self.keep, generator, self.beta, step.weights)
        chosen = torch.zeros_like(weights).index_fill_(0, kept.to(weights.device), 1.0)
        step.weights = weights * chosen

    def _selects(self, step: Step) -> bool:
        start, finish = (step.clock.step_of(time) for time in (self.start, self.finish))
        within = start <= step.number < finish
        return self.keep < 1 and within and (step.number - start) % self.interval == 0

    @torch.no_grad()
    def _scores(self, step: Step) -> tuple[Tensor, Tensor | None]:
        batch = dict(step.batch)
        if self.scale != 1:
            name = image_column(step, self.column)
            batch[name] = scaled(batch[name], self.scale)
        n = len(next(iter(batch.values())))
        parts = torch.split(torch.arange(n), self.chunk or n)
        with evaluating(step.model):
            found = [step.compute_weighted(rows_of(batch, rows)) for rows in parts]
        check_apart(self, found[0][0])
        weights = [one for _, one in found if one is not None]
        return torch.cat([losses for losses, _ in found]), torch.cat(weights) if weights else None


def check_apart(aspect: Aspect, losses: Tensor) -> None:
    """Check that each sample has a loss of its own.

    Raises:
        AspectError: the task's loss is one number for all of them.
    """
    if losses.shape[0] > 1 and losses.stride() == (0,):
        raise AspectError(
            f"{aspect.name} chooses samples by their losses, and task.loss() returns one number "
            "for all samples: return one loss per sample (reduction='none')"
        )


def select_by_loss(
    losses: Tensor,
    keep: float,
    generator: torch.Generator,
    beta: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Draw samples without replacement, with probability proportional to a power of their rank.

    Args:
        losses: one per sample, shape (n,). The smallest has rank 1, the largest rank n. Of equal
            losses, the later one has the higher rank.
        keep: the fraction of n that is drawn, rounded to a number of samples, at least one.
        generator: of the CPU.
        beta: the power of the rank.
        weights: one per sample, shape (n,), or None for all ones. Samples of weight zero are drawn
            only if no others are left.

    Returns:
        The samples' indices in ascending order, shape (kept,), on the CPU.
    """
    n = len(losses)
    ranks = torch.empty(n, dtype=torch.float64)
    ranks[losses.cpu().argsort(stable=True)] = torch.arange(1, n + 1, dtype=torch.float64)
    # The samples with the largest log(u) / weight are a draw without replacement (Efraimidis and
    # Spirakis 2006).
    chance = torch.rand(n, dtype=torch.float64, generator=generator)
    keys = chance.log() / (ranks / n) ** beta
    if weights is not None:
        keys = torch.where(weights.cpu() != 0, keys, -torch.inf)
    return keys.topk(max(1, round(keep * n))).indices.sort().values


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Return some rows of every column, tensors or lists.

    Args:
        batch: columns of n rows.
        rows: indices of the rows, on the CPU.
    """
    return {
        name: column[rows.to(column.device)]
        if isinstance(column, Tensor)
        else [column[i] for i in rows.tolist()]
        for name, column in batch.items()
    }


def scaled(images: Tensor, scale: float) -> Tensor:
    """Return images (n, channels, height, width) at `scale` times their resolution, same dtype."""
    size = [max(1, round(length * scale)) for length in images.shape[2:]]
    exact = images if images.is_floating_point() else images.float()
    small = functional.interpolate(exact, size=size, mode="bilinear", align_corners=False)
    return small if images.is_floating_point() else small.round().to(images.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and restore each one's mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

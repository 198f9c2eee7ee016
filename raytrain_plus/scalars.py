"""Scalars that a task or an aspect logs: collected in a part, averaged over all logical ranks.

A part's values of one name become two float64 numbers: the sum of `weight * value`, and the sum of
the weights. A step's value is the first sum over all logical ranks divided by the second. Both are
added in tree order (`training/tree.py`), so the value has the same bits on any number of workers.

What is logged outside of a part, such as at the update, is the same on every worker. It is kept as
it is, and the last value of a name counts.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from raytrain_plus.task import Batch, TaskError

Scalar: TypeAlias = Tensor | float
Sums: TypeAlias = dict[str, tuple[float, float]]
"""Name -> the sum of weighted values, and the sum of weights."""

MOST_NAMES = 1000
"""Different names that a run may log."""

_LONGEST = 200  # characters of a name


class Scalars:
    """What one step logs, on one worker.

    Attributes:
        sums: of the part that has been computed last; empty if it has logged nothing.
    """

    def __init__(self) -> None:
        self.sums: Sums = {}
        self._batch: Batch | None = None  # of the part that may log now
        self._of_part: list[tuple[str, Scalar, Scalar]] = []
        self._outside: dict[str, Scalar] = {}

    def begin_part(self, batch: Batch) -> None:
        """Begin a part, of the samples of a batch."""
        self._batch = batch
        self._of_part, self.sums = [], {}

    def replace(self, collected: list[tuple[str, Scalar, Scalar]]) -> None:
        """Go on with what had been collected before: what came since then is dropped."""
        self._of_part = collected

    def collected(self) -> list[tuple[str, Scalar, Scalar]]:
        """Return a copy of what the part has logged up to now."""
        return list(self._of_part)

    def log(self, name: str, value: Scalar, weights: Scalar | None, *, in_part: bool) -> None:
        """Collect a value.

        Args:
            name: under which it is shown.
            value: a number, or a tensor with one number, or with one per sample.
            weights: of the value or the values. Default: the number of samples that they stand for.
            in_part: whether a part is being computed.

        Raises:
            TaskError: the name or the value is of another form, or it is logged too late.
        """
        check_name(name)
        _check_value(name, value)
        if not in_part:
            if weights is not None or (isinstance(value, Tensor) and value.numel() != 1):
                raise TaskError(
                    f"log({name!r}) outside of a part needs one number without weights: each "
                    "worker has the same there"
                )
            self._outside[name] = value.detach() if isinstance(value, Tensor) else float(value)
            return
        if self._batch is None:
            raise TaskError(
                f"log({name!r}) comes after the loss of a part, whose values are already on their "
                "way to the other workers: log it in the forward or the loss, or around them"
            )
        if weights is not None:
            _check_value(f"{name}' (weights)", weights)
        self._of_part.append((name, *_summed(name, value, weights, _samples_in(self._batch))))

    def end_part(self, total: Tensor) -> float:
        """End the logging of a part; returns the number that `total` holds.

        Args:
            total: the part's loss, one number, which takes the same transfer from an accelerator.
        """
        self._batch = None
        if not self._of_part:
            return float(total.item())
        pairs, self._of_part = self._of_part, []
        numbers = numbers_of([total, *(scalar for _, *two in pairs for scalar in two)])
        for i, (name, _, _) in enumerate(pairs):
            value, weight = numbers[1 + 2 * i : 3 + 2 * i]
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = before[0] + value, before[1] + weight
        return numbers[0]

    def with_outside(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the step's values: the means over all parts, and what was logged outside of them.

        Raises:
            TaskError: a name was logged in parts and outside of them.
        """
        if not self._outside:
            return dict(means)
        twice = sorted(means.keys() & self._outside.keys())
        if twice:
            raise TaskError(
                f"{twice[0]!r} is logged in the parts of a step and outside of them, and only one "
                "value can be kept: use two names"
            )
        numbers = numbers_of(list(self._outside.values()))
        return dict(sorted([*means.items(), *zip(self._outside, numbers, strict=True)]))


def numbers_of(scalars: Sequence[Scalar]) -> list[float]:
    """Return scalars as numbers, with one transfer from each accelerator."""
    found = [0.0 if isinstance(one, Tensor) else float(one) for one in scalars]
    of_device: dict[torch.device, list[int]] = {}
    for i, one in enumerate(scalars):
        if isinstance(one, Tensor):
            of_device.setdefault(one.device, []).append(i)
    for device, places in of_device.items():
        tensors = [
            one.detach().reshape(()) for i in places if isinstance(one := scalars[i], Tensor)
        ]
        if device.type == "cpu":
            numbers = [float(one.item()) for one in tensors]
        else:
            numbers = torch.stack([one.double() for one in tensors]).tolist()
        for i, number in zip(places, numbers, strict=True):
            found[i] = number
    return found


def check_name(name: object) -> None:
    """Check the name of a scalar.

    Raises:
        TaskError: it is empty, too long, or has a character that cannot be shown.
    """
    if not isinstance(name, str) or not name or len(name) > _LONGEST or not name.isprintable():
        raise TaskError(
            f"log() needs a name of 1 to {_LONGEST} printable characters, not {str(name)[:60]!r}"
        )


def check_count(names: int) -> None:
    """Check the number of names that a step logs.

    Raises:
        TaskError: there are too many.
    """
    if names > MOST_NAMES:
        raise TaskError(
            f"the run logs {names} different names, and may log {MOST_NAMES}: does a name hold a "
            "number that changes, such as the step?"
        )


def _check_value(name: str, value: object) -> None:
    if isinstance(value, Tensor):
        if value.is_complex() or value.dim() > 1 or not value.numel():
            raise TaskError(
                f"log({name!r}) needs a number or one number per sample, shape (n,), and got a "
                f"tensor of shape {tuple(value.shape)} and type {value.dtype}"
            )
    else:
        try:
            float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise TaskError(
                f"log({name!r}) needs a number or a tensor, not a {type(value).__name__}"
            ) from None


def _samples_in(batch: Batch) -> int:
    first = next(iter(batch.values()))
    return first.shape[0] if isinstance(first, Tensor) else len(first)


def _summed(
    name: str, value: Scalar, weights: Scalar | None, samples: int
) -> tuple[Scalar, Scalar]:
    """Return the sum of weighted values, and the sum of the weights."""
    if isinstance(value, Tensor) and value.dim() == 1:
        exact = value.detach().double()
        if weights is None:
            return exact.sum(), float(len(value))
        if isinstance(weights, Tensor) and weights.shape == value.shape:
            weighing = weights.detach().to(exact.device, torch.float64)
            return (exact * weighing).sum(), weighing.sum()
    elif weights is None:
        return _times(value, float(samples)), float(samples)
    elif not isinstance(weights, Tensor) or weights.dim() == 0:
        number = weights.detach().double() if isinstance(weights, Tensor) else float(weights)
        return _times(value, number), number
    raise TaskError(f"log({name!r}) needs weights of the same shape as its values")


def _times(value: Scalar, weight: Scalar) -> Scalar:
    if isinstance(value, Tensor):
        return value.detach().double() * weight
    return float(value) * weight

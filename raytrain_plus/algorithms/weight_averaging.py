"""Averages of a model's weights: create, update, evaluate and export them.

EMA and SWA share this. A model's averages are a plain mapping from name to tensor, with each
trainable parameter and running statistics such as BatchNorm's. Other buffers keep their current
values, because a mean of them may be meaningless: the mean of two unit vectors of spectral norm is
not a unit vector. Averages are float32 if the model has fewer bits, since a small step towards a
bfloat16 value would be rounded away.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_plus.algorithms.aspect import EVERY_OTHER, Advice, Aspect, Step

_PREFIX = "average."
_COUNT = "count"

RUNNING_STATISTICS = ("running_mean", "running_var")
"""The names of the statistics in the norms of torch and of libraries around it."""


class WeightAveraging(Aspect):
    """The base of EMA and SWA: evaluate and export the average, once there is one."""

    runs_after = (EVERY_OTHER,)  # `fit` must see what other methods have made of the model

    def fit(self, step: Step) -> Advice:
        """Allocate the average; the exported model holds it."""
        settle(step.state(self), step.model)
        yield
        averages, count = kept(step.state(self))
        if count:
            load_average(step.model, averages)

    def evaluate(self, step: Step) -> Advice:
        """Evaluate the average."""
        averages, count = kept(step.state(self))
        if not count:
            return
        with averaged(step.model, averages):
            yield


@torch.no_grad()
def begin_average(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the values to average, by name in the model.

    Parameters that do not require a gradient are left out, and so are all buffers except running
    statistics.
    """
    live: list[tuple[str, Tensor]] = [
        (n, p) for n, p in model.named_parameters() if p.requires_grad
    ]
    live += [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and name.rpartition(".")[2] in RUNNING_STATISTICS
    ]
    return {n: t.detach().to(_kept_in(t.dtype), copy=True) for n, t in live}


@torch.no_grad()
def move_average(averages: Mapping[str, Tensor], model: nn.Module, weight: float) -> None:
    """Move averages in place: `average + weight * (value - average)`.

    Args:
        averages: from `begin_average`.
        model: the same model, towards whose values the averages move.
        weight: weight of the current values, in [0, 1]; 1 sets the averages exactly to them.
    """
    values = [v.to(averages[n].dtype) for n, v in _live(model, averages).items()]
    torch._foreach_lerp_(list(averages.values()), values, weight)


@torch.no_grad()
def load_average(model: nn.Module, averages: Mapping[str, Tensor]) -> None:
    """Give a model its averaged values, in place."""
    for name, value in _live(model, averages).items():
        value.copy_(averages[name])


@contextmanager
def averaged(model: nn.Module, averages: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model its averaged values, and restore its own bit for bit afterwards."""
    live = _live(model, averages)
    own = [value.detach().clone() for value in live.values()]
    try:
        load_average(model, averages)
        yield
    finally:
        with torch.no_grad():
            for value, before in zip(live.values(), own, strict=True):
                value.copy_(before)


def settle(state: dict[str, Any], model: nn.Module) -> None:
    """Create an aspect's state: room for a model's averages, with no values in them yet."""
    state |= {f"{_PREFIX}{name}": tensor for name, tensor in begin_average(model).items()}
    state[_COUNT] = 0


def kept(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    """Return the averages that an aspect keeps, and the number of values in them."""
    averages = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
    return averages, state[_COUNT]


def count_one_more(state: dict[str, Any]) -> None:
    """Count one more value in the averages."""
    state[_COUNT] += 1


def _live(model: nn.Module, averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensors[name] for name in averages}


def _kept_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

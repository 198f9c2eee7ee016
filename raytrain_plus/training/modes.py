"""Optimizers with two sets of weights: those that are trained, and those that are evaluated.

Schedule-free optimizers train one point and evaluate another (Defazio et al. 2024, arXiv
2405.15682). Such an optimizer has the methods `train()` and `eval()`, which turn the model's
weights into the one or the other. They are called here, so that a task need not: the weights of an
evaluation and of an export are those of `eval()`, and afterwards the trained ones are back, to the
bit. A checkpoint holds the trained ones, from which a run goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def has_modes(optimizer: Any) -> bool:
    """Say whether an optimizer tells training from evaluation."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def to_training(optimizer: Any) -> None:
    """Let an optimizer begin to train, if it tells training from evaluation."""
    if has_modes(optimizer):
        optimizer.train()


def to_evaluation(optimizer: Any) -> None:
    """Turn the weights into those to evaluate, for good, if they are not."""
    if has_modes(optimizer):
        optimizer.eval()


@contextmanager
def evaluated(model: nn.Module, optimizer: Any) -> Iterator[None]:
    """Let a model have the weights to evaluate; afterwards it has its own, to the bit."""
    if not has_modes(optimizer):
        yield
        return
    own = [(p, p.detach().clone()) for p in model.parameters()]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in own:  # the way back is exact up to rounding only
                parameter.copy_(value)

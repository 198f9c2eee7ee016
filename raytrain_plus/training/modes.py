"""Training and evaluation: the modes of a model, and of an optimizer with two sets of weights.

Schedule-free optimizers train one point and evaluate another (Defazio et al. 2024, arXiv
2405.15682). Such an optimizer has the methods `train()` and `eval()`, which set the model's weights
to the one or the other. They are called here, so that a task need not call them. An evaluation and
an export use the weights of `eval()`. Afterwards the trained weights are back, to the bit. A
checkpoint holds the trained weights, from which a run continues.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn

_IS_TRAINING = attrgetter("training")


def has_modes(optimizer: Any) -> bool:
    """Say whether an optimizer has different weights for training and for evaluation."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def to_training(optimizer: Any) -> None:
    """Set the weights to those that are trained, if the optimizer has two sets."""
    if has_modes(optimizer):
        optimizer.train()


def to_evaluation(optimizer: Any) -> None:
    """Set the weights to those that are evaluated, if the optimizer has two sets."""
    if has_modes(optimizer):
        optimizer.eval()


class TrainingMode:
    """Sets a model to training before each step. Modules that are in training are not visited.

    Args:
        model: the model, as it is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = [*model.modules()]
        # A `train` of the user's own may freeze a norm, for example. It is called in each step.
        self._is_own = any(
            type(module).train is not nn.Module.train or "train" in vars(module)
            for module in self._modules
        )

    def set(self) -> None:
        """Set all modules to training."""
        if self._is_own or not all(map(_IS_TRAINING, self._modules)):
            self._model.train()


@contextmanager
def evaluated(model: nn.Module, optimizer: Any) -> Iterator[None]:
    """Give a model the weights to evaluate inside this context, and its own afterwards."""
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

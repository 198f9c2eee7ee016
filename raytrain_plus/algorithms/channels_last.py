"""Channels-last memory: the channels of a pixel are adjacent in memory.

PyTorch, "Channels Last Memory Format in PyTorch" (tutorial). Convolutions are faster on it on many
devices, many CPUs among them. Other operations follow the strides.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.surgery import Surgery


class ChannelsLast(Aspect):
    """Keep images, and the weights of two-dimensional convolutions, in channels-last memory.

    Attributes:
        column: the batch's column of images; None for the only one of four dimensions. Default
            None.
    """

    column: str | None = None

    # What other methods add to the model and do to the images must be channels-last, too.
    runs_after: ClassVar[Sequence[str]] = ("*",)

    def fit(self, step: Step) -> Advice:
        """Put the weights into channels-last memory."""
        surgery = apply_channels_last(step.model, optimizer=step.optimizer)
        surgery.warn_if_unchanged(
            self.name, "parameters of four dimensions that are not in channels-last memory yet"
        )
        yield
        surgery.undo()

    def batch(self, step: Step) -> Advice:
        """Put the images into channels-last memory."""
        column = image_column(step, self.column)
        step.batch[column] = in_channels_last(step.batch[column])
        yield

    def update(self, step: Step) -> Advice:
        """Give gradients their parameters' layout, so that the optimizer's state gets it, too."""
        for parameter in step.model.parameters():
            if parameter.ndim == 4 and parameter.grad is not None:
                parameter.grad = in_channels_last(parameter.grad)
        yield


def apply_channels_last(model: nn.Module, *, optimizer: Optimizer | None = None) -> Surgery:
    """Put all four-dimensional parameters of a model into channels-last memory.

    They stay the same `Parameter` objects with the same values.

    Args:
        model: the model.
        optimizer: may be left out; no parameter is added.

    Returns:
        What was done; its `undo` makes them contiguous again.
    """
    surgery = Surgery(model, optimizer)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 4 and not _is_laid_out(parameter):
                _lay_out(surgery, parameter)
                surgery.changed[name] = module
    return surgery


def in_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor of shape (n, channels, height, width) in channels-last memory.

    A tensor that is in channels-last memory already is returned itself.
    """
    return tensor.contiguous(memory_format=torch.channels_last)


def _is_laid_out(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _lay_out(surgery: Surgery, parameter: nn.Parameter) -> None:
    parameter.data = in_channels_last(parameter.data)

    def undo() -> None:
        parameter.data = parameter.data.contiguous()

    surgery.on_undo(undo)

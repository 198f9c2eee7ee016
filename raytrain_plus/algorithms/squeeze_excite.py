"""Squeeze-and-excitation (Hu et al. 2017, arXiv 1709.01507)."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.surgery import Surgery


class SqueezeExcite(Aspect):
    """Scale each channel after a convolution by a gate that sees all channels of the whole image.

    The gates are new parameters, trained with the rest. They start near one half, as in the paper;
    a normalisation after the convolution compensates for that. The exported plain model has no
    gates, so that it does not compute the same: keep the trained model.

    Attributes:
        min_channels: convolutions with fewer input or output channels get no gate. Default 128.
        reduction: channels per hidden feature of a gate, the paper's `r`. Default 16.
    """

    min_channels: int = Field(default=128, ge=1)
    reduction: int = Field(default=16, ge=1)

    def fit(self, step: Step) -> Advice:
        """Add the gates; the plain model has none."""
        surgery = apply_squeeze_excite(
            step.model,
            min_channels=self.min_channels,
            reduction=self.reduction,
            generator=step.generator(self),
            optimizer=step.optimizer,
        )
        surgery.warn_if_unchanged(
            self.name,
            f"trained Conv2d layers with at least {self.min_channels} input and output channels",
        )
        yield
        surgery.undo()


def apply_squeeze_excite(
    model: nn.Module,
    *,
    min_channels: int = 128,
    reduction: int = 16,
    generator: torch.Generator | None = None,
    optimizer: Optimizer | None = None,
) -> Surgery:
    """Add a gate after each `Conv2d` of a model that has enough channels, in place.

    Frozen convolutions get no gate.

    Args:
        model: the model.
        min_channels: the fewest input and output channels of a convolution that gets a gate.
        reduction: channels per hidden feature of a gate.
        generator: draws the gates' weights, on the CPU; None for PyTorch's global one.
        optimizer: trains each gate in the parameter group of its convolution.

    Returns:
        What was done; its `undo` removes the gates.
    """
    surgery = Surgery(model, optimizer)
    for name, conv in surgery.candidates(nn.Conv2d, _Gated):
        trained = next((p for p in conv.parameters(recurse=False) if p.requires_grad), None)
        if trained is not None and min(conv.in_channels, conv.out_channels) >= min_channels:
            gate = Gate(conv.out_channels, reduction, generator)
            surgery.mix_in(name, conv, _Gated)
            surgery.add_module(conv, "gate", gate, like=trained)
    return surgery


class Gate(nn.Module):
    """`x * sigmoid(excite(relu(squeeze(mean of x over the image))))`.

    Args:
        channels: number of the images' channels.
        reduction: channels per hidden feature; there is at least one hidden feature.
        generator: draws the weights, on the CPU; None for PyTorch's global one.
    """

    def __init__(
        self, channels: int, reduction: int = 16, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = _linear(channels, hidden, generator)
        self.excite = _linear(hidden, channels, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of images of shape (n, channels, height, width)."""
        hidden = functional.relu(self.squeeze(x.mean(dim=(2, 3))))
        gates = torch.sigmoid(self.excite(hidden))
        return x * gates[:, :, None, None].to(x.dtype)


class _Gated:
    gate: Gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(super().forward(x))  # type: ignore[misc,no-any-return]


def _linear(before: int, after: int, generator: torch.Generator | None) -> nn.Linear:
    """Return a linear layer with PyTorch's usual distribution, drawn from a generator."""
    layer = nn.Linear(before, after, device="meta").to_empty(device="cpu")
    bound = before**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer

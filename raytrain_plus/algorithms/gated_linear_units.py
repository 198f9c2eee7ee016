"""Gated linear units in feed-forward layers (Shazeer 2020, arXiv 2002.05202)."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.surgery import Surgery
from raytrain_plus.algorithms.transformer_layers import FEED_FORWARD, layers


class GatedLinearUnits(Aspect):
    """Multiply each feed-forward's hidden layer by a gate, a linear function of its input.

    The hidden layer keeps its width, so that a feed-forward has 1.5 times as many parameters. To
    compare at equal size, give the model's hidden layers two thirds of their width.

    Attributes:
        std: standard deviation of the gate's initial weights. Its bias starts at 1; with a `std` of
            0 the model starts as the one without gates. Default 0.02.
    """

    # A gate is shaped like the layer next to it, not like that layer's factors.
    runs_before = ("Factorize",)

    std: float = Field(default=0.02, ge=0, le=1)

    def fit(self, step: Step) -> Advice:
        """Add the gates; they are lost in the plain model."""
        surgery = apply_gated_linear_units(
            step.model,
            std=self.std,
            generator=step.generator(self),
            optimizer=step.optimizer,
        )
        surgery.warn_if_unchanged("GatedLinearUnits", f"modules of {', '.join(FEED_FORWARD)}")
        yield
        surgery.undo()


def apply_gated_linear_units(
    model: nn.Module,
    *,
    std: float = 0.02,
    generator: torch.Generator | None = None,
    optimizer: Optimizer | None = None,
) -> Surgery:
    """Give every feed-forward `down(f(up(x)))` of a model a gate: `down(f(up(x)) * gate(x))`.

    Args:
        model: GPT of this package, or GPT-2 or BERT of `transformers`.
        std: standard deviation of the gates' weights; their bias is 1. Default 0.02.
        generator: draws the gates' weights, on the CPU; None for torch's global one.
        optimizer: gets the gates, in the parameter group of the layer `up`.

    Raises:
        AspectError: the optimizer does not train a layer that gets a gate.
    """
    surgery = Surgery(model, optimizer)
    for name, module, path, key in list(layers(surgery, FEED_FORWARD, _Gated)):
        up: Any = getattr(module, key)
        gate = nn.Linear(*_sizes(up), device="meta").to_empty(device="cpu")
        nn.init.normal_(gate.weight, std=std, generator=generator)
        nn.init.ones_(gate.bias)
        surgery.mix_in(name, module, _MIXINS[path.rpartition(".")[2]])
        surgery.add_module(module, "gate", gate, like=up.weight)
    return surgery


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Return the numbers of input and output channels; GPT-2's weights are transposed."""
    weight: Any = linear.weight
    first, second = weight.shape
    return (second, first) if isinstance(linear, nn.Linear) else (first, second)


class _Gated:
    """The base of all feed-forwards with a gate."""

    gate: nn.Linear


class _GatedFeedForward(_Gated):
    up: nn.Linear
    down: nn.Linear

    def forward(self, x_btd: Tensor) -> Tensor:
        changed: Tensor = self.down(functional.gelu(self.up(x_btd)) * self.gate(x_btd))
        return changed


class _GatedMLP(_Gated):
    c_fc: nn.Module
    act: nn.Module
    c_proj: nn.Module
    dropout: nn.Dropout

    def forward(self, x_btd: Tensor) -> Tensor:
        changed: Tensor = self.c_proj(self.act(self.c_fc(x_btd)) * self.gate(x_btd))
        dropped: Tensor = self.dropout(changed)
        return dropped


class _GatedIntermediate(_Gated):
    def forward(self, x_btd: Tensor) -> Tensor:
        hidden: Tensor = super().forward(x_btd) * self.gate(x_btd)  # type: ignore[misc]
        return hidden


_MIXINS: dict[str, type[_Gated]] = {
    "FeedForward": _GatedFeedForward,
    "GPT2MLP": _GatedMLP,
    "BertIntermediate": _GatedIntermediate,
}

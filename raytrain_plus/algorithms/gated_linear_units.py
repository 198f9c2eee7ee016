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
    """Multiply the hidden layer of each feed-forward by a linear gate of its input.

    The hidden layer keeps its width, so that a feed-forward has half as many parameters again; to
    compare at equal size, give the model's hidden layers two thirds of their width.

    Attributes:
        std: standard deviation of the gate's initial weights; its bias begins at 1, so that at 0
            the model begins as the one without gates. Default 0.02.
    """

    runs_before = ("Factorize",)  # a gate is made like the layer next to it, not like its factors

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
        generator: on the CPU, of the gates' weights; None for torch's global one.
        optimizer: is given the gates, in the parameter group of the layer `up`.

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
    """Return the channels that go in and out; GPT-2's linear layers lie transposed."""
    weight: Any = linear.weight
    first, second = weight.shape
    return (second, first) if isinstance(linear, nn.Linear) else (first, second)


class _Gated:
    """What a feed-forward and its kinds of gates have in common."""

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

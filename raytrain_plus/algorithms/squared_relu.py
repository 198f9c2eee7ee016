"""Squared ReLU in feed-forward layers (So et al. 2021, "Primer", arXiv 2109.08668)."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.surgery import Surgery
from raytrain_plus.algorithms.transformer_layers import FEED_FORWARD, layers


class SquaredReLU(Aspect):
    """Make each feed-forward compute `down(relu(up(x)) ** 2)`, in place of its own activation."""

    conflicts_with = ("GatedLinearUnits",)

    def fit(self, step: Step) -> Advice:
        """Replace the activations; the plain model has its own again."""
        surgery = apply_squared_relu(step.model, step.optimizer)
        surgery.warn_if_unchanged("SquaredReLU", f"modules of {', '.join(FEED_FORWARD)}")
        yield
        surgery.undo()


def apply_squared_relu(model: nn.Module, optimizer: Optimizer | None = None) -> Surgery:
    """Replace the activation of each feed-forward of a model with the square of a ReLU.

    Args:
        model: GPT of this package, or GPT-2 or BERT of `transformers`.
        optimizer: may be left out; no parameter is added.
    """
    surgery = Surgery(model, optimizer)
    for name, module, path, _ in layers(surgery, FEED_FORWARD, _Squared):
        surgery.mix_in(name, module, _MIXINS[path.rpartition(".")[2]])
    return surgery


def squared_relu(x: Tensor) -> Tensor:
    """Return the square of each element above zero, and zero for the others; any shape."""
    return functional.relu(x).square()


class _Squared:
    """The base of all feed-forwards with this activation."""


class _SquaredFeedForward(_Squared):
    up: nn.Linear
    down: nn.Linear

    def forward(self, x_btd: Tensor) -> Tensor:
        changed: Tensor = self.down(squared_relu(self.up(x_btd)))
        return changed


class _SquaredMLP(_Squared):
    c_fc: nn.Module
    c_proj: nn.Module
    dropout: nn.Dropout

    def forward(self, x_btd: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(self.c_proj(squared_relu(self.c_fc(x_btd))))
        return dropped


class _SquaredIntermediate(_Squared):
    dense: nn.Linear

    def forward(self, hidden_states: Tensor, *_: Any) -> Tensor:
        return squared_relu(self.dense(hidden_states))


_MIXINS: dict[str, type[_Squared]] = {
    "FeedForward": _SquaredFeedForward,
    "GPT2MLP": _SquaredMLP,
    "BertIntermediate": _SquaredIntermediate,
}

"""Short convolutions along the sequence, before attention (So et al. 2021, arXiv 2109.08668).

"Primer" found them in a search over programs: a convolution of each channel alone, three tokens
wide, after each projection to queries, keys and values. Attention then need not learn to combine
neighbouring tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.surgery import Surgery
from raytrain_plus.algorithms.transformer_layers import PROJECTIONS, cached_tokens, layers


class AttentionConvolution(Aspect):
    """Mix each channel of queries, keys and values with the same channel of neighbouring tokens.

    In causal attention the convolution is causal, too. It starts as the identity, so that the model
    starts as the one without it.

    Attributes:
        width: number of tokens that are mixed, with the token itself. Default 3.
    """

    runs_before = ("Factorize",)  # it skips layers that another method has changed

    width: int = Field(default=3, ge=2, le=32)

    def fit(self, step: Step) -> Advice:
        """Add the convolutions; they are lost in the plain model."""
        surgery = apply_attention_convolution(
            step.model, width=self.width, optimizer=step.optimizer
        )
        surgery.warn_if_unchanged("AttentionConvolution", f"modules of {', '.join(PROJECTIONS)}")
        yield
        surgery.undo()


def apply_attention_convolution(
    model: nn.Module, *, width: int = 3, optimizer: Optimizer | None = None
) -> Surgery:
    """Add a convolution after each projection to queries, keys and values of a model.

    Args:
        model: GPT of this package, or GPT-2 or BERT of `transformers`. GPT-2 cannot generate with a
            cache then: the tokens before would be missing.
        width: number of tokens that are mixed, with the token itself. Default 3.
        optimizer: gets the convolutions, in the parameter group of their projection's bias. That
            group often has no weight decay, which would pull the identity towards zero.

    Raises:
        AspectError: the optimizer does not train the bias of a projection.
    """
    surgery = Surgery(model, optimizer)
    for name, attention, path, keys in list(layers(surgery, PROJECTIONS, _Convolved)):
        if getattr(attention, "is_cross_attention", False):
            continue  # the keys are tokens of another sequence, not neighbours
        looks_both_ways = path.endswith("BertSelfAttention")
        may_have_cache = path.endswith("GPT2Attention")
        surgery.mix_in(name, attention, _ConvolvedWithoutCache if may_have_cache else _Convolved)
        for key in keys:
            projection: Any = getattr(attention, key)
            channels = projection.bias.numel()
            taps = Taps(width, channels, first=-(width // 2) if looks_both_ways else 0)
            surgery.mix_in(f"{name}.{key}", projection, _ThenTaps)
            surgery.add_module(projection, "taps", taps, like=projection.bias)
    return surgery


class Taps(nn.Module):
    """A convolution of each channel alone, along the sequence.

    Args:
        width: number of tokens that are mixed.
        channels: D.
        first: how far back the last of them is: 0 is the token itself, -1 the one after it.

    Attributes:
        weight: shape (width, D); row i is for the token `first + i` back.
    """

    def __init__(self, width: int, channels: int, first: int = 0) -> None:
        super().__init__()
        self.first = first
        identity = torch.zeros(width, channels)
        identity[-first] = 1.0
        self.weight = nn.Parameter(identity)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D); tokens beyond the ends count as zero."""
        mixed: Tensor = _Mix.apply(x_btd, self.weight.to(x_btd.dtype), self.first)  # type: ignore[no-untyped-call]
        return mixed


class _Mix(torch.autograd.Function):
    """The convolution, with a gradient in half as many passes over memory as autograd needs."""

    @staticmethod
    def forward(ctx: Any, x_btd: Tensor, weight: Tensor, first: int) -> Tensor:
        ctx.save_for_backward(x_btd, weight)
        ctx.first = first
        mixed = x_btd * weight[-first]
        for i, here, there in _neighbours(len(weight), first, x_btd.shape[1]):
            mixed[:, here].addcmul_(x_btd[:, there], weight[i])
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        x_btd, weight = ctx.saved_tensors
        of_x = gradient * weight[-ctx.first]
        of_weight = torch.zeros_like(weight)
        of_weight[-ctx.first] = (gradient * x_btd).sum((0, 1))
        for i, here, there in _neighbours(len(weight), ctx.first, x_btd.shape[1]):
            of_x[:, there].addcmul_(gradient[:, here], weight[i])
            of_weight[i] = (gradient[:, here] * x_btd[:, there]).sum((0, 1))
        return of_x, of_weight, None


def _neighbours(width: int, first: int, tokens: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield (row of the weight, tokens, their neighbours) for all but the tokens themselves."""
    for i in range(width):
        back = first + i
        if back and abs(back) < tokens:
            here, there = slice(max(back, 0), tokens + min(back, 0)), max(-back, 0)
            yield i, here, slice(there, there + tokens - abs(back))


class _Convolved:
    """Marks attention whose projections have convolutions."""


class _ConvolvedWithoutCache(_Convolved):
    """For GPT-2's attention, which may get the keys and values of earlier tokens."""

    layer_idx: int

    def forward(self, hidden_states: Tensor, **given: Any) -> Any:
        if cached_tokens(given, self.layer_idx):
            raise AspectError(
                "AttentionConvolution cannot go on from a cache, which does not hold the tokens "
                "that it mixes: generate with use_cache=False"
            )
        return super().forward(hidden_states, **given)  # type: ignore[misc]


class _ThenTaps:
    """For a projection: a convolution of its output."""

    taps: Taps

    def forward(self, x_btd: Tensor) -> Tensor:
        mixed: Tensor = self.taps(super().forward(x_btd))  # type: ignore[misc]
        return mixed

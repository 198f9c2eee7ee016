"""ALiBi: attention with linear biases (Press, Smith, Lewis 2021, arXiv 2108.12409)."""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.surgery import Surgery
from raytrain_plus.algorithms.transformer_layers import (
    POSITIONS,
    SELF_ATTENTION,
    cached_tokens,
    embeddings,
    known,
    layers,
)

_MASKED_BY_ADDING = ("sdpa", "eager", None)  # None: no choice was made, and eager is used


class ALiBi(Aspect):
    """Make attention weaker with the distance between tokens; no position embeddings are used.

    The position embeddings are frozen and not looked up. Undoing restores them unchanged.
    """

    def fit(self, step: Step) -> Advice:
        """Bias attention by distance."""
        surgery = apply_alibi(step.model, step.optimizer)
        surgery.warn_if_unchanged("ALiBi", "attention without a bias")
        yield
        surgery.undo()


def apply_alibi(model: nn.Module, optimizer: Optimizer | None = None) -> Surgery:
    """Bias each self-attention of a model by distance, and make its position embeddings zero.

    Args:
        model: GPT of this package, or GPT-2 or BERT of `transformers` with `sdpa` or `eager`
            attention. BERT attends in both directions: its bias uses the distance |i - j|.
        optimizer: may be left out; no parameter is added.

    Raises:
        AspectError: the model has no known attention, or its attention does not add a mask.
    """
    surgery = Surgery(model, optimizer)
    if not any(known(module, SELF_ATTENTION) for module in model.modules()):
        raise AspectError(
            f"ALiBi knows no attention in {type(model).__name__}: it looked for modules of the "
            f"classes {', '.join(SELF_ATTENTION)}. Use such a model, or leave ALiBi out"
        )
    for name, module, _, heads in layers(surgery, SELF_ATTENTION, _BiasedByDistance):
        if getattr(module, "is_cross_attention", False):
            continue  # tokens of two sequences have no distance
        if not hasattr(module, "attend"):
            _check_implementation(name, module)
            count = getattr(module, heads)
            surgery.mix_in(name, module, _MaskWithDistance, alibi_heads=count)
        else:
            surgery.mix_in(name, module, _AttendWithDistance)
    for name, _, _, embedding in embeddings(model, POSITIONS):
        if not isinstance(embedding, _NoPosition):
            surgery.mix_in(name, embedding, _NoPosition)
            _freeze(surgery, embedding)
    return surgery


@functools.lru_cache(maxsize=4)
def distance_bias(
    heads: int,
    queries: int,
    keys: int,
    *,
    first: int = 0,
    causal: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return what ALiBi adds to q k / sqrt(d): minus the distance times the head's slope.

    The tensor is shared between calls and must not be changed.

    Args:
        heads: number of heads; see `slopes`.
        queries: number of queries; query 0 is at position `first`.
        keys: number of keys; key 0 is at position 0.
        first: number of keys before the first query. Default 0.
        causal: whether keys after the query get minus infinity. Default True.
        dtype: of the queries. Default float32.
        device: of the queries. Default the CPU.

    Returns:
        Shape (1, heads, queries, keys).
    """
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(mode=False):
        i = torch.arange(first, first + queries, device=device)[:, None]
        j = torch.arange(keys, device=device)[None, :]
        each = torch.tensor(slopes(heads), dtype=torch.float32, device=device)
        bias = -each[:, None, None] * (i - j).abs()
        if causal:
            bias = bias.masked_fill(j > i, -math.inf)
        return bias[None].to(dtype)


def slopes(heads: int) -> list[float]:
    """Return the slope of each head: the geometric sequence 2^(-8/heads), 2^(-16/heads), ...

    If `heads` is not a power of two, the sequence for the next lower power comes first. Every other
    slope of the next higher power follows.

    Raises:
        AspectError: `heads` is below 1.
    """
    if heads < 1:
        raise AspectError(f"ALiBi for {heads} heads: there must be at least 1")
    below = 1 << (heads.bit_length() - 1)
    sequence = [2 ** (-8 * (k + 1) / below) for k in range(below)]
    between = [2 ** (-4 * (k + 1) / below) for k in range(0, 2 * below, 2)]
    return sequence + between[: heads - below]


class _BiasedByDistance:
    """Marks attention that is biased already."""


class _AttendWithDistance(_BiasedByDistance):
    """For attention with its own method for what follows the projections."""

    def attend(self, q_bhtd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> Tensor:
        _, heads, t, _ = q_bhtd.shape
        bias = distance_bias(heads, t, t, dtype=q_bhtd.dtype, device=q_bhtd.device)
        attended: Tensor = functional.scaled_dot_product_attention(
            q_bhtd, k_bhtd, v_bhtd, attn_mask=bias
        )
        return attended


class _MaskWithDistance(_BiasedByDistance):
    """For attention of `transformers`: all of its implementations add a mask of floats."""

    alibi_heads: int
    is_causal: bool
    layer_idx: int

    def forward(
        self, hidden_states: Tensor, *, attention_mask: Tensor | None = None, **given: Any
    ) -> Any:
        first = cached_tokens(given, self.layer_idx)
        queries = hidden_states.shape[1]
        bias = distance_bias(
            self.alibi_heads,
            queries,
            first + queries if attention_mask is None else attention_mask.shape[-1],
            first=first,
            # Without a mask the layer uses its `is_causal` flag, which is ignored as soon as there
            # is a mask.
            causal=attention_mask is None and self.is_causal,
            dtype=hidden_states.dtype,
            device=hidden_states.device,
        )
        if attention_mask is None:
            mask = bias
        elif attention_mask.dtype == torch.bool:
            # Not infinite: some attention kernels cannot handle a row of infinities only, and a row
            # of padding is masked as a whole.
            mask = torch.where(attention_mask, bias, torch.finfo(bias.dtype).min)
        else:
            mask = bias + attention_mask
        return super().forward(hidden_states, attention_mask=mask, **given)  # type: ignore[misc]


class _NoPosition:
    """For a position embedding: zero for each position, also beyond the embedding's size."""

    weight: nn.Parameter
    embedding_dim: int

    def forward(self, positions: Tensor) -> Tensor:
        return self.weight.new_zeros((*positions.shape, self.embedding_dim))


def _freeze(surgery: Surgery, embedding: nn.Embedding) -> None:
    """Keep weight decay away from parameters without a gradient, until the surgery is undone."""
    before = embedding.weight.requires_grad
    embedding.requires_grad_(requires_grad=False)

    def undo() -> None:
        embedding.requires_grad_(requires_grad=before)

    surgery.on_undo(undo)


def _check_implementation(name: str, module: nn.Module) -> None:
    config: Any = module.config
    chosen = config._attn_implementation  # noqa: SLF001 - there is no public name for it
    if chosen not in _MASKED_BY_ADDING:
        raise AspectError(
            f"ALiBi cannot bias the attention {name!r}, whose implementation is {chosen!r}: make "
            "the model with attn_implementation='sdpa' or 'eager'"
        )

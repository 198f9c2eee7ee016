"""Embeddings of hashed n-grams, added to those of tokens (Pagnoni et al. 2024, arXiv 2412.09871).

The "Byte Latent Transformer" gives its layers the last few bytes at once: each n-gram that ends at
a byte is hashed to a row of a table, and the rows are added to the byte's own embedding. The model
can then look up which tokens often follow, which a small transformer would have to compute. A table
costs memory, but hardly any arithmetic.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.surgery import Surgery
from raytrain_plus.algorithms.transformer_layers import WORDS, cached_tokens, embeddings

# Odd 64-bit constants, as signed numbers: Knuth's for a polynomial, splitmix64's to mix its bits.
_BASE = 6364136223846793005
_MIX = -0x61C8864680B583EB
_HIGH_BITS = 31


class NGramEmbeddings(Aspect):
    """Add the embeddings of all n-grams that end at a token to the token's embedding.

    The tables start at zero, so that the model starts as the one without them.

    Attributes:
        longest: the most tokens of an n-gram; the least are 2. Default 3.
        buckets: rows of the table for each length; n-grams in one row share what is learnt.
            Default 4096.
    """

    longest: int = Field(default=3, ge=2, le=8)
    buckets: int = Field(default=4096, ge=2)

    def fit(self, step: Step) -> Advice:
        """Add the tables; they are lost in the plain model."""
        surgery = apply_n_gram_embeddings(
            step.model, longest=self.longest, buckets=self.buckets, optimizer=step.optimizer
        )
        surgery.warn_if_unchanged("NGramEmbeddings", f"modules of {', '.join(WORDS)}")
        yield
        surgery.undo()


def apply_n_gram_embeddings(
    model: nn.Module, *, longest: int = 3, buckets: int = 4096, optimizer: Optimizer | None = None
) -> Surgery:
    """Make a model's token embedding look up n-grams, too.

    Args:
        model: GPT of this package, or GPT-2 or BERT of `transformers`. GPT-2 cannot generate with a
            cache then: the tokens before would be missing.
        longest: the most tokens of an n-gram; the least are 2. Default 3.
        buckets: rows of the table for each length. Default 4096.
        optimizer: gets the tables, in the parameter group of the token embedding.

    Raises:
        AspectError: the optimizer does not train the token embedding.
    """
    surgery = Surgery(model, optimizer)
    for name, owner, path, embedding in list(embeddings(model, WORDS)):
        if isinstance(embedding, _WithNGrams):
            continue
        if path.endswith("GPT2Model"):
            surgery.mix_in(name.rpartition(".")[0], owner, _WithoutCache)
        weight: Any = embedding.weight
        tables = [_zeros(buckets, embedding.embedding_dim) for _ in range(1, longest)]
        surgery.mix_in(name, embedding, _WithNGrams)
        surgery.add_module(embedding, "n_grams", nn.ModuleList(tables), like=weight)
    return surgery


def n_gram_buckets(tokens_bt: Tensor, n: int, buckets: int) -> Tensor:
    """Return the bucket of the n-gram that ends at each token.

    Args:
        tokens_bt: shape (B, T), int64, at least 0; no tokens come before the first one of a row.
        n: number of tokens of an n-gram.
        buckets: number of buckets.

    Returns:
        Shape (B, T), from 0 to `buckets - 1`.
    """
    polynomial = torch.zeros_like(tokens_bt)
    for back in range(min(n, tokens_bt.shape[1])):
        # Modulo 2**64, by overflow. Plus 1, so that a missing token differs from token 0.
        factor = pow(_BASE, back, 1 << 64)
        signed = factor - (1 << 64) if factor >> 63 else factor
        kept = tokens_bt.shape[1] - back
        polynomial[:, back:] += (tokens_bt[:, :kept] + 1) * signed
    mixed = (polynomial ^ (polynomial >> _HIGH_BITS)) * _MIX
    return (mixed >> _HIGH_BITS).remainder(buckets)


def _zeros(rows: int, width: int) -> nn.Embedding:
    # Not by a constructor that draws weights: that would advance the global generator.
    table = nn.Embedding(rows, width, device="meta").to_empty(device="cpu")
    nn.init.zeros_(table.weight)
    return table


class _WithNGrams:
    """For a token embedding: adds the embeddings of n-grams."""

    n_grams: nn.ModuleList

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = super().forward(tokens)  # type: ignore[misc]
        rows = tokens.long()
        for n, table in enumerate(self.n_grams, 2):
            assert isinstance(table, nn.Embedding)
            embedded = embedded + table(n_gram_buckets(rows, n, table.num_embeddings))
        return embedded


class _WithoutCache:
    """For GPT-2, which may get the keys and values of earlier tokens, but not the tokens."""

    def forward(self, *given: Any, **named: Any) -> Any:
        if cached_tokens(named):
            raise AspectError(
                "NGramEmbeddings cannot continue from a cache, which does not hold the tokens "
                "before: generate with use_cache=False"
            )
        return super().forward(*given, **named)  # type: ignore[misc]

"""Embeddings of hashed n-grams, added to those of tokens (Pagnoni et al. 2024, arXiv 2412.09871).

The "Byte Latent Transformer" tells its layers of the last few bytes at once: each n-gram that ends
at a byte is hashed to a row of a table, and the rows are added to the byte's own embedding. What
follows often on certain tokens is then looked up, where a small transformer would have to compute
it. A table costs memory, and hardly any arithmetic.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.surgery import Surgery
from raytrain_plus.algorithms.transformer_layers import WORDS, cached_tokens, embeddings

# Odd constants of 64 bits, as signed numbers: Knuth's for a polynomial, and splitmix64's to mix it.
_BASE = 6364136223846793005
_MIX = -0x61C8864680B583EB
_HIGH_BITS = 31


class NGramEmbeddings(Aspect):
    """Add to each token's embedding one of each n-gram that ends with it.

    The tables begin at zero, and the model as the one without them.

    Attributes:
        longest: n-grams of 2 to so many tokens. Default 3.
        buckets: rows of the table for each length; n-grams that share a row share what is learnt.
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
    """Let a model's embedding of tokens look up n-grams, too.

    Args:
        model: GPT of this package, or GPT-2 or BERT of `transformers`. GPT-2 cannot generate with a
            cache then: the tokens before would be missing.
        longest: n-grams of 2 to so many tokens. Default 3.
        buckets: rows of the table for each length. Default 4096.
        optimizer: is given the tables, in the parameter group of the embedding of tokens.

    Raises:
        AspectError: the optimizer does not train the embedding of tokens.
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
    """Return in which bucket the n-gram falls that ends at each token.

    Args:
        tokens_bt: shape (B, T), int64, at least 0; before the first of a row stands nothing.
        n: how many tokens.
        buckets: how many there are.

    Returns:
        Shape (B, T), from 0 to `buckets - 1`.
    """
    polynomial = torch.zeros_like(tokens_bt)
    for back in range(min(n, tokens_bt.shape[1])):
        # Modulo 2**64, as overflow has it; 1 more, so that nothing is not token 0.
        factor = pow(_BASE, back, 1 << 64)
        signed = factor - (1 << 64) if factor >> 63 else factor
        kept = tokens_bt.shape[1] - back
        polynomial[:, back:] += (tokens_bt[:, :kept] + 1) * signed
    mixed = (polynomial ^ (polynomial >> _HIGH_BITS)) * _MIX
    return (mixed >> _HIGH_BITS).remainder(buckets)


def _zeros(rows: int, width: int) -> nn.Embedding:
    # Not drawn and then set to zero: that would move the generator that others draw from.
    table = nn.Embedding(rows, width, device="meta").to_empty(device="cpu")
    nn.init.zeros_(table.weight)
    return table


class _WithNGrams:
    """For an embedding of tokens: those of n-grams are added."""

    n_grams: nn.ModuleList

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = super().forward(tokens)  # type: ignore[misc]
        rows = tokens.long()
        for n, table in enumerate(self.n_grams, 2):
            assert isinstance(table, nn.Embedding)
            embedded = embedded + table(n_gram_buckets(rows, n, table.num_embeddings))
        return embedded


class _WithoutCache:
    """For GPT-2, which may be given the keys and values of tokens before, but not the tokens."""

    def forward(self, *given: Any, **named: Any) -> Any:
        if cached_tokens(named):
            raise AspectError(
                "NGramEmbeddings cannot go on from a cache, which does not hold the tokens before: "
                "generate with use_cache=False"
            )
        return super().forward(*given, **named)  # type: ignore[misc]

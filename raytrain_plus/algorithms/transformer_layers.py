"""Where transformers of known families have attention, embeddings and feed-forwards.

Classes are found by their import path, so that no library of models is imported. The paths of base
classes count, too, so that a subclass and a layer that another method has changed are found.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from raytrain_plus.algorithms.surgery import Surgery

_OURS = "raytrain_plus.models.gpt"
_GPT2 = "transformers.models.gpt2.modeling_gpt2"
_BERT = "transformers.models.bert.modeling_bert"

Entry = TypeVar("Entry")

SELF_ATTENTION: Mapping[str, str] = {
    f"{_OURS}.Attention": "heads",
    f"{_GPT2}.GPT2Attention": "num_heads",
    f"{_BERT}.BertSelfAttention": "num_attention_heads",
}
"""Class of a self-attention -> its attribute that is the number of heads."""

POSITIONS: Mapping[str, str] = {
    f"{_OURS}.GPT": "positions",
    f"{_GPT2}.GPT2Model": "wpe",
    f"{_BERT}.BertEmbeddings": "position_embeddings",
}
"""Class of a module -> its attribute that is the position embedding."""

WORDS: Mapping[str, str] = {
    f"{_OURS}.GPT": "words",
    f"{_GPT2}.GPT2Model": "wte",
    f"{_BERT}.BertEmbeddings": "word_embeddings",
}
"""Class of a module -> its attribute that is the token embedding."""

PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    f"{_OURS}.Attention": ("qkv",),
    f"{_GPT2}.GPT2Attention": ("c_attn",),
    f"{_BERT}.BertSelfAttention": ("query", "key", "value"),
}
"""Class of a self-attention -> its attributes that compute queries, keys and values."""

FEED_FORWARD: Mapping[str, str] = {
    f"{_OURS}.FeedForward": "up",
    f"{_GPT2}.GPT2MLP": "c_fc",
    f"{_BERT}.BertIntermediate": "dense",
}
"""Class of a feed-forward -> its attribute that is the linear layer before the nonlinearity."""


def known(module: nn.Module, table: Mapping[str, Entry]) -> tuple[str, Entry] | None:
    """Return the path and the table's entry of a module's class, or of one of its base classes."""
    for kind in type(module).__mro__:
        path = f"{kind.__module__}.{kind.__qualname__}"
        if path in table:
            return path, table[path]
    return None


def layers(
    surgery: Surgery, table: Mapping[str, Entry], mixin: type
) -> Iterator[tuple[str, nn.Module, str, Entry]]:
    """Yield (name, module, path of its class, entry) of modules in a table without the mixin."""
    for name, module in surgery.candidates(nn.Module, mixin):
        found = known(module, table)
        if found is not None:
            yield name, module, *found


def cached_tokens(given: Mapping[str, Any], layer: int = 0) -> int:
    """Return the number of tokens in the cache among the arguments of a `transformers` module."""
    cache = given.get("cache", given.get("past_key_values"))  # its older name
    return 0 if cache is None else int(cache.get_seq_length(layer))


def embeddings(
    model: nn.Module, table: Mapping[str, str]
) -> Iterator[tuple[str, nn.Module, str, nn.Embedding]]:
    """Yield (name, owner, path of its class, embedding) of a model's embeddings in a table."""
    for name, owner in list(model.named_modules()):
        found = known(owner, table)
        embedding: Any = None if found is None else getattr(owner, found[1])
        if found is not None and isinstance(embedding, nn.Embedding):
            yield f"{name}.{found[1]}".lstrip("."), owner, found[0], embedding

"""What a stream keeps about a column of token numbers: the tokenizer that made them.

So a model that knows too few tokens is refused before any worker starts, and so is data of another
tokenizer.
"""

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from raytrain_plus.streams.columns import DataError

Number = Annotated[int, Field(ge=0, lt=2**31)]


class Vocabulary(BaseModel):
    """The tokens of a column.

    Attributes:
        size: how many tokens there are: the largest number plus 1.
        tokenizer: the SHA-256 of the tokenizer's file `tokenizer.json`, in hex.
        begin, end: the tokens that were added before and after each document.
        pad: the token that fills sequences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, Field(ge=1, lt=2**31)]
    tokenizer: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    begin: tuple[Number, ...] = ()
    end: tuple[Number, ...] = ()
    pad: Number | None = None


Vocabularies: TypeAlias = Mapping[str, Vocabulary]


def check_vocabulary(vocabularies: Vocabularies, size: int | None) -> None:
    """Check that a model knows all tokens of some data.

    Args:
        vocabularies: column -> its tokens.
        size: how many tokens the model knows; None if that is not known.

    Raises:
        DataError: it knows fewer.
    """
    for name, found in vocabularies.items():
        if size is not None and found.size > size:
            raise DataError(
                f"column {name!r} has token numbers up to {found.size - 1:,}, and the model knows "
                f"{size:,} tokens (0 to {size - 1:,}): give the model a vocabulary of at least "
                f"{found.size:,}, or tokenize the data with the model's own tokenizer."
            )


def check_one_tokenizer(one: Vocabularies, other: Vocabularies, *names: str) -> None:
    """Check that data was made with one tokenizer.

    Args:
        one: column -> its tokens.
        other: the same of other data. A column that only one of them names is not compared.
        names: what the two are called in an error.

    Raises:
        DataError: a column was made with two.
    """
    for column in one.keys() & other.keys():
        if one[column].tokenizer != other[column].tokenizer:
            raise DataError(
                f"column {column!r} was made with different tokenizers: SHA-256 "
                f"{one[column].tokenizer[:12]} in {names[0]}, and {other[column].tokenizer[:12]} "
                f"in {names[1]}. Their numbers stand for different tokens: tokenize both with one."
            )

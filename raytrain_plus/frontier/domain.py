"""The values that a setting may have in a sweep: a range, a choice, or one fixed value."""

import math
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

Scalar = StrictBool | StrictInt | StrictFloat | StrictStr | None
"""A value that JSON, YAML and every search library can hold."""


class Range(BaseModel):
    """All numbers from `low` to `high`, both included.

    Attributes:
        low, high: the ends; if both are whole, only whole numbers belong to the range.
        log: whether to search on a logarithmic scale, as for a learning rate. Default no.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: StrictInt | StrictFloat
    high: StrictInt | StrictFloat
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"a range from {self.low} to {self.high} has no end: give numbers")
        if self.low >= self.high:
            raise ValueError(
                f"a range from {self.low} to {self.high} is empty: low must be below high"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"a range from {self.low} has no logarithm: low must be above zero")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers belong to the range."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def typical(self) -> int | float:
        """The middle; on a logarithmic scale if `log` is set."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return round(middle) if self.whole else middle

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values to try when the range itself is checked."""
        return (self.low, self.typical, self.high)

    def __contains__(self, value: object) -> bool:
        kind = int if self.whole else (int, float)
        return (
            isinstance(value, kind)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        )

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


class Choice(BaseModel):
    """One of several values; the first is the typical one.

    Attributes:
        values: numbers, texts, booleans or None; at least one, none twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[Scalar, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        texts = [repr(value) for value in self.values]
        if len(set(texts)) < len(texts):
            raise ValueError(f"a choice of {', '.join(texts)} holds a value twice: give it once")
        return self

    @property
    def typical(self) -> Scalar:
        """The first value."""
        return self.values[0]

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values to try when the choice itself is checked: all."""
        return self.values

    def __contains__(self, value: object) -> bool:
        # In Python True equals 1, but they are different settings.
        return any(
            value == known and isinstance(value, bool) == isinstance(known, bool)
            for known in self.values
        )

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.values))}"


Domain = Range | Choice

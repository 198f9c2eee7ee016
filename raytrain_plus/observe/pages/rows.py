"""A row of a page's table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of a table: what, how much, and a remark; with a colour where a bar has it."""

    what: str
    value: str
    remark: str = ""
    colour: int | None = None
    mono: bool = False

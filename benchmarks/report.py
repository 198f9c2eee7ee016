"""Options and output of a benchmark: its tables, and its results compared with their targets."""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]

_WIDTH = 120


@dataclass(frozen=True)
class Aim:
    """A measured number and its bound.

    Attributes:
        name: what the number is.
        value: the number.
        least, most: the bound; only one of them is set.
    """

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the number keeps the bound."""
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)

    def row(self) -> Row:
        """Return the aim as a row of a table."""
        bound = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return {"measured": self.name, "value": self.value, "aim": bound, "met": self.met}


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have: `quick` and `json`."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="shorter and noisier, for a first look")
    made.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    return made


def options(description: str) -> argparse.Namespace:
    """Read the options that all benchmarks have."""
    return parser(description).parse_args()


def median(values: Sequence[float], digits: int = 3) -> float:
    """Return the median, rounded."""
    return round(statistics.median(values), digits)


def table(title: str, rows: Sequence[Row]) -> Table:
    """Return rows with equal keys as a text table."""
    result = Table(title=title, title_justify="left")
    for key in rows[0]:
        result.add_column(key, justify="right")
    for row in rows:
        result.add_row(*(str(value) for value in row.values()))
    return result


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    Console(width=_WIDTH).print(table(title, rows))


def finish(aims: Sequence[Aim], results: dict[str, Any], *, as_json: bool) -> None:
    """Print which aims are met and, if asked, all results as a JSON object in the last line."""
    rows = [aim.row() for aim in aims]
    show("aims", rows)
    if as_json:
        print(json.dumps({"aims": rows, **results}))

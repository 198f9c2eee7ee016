"""The results of a long benchmark so far: appended line by line, and collected as Parquet."""

import json
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).parent / "data"
Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """Rows on disk, from which an interrupted benchmark continues.

    Attributes:
        name: the name of both files in `benchmarks/data`.
        key: makes a row's key; of rows with equal keys the last counts.
    """

    name: str
    key: Callable[[Row], Hashable]

    @property
    def table(self) -> Path:
        """The file of collected rows, which is committed to the repository."""
        return DATA / f"{self.name}.parquet"

    @property
    def lines(self) -> Path:
        """The file of rows that were appended since."""
        return DATA / f"{self.name}.jsonl"

    def rows(self) -> list[Row]:
        """Return all rows, in the order in which they were appended."""
        found: list[Row] = pq.read_table(self.table).to_pylist() if self.table.exists() else []
        if self.lines.exists():
            found += [json.loads(line) for line in self.lines.read_text().splitlines()]
        return list({self.key(row): row for row in found}.values())

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows; once this returns, no interrupt loses them."""
        with self.lines.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def collect(self) -> list[Row]:
        """Write all rows as Parquet, and return them."""
        rows = self.rows()
        pq.write_table(pa.Table.from_pylist(rows), self.table)
        return rows

"""Writes a run's values to a CSV file, one value per line."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_plus.loggers.protocol import LoggedRun, Logger, Row

_HEAD = b"position,step,time,name,value\n"


@dataclass
class CSVLogger(Logger):
    """Appends to a file with the columns position, step, time, name, value.

    `pandas.read_csv(file).pivot_table("value", "step", "name")` has one column per name.

    Attributes:
        file: where. Default: `metrics.csv` in the run's folder.
    """

    file: str | None = None

    def open(self, run: LoggedRun) -> int:
        """Cut off what a killed process has left unfinished."""
        self._path = Path(self.file) if self.file else run.folder / "metrics.csv"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists() or self._path.stat().st_size < len(_HEAD):
            self._path.write_bytes(_HEAD)
            return 0
        with self._path.open("r+b") as file:
            kept, last = _whole(file)
            file.truncate(kept)
        return last

    def write(self, rows: Sequence[Row]) -> None:
        """Append the values of the rows."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            place = row.position, row.step, f"{row.time:.3f}"
            for name, value in [*row.values.items(), *row.texts.items()]:
                one_line = value if isinstance(value, float) else " ".join(str(value).split())
                writer.writerow([*place, name, one_line])
        with self._path.open("ab") as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())

    def close(self, summary: Mapping[str, Any]) -> None:
        """Do nothing: everything is in the file."""


def _whole(file: Any) -> tuple[int, int]:
    """Return where the last row that is surely whole ends, and its position.

    The lines of the last position may be incomplete, so they are written again.
    """
    end, last, before = len(_HEAD), 0, (len(_HEAD), 0)
    file.seek(0)
    for line in file:
        if end == len(_HEAD) and line == _HEAD:
            continue
        if not line.endswith(b"\n"):
            break
        position = int(line.partition(b",")[0])
        if position != last:
            before = end, last
        end, last = end + len(line), position
    return before

"""Injected faults, logged by the process that they strike, a moment before they do.

Afterwards nothing says which of several faults has ended a worker.
"""

import json
from pathlib import Path

from pydantic import TypeAdapter

from raytrain_plus.elastic.protocol.faults import Fault

_FILE = "faults.jsonl"


class FaultLog:
    """The faults that have struck the workers of a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._read = 0

    def forget(self) -> None:
        """Forget the faults of an earlier run in this folder."""
        self._path.unlink(missing_ok=True)

    def add(self, worker: str, fault: Fault) -> None:
        """Write down that a fault is about to strike a worker."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([worker, TypeAdapter(Fault).dump_python(fault)]) + "\n")

    def new(self) -> dict[Fault, list[str]]:
        """Return the faults that have struck since the last call, and the workers they hit."""
        lines = self._lines()[self._read :]
        self._read += len(lines)
        found: dict[Fault, list[str]] = {}
        for worker, fault in map(json.loads, lines):
            found.setdefault(Fault(**fault), []).append(worker)
        return found

    def _lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []

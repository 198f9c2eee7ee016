"""Injected faults, logged by the process that they strike, a moment before they do.

Afterwards nothing says which of several faults has ended a worker.
"""

import json
import time
import uuid
from pathlib import Path

from pydantic import TypeAdapter

from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.storage.store import Folder, Store

_FILE = "faults.jsonl"
_FOLDER = "faults"  # in an object store, with one object for each fault


class FaultLog:
    """The faults that have struck the workers of a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Folder) -> None:
        self._lines = (
            _Lines(folder / _FILE)
            if isinstance(folder, Path)
            else _LinesInStore(folder.inside(_FOLDER))
        )

    def forget(self) -> None:
        """Forget the faults of an earlier run in this folder."""
        self._lines.clear()

    def add(self, worker: str, fault: Fault) -> None:
        """Write down that a fault is about to strike a worker."""
        self._lines.add(json.dumps([worker, TypeAdapter(Fault).dump_python(fault)]))

    def new(self) -> dict[Fault, list[str]]:
        """Return the faults that have struck since the last call, and the workers they hit."""
        found: dict[Fault, list[str]] = {}
        for worker, fault in map(json.loads, self._lines.new()):
            found.setdefault(Fault(**fault), []).append(worker)
        return found


class _Lines:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def add(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def new(self) -> list[str]:
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()[self._read :]
        self._read += len(lines)
        return lines


class _LinesInStore:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: set[str] = set()

    def clear(self) -> None:
        self._store.clear()

    def add(self, line: str) -> None:
        self._store.create(f"{time.time_ns():020d}-{uuid.uuid4().hex}.json", line.encode())

    def new(self) -> list[str]:
        names = [name for name in self._store.sizes() if name not in self._known]
        self._known.update(names)
        return [self._store.read(name).decode() for name in names]

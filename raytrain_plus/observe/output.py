"""What a task prints: kept in the run's folder, and shown by the process that follows the run.

A worker writes each line that its Python prints (prints, warnings, logging) also to a file of its
own, `logs/WORKER.log` in the run's folder, up to a limit. A process that follows the run reads the
new lines of these files and shows them with the worker's name, at a limited rate. The files have
all lines.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

FOLDER = "logs"
_MOST_BYTES = 16 << 20  # of one worker's file
_BURST, _RATE = 100, 10.0  # lines of one worker that are shown at once, and per second after that
_LINE = 2_000  # characters of a line that are shown
_RAYS_OWN = (":actor_name:", ":task_name:", ":job_id:")  # lines that Ray prints for itself


class _Tee:
    """A stream that also appends each whole line to a file."""

    def __init__(self, stream: TextIO, write: Callable[[str], None]) -> None:
        self._stream = stream
        self._write = write
        self._pending = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Write to the stream, and each line that is whole to the file."""
        with self._lock:
            *lines, self._pending = (self._pending + text).split("\n")
            if lines:
                self._write("".join(line + "\n" for line in lines))
        self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class OutputCapture:
    """Writes what this process prints from now on also to a file.

    Args:
        folder: the run's.
        worker: this worker's name.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self._path = folder / FOLDER / f"{worker}.log"
        self._left = _MOST_BYTES
        self._lock = threading.Lock()
        self._streams = [
            one._stream if isinstance(one, _Tee) else one  # noqa: SLF001 - our own, of another run
            for one in (sys.stdout, sys.stderr)
        ]
        sys.stdout, sys.stderr = (_Tee(one, self._append) for one in self._streams)

    def close(self) -> None:
        """Give the process its streams back."""
        sys.stdout, sys.stderr = self._streams

    def _append(self, text: str) -> None:
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith(_RAYS_OWN)]
        data = "".join(lines).encode(errors="replace")
        with self._lock:
            if not data or self._left <= 0:
                return
            if len(data) > self._left:
                data = data[: self._left] + b"\n(this file is full; later lines are not kept)\n"
            self._left -= len(data)
            with contextlib.suppress(OSError):  # a print must not fail because a disk is full
                self._path.parent.mkdir(exist_ok=True)
                with self._path.open("ab") as file:
                    file.write(data)


class Tail:
    """Reads the lines that workers have written since the last look.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._offsets = {path: path.stat().st_size for path in self._files()}
        self._budgets: dict[Path, _Budget] = {}

    def new(self, now: float, *, last: bool = False) -> Iterator[str]:
        """Yield the new lines to show, each with its worker's name.

        Args:
            now: a clock's seconds.
            last: whether this is the last look, which counts all lines that were not shown.
        """
        for path in self._files():
            lines = self._read(path)
            budget = self._budgets.setdefault(path, _Budget())
            shown, hidden = budget.spend(len(lines), now, last=last)
            for line in lines[:shown]:
                text = line if len(line) <= _LINE else line[:_LINE] + " ..."
                yield f"[{path.stem}] {text}"
            if hidden:
                yield f"[{path.stem}] ({hidden:,} more lines are in {path})"

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.log")) if self._folder.is_dir() else []

    def _read(self, path: Path) -> list[str]:
        offset = self._offsets.get(path, 0)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[path] = offset + len(whole)
        return whole.decode(errors="replace").splitlines()


class _Budget:
    """How many lines of one worker may be shown: a burst, and then a rate."""

    def __init__(self) -> None:
        self._left = float(_BURST)
        self._at: float | None = None
        self._hidden = 0

    def spend(self, lines: int, now: float, *, last: bool) -> tuple[int, int]:
        """Return how many of the new lines to show, and how many hidden lines to mention."""
        if self._at is not None:
            self._left = min(_BURST, self._left + _RATE * (now - self._at))
        self._at = now
        shown = min(lines, int(self._left))
        self._left -= shown
        self._hidden += lines - shown
        if self._left < 1 and not last:
            return shown, 0  # to mention hidden lines each time would be a flood, too
        hidden, self._hidden = self._hidden, 0
        return shown, hidden

"""What a task prints: kept in the run's folder, and shown by the process that follows the run.

What the Python of a worker prints (prints, warnings, logging, in any thread) goes line by line to
`logs/WORKER.log` in the run's folder. A line is in the file when `print` returns, so the last lines
of a worker that is killed are there. Secrets are replaced. A task that prints without end slows no
step and fills no disk: above a rate, lines are counted and left out, and the file is continued in
further ones, of which the first and the newest are kept.

A process that follows the run shows the new lines with the worker's name, at a lower rate. The same
warning of several workers is shown once, with the count.
"""

import contextlib
import functools
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from raytrain_plus.redaction import redact
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.store import Folder, Store

FOLDER = "logs"
_MOST_BYTES = 4 << 20  # of one file
_FILES = 4  # of one worker: the first and the newest
_KEPT_BURST, _KEPT_RATE = 2_000, 200.0  # lines of one worker that are kept at once, and per second
_LAST = 20  # lines of those that were left out that are kept all the same
_TICK = 1.0  # seconds between two looks at what has been left out
_EARLY = 1_000  # lines that are kept in memory until the run's folder is known
_BURST, _RATE = 100, 10.0  # lines of one worker that are shown at once, and per second after that
_LINE = 2_000  # characters of a line that are shown
_LONGEST = 8_192  # characters without an end of line after which a line ends
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 5.0  # seconds between two looks at an object store
_STORE_SECONDS = 5.0  # for its answer
_REPEATED = 5.0  # seconds between two reports of repeated warnings
_RAYS_OWN = (":actor_name:", ":task_name:", ":job_id:")  # lines that Ray prints for itself
_WARNING = re.compile(r"\S.*:\d+: (?:\w+\.)*\w*Warning: |WARNING[:\s]")


class Budget:
    """How many lines may pass: a burst, and then a rate.

    Args:
        burst: lines.
        rate: lines per second.
    """

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._at: float | None = None

    def spend(self, lines: int, now: float) -> int:
        """Return how many of some lines may pass.

        Args:
            lines: how many there are.
            now: a clock's seconds.
        """
        if self._at is not None:
            self._left = min(self._burst, self._left + self._rate * (now - self._at))
        self._at = now
        passing = min(lines, int(self._left))
        self._left -= passing
        return passing

    @property
    def is_spent(self) -> bool:
        """Whether no line may pass now."""
        return self._left < 1


class _Files:
    """The files of one worker's output, each of a limited size.

    Args:
        folder: where they are.
        worker: its name.

    Raises:
        OSError: they cannot be written.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self._folder, self._worker = folder, worker
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [number_of(path) for path in folder.glob(f"{worker}*.log") if is_of(path, worker)]
        self._open(max(numbers, default=0))

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._worker}{f'.{number}' if number else ''}.log"

    def _open(self, number: int) -> None:
        self._number = number
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path(number), flags, 0o644)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append whole lines.

        Raises:
            OSError: they cannot be written.
        """
        if self._size + len(data) > _MOST_BYTES and self._size:
            self._go_on()
        self._size += len(data)
        os.write(self._descriptor, data)

    def _go_on(self) -> None:
        """Continue in the next file, and remove one from the middle."""
        os.close(self._descriptor)
        self._open(self._number + 1)
        surplus = self._path(self._number - _FILES + 1)
        if self._number - _FILES + 1 > 0 and surplus.exists():
            lines = surplus.read_bytes().count(b"\n")
            surplus.unlink()
            told = f"({lines:,} lines, those of {surplus.name}, were left out: too many)\n"
            self._size += os.write(self._descriptor, told.encode())

    def show(self) -> None:
        """Let other hosts see what was written: closing a file does, also on NFS."""
        os.close(os.dup(self._descriptor))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class _Tee:
    """A stream whose whole lines are kept.

    Args:
        stream: the stream that it replaces.
        keep: keeps a line; returns whether the stream gets it, too.
    """

    def __init__(self, stream: TextIO, keep: Callable[[str], bool]) -> None:
        self._stream = stream
        self._keep = keep
        self._pending = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Keep each line that is whole."""
        with self._lock:
            if "\n" not in text and "\r" not in text and len(self._pending) < _LONGEST:
                self._pending += text
                return len(text)
            *lines, self._pending = (self._pending + text).split("\n")
            if "\r" in self._pending:  # a progress bar writes over its line
                self._pending = self._pending[self._pending.rstrip("\r").rfind("\r") + 1 :]
            if len(self._pending) > _LONGEST:
                lines, self._pending = [*lines, self._pending], ""
            shown = [line for line in lines if self._keep(line)]
        if shown:
            self._stream.write("".join(f"{line}\n" for line in shown))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def end_line(self) -> None:
        """Keep what was written without an end of line."""
        with self._lock, contextlib.suppress(ValueError):  # the stream may be closed
            line, self._pending = self._pending, ""
            if line and self._keep(line):
                self._stream.write(f"{line}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Through(_Tee):
    """A stream whose lines are kept, and which gets all that is written at once."""

    def write(self, text: str) -> int:
        """Write to the stream, and keep each line that is whole."""
        super().write(text)
        self._stream.write(text)
        return len(text)


class OutputCapture:
    """Keeps what this process prints from now on, for the run that it serves.

    Lines from before it serves a run are kept for the first one. What cannot be kept goes to the
    process's own streams, as do lines outside of a run.

    Args:
        forwards: the process's own streams get everything, too, as in a local run. Default: a
            worker's output is in one place.
        clock: gives monotonic seconds. Default: the machine's.
    """

    def __init__(
        self, *, forwards: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._files: _Files | None = None
        self._early: deque[str] = deque(maxlen=_EARLY)
        self._start_counting()
        self._streams = sys.stdout, sys.stderr
        kind = _Through if forwards else _Tee
        keep = (lambda line: self._keep(line) and False) if forwards else self._keep
        self._tees = [kind(stream, keep) for stream in self._streams]
        sys.stdout, sys.stderr = self._tees
        self._printed = threading.Event()
        self._closed = False
        threading.Thread(target=self._tick, daemon=True, name="raytrain_plus output").start()
        os.register_at_fork(after_in_child=self._renew_locks)

    def _renew_locks(self) -> None:
        """Let a forked child print, even if another thread of its parent was printing."""
        self._lock = threading.RLock()
        for tee in self._tees:
            tee._lock = threading.RLock()  # noqa: SLF001 - our own

    def _start_counting(self) -> None:
        self._budget = Budget(_KEPT_BURST, _KEPT_RATE)
        self._left_out = 0
        self._last: deque[str] = deque(maxlen=_LAST)

    def serve(self, folder: Path, worker: str) -> None:
        """Keep lines in a run's folder from now on.

        Args:
            folder: the run's.
            worker: the name of the worker.
        """
        self.release()
        with self._lock:
            self._start_counting()
            with contextlib.suppress(OSError):  # then the process's own streams get everything
                self._files = _Files(folder / FOLDER, worker)
                early, self._early = list(self._early), deque(maxlen=_EARLY)
                for line in early:
                    self._write(line)

    def release(self) -> None:
        """Keep lines no longer; what is not written yet is written first."""
        for tee in self._tees:
            tee.end_line()
        with self._lock:
            files, self._files = self._files, None
            if files is not None:
                self._say_left_out(files)
                files.close()
                self._early.clear()

    def close(self) -> None:
        """Give the process its streams back."""
        self.release()
        self._closed = True
        self._printed.set()
        for name, tee, stream in zip(("stdout", "stderr"), self._tees, self._streams, strict=True):
            if getattr(sys, name) is tee:
                setattr(sys, name, stream)

    def _keep(self, line: str) -> bool:
        """Keep a line; returns whether the process's own stream gets it."""
        if line.startswith(_RAYS_OWN):
            return True
        with self._lock:
            if self._files is None:
                self._early.append(line)
                return True
            # In a flood all lines are left out until the next tick, not one here and one there.
            if not self._left_out and self._budget.spend(1, self._clock()):
                return not self._write(line)
            self._left_out += 1
            self._last.append(line)
        if not self._printed.is_set():
            self._printed.set()
        return False

    def _write(self, line: str) -> bool:
        assert self._files is not None
        try:
            self._files.write(_as_kept(line))
        except OSError:  # a print must not fail because a disk is full
            return False
        self._printed.set()
        return True

    def _say_left_out(self, files: _Files) -> None:
        left_out, last = self._left_out - len(self._last), list(self._last)
        self._left_out = 0
        self._last.clear()
        told = [f"({left_out:,} lines were left out here)"] if left_out else []
        for line in [*told, *last]:
            with contextlib.suppress(OSError):
                files.write(_as_kept(line))

    def _tick(self) -> None:
        """Now and then count what is left out, and let other hosts see what is written."""
        while True:
            self._printed.wait()
            if self._closed:
                return
            time.sleep(_TICK)
            self._printed.clear()
            self.settle()

    def settle(self) -> None:
        """Say what has been left out, and let other hosts see what is written."""
        with self._lock, contextlib.suppress(OSError):
            if self._files is not None:
                self._say_left_out(self._files)
                self._files.show()


def _as_kept(line: str) -> bytes:
    """Return a line without secrets, and without what it has written over."""
    _, _, text = line.rstrip("\r").rpartition("\r")
    return f"{redact(text)}\n".encode(errors="replace")


@functools.cache
def of_process() -> OutputCapture:
    """Return the capture of this process, a worker's; the first call installs it."""
    return OutputCapture()


def is_of(path: Path, worker: str) -> bool:
    """Say whether a file has output of a worker."""
    return path.name.split(".")[0] == worker


def number_of(path: Path) -> int:
    """Return the place of a file among those of its worker, from 0; -1 if it is none."""
    parts = path.name.split(".")[1:-1]
    return int(parts[0]) if len(parts) == 1 and parts[0].isdecimal() else -len(parts)


class Tail:
    """Reads the lines that workers have written since the last look.

    Args:
        folder: the run's. In an object store, lines come when the workers' nodes have copied them
            there, and the store is asked every few seconds.
    """

    def __init__(self, folder: Folder) -> None:
        inside = folder / FOLDER if isinstance(folder, Path) else folder.inside(FOLDER)
        self._kept: _KeptFiles | _KeptObjects = (
            _KeptFiles(inside) if isinstance(inside, Path) else _KeptObjects(inside)
        )
        self._offsets = self._kept.sizes(0.0)
        self._workers: dict[str, _Shown] = {}
        self._repeats = _Repeats()

    def new(self, now: float, *, last: bool = False) -> Iterator[str]:
        """Yield the new lines to show, each with its worker's name.

        Args:
            now: a clock's seconds.
            last: whether this is the last look, which counts all lines that were not shown.
        """
        sizes = self._kept.sizes(now, now_or_never=last)
        for name in sorted(sizes, key=lambda name: (name.split(".")[0], number_of(Path(name)))):
            worker = name.split(".")[0]
            shown = self._workers.setdefault(worker, _Shown())
            new = self._read(name, sizes[name])
            lines = [line for line in new if self._repeats.is_new(worker, line, now)]
            few, hidden = shown.spend(len(lines), now, last=last)
            for line in lines[:few]:
                text = line if len(line) <= _LINE else line[:_LINE] + " ..."
                yield f"[{worker}] {text}"
            if hidden:
                yield f"[{worker}] ({hidden:,} more lines are in {self._kept.where(name)})"
        yield from self._repeats.told(now, last=last)

    def _read(self, name: str, size: int) -> list[str]:
        offset = self._offsets.get(name, 0)
        if size <= offset:
            return []
        try:
            data = self._kept.read(name, offset, size)
        except (OSError, StorageError):
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[name] = offset + len(whole)
        return whole.decode(errors="replace").splitlines()


class _KeptFiles:
    """The files of all workers in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sizes(self, now: float, *, now_or_never: bool = False) -> dict[str, int]:
        """Return their bytes by name."""
        del now, now_or_never
        found = self._folder.glob("*.log") if self._folder.is_dir() else []
        return {path.name: path.stat().st_size for path in found}

    def read(self, name: str, start: int, end: int) -> bytes:
        """Return some of a file's bytes."""
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def where(self, name: str) -> str:
        """Return a file's path."""
        return str(self._folder / name)


class _KeptObjects:
    """The same in an object store, which is asked less often while nothing is new."""

    def __init__(self, store: Store) -> None:
        self._store = store.within(_STORE_SECONDS)
        self._sizes: dict[str, int] = {}
        self._look_at, self._pause = float("-inf"), _FIRST_PAUSE

    def sizes(self, now: float, *, now_or_never: bool = False) -> dict[str, int]:
        """Return their bytes by name; those of the last look if it is not time for another."""
        if now >= self._look_at or now_or_never:
            before = self._sizes
            with contextlib.suppress(StorageError):
                self._sizes = {n: s for n, s in self._store.sizes().items() if n.endswith(".log")}
            is_new = self._sizes != before
            self._pause = _FIRST_PAUSE if is_new else min(2 * self._pause, _LAST_PAUSE)
            self._look_at = now + self._pause
        return self._sizes

    def read(self, name: str, start: int, end: int) -> bytes:
        """Return some of an object's bytes."""
        return self._store.read_range(name, start, end)

    def where(self, name: str) -> str:
        """Return an object's URL."""
        return redact(self._store.where(name))


class _Shown:
    """How many lines of one worker are shown, and how many are not."""

    def __init__(self) -> None:
        self._budget = Budget(_BURST, _RATE)
        self._hidden = 0

    def spend(self, lines: int, now: float, *, last: bool) -> tuple[int, int]:
        """Return how many of the new lines to show, and how many hidden lines to mention."""
        shown = self._budget.spend(lines, now)
        self._hidden += lines - shown
        if self._budget.is_spent and not last:
            return shown, 0  # to mention hidden lines each time would be a flood, too
        hidden, self._hidden = self._hidden, 0
        return shown, hidden


class _Repeats:
    """Warnings that have been shown, and who has repeated them since."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._again: dict[str, list[str]] = {}
        self._skipping: set[str] = set()
        self._at = 0.0

    def is_new(self, worker: str, line: str, now: float) -> bool:
        """Say whether to show a line: all but a repeated warning and the code below it."""
        if not _WARNING.match(line):
            is_code = line.startswith("  ") and worker in self._skipping
            if not is_code:
                self._skipping.discard(worker)
            return not is_code
        if line not in self._known:
            self._known.add(line)
            self._skipping.discard(worker)
            return True
        if not self._again:
            self._at = now
        self._again.setdefault(line, []).append(worker)
        self._skipping.add(worker)
        return False

    def told(self, now: float, *, last: bool) -> Iterator[str]:
        """Yield a line for each warning that was repeated, if it is time for that."""
        if last or now - self._at >= _REPEATED:
            for line, workers in self._again.items():
                names = ", ".join(sorted(set(workers)))
                times = f"{len(workers):,} times" if len(workers) > 1 else "once"
                yield f"[{names}] (the same warning {times} more: {line[:_LINE]})"
            self._again = {}

"""A journal that survives a full disk, a read-only mount and a folder that is removed.

What cannot be written is kept in memory, in order, and written as soon as there is room again. A
journal that was removed or renamed is written again at its place, from the file that is still open.
Training goes on meanwhile, up to `MOST` lines.
"""

import contextlib
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from raytrain_plus.observe.events import Event
from raytrain_plus.observe.journal import Journal, Readable

MOST = 200_000
"""Lines that are kept; with more of them waiting the run ends."""

_RETRY = 1.0  # seconds between two tries
_COPY = 1 << 20  # bytes at once
_REMOVED = (
    "the run's folder {} was removed or renamed while the run lives: its journal is written again "
    "there, and what else was in it, such as checkpoints, is gone from there"
)


class DurableJournal:
    """Appends events to a run's journal at once, or when that is possible again.

    Args:
        folder: the run's folder, which must exist.
        open_journal: opens the journal. Default: `Journal`.
        most: lines that are kept. Default: `MOST`.
        clock: gives monotonic seconds. Default: the machine's.
        allowed: called before lines are written that had to wait; raises if another coordinator
            leads the run by now. Default: the run has no other one.

    Raises:
        OSError: the journal cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        open_journal: Callable[[Path], Journal] = Journal,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._allowed = allowed
        self._open = open_journal
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[Event] = []
        self._trouble = ""
        self._retry_at = 0.0
        self._journal = open_journal(folder)
        self._path = self._journal.path
        self._hold()

    @property
    def file(self) -> Readable:
        """The journal's file."""
        return self._path

    @property
    def trouble(self) -> str:
        """Why lines wait; empty if none does."""
        return self._trouble

    @property
    def fatal(self) -> str | None:
        """Why the run must end; None if it may go on."""
        if len(self._waiting) <= self._most:
            return None
        return (
            f"the journal {self._path} cannot be written ({self._trouble}), and "
            f"{len(self._waiting):,} of its lines wait in memory, which is more than the "
            f"{self._most:,} that may"
        )

    def write_all(self, events: list[Event]) -> list[Event]:
        """Append finished events, or keep them; returns them."""
        with self._lock:
            self._waiting += events
            self._flush()
        return events

    def write_through(self, wrap: Callable[[Journal], Journal]) -> None:
        """From now on write to what `wrap` returns for the journal; for fault injection."""
        with self._lock:
            self._journal = wrap(self._journal)

    def sync(self) -> None:
        """Return when all that was written is on the disk; a disk that fails is ignored."""
        with self._lock, contextlib.suppress(OSError):
            self._journal.sync()

    def flush(self) -> None:
        """Write the waiting events if that is possible again."""
        if self._waiting:
            with self._lock:
                self._flush()

    def waiting(self) -> list[Event]:
        """Return the events that wait to be written."""
        with self._lock:
            return list(self._waiting)

    def settle(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait for some seconds until all is written; then write the rest to a local file."""
        until = self._clock() + seconds
        while self._waiting and self._clock() < until:
            sleep(_RETRY)
            self.flush()
        if self._waiting:
            self._trouble += keep_elsewhere(self._waiting, self._open)

    def _flush(self) -> None:
        if self._trouble and self._clock() < self._retry_at:
            return
        if self._trouble:
            self._allowed()
        try:
            self._put_in_place()
            if self._waiting:
                self._journal.write_all(self._waiting)
        except OSError as error:
            self._trouble = error.strerror or str(error)
            self._retry_at = self._clock() + _RETRY
        else:
            self._waiting, self._trouble = [], ""

    def _put_in_place(self) -> None:
        """Write the journal again if it was removed or renamed."""
        held = os.fstat(self._held)
        path = self._path
        try:
            there = path.stat()
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._copy_to(path)
            self._journal.close()
            self._journal = self._open(self._folder)
            self._release()
            self._hold()
            said = {"event": "warning", "time": time.time(), "text": _REMOVED.format(self._folder)}
            self._waiting.insert(0, said)
            return
        if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise FileExistsError(0, f"another file is in the place of {path}")

    def _hold(self) -> None:
        """Hold the journal's file open, so that it can be written again if it is removed."""
        self._held = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._release = weakref.finalize(self, os.close, self._held)

    def _copy_to(self, path: Path) -> None:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".journal-")
        try:
            with os.fdopen(handle, "wb") as file:
                offset = 0
                while data := os.pread(self._held, _COPY, offset):
                    file.write(data)
                    offset += len(data)
            os.link(name, path)  # fails if there is one by now
        finally:
            with contextlib.suppress(OSError):
                Path(name).unlink()


def keep_elsewhere(events: list[Event], open_journal: Callable[[Path], Journal] = Journal) -> str:
    """Write the lines that a journal lacks to a file of this machine; returns where, for people.

    Args:
        events: the lines.
        open_journal: opens the file.
    """
    with contextlib.suppress(OSError):
        kept = open_journal(Path(tempfile.mkdtemp(prefix="raytrain_plus-journal-")))
        kept.write_all(events)
        kept.close()
        return f"; the {len(events):,} lines that it lacks are in {kept.path}"
    return ""

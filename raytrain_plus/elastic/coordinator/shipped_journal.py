"""The journal of a run in an object store, where each write is a request that takes its time.

Lines wait in memory, and a thread stores them in order: steps once a second, other events at
once. So the coordinator does not wait for the store. A batch whose request gave no answer is sent
again, unchanged, before the next one. If another process has taken the run over, the next segment
is there already; then every further write raises `FencedError`.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from raytrain_plus.elastic.coordinator.durable_journal import MOST, DurableJournal, keep_elsewhere
from raytrain_plus.observe.events import Event
from raytrain_plus.observe.journal import Journal, Readable
from raytrain_plus.observe.stored_journal import StoredJournal
from raytrain_plus.storage.errors import StorageError, StoreError
from raytrain_plus.storage.fencing import FencedError
from raytrain_plus.storage.segments import MERGED, SegmentWriter
from raytrain_plus.storage.store import Folder

_INTERVAL = 1.0  # seconds from one batch to the next, if it has steps only
_RETRY = 1.0  # seconds between two tries
_AT_ONCE = 5_000  # lines of a batch
_SYNC_SECONDS = 30.0


class CoordinatorJournal(Protocol):
    """What a coordinator writes its journal with; see `DurableJournal` for the methods."""

    @property
    def file(self) -> Readable:
        """The journal's file."""

    @property
    def trouble(self) -> str:
        """Why lines wait; empty if none does."""

    @property
    def fatal(self) -> str | None:
        """Why the run must end; None if it may go on."""

    def write_all(self, events: list[Event]) -> list[Event]:
        """Append finished events, or keep them; returns them."""

    def write_through(self, wrap: Callable[[Journal], Journal]) -> None:
        """From now on write to what `wrap` returns for the journal; for fault injection."""

    def sync(self) -> None:
        """Return when all that was written is stored."""

    def flush(self) -> None:
        """Write the waiting events if that is possible again."""

    def waiting(self) -> list[Event]:
        """Return the events that wait to be written."""

    def settle(self, seconds: float) -> None:
        """Wait for some seconds until all is written; then write the rest to a local file."""


def open_for_coordinator(
    folder: Folder, claim: str, allowed: Callable[[], None] = lambda: None
) -> CoordinatorJournal:
    """Open the journal of a run that this process leads.

    Args:
        folder: the run's.
        claim: of the run's driver.
        allowed: raises if another coordinator leads the run by now. An object store refuses its
            lines by itself. Default: the run has no other one.

    Raises:
        OSError: the journal cannot be opened.
        StoreError: likewise, in an object store.
    """
    if isinstance(folder, Path):
        return DurableJournal(folder, allowed=allowed)
    opened = StoredJournal(folder, claim)
    return ShippedJournal(opened, opened.segments)


class ShippedJournal:
    """Appends events to a journal from a thread of its own.

    Args:
        journal: stores a batch in one request.
        segments: of the journal, to be merged now and then. Default: nothing is merged.
        most: lines that are kept. Default: `MOST`.
        interval: seconds from one batch of steps to the next. Default 1.
    """

    def __init__(
        self,
        journal: Journal,
        segments: SegmentWriter | None = None,
        most: int = MOST,
        interval: float = _INTERVAL,
    ) -> None:
        self._journal = journal
        self._segments = segments
        self._most = most
        self._interval = interval
        self._changed = threading.Condition()
        self._waiting: list[Event] = []
        self._written = self._stored = 0  # events
        self._urgent = 0  # the event up to which they are sent at once
        self._trouble = ""
        self._fenced: FencedError | None = None
        self._tidying: threading.Thread | None = None
        threading.Thread(target=self._ship, daemon=True, name="raytrain_plus journal").start()

    @property
    def file(self) -> Readable:
        """The journal's file, as far as it is stored."""
        return self._journal.file

    @property
    def trouble(self) -> str:
        """Why lines wait; empty if the last request has succeeded."""
        return self._trouble

    @property
    def fatal(self) -> str | None:
        """Why the run must end; None if it may go on."""
        waiting = self._written - self._stored
        if waiting <= self._most:
            return None
        return (
            f"the journal {self.file} cannot be written ({self._trouble or 'the store is slow'}), "
            f"and {waiting:,} of its lines wait in memory, which is more than the {self._most:,} "
            "that may"
        )

    def write_all(self, events: list[Event]) -> list[Event]:
        """Keep finished events until they are stored; returns them.

        Only a withdrawal is waited for: what is computed after it contradicts what was stored.

        Raises:
            FencedError: another process has the run.
        """
        with self._changed:
            if self._fenced is not None:
                raise self._fenced
            self._waiting += events
            self._written += len(events)
            if any(event["event"] != "step" for event in events):
                self._urgent = self._written
            self._changed.notify_all()
        if any(event["event"] == "withdrawn" for event in events):
            with contextlib.suppress(StorageError):
                self.sync()
        return events

    def write_through(self, wrap: Callable[[Journal], Journal]) -> None:
        """From now on write to what `wrap` returns for the journal; for fault injection."""
        with self._changed:
            self._journal = wrap(self._journal)

    def sync(self, seconds: float = _SYNC_SECONDS) -> None:
        """Return when all that was written is stored.

        Raises:
            FencedError: another process has the run.
            StoreError: the store does not answer in time.
        """
        with self._changed:
            self._urgent = until = self._written
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stored >= until or self._fenced, seconds)
            if self._stored >= until:
                return
            if self._fenced is not None:
                raise self._fenced
            raise StoreError(
                f"the journal {self.file} could not be stored within {seconds:g} s: "
                f"{self._trouble or 'the store is slow'}"
            )

    def flush(self) -> None:
        """Return at once: the thread tries on its own.

        Raises:
            FencedError: another process has the run.
        """
        if self._fenced is not None:
            raise self._fenced

    def waiting(self) -> list[Event]:
        """Return the events that wait to be stored."""
        with self._changed:
            return list(self._waiting)

    def settle(self, seconds: float) -> None:
        """Wait for some seconds until all is stored; then write the rest to a local file."""
        with contextlib.suppress(StorageError):
            self.sync(seconds)
        if waiting := self.waiting():
            self._trouble += keep_elsewhere(waiting)

    def _ship(self) -> None:
        """Store batches until another process has the run."""
        began = float("-inf")
        while self._fenced is None:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                left = began + self._interval - time.monotonic()
                self._changed.wait_for(lambda: self._urgent > self._stored, max(0.0, left))
                batch = self._waiting[:_AT_ONCE]
            began = time.monotonic()
            self._store(batch)

    def _store(self, batch: list[Event]) -> None:
        """Store a batch, however often that must be tried."""
        while True:
            with self._changed:
                journal = self._journal
            try:
                journal.write_all(batch)
            except FencedError as error:
                with self._changed:
                    self._fenced = error
                    self._changed.notify_all()
                return
            except (StorageError, OSError) as error:
                self._trouble = getattr(error, "strerror", None) or str(error).rstrip(".")
                time.sleep(_RETRY)
                continue
            with self._changed:
                del self._waiting[: len(batch)]
                self._stored += len(batch)
                self._trouble = ""
                self._changed.notify_all()
            self._tidy()
            return

    def _tidy(self) -> None:
        """Let a thread merge segments, if there are many new ones."""
        segments = self._segments
        if segments is None or segments.number % MERGED:
            return
        if self._tidying is None or not self._tidying.is_alive():
            self._tidying = threading.Thread(target=_tidied, args=(segments,), daemon=True)
            self._tidying.start()


def _tidied(segments: SegmentWriter) -> None:
    with contextlib.suppress(StorageError):
        while segments.tidy():
            pass

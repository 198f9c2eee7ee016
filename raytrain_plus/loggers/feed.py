"""Feeds one logger from a run's journal, with a position that outlives every process.

The journal is the backlog: rows that a logger has not written yet are on disk, and never in memory.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from raytrain_plus.loggers.protocol import Logger, LoggerError, Row
from raytrain_plus.loggers.rows import Rows
from raytrain_plus.observe import journal
from raytrain_plus.observe.report.history import read_history
from raytrain_plus.observe.report.page import page_of
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.redaction import redact
from raytrain_plus.storage import atomic_files
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.store import Folder, Store, store_of

FOLDER = "loggers"
"""In a run's folder: how far each logger is."""

REPORT = "report.html"
"""In a run's folder: its report, as the loggers that keep files get it."""

_INTERVAL = 0.5  # seconds between two looks at the journal
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0  # seconds
_MOST_SECONDS, _STILL_SECONDS = 60.0, 10.0  # to wait for loggers after the run
_AT_ONCE = 1 << 20  # bytes of the journal that one `write` gets


@dataclass(frozen=True)
class Cursor:
    """How far a logger is.

    Attributes:
        position: of the last row that it has written.
        step: of that row.
        closed_at: time of the `end` event that it has been told of; 0.0 before.
        trouble: why it does not go on; empty if it does.
    """

    position: int = 0
    step: int = 0
    closed_at: float = 0.0
    trouble: str = ""


def read_cursor(folder: Folder, name: str) -> Cursor:
    """Return how far a logger of a run is.

    Args:
        folder: the run's.
        name: the logger's, in the run.
    """
    try:
        return Cursor(**json.loads(_cursors(folder).find(f"{name}.json") or b""))
    except (OSError, ValueError, TypeError):
        return Cursor()


def _cursors(folder: Folder) -> Store:
    return store_of(folder).inside(FOLDER)


class Feed:
    """Feeds one logger.

    Args:
        name: the logger's, in the run.
        make: returns the logger; called again after a failure.
        folder: the run's.
        group: its sweep, or None.
        clock: gives monotonic seconds.
        files: a local folder for the logger's files. Default: the run's folder; it must be local.

    Attributes:
        cursor: how far it is.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Logger],
        folder: Folder,
        group: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        files: Path | None = None,
    ) -> None:
        self._name = name
        self._make = make
        self._folder = folder
        self._group = group
        self._clock = clock
        self._files = files or store_of(folder).local_path
        self._journal = journal_of(folder)
        self.cursor = replace(read_cursor(folder, name), trouble="")
        self._retry, self._retry_at = _FIRST_RETRY, 0.0
        self._begin()

    def _begin(self) -> None:
        self._logger: Logger | None = None
        self._rows = Rows()
        self._offset = 0

    @property
    def is_done(self) -> bool:
        """Whether the run has ended and the logger has written all of it."""
        end = self._rows.end
        return end is not None and self.cursor.closed_at >= end.get("time", 0.0)

    def run(self, wait: Callable[[float], bool]) -> None:
        """Feed the logger until the run has ended.

        Args:
            wait: waits some seconds; returns whether to end at once.
        """
        while not self.is_done:
            if not self.look() and wait(_INTERVAL):
                return

    def look(self) -> bool:
        """Give the logger what is new; returns whether there may be more already.

        An error of the logger is kept in the cursor, and it is tried again later.
        """
        if self._clock() < self._retry_at:
            return False
        try:
            return self._look()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing in a logger ends a run
            self._fail(error)
            return False

    def _look(self) -> bool:
        before = self._offset
        events, self._offset = journal.follow(self._journal, before, _AT_ONCE)
        rows = []
        for event in events:
            row = self._rows.of(event)
            if row is not None and row.position > self.cursor.position:
                rows.append(row)
        if self._logger is None and self._rows.is_known:
            rows = self._open(rows)
        if rows and self._logger is not None:
            self._logger.write(rows)
            self._save(replace(self.cursor, position=rows[-1].position, step=rows[-1].step))
            self._retry = _FIRST_RETRY
        is_behind = self._offset - before >= _AT_ONCE
        if not is_behind and self._rows.end is not None and not self.is_done:
            self._close()
        return is_behind

    def _open(self, rows: list[Row]) -> list[Row]:
        """Open the logger; returns the rows that it has not written yet."""
        logger = self._make()
        kept = logger.open(
            self._rows.described(self._files, self._folder.name, self._group, self.cursor.step)
        )
        self._logger = logger
        if kept is not None and kept != self.cursor.position:
            self.cursor = replace(self.cursor, position=kept)
            self._rows, self._offset = Rows(), 0  # it may lack rows that were passed over
            return []
        return rows

    def _close(self) -> None:
        end = self._rows.end
        assert end is not None
        if self._logger is not None:
            if getattr(self._logger, "keeps_files", False):
                self._write_report(self._logger, end)
            self._logger.close(end)
            self._logger = None
        self._save(replace(self.cursor, closed_at=end.get("time", 0.0), trouble=""))

    def _write_report(self, logger: Logger, end: journal.Event) -> None:
        """Give a logger the run's report, once for each end of the run."""
        position, step, at = self._rows.ended_at, end.get("step", 0), end.get("time", 0.0)
        if position <= self.cursor.position:
            return
        path = self._files / REPORT
        try:
            page = page_of(read_history(journal.each(self._journal)), at)
            atomic_files.write(path, page.encode())
            row = Row(position=position, step=step, time=at, files={REPORT: path})
        except Exception as error:  # noqa: BLE001 - the values matter more than the page
            texts = {"report": f"it could not be written: {redact(_said(error))}"}
            row = Row(position=position, step=step, time=at, texts=texts)
        logger.write([row])
        self._save(replace(self.cursor, position=position, step=step))

    def _fail(self, error: BaseException) -> None:
        self._retry_at = self._clock() + self._retry
        self._retry = min(2 * self._retry, _LAST_RETRY)
        self._begin()
        why = redact(str(error) if isinstance(error, LoggerError) else _said(error))
        with suppress(OSError, StorageError):
            self._save(replace(self.cursor, trouble=why[:2000]))

    def _save(self, cursor: Cursor) -> None:
        self.cursor = cursor
        text = json.dumps(asdict(cursor)).encode()
        _cursors(self._folder).write(f"{self._name}.json", text)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def unfinished(folder: Folder, names: Sequence[str], closed_at: float) -> dict[str, Cursor]:
    """Return the loggers of a run that have not written all of it, and how far they are.

    Args:
        folder: the run's.
        names: of its loggers.
        closed_at: time of the run's `end` event.
    """
    found = {name: read_cursor(folder, name) for name in names}
    return {name: cursor for name, cursor in found.items() if cursor.closed_at < closed_at}


def await_all(
    folder: Folder,
    names: Sequence[str],
    closed_at: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Cursor]:
    """Wait until all loggers of a run have written it; returns those that have not.

    It ends after a minute, or if no logger has got on for 10 seconds.
    """
    began = moved = clock()
    left = unfinished(folder, names, closed_at)
    while left and clock() - began < _MOST_SECONDS and clock() - moved < _STILL_SECONDS:
        sleep(_INTERVAL / 2)
        before, left = left, unfinished(folder, names, closed_at)
        if left != before:
            moved = clock()
    return left

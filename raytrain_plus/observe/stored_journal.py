"""The journal of a run wherever the run lives: in a folder, or in an object store.

In a folder it is the file `journal.jsonl`. In an object store it is a file of segments
(`storage/segments.py`) with the same lines. Everything that reads a journal takes both.
"""

from pathlib import Path

from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event, Journal, Readable
from raytrain_plus.storage.fencing import fenced
from raytrain_plus.storage.ownership import new_claim
from raytrain_plus.storage.segments import SegmentedFile, SegmentWriter
from raytrain_plus.storage.store import Folder, Store

FOLDER = "journal"
_PATIENCE = 10.0  # seconds for a request, which is repeated meanwhile


class StoredJournal(Journal):
    """Appends events to the journal of a run in an object store. Each call is a request.

    Args:
        store: the run's folder.
        claim: of the run's driver.

    Raises:
        StoreError: the store cannot be used.
    """

    def __init__(self, store: Store, claim: str = "") -> None:  # opens no file of its own
        inside = store.inside(FOLDER).within(_PATIENCE)
        self.segments = SegmentWriter(inside, new_claim(), lambda: fenced(store, claim))
        self.file: Readable = SegmentedFile(inside)

    def write_all(self, events: list[Event]) -> list[Event]:
        """Append finished events; returns them as they were written.

        After an error they may be stored or not: write the same events again before any others.

        Raises:
            EventError: one is none of the listed events, or has other fields.
            FencedError: another process has the run; nothing is written.
            StoreError: the store does not answer.
        """
        events = journal.checked(events)
        self.segments.append(b"".join(map(journal.line_of, events)))
        return events

    def sync(self) -> None:
        """Return at once: what was appended is stored."""

    def close(self) -> None:
        """Return at once: nothing is open."""


def open_journal(folder: Folder, claim: str = "") -> Journal:
    """Open a run's journal for writing.

    Args:
        folder: the run's.
        claim: of the run's driver.

    Raises:
        OSError: the file cannot be opened.
        StoreError: the store cannot be used.
    """
    return Journal(folder) if isinstance(folder, Path) else StoredJournal(folder, claim)


def journal_of(folder: Folder) -> Readable:
    """Return the file of a run's journal; it may not exist.

    Args:
        folder: the run's.
    """
    if isinstance(folder, Path):
        return folder / journal.FILE_NAME
    return SegmentedFile(folder.inside(FOLDER).within(_PATIENCE))


def grown_at(file: Readable) -> float:
    """Return the Unix time at which a journal grew the last time, as far as that was seen.

    Raises:
        OSError: it cannot be read.
        StoreError: likewise, in an object store.
    """
    if isinstance(file, Path):
        return file.stat().st_mtime
    assert isinstance(file, SegmentedFile)
    file.exists()
    return file.grown_at

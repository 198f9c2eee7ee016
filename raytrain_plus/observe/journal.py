"""The journal: one JSON object per line, the only thing that reports and tests read.

Every line has `event` and `time` (Unix seconds). `observe/events.py` has the fields of each event.

- Of a run: `run` opens the journal and `end` closes it. Between them are `environment`, `worker`,
  `generation`, `step`, `evaluate`, `checkpoint`, `withdrawn`, `corruption`, `hang`, `fault`,
  `target`, `coordinator_restart`, `usage`, `warning` and `stop`.
- Of a sweep: `session` opens the journal. After it come `proposal`, `trial`, `problem`,
  `finished` and `session_end`.

`run` and `session` state the version of the format. An unknown version or an unknown event is an
error that names file and line.

A resume relies on the journal. So every line ends with a checksum of itself (`crc`), and the file
is synced to disk with each event of `SYNCED`. A line is written in one call. The last line of a
writer that was killed may be cut short: it has no line feed, readers leave it out, and the next
writer cuts it off. Any other line that is not what was written is an error that names file and
line. `each`, `follow` and `newest` read a journal of a million steps in bounded memory.
"""

import contextlib
import json
import os
import time
import weakref
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Protocol

from raytrain_plus.observe.events import (
    EVENTS,
    OPENING,
    VERSION,
    EventError,
    EventVersionError,
    check_event,
)
from raytrain_plus.observe.events import Event as Event  # noqa: PLC0414 - part of this one
from raytrain_plus.redaction import redacted

FILE_NAME = "journal.jsonl"
# A power failure loses neither these events nor what was written before them.
SYNCED = frozenset({"run", "checkpoint", "withdrawn", "stop", "end"})
MOST_LINE = 16 << 20  # bytes

_MARK, _CLOSE = b', "crc": "', b'"}'
_TAIL = len(_MARK) + 8 + len(_CLOSE)
_BEGIN = b'{"event": "'
AT_ONCE = 4 << 20  # bytes that `follow` reads in one call, and `newest` in one go
_KNOWN = frozenset(kind.encode() for kind in EVENTS.keys() - OPENING)  # that may be skipped unread


class Readable(Protocol):
    """The file of a journal: a path, or a `SegmentedFile` in an object store."""

    def exists(self) -> bool:
        """Say whether there is such a file."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """Return the file, open for reading."""


class JournalError(ValueError):
    """A journal that is damaged, of another version, or tells of no run; it says where."""


class Journal:
    """Appends events to a run's `journal.jsonl`; a last line that was cut short is cut off.

    Args:
        folder: the run's folder, which must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.file: Readable = folder / FILE_NAME
        self.path = folder / FILE_NAME
        is_new = not self.path.exists()
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # A coordinator's process that leads one run after another drops their journals.
        self._closing = weakref.finalize(self, os.close, self._file)
        if is_new:
            _sync_folder(folder)
        else:
            _cut_off_half_a_line(self._file)

    def write(self, event: str, **fields: Any) -> Event:
        """Append one event and return it, with the version if it is one that states it.

        Raises:
            EventError: it is none of the listed events, or has other fields.
            OSError: it cannot be written.
        """
        if event in OPENING:
            fields = {"version": VERSION, **fields}
        return self.write_all([{"event": event, "time": time.time(), **fields}])[0]

    def write_all(self, events: list[Event]) -> list[Event]:
        """Append finished events, all or none of them; returns them as they were written.

        Raises:
            EventError: one is none of the listed events, or has other fields.
            OSError: they cannot be written; nothing of them is left in the file.
        """
        events = checked(events)
        data = b"".join(map(line_of, events))
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise
        if any(event["event"] in SYNCED for event in events):
            self.sync()
        return events

    def sync(self) -> None:
        """Return when all that was written is on the disk.

        Raises:
            OSError: the disk does not take it.
        """
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._closing()


def checked(events: Iterable[Event]) -> list[Event]:
    """Return new events without secrets.

    Raises:
        EventError: one is none of the listed events, or has other fields.
    """
    # A step comes often, from one place, and holds numbers only, which are no secrets.
    return [
        one if one["event"] == "step" else check_event(redacted(one), is_new=True) for one in events
    ]


def follow(path: Readable, offset: int = 0, most: int = AT_ONCE) -> tuple[list[Event], int]:
    """Return the whole events after a byte offset, and the offset behind them.

    Args:
        path: the journal's file.
        offset: of the first byte of a line.
        most: about how many bytes to read; call again with the new offset for the rest.

    Raises:
        JournalError: a line is damaged.
    """
    if not path.exists():
        return [], offset
    events, begin, end = [], offset, offset
    with path.open("rb") as file:
        file.seek(offset)
        for line in _lines(file, path, offset):
            events.append(_parsed(line, path, end))
            end += len(line)
            if end - begin >= most:
                break
    return events, end


def read(path: Path) -> list[Event]:
    """Return all whole events of a journal file, or of the run's folder that holds it.

    For short journals; `each` reads a long one.

    Raises:
        FileNotFoundError: there is no journal.
        JournalError: a line is damaged.
    """
    return list(each(file_of(path)))


def file_of(path: Path) -> Path:
    """Return the journal's file, of itself or of the run's folder that holds it.

    Raises:
        FileNotFoundError: there is none.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"no journal at {file}: is it the folder of a run?")
    return file


def each(path: Readable, kinds: Collection[str] | None = None) -> Iterator[Event]:
    """Yield the whole events of a journal file one by one, for long journals.

    Args:
        path: the journal's file.
        kinds: the events that are wanted. The checksums of the others are checked, too.
            Default: all.

    Raises:
        FileNotFoundError: there is no journal.
        JournalError: a line is damaged.
    """
    wanted = None if kinds is None else frozenset(kind.encode() for kind in kinds)
    offset = 0
    with path.open("rb") as file:
        for line in _lines(file, path, 0):
            kind = _kind_of(line) if wanted is not None else None
            skip = wanted is not None and kind not in wanted and kind in _KNOWN
            if not (skip and _is_whole(line)):
                event = _parsed(line, path, offset)
                if kinds is None or event["event"] in kinds:
                    yield event
            offset += len(line)


def newest(path: Readable, kinds: Collection[str]) -> dict[str, Event]:
    """Return the last event of each kind, read from the file's end, in the order of the file.

    Lines before the last of these events are not read. So this takes as long for a journal of a
    million steps as for a short one if the run was resumed lately, and else as long as reading the
    file's bytes.

    Raises:
        FileNotFoundError: there is no journal.
        JournalError: a line among the last, or one that is returned, is damaged.
    """
    missing, seen = set(kinds), list[Event]()
    with path.open("rb") as file:
        end = _end_of_lines(file)
        is_last = True
        while end > 0 and missing:
            begin, block = _block_before(file, end, path)
            lines = block.splitlines(keepends=True)
            at = end
            for line in reversed(lines):
                at -= len(line)
                kind = _kind_of(line)
                if is_last or kind not in _KNOWN or kind.decode() in missing:
                    event = _parsed(line, path, at)
                    if event["event"] in missing:
                        missing.discard(event["event"])
                        seen.append(event)
            end, is_last = begin, False
    return newest_of(reversed(seen), kinds)


def newest_of(events: Iterable[Event], kinds: Collection[str]) -> dict[str, Event]:
    """Return the last event of each kind, in the order of the events, as `newest` does for a file.

    Args:
        events: in the order of the journal.
        kinds: the events that are wanted.
    """
    found: dict[str, Event] = {}
    for event in events:
        if event["event"] in kinds:
            found.pop(event["event"], None)
            found[event["event"]] = event
    return found


def size_of(path: Readable) -> int:
    """Return the offset behind a journal's last whole line; 0 if there is no journal."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return _end_of_lines(file)


def since_last_run(events: list[Event]) -> list[Event]:
    """Return the events from the last `run` on: a resumed run appends to the same journal."""
    begins = [i for i, event in enumerate(events) if event["event"] == "run"]
    return events[begins[-1] :] if begins else events


def need(event: Event, *fields: str) -> None:
    """Check that an event has the fields that its reader needs.

    Raises:
        JournalError: a field is missing.
    """
    for field in fields:
        if field not in event:
            raise JournalError(f"the journal's {event['event']!r} event has no {field!r}")


# -- lines


def line_of(event: Event) -> bytes:
    """Return an event as a line of a journal, with its checksum."""
    body = json.dumps(event).encode()[:-1]
    return b"%b%b%08x%b\n" % (body, _MARK, zlib.crc32(body), _CLOSE)


def _lines(file: IO[bytes], path: Readable, offset: int) -> Iterator[bytes]:
    """Yield whole lines; the last is left out if it is being written, or was cut short."""
    while line := file.readline(MOST_LINE):
        if not line.endswith(b"\n"):
            if len(line) >= MOST_LINE:
                raise _damaged(path, offset, f"it has more than {MOST_LINE} bytes")
            return
        yield line
        offset += len(line)


def _parsed(line: bytes, path: Readable, offset: int) -> Event:
    try:
        if not _is_whole(line):
            has_crc = line[-_TAIL - 1 : -len(_CLOSE) - 9] == _MARK
            raise EventError("its checksum differs" if has_crc else "it has no checksum")
        event: Event = check_event(json.loads(line[: -_TAIL - 1].decode() + "}"))
    except EventVersionError as error:
        raise JournalError(f"{path}, line {_number_of(path, offset)}: {error}") from None
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, EventError) else f"it is no JSON ({error})"
        raise _damaged(path, offset, why) from None
    return event


def _is_whole(line: bytes) -> bool:
    body = line[: -_TAIL - 1]
    return line[-_TAIL - 1 :] == b"%b%08x%b\n" % (_MARK, zlib.crc32(body), _CLOSE)


def _kind_of(line: bytes) -> bytes | None:
    """Return an event's name, which our writers put first; None if it is not there."""
    if not line.startswith(_BEGIN):
        return None
    return line[len(_BEGIN) : line.find(b'"', len(_BEGIN))]


def _number_of(path: Readable, offset: int) -> int:
    """Return the number of the line that starts at an offset."""
    number = 1
    with path.open("rb") as file:
        left = offset
        while left > 0 and (data := file.read(min(left, 1 << 20))):
            number += data.count(b"\n")
            left -= len(data)
    return number


def _damaged(path: Readable, offset: int, why: str) -> JournalError:
    number = _number_of(path, offset)
    return JournalError(
        f"{path}, line {number}: the line is damaged, {why}. Bring the file back from a copy; or "
        f"go on with what stands before it: keep the file, and put its first {number - 1} lines "
        f"(head -n {number - 1}) in its place"
    )


# -- the file's end


def _end_of_lines(file: IO[bytes]) -> int:
    """Return the offset behind the last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - (1 << 16))
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _block_before(file: IO[bytes], end: int, path: Readable) -> tuple[int, bytes]:
    """Return whole lines that end at an offset, some megabytes of them, and where they begin."""
    begin, size = end, AT_ONCE
    while begin > 0:
        begin = max(0, end - size)
        file.seek(begin)
        block = file.read(end - begin)
        first = 0 if begin == 0 else block.find(b"\n", 0, len(block) - 1) + 1
        if begin == 0 or first > 0:
            return begin + first, block[first:]
        if size > MOST_LINE:
            raise _damaged(path, begin, f"it has more than {MOST_LINE} bytes")
        size *= 2
    return 0, b""


def _cut_off_half_a_line(file: int) -> None:
    with os.fdopen(os.dup(file), "rb") as reading:
        end = _end_of_lines(reading)
        if end < os.fstat(file).st_size:
            os.ftruncate(file, end)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot do it
            os.fsync(opened)
    finally:
        os.close(opened)

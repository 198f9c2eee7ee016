"""A file in a store that only grows: its bytes are in numbered objects, the segments.

An object store cannot append to an object. So each piece that is appended becomes the segment with
the next number, and is created only if there is no such object. Of two processes that append at the
same time one succeeds, and the other one has lost the file: `FencedError`.

- A writer opens the file with an empty segment, its seal, and has the file from then on: a writer
  before it can get no further than to the seal, which is never deleted.
- A number gets one content. A writer that does not know whether a request has succeeded repeats it
  with the same content, and goes on only when that is stored.
- So that a run of a week does not leave a million objects, whole blocks of `MERGED` segments become
  one object. The blocks are aligned, so that any two are apart or one is inside the other. What is
  inside a block is deleted after the block is there, except for seals.

So each process sees the same bytes at the same offset, whatever was merged and whenever it looks.
"""

import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from raytrain_plus.storage.errors import ExistsError, StoreError
from raytrain_plus.storage.store import Store

MERGED = 32
"""Objects that become one: segments, or blocks of segments."""

MOST_MERGED = 8 << 20  # bytes of a block

_HEADER = 192  # bytes before the content; of equal length, so that a listing tells all offsets
_LEVELS = 4
_FIRST_PAUSE, _LAST_PAUSE = 0.25, 2.0  # seconds between two listings while nothing is new
_TRIES = 5  # listings after which a segment counts as missing
_TRY_PAUSE = 0.1


class SegmentError(StoreError):
    """A segment is missing or damaged; the message names it."""


@dataclass(frozen=True)
class Span:
    """An object: one segment, or a block of them.

    Attributes:
        first, last: the segments that it holds.
        size: the bytes that they add to the file.
    """

    first: int
    last: int
    size: int

    @property
    def name(self) -> str:
        """The object's name."""
        return name_of(self.first, self.last)


def name_of(first: int, last: int) -> str:
    """Return the name of the object with some segments."""
    return f"{first:08d}.jsonl" if first == last else f"{first:08d}-{last:08d}.jsonl"


def span_of(name: str, size: int) -> Span | None:
    """Return what an object holds, by its name and its bytes; None if it is no segment."""
    stem, _, kind = name.partition(".")
    first, dash, last = stem.partition("-")
    numbers = [first, last] if dash else [first, first]
    if kind != "jsonl" or not all(n.isdecimal() for n in numbers) or size < _HEADER:
        return None
    found = Span(int(numbers[0]), int(numbers[1]), size - _HEADER)
    return found if 0 < found.first <= found.last and found.name == name else None


def cover(spans: Iterable[Span]) -> list[Span]:
    """Return objects that hold each segment once, in order: the largest ones.

    Raises:
        SegmentError: a segment is missing; the message has its name.
    """
    longest: dict[int, Span] = {}
    newest = 0
    for span in spans:
        newest = max(newest, span.last)
        if span.first not in longest or longest[span.first].last < span.last:
            longest[span.first] = span
    found: list[Span] = []
    number = 1
    while number in longest:
        found.append(longest[number])
        number = longest[number].last + 1
    if number <= newest:
        raise SegmentError(
            f"segment {name_of(number, number)} is missing, and there are later ones, up to "
            f"number {newest}: bring it back from a copy of the folder"
        )
    return found


def due_merge(covering: Sequence[Span]) -> list[Span]:
    """Return objects that one block should replace; none if no block is due.

    Args:
        covering: what `cover` returns.
    """
    for level in range(1, _LEVELS + 1):
        length = MERGED**level
        blocks: dict[int, list[Span]] = {}
        for span in covering:
            if (span.first - 1) // length == (span.last - 1) // length:
                blocks.setdefault((span.first - 1) // length, []).append(span)
        for block, inside in blocks.items():
            is_whole = inside[0].first == block * length + 1 and inside[-1].last == (
                (block + 1) * length
            )
            if is_whole and len(inside) > 1 and sum(s.size for s in inside) <= MOST_MERGED:
                return inside
    return []


def packed(first: int, last: int, writer: str, content: bytes, *, seals: bool = False) -> bytes:
    """Return an object's bytes: a header of one line, and the content."""
    header = {
        "segments": [first, last],
        "writer": writer,
        "seal": seals,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    line = json.dumps(header).encode().ljust(_HEADER - 1) + b"\n"
    assert len(line) == _HEADER, "a header is longer than all have room for"
    return line + content


def unpacked(span: Span, data: bytes, where: str) -> bytes:
    """Return the content of an object.

    Raises:
        SegmentError: these are not the bytes that were written.
    """
    header, content = _header_of(data), data[_HEADER:]
    if (
        header.get("segments") != [span.first, span.last]
        or header.get("sha256") != hashlib.sha256(content).hexdigest()
    ):
        raise SegmentError(
            f"segment {where} is damaged: its bytes are not those that were written. Bring it back "
            "from a copy of the folder"
        )
    return content


def _header_of(data: bytes) -> dict[str, object]:
    try:
        header = json.loads(data[:_HEADER])
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


class SegmentedFile:
    """Reads the file. It is listed again when it is looked at, but not too often while it rests.

    Args:
        store: the folder of its segments.
        clock: gives monotonic seconds.
        sleep: waits for seconds, before a listing that lacks a segment is repeated.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.RLock()
        self._spans: list[Span] = []
        self._look_at = float("-inf")
        self._pause = _FIRST_PAUSE
        self._kept: tuple[Span, bytes] | None = None
        self.grown_at = time.time()  # Unix time at which its growth was seen the last time

    def __str__(self) -> str:
        return str(self._store)

    def exists(self) -> bool:
        """Say whether there is any segment."""
        with self._lock:
            self._refresh()
            return bool(self._spans)

    @property
    def size(self) -> int:
        """Its bytes, when it was last listed."""
        return sum(span.size for span in self._spans)

    @property
    def newest(self) -> int:
        """The last segment's number, when it was last listed; 0 for none."""
        return self._spans[-1].last if self._spans else 0

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the file as it is now, open for reading.

        Raises:
            FileNotFoundError: there is no segment.
            StoreError: the store cannot be listed.
        """
        assert mode == "rb"
        if not self.exists():
            raise FileNotFoundError(f"no journal at {self}: is it the folder of a run?")
        return io.BufferedReader(_Reading(self, self.size), 1 << 18)

    def list_now(self) -> None:
        """List the segments.

        Raises:
            SegmentError: one is missing.
            StoreError: the store cannot be listed.
        """
        with self._lock:
            for tries in range(1, _TRIES + 1):
                try:
                    spans = cover(spans_in(self._store))
                    break
                except SegmentError as error:  # a block may have taken its place meanwhile
                    if tries == _TRIES:
                        raise SegmentError(f"{self}: {error}") from None
                    self._sleep(_TRY_PAUSE)
            if sum(s.size for s in spans) > self.size:
                self._pause, self.grown_at = _FIRST_PAUSE, time.time()
            else:
                self._pause = min(2 * self._pause, _LAST_PAUSE)
            self._spans = spans
            self._look_at = self._clock() + self._pause

    def _refresh(self) -> None:
        if self._clock() >= self._look_at:
            self.list_now()

    def piece_at(self, offset: int) -> tuple[int, bytes]:
        """Return the content of the object that has an offset, and where it begins.

        Raises:
            SegmentError: the object is missing or damaged.
            StoreError: it cannot be read.
        """
        with self._lock:
            for _ in range(_TRIES):
                begin, span = self._span_at(offset)
                if self._kept is not None and self._kept[0] == span:
                    return begin, self._kept[1]
                data = self._store.find(span.name)
                if data is not None:
                    content = unpacked(span, data, self._store.where(span.name))
                    self._kept = span, content
                    return begin, content
                self.list_now()  # a block has taken its place
        raise SegmentError(f"segment {self._store.where(span.name)} is missing")

    def _span_at(self, offset: int) -> tuple[int, Span]:
        begin = 0
        for span in self._spans:
            if offset < begin + span.size:
                return begin, span
            begin += span.size
        raise SegmentError(f"{self}: it has become shorter; it had more than {offset} bytes")


class _Reading(io.RawIOBase):
    """The file up to an end, as a raw stream."""

    def __init__(self, file: SegmentedFile, end: int) -> None:
        self._file = file
        self._end = end
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._end)[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), self._end - self._at)
        if count <= 0:
            return 0
        begin, content = self._file.piece_at(self._at)
        piece = content[self._at - begin : self._at - begin + count]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class SegmentWriter:
    """Appends to the file, until another writer opens it.

    Args:
        store: the folder of its segments.
        writer: a name for this writer that no other one has.
        fenced: makes the error for the case that another writer has the file.

    Raises:
        StoreError: the store cannot be used.
    """

    def __init__(self, store: Store, writer: str, fenced: Callable[[], Exception]) -> None:
        self._store = store
        self._writer = writer
        self._fenced = fenced
        self._seals: set[str] = set()
        self.number = self._open()

    def _open(self) -> int:
        """Create a seal behind all that there is; returns its number."""
        while True:
            number = max((span.last for span in spans_in(self._store)), default=0) + 1
            name = name_of(number, number)
            content = packed(number, number, self._writer, b"", seals=True)
            try:
                self._create(name, content)
            except _TakenError:
                continue
            # A listing that was old may have led to a number whose segment was merged and deleted.
            later = [s for s in spans_in(self._store) if s.last >= number and s.name != name]
            if not later:
                return number

    def append(self, content: bytes) -> None:
        """Append bytes; after an error, call it again with the same bytes before any others.

        Raises:
            StoreError: they may be stored, or not.
            FencedError: another writer has the file; they are not stored.
        """
        number = self.number + 1
        try:
            self._create(name_of(number, number), packed(number, number, self._writer, content))
        except _TakenError:
            raise self._fenced() from None
        self.number = number

    def _create(self, name: str, content: bytes) -> None:
        try:
            self._store.create(name, content)
        except ExistsError:
            there = self._store.find(name)
            if there is None:
                raise StoreError(f"{self._store.where(name)} has come and gone") from None
            if there != content:  # else an earlier try had succeeded, and its answer was lost
                raise _TakenError from None

    def tidy(self) -> bool:
        """Replace objects by a block, if that is due; returns whether it was.

        It changes no byte of the file, so it may fail or be repeated at any point, also by a writer
        that has lost the file.

        Raises:
            StoreError: the store fails.
        """
        spans = spans_in(self._store)
        inside = due_merge([span for span in cover(spans) if span.last <= self.number])
        if not inside:
            return False
        first, last = inside[0].first, inside[-1].last
        pieces = []
        for span in inside:
            data = self._store.find(span.name)
            if data is None:  # another writer has merged it
                return False
            pieces.append(unpacked(span, data, self._store.where(span.name)))
        block = packed(first, last, "", b"".join(pieces))
        try:
            self._store.create(name_of(first, last), block)
        except ExistsError:
            if self._store.find(name_of(first, last)) not in (block, None):
                raise SegmentError(
                    f"segment {self._store.where(name_of(first, last))} is damaged"
                ) from None
        for span in spans:
            if first <= span.first <= span.last <= last and (span.first, span.last) != (
                first, last,
            ):  # fmt: skip
                self._drop(span)
        return True

    def _drop(self, span: Span) -> None:
        if span.name in self._seals:
            return
        if span.first == span.last:
            data = self._store.find(span.name)
            if data is not None and _header_of(data).get("seal", True):
                self._seals.add(span.name)
                return
        self._store.delete(span.name)


class _TakenError(Exception):
    """Another writer has created the segment."""


def spans_in(store: Store) -> list[Span]:
    """Return the objects in a folder.

    Raises:
        StoreError: it cannot be listed.
    """
    found = (span_of(name, size) for name, size in store.sizes().items())
    return [span for span in found if span is not None]

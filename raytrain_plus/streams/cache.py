"""A node's cache of shard files, shared by all processes, bounded in bytes, safe under any kill.

An entry is one file: the raw bytes, then their SHA-256. It is written under another name, synced
and renamed, so that a reader sees a complete entry or none. Each process verifies an entry before
its first use. A damaged entry is fetched again.

Processes coordinate by advisory locks of open files (flock) only. The system drops such a lock when
its owner dies, whatever the cause:

    lock          exclusive while a process counts bytes, makes room and reserves it
    KEY.part      exclusive while its owner fills it, and others wait; unlocked, its owner has died
    KEY.cached    shared by its readers; a locked entry is not evicted

A part has its final size before it is filled, so the limit holds at every moment. The entry whose
next use is furthest away is evicted first (Belady, "A study of replacement algorithms", 1966).
Entries without a known next use go before all others. A source knows the order of its run and says
when each entry is read next.

A `Prefetcher` fetches files into the cache before they are read, in the order in which they will be
read. How far ahead is counted in bytes, since files differ in size. The files ahead follow from the
order, so after a resize a new owner begins with the windows of the lanes that it was given.
"""

import errno
import fcntl
import functools
import hashlib
import mmap
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.store import InterruptedReadError
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.order import Ordering

if TYPE_CHECKING:
    from raytrain_plus.streams.stream import StreamFile

ENTRY_OVERHEAD = 32  # bytes at the end of an entry: its digest
_LOOK = 0.02  # seconds between two tries for a lock that another process holds

NextUse = Callable[[], Mapping[str, float]]


class CacheFullError(DataError):
    """The cache has no room: all of its entries are being read."""


class FileTooLargeError(CacheFullError):
    """One file alone is larger than the cache may be: waiting does not help."""


@dataclass
class Entry:
    """An entry that is open: it is not evicted until it is closed and no buffer of it is left.

    Attributes:
        path: its file.
        size: its raw bytes, from the file's beginning.
    """

    path: Path
    size: int
    _handle: int

    def buffer(self) -> pa.Buffer:
        """Return its bytes, mapped into memory."""
        mapped = mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)
        return pa.py_buffer(mapped).slice(0, self.size)

    def close(self) -> None:
        """Release it, so that it may be evicted; a second call has no effect."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Cache:
    """A folder of entries.

    Args:
        folder: on a disk of this node; it is created if it does not exist.
        limit: bytes that all entries may take together.

    Raises:
        DataError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._verified: set[tuple[str, int]] = set()
        self._foresight: dict[object, NextUse] = {}
        self._mutex = threading.RLock()  # garbage collection may call `forget` at any place
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.close(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666))
        except OSError as error:
            raise DataError(
                f"the cache folder {folder} cannot be written: {error}. Give another with `cache`."
            ) from error

    def foresee(self, owner: object, next_use: NextUse) -> None:
        """Register a function that returns how far away the next use of each entry is, by key.

        The owner calls `forget` at its end. The functions are not shared between processes, so
        none outlives a process that is killed. Each process knows the future uses of all workers
        of its run, since they follow from the order.
        """
        with self._mutex:
            self._foresight[owner] = next_use

    def forget(self, owner: object) -> None:
        """Remove the function of an owner."""
        with self._mutex:
            self._foresight.pop(owner, None)

    def find(self, key: str) -> Entry | None:
        """Return an entry if it exists and is complete; a damaged one is removed."""
        path = self.folder / f"{key}.cached"
        while True:
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            fcntl.flock(handle, fcntl.LOCK_SH)
            if not _is_at(handle, path):  # evicted between the two calls
                os.close(handle)
                continue
            entry = Entry(path, os.fstat(handle).st_size - ENTRY_OVERHEAD, handle)
            if self._is_whole(key, entry):
                os.utime(path)
                return entry
            path.unlink(missing_ok=True)
            entry.close()

    def get(
        self,
        key: str,
        expected: int,
        make: Callable[[], bytes | memoryview],
        cancelled: threading.Event | None = None,
        *,
        ahead: bool = False,
    ) -> Entry:
        """Return an entry; if it does not exist, one process makes it and the others wait.

        Args:
            key: its name: letters and digits. Equal keys must stand for equal bytes.
            expected: about how many bytes it will have.
            make: returns its bytes.
            cancelled: when it is set, waiting ends at once.
            ahead: it is not needed yet, so no entry that is needed sooner is evicted for it.

        Raises:
            CacheFullError: there is no room before a reader closes an entry.
            DataError: the disk is full or fails.
            InterruptedReadError: `cancelled` was set.
            Exception: any error of `make`.
        """
        found = self.find(key)
        entry = found or self._await_or_make(key, expected, make, cancelled, ahead=ahead)
        if not ahead:
            TRAFFIC.looked(found=found is not None)
        return entry

    def bytes_used(self) -> int:
        """Return the bytes of all entries, including those that are being filled."""
        with self._counting():
            return self._sum()

    def _sum(self) -> int:
        return sum(size for _, size, _ in self._files())

    # -- filling

    def _await_or_make(
        self,
        key: str,
        expected: int,
        make: Callable[[], bytes | memoryview],
        cancelled: threading.Event | None,
        *,
        ahead: bool,
    ) -> Entry:
        part = self.folder / f"{key}.part"
        while True:
            if (entry := self.find(key)) is not None:
                return entry
            handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(handle, cancelled)
                if not _is_at(handle, part):  # its owner has finished or abandoned it
                    continue
                if (entry := self.find(key)) is not None:  # finished since we looked
                    part.unlink(missing_ok=True)
                    return entry
                return self._fill(key, handle, expected, make, ahead=ahead)
            except OSError as error:
                raise DataError(f"the cache {self.folder} failed: {error}") from error
            finally:
                os.close(handle)

    def _fill(
        self,
        key: str,
        handle: int,
        expected: int,
        make: Callable[[], bytes | memoryview],
        *,
        ahead: bool,
    ) -> Entry:
        part, path = self.folder / f"{key}.part", self.folder / f"{key}.cached"
        try:
            os.ftruncate(handle, 0)
            self._reserve(key if ahead else None, handle, expected + ENTRY_OVERHEAD)
            content = make()
            size = memoryview(content).nbytes
            if size > expected:
                self._reserve(key if ahead else None, handle, size + ENTRY_OVERHEAD)
            digest = hashlib.sha256(content).digest()
            with open(handle, "wb", closefd=False) as file:
                file.write(content)
                file.write(digest)
                file.truncate()
                file.flush()
                os.fsync(handle)
            with self._counting():
                part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        # The lock moves with the file, so it cannot be evicted before it is locked for reading.
        held = os.dup(handle)
        fcntl.flock(held, fcntl.LOCK_SH)
        self._verified.add((key, os.fstat(held).st_ino))
        return Entry(path, size, held)

    def _is_whole(self, key: str, entry: Entry) -> bool:
        known = (key, os.fstat(entry._handle).st_ino)  # noqa: SLF001 - its own cache
        if known in self._verified:
            return True
        with entry.path.open("rb") as file:
            hashed = hashlib.sha256()
            left = entry.size
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                hashed.update(block)
                left -= len(block)
            whole = left == 0 and file.read() == hashed.digest()
        if whole:
            self._verified.add(known)
        return whole

    # -- room

    def _reserve(self, ahead: str | None, handle: int, size: int) -> None:
        """Give a part its final size, within the limit; evicts entries if needed.

        Args:
            ahead: the key of the entry, if it is not needed yet.
            handle: the open and locked part.
            size: its final size in bytes.
        """
        if size > self.limit:
            raise FileTooLargeError(
                f"a shard file takes {size:,} bytes, but the cache is limited to {self.limit:,}: "
                "raise `cache_limit`, or write the data set with smaller files"
            )
        with self._counting():
            missing = size - os.fstat(handle).st_size
            used = self._sum()
            evictions = self._evictions(ahead)
            while True:
                if used + missing <= self.limit:
                    try:
                        os.posix_fallocate(handle, 0, size)
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                    else:
                        return
                    if not next(evictions, False):
                        raise DataError(
                            f"the disk of the cache {self.folder} is full: free some of it, or "
                            "give another folder with `cache`"
                        )
                elif not next(evictions, False):
                    raise CacheFullError(
                        f"the cache {self.folder} is limited to {self.limit:,} bytes, and all "
                        f"{used:,} bytes in it are being read: raise `cache_limit`, lower "
                        "`window`, or write the data set with smaller files"
                    )
                used = self._sum()

    def _evictions(self, ahead: str | None) -> Iterator[bool]:
        """Remove files one by one, the one that is needed last first; yield True after each."""
        known = self._known()
        soonest = known.get(ahead, 0.0) if ahead is not None else 0.0

        def urgency(file: tuple[Path, int, float]) -> tuple[float, float]:
            path, _, touched = file
            return -known.get(path.stem, float("inf")), touched

        for path, _, _ in sorted(self._files(), key=urgency):
            if ahead is not None and known.get(path.stem, float("inf")) <= soonest:
                return
            if _remove(path):
                yield True

    def _known(self) -> dict[str, float]:
        """Return how far away the next use of each entry is, if a source knows it."""
        with self._mutex:
            asked = list(self._foresight.values())
        known: dict[str, float] = {}
        for next_use in asked:
            for key, away in next_use().items():
                known[key] = min(away, known.get(key, away))
        return known

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        with os.scandir(self.folder) as files:
            for file in files:
                if file.name.endswith((".cached", ".part")):
                    try:
                        found = file.stat()
                    except FileNotFoundError:
                        continue
                    yield Path(file.path), found.st_size, found.st_mtime

    @contextmanager
    def _counting(self) -> Iterator[None]:
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _remove(path: Path) -> bool:
    """Remove a file unless a process holds it; returns whether it did."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def _lock(handle: int, cancelled: threading.Event | None) -> None:
    """Lock a part in order to fill it; waits while another process fills it."""
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if cancelled is not None and cancelled.is_set():
                raise InterruptedReadError from None
            time.sleep(_LOOK)
        else:
            return


def _is_at(handle: int, path: Path) -> bool:
    """Say whether an open file is the one at a path."""
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


@functools.cache
def node_cache(folder: Path, limit: int) -> Cache:
    """Return the cache of a folder; there is one for each folder in a process."""
    return Cache(folder, limit)


# -- counts of hits, misses and fetched bytes


@dataclass
class Traffic:
    """Counts of this process, which any thread may increase.

    Attributes:
        hits: files that were in the cache when they were needed.
        misses: files that were not in the cache when they were needed.
        fetched_files: files that this process has fetched, ahead or when they were needed.
        fetched_bytes: the size of these files in the store.
    """

    hits: int = 0
    misses: int = 0
    fetched_files: int = 0
    fetched_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _told: dict[str, int] = field(default_factory=dict, repr=False)

    def looked(self, *, found: bool) -> None:
        """Count a file that is needed."""
        with self._lock:
            if found:
                self.hits += 1
            else:
                self.misses += 1

    def fetched(self, size: int) -> None:
        """Count a fetched file of `size` bytes."""
        with self._lock:
            self.fetched_files += 1
            self.fetched_bytes += size

    def counts(self) -> dict[str, int]:
        """Return all counts by name."""
        with self._lock:
            return {name: n for name, n in vars(self).items() if not name.startswith("_")}

    def news(self) -> dict[str, int]:
        """Return what was counted since the last call. It has one caller only."""
        before, self._told = self._told, self.counts()
        return {name: n - before.get(name, 0) for name, n in self._told.items()}


TRAFFIC = Traffic()
"""The counts of this process, over all of its caches."""


# -- fetching ahead

_THREADS = 4
_MOST_AHEAD = 1 << 30  # bytes
_SHARE = 4  # what is fetched ahead takes at most this part of the cache: a fourth
_PREFETCH_LOOK = 0.25  # seconds


class Prefetcher:
    """Fetches the files of one source before they are read.

    Args:
        files: the files of the source.
        cache: the cache that receives them.
    """

    def __init__(self, files: "Sequence[StreamFile]", cache: Cache) -> None:
        self._files, self._cache = files, cache
        self._budget = min(_MOST_AHEAD, cache.limit // _SHARE)
        self._changed = threading.Condition()
        self._needs: Iterator[tuple[float, int]] = iter(())
        self._ahead: deque[tuple[float, int]] = deque()
        self._position: tuple[Ordering, int, int] | None = None
        self._begun = 0
        owner = object()
        cache.foresee(owner, partial(_next_use_of, weakref.ref(self)))
        self._forget = weakref.finalize(self, cache.forget, owner)

    def close(self) -> None:
        """Fetch nothing more, and remove the next uses from the cache. May be called twice."""
        with self._changed:
            self._needs, self._ahead = iter(()), deque()
            self._changed.notify_all()
        self._forget()

    @property
    def largest(self) -> int:
        """The raw bytes of the largest file; a guess if the data does not say them."""
        return max(file.entry.raw_bytes for file in self._files)

    def check_room(self, files: int) -> None:
        """Check that the cache can hold `files` files, or all if there are fewer, at once.

        If the data does not say how large its values are, one file is fetched to measure it.

        Raises:
            DataError: the cache is too small, or a file cannot be read.
        """
        files = min(files, len(self._files))
        largest = self._measured()
        needed = files * (largest + ENTRY_OVERHEAD)
        if needed > self._cache.limit:
            raise DataError(
                f"the cache may take {self._cache.limit:,} bytes, but one node that reads all "
                f"logical ranks holds {files} files of up to {largest:,} bytes at once, "
                f"{needed:,} in all: raise `cache_limit`, lower `window` or the logical ranks, or "
                "write the data set with smaller files"
            )

    def _measured(self) -> int:
        """Return the raw bytes of the largest file; if they are guesses, measures one file."""
        guessed = [file for file in self._files if not file.is_exact]
        if not guessed or self.largest + ENTRY_OVERHEAD > self._cache.limit:
            return self.largest
        sample = max(guessed, key=lambda file: file.entry.raw_bytes)
        fetched = sample.fetch(threading.Event())
        size = fetched.size
        fetched.close()
        exact = [file.entry.raw_bytes for file in self._files if file.is_exact]
        return max([size, *exact])

    def expect(
        self,
        order: Ordering,
        epoch: int,
        lanes: range,
        position: int,
        cancelled: threading.Event,
    ) -> None:
        """Begin to fetch what some lanes read from a position on, until `cancelled` is set."""
        needs = order.needs(epoch, lanes, position)
        with self._changed:
            self._needs, self._ahead = needs, deque()
            self._position = (order, epoch, position)
            self._begun = order.place(epoch, position)
        for number in range(_THREADS):
            threading.Thread(
                target=self._work,
                args=(needs, cancelled),
                name=f"raytrain_plus prefetch {number}",
                daemon=True,
            ).start()

    def moved(self, order: Ordering, epoch: int, position: int) -> None:
        """Note the position of the lanes; the files that they have reached are no longer ahead."""
        progress = order.place(epoch, position) - self._begun
        with self._changed:
            self._position = (order, epoch, position)
            while self._ahead and self._ahead[0][0] <= progress:
                self._ahead.popleft()
                self._changed.notify_all()

    def _work(self, needs: Iterator[tuple[float, int]], cancelled: threading.Event) -> None:
        while (file := self._next(needs, cancelled)) is not None:
            try:
                self._files[file].fetch(cancelled, ahead=True).close()
            except CacheFullError:  # files that are needed sooner take the room: try again later
                cancelled.wait(_PREFETCH_LOOK)
            except InterruptedReadError:
                return
            except (DataError, StorageError):  # the reader of the file reports it
                continue

    def _next(self, needs: Iterator[tuple[float, int]], cancelled: threading.Event) -> int | None:
        """Wait until there is room, and return the next file to fetch; None at the end."""
        with self._changed:
            while not cancelled.is_set() and self._needs is needs:
                has_room = sum(size for _, size in self._ahead) < self._budget
                if has_room and len(self._ahead) < len(self._files):
                    away, file = next(needs)
                    self._ahead.append((away, self._files[file].entry.raw_bytes))
                    return file
                self._changed.wait(_PREFETCH_LOOK)
        return None

    def next_use(self) -> Mapping[str, float]:
        """Return how far away the next use of each entry is."""
        if self._position is None:
            return {}
        order, epoch, position = self._position
        away = order.next_use(epoch, position)
        return {file.key: float(d) for file, d in zip(self._files, away, strict=True)}


def _next_use_of(prefetcher: "weakref.ref[Prefetcher]") -> Mapping[str, float]:
    """Return the next uses of a prefetcher, which the cache does not keep alive."""
    alive = prefetcher()
    return alive.next_use() if alive is not None else {}

"""Fetching files into the cache before they are read, in the order in which they will be.

How far ahead is counted in bytes, since files differ; and what is ahead follows from the order, so
that after a resize a new owner begins with exactly the windows of the lanes that it was given.
"""

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.store import InterruptedReadError
from raytrain_plus.streams.cache import ENTRY_OVERHEAD, Cache, CacheFullError
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.order import Ordering

if TYPE_CHECKING:
    from raytrain_plus.streams.stream import StreamFile

_THREADS = 4
_MOST_AHEAD = 1 << 30  # bytes
_SHARE = 4  # of the cache: what is ahead takes no more than one part in so many
_LOOK = 0.25  # seconds


class Prefetcher:
    """Fetches the files of one source ahead.

    Args:
        files: of the source.
        cache: where to.
    """

    def __init__(self, files: "Sequence[StreamFile]", cache: Cache) -> None:
        self._files, self._cache = files, cache
        self._budget = min(_MOST_AHEAD, cache.limit // _SHARE)
        self._changed = threading.Condition()
        self._needs: Iterator[tuple[float, int]] = iter(())
        self._ahead: deque[tuple[float, int]] = deque()
        self._stands: tuple[Ordering, int, int] | None = None
        self._begun = 0
        owner = object()
        cache.foresee(owner, partial(_asked, weakref.ref(self)))
        self._forget = weakref.finalize(self, cache.forget, owner)

    def close(self) -> None:
        """Fetch nothing more, and let the cache forget what we read next; twice does no harm."""
        with self._changed:
            self._needs, self._ahead = iter(()), deque()
            self._changed.notify_all()
        self._forget()

    @property
    def largest(self) -> int:
        """The raw bytes of the largest file, as far as they are known."""
        return max(file.entry.raw_bytes for file in self._files)

    def check_room(self, files: int) -> None:
        """Refuse a cache that cannot hold so many files, or all there are, at once.

        Where the data does not say how large its values are, one file is fetched to measure it.

        Raises:
            DataError: it cannot, or a file cannot be read.
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
        """Return the raw bytes of the largest file; guesses are scaled by what one file takes."""
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
            self._stands = (order, epoch, position)
            self._begun = order.place(epoch, position)
        for number in range(_THREADS):
            threading.Thread(
                target=self._work,
                args=(needs, cancelled),
                name=f"raytrain_plus prefetch {number}",
                daemon=True,
            ).start()

    def moved(self, order: Ordering, epoch: int, position: int) -> None:
        """Note where the lanes stand: what they have come to is ahead no more."""
        progress = order.place(epoch, position) - self._begun
        with self._changed:
            self._stands = (order, epoch, position)
            while self._ahead and self._ahead[0][0] <= progress:
                self._ahead.popleft()
                self._changed.notify_all()

    def _work(self, needs: Iterator[tuple[float, int]], cancelled: threading.Event) -> None:
        while (file := self._next(needs, cancelled)) is not None:
            try:
                self._files[file].fetch(cancelled, ahead=True).close()
            except CacheFullError:  # what is needed sooner has it: come back when that is read
                cancelled.wait(_LOOK)
            except InterruptedReadError:
                return
            except (DataError, StorageError):  # the reader of the file meets and reports it
                continue

    def _next(self, needs: Iterator[tuple[float, int]], cancelled: threading.Event) -> int | None:
        """Return the next file to fetch, once there is room ahead; None at the end."""
        with self._changed:
            while not cancelled.is_set() and self._needs is needs:
                has_room = sum(size for _, size in self._ahead) < self._budget
                if has_room and len(self._ahead) < len(self._files):
                    away, file = next(needs)
                    self._ahead.append((away, self._files[file].entry.raw_bytes))
                    return file
                self._changed.wait(_LOOK)
        return None

    def next_use(self) -> Mapping[str, float]:
        """Return how far away the next use of each entry is."""
        if self._stands is None:
            return {}
        order, epoch, position = self._stands
        away = order.next_use(epoch, position)
        return {file.key: float(d) for file, d in zip(self._files, away, strict=True)}


def _asked(prefetcher: "weakref.ref[Prefetcher]") -> Mapping[str, float]:
    """Ask a prefetcher that the cache does not keep alive."""
    alive = prefetcher()
    return alive.next_use() if alive is not None else {}

"""What a process has fetched from stores, and what it found in its node's cache instead."""

import threading
from dataclasses import dataclass, field


@dataclass
class Traffic:
    """Counts that only grow; from any thread.

    Attributes:
        hits: files that were whole in the cache when they were to be read.
        misses: files that somebody had to wait for when they were to be read.
        fetched_files: files that this process has fetched, ahead or in need.
        fetched_bytes: of these, as they lie in the store.
    """

    hits: int = 0
    misses: int = 0
    fetched_files: int = 0
    fetched_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _told: dict[str, int] = field(default_factory=dict, repr=False)

    def looked(self, *, found: bool) -> None:
        """A file was to be read."""
        with self._lock:
            if found:
                self.hits += 1
            else:
                self.misses += 1

    def fetched(self, size: int) -> None:
        """A file of so many bytes has been fetched."""
        with self._lock:
            self.fetched_files += 1
            self.fetched_bytes += size

    def counts(self) -> dict[str, int]:
        """Return all counts by name."""
        with self._lock:
            return {name: n for name, n in vars(self).items() if not name.startswith("_")}

    def news(self) -> dict[str, int]:
        """Return what has been counted since this was last asked; there is one who asks."""
        before, self._told = self._told, self.counts()
        return {name: n - before.get(name, 0) for name, n in self._told.items()}


TRAFFIC = Traffic()
"""Of this process: its caches are shared, and so is the wire."""

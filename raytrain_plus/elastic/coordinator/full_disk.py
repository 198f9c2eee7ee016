"""A full disk, as the coordinator's journal meets it: no small disk is needed for it."""

import errno
import os
import time

from raytrain_plus.elastic.protocol.messages import Event
from raytrain_plus.observe.journal import Journal


class FullDisk(Journal):
    """A journal that cannot be written for some seconds, as its disk is full.

    Args:
        journal: the journal.
        seconds: how long.
    """

    def __init__(self, journal: Journal, seconds: float) -> None:  # opens no file of its own
        self.path = journal.path
        self._journal = journal
        self._until = time.monotonic() + seconds

    def write_all(self, events: list[Event]) -> list[Event]:
        """Append finished events.

        Raises:
            OSError: the disk is full.
        """
        if time.monotonic() < self._until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._journal.write_all(events)

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        self._journal.sync()

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

"""Holding a run back until replacements have come, so that the next fault finds a worker."""

import time
from pathlib import Path

from raytrain_plus.algorithms import Advice, Aspect, Step
from raytrain_plus.observe import journal

_LOOK = 0.02  # seconds


class Pace(Aspect):
    """Hold each step back for a moment while the group is smaller than wanted.

    So a short run lasts until replacements have come, however slow the machine is. Steps go on,
    slowly, since newcomers join at their boundaries; when one is ready, nothing is held back, nor
    is it once there is a file `hurry` in the run's folder. It changes no bit of the result.

    Attributes:
        folder: of the run.
        wanted: from which step (from 1) how many workers are wanted; below zero: at most so many.
        patience: seconds per step. Default 2.
    """

    folder: Path
    wanted: dict[int, int]
    patience: float = 2.0

    def step(self, step: Step) -> Advice:
        """Wait, but not for long."""
        starts = [start for start in self.wanted if start <= step.number + 1]
        wanted = self.wanted[max(starts)] if starts else 0
        deadline = time.monotonic() + self.patience
        group = _Group(self.folder)
        while self._waits(wanted, group) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        yield

    def _waits(self, wanted: int, group: "_Group") -> bool:
        if not wanted or (self.folder / "hurry").exists():
            return False
        group.look()
        if wanted < 0:
            return len(group.members) > -wanted
        return len(group.members) < wanted and not group.ready - group.members


class _Group:
    """Who trains and who is ready to, by the journal, of which each line is read once."""

    def __init__(self, folder: Path) -> None:
        self.ready, self.members = set[str](), set[str]()
        self._path, self._offset = folder / journal.FILE_NAME, 0

    def look(self) -> None:
        """Read what is new."""
        events, self._offset = journal.follow(self._path, self._offset)
        for event in events:
            if event["event"] == "generation":
                self.members = set(event["members"])
            elif event["event"] == "worker":
                of = self.ready.add if event["state"] == "ready" else self.ready.discard
                of(event["worker"])

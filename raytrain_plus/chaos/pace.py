"""Delays a run until replacements have joined, so that the next fault finds a worker."""

import time
from pathlib import Path

from raytrain_plus.algorithms import Advice, Aspect, Step
from raytrain_plus.observe import journal

_LOOK = 0.02  # seconds


class Pace(Aspect):
    """Delays each step for a moment while the group is smaller than wanted.

    So a short run lasts until replacements have joined, even on a slow machine. Steps go on slowly,
    since new workers join at step boundaries. There is no delay while a new worker is ready to
    join, nor after a file `hurry` exists in the run's folder. The result does not change in a bit.

    Attributes:
        folder: the run's folder.
        wanted: step (from 1) -> workers wanted from then on; -n means at most n workers.
        patience: longest delay per step, in seconds. Default 2.
    """

    folder: Path
    wanted: dict[int, int]
    patience: float = 2.0

    def step(self, step: Step) -> Advice:
        """Wait for the wanted workers, at most `patience` seconds."""
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
    """The workers that train and those that are ready, by the journal; reads each line once."""

    def __init__(self, folder: Path) -> None:
        self.ready, self.members = set[str](), set[str]()
        self._path, self._offset = folder / journal.FILE_NAME, 0

    def look(self) -> None:
        """Read new lines of the journal."""
        events, self._offset = journal.follow(self._path, self._offset)
        for event in events:
            if event["event"] == "generation":
                self.members = set(event["members"])
            elif event["event"] == "worker":
                of = self.ready.add if event["state"] == "ready" else self.ready.discard
                of(event["worker"])

"""Holding a run back until replacements have come, so that the next fault finds somebody."""

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
        while self._waits(wanted) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        yield

    def _waits(self, wanted: int) -> bool:
        if not wanted or (self.folder / "hurry").exists():
            return False
        ready, members = set[str](), set[str]()
        for event in journal.read(self.folder):
            if event["event"] == "generation":
                members = set(event["members"])
            elif event["event"] == "worker":
                (ready.add if event["state"] == "ready" else ready.discard)(event["worker"])
        if wanted < 0:
            return len(members) > -wanted
        return len(members) < wanted and not ready - members

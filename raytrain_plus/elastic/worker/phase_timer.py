"""Where the training thread's time goes: each second belongs to the phase that was entered last."""

import time
from collections.abc import Callable

# The part of a step to which each phase belongs, as reports name it. An exchange that runs during
# the backward costs nothing, and is not counted.
PART_OF = {
    "meet": "forming",
    "heal": "forming",
    "fetch": "data",
    "step": "compute",
    "forward": "compute",
    "backward": "compute",
    "update": "compute",
    "exchange": "exchange",
    "finish": "exchange",
    "slice": "exchange",
    "evaluate": "evaluation",
    "gather": "evaluation",
    "snapshot": "snapshot",
}


class PhaseTimer:
    """One worker's time in one generation.

    Time becomes final when a step commits. What follows the last commit of a lost generation
    belongs to the pause that the loss caused.

    Args:
        clock: gives monotonic seconds. Default: the machine's.

    Attributes:
        settled_at: Unix time up to which the time is final; 0.0 if none is.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self.start()

    def start(self) -> None:
        """Start a generation."""
        self._phase, self._since = "idle", self._clock()
        self._spent: dict[str, float] = {}
        self._settled: dict[str, float] = {}
        self.settled_at = 0.0

    def enter(self, phase: str) -> float:
        """Note that a phase starts; returns the monotonic seconds."""
        now = self._clock()
        self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return now

    def settle(self) -> None:
        """Make the time so far final."""
        self.enter(self._phase)
        self._settled = self._spent.copy()
        self.settled_at = time.time()

    def parts(self) -> dict[str, float]:
        """Return the final seconds by part."""
        parts: dict[str, float] = {}
        for phase, seconds in self._settled.items():
            if phase != "idle":
                part = PART_OF.get(phase, "compute")
                parts[part] = parts.get(part, 0.0) + seconds
        return parts

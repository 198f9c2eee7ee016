"""Where the training thread's time goes: each second belongs to the phase that was entered last."""

import time
from collections.abc import Callable

# What the phases of a step are parts of, as reports name them. An exchange that runs beside the
# backward costs nothing, and is not in it.
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

    What has been spent stands once it is settled, when a step is committed; what follows the last
    commit of a generation that was lost belongs to the pause that this caused.

    Args:
        clock: gives monotonic seconds. Default: the machine's.

    Attributes:
        settled_at: Unix time at which it was settled last; 0.0 if it was not.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self.start()

    def start(self) -> None:
        """Begin a generation."""
        self._phase, self._since = "idle", self._clock()
        self._spent: dict[str, float] = {}
        self._settled: dict[str, float] = {}
        self.settled_at = 0.0

    def enter(self, phase: str) -> float:
        """Note that a phase begins; returns when, in monotonic seconds."""
        now = self._clock()
        self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return now

    def settle(self) -> None:
        """Let stand what has been spent so far."""
        self.enter(self._phase)
        self._settled = self._spent.copy()
        self.settled_at = time.time()

    def parts(self) -> dict[str, float]:
        """Return the seconds that stand, by part."""
        parts: dict[str, float] = {}
        for phase, seconds in self._settled.items():
            if phase != "idle":
                part = PART_OF.get(phase, "compute")
                parts[part] = parts.get(part, 0.0) + seconds
        return parts

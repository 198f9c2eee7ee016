"""The speed of a run now. Pure: the caller passes the time."""

from collections import deque
from collections.abc import Mapping
from typing import Any

_WINDOW = 5.0  # seconds


class Throughput:
    """Steps per second over the last few seconds.

    A run that stands still slows down from the moment at which its next step is late. Steps that
    take longer than the window are measured, too: the last two commits always count.
    """

    def __init__(self) -> None:
        self._commits: deque[tuple[float, int]] = deque()

    def add(self, time: float, step: int) -> None:
        """Add a committed step; steps come in order, and go back after some are withdrawn.

        Args:
            time: Unix seconds.
            step: committed steps.
        """
        if self._commits and step <= self._commits[-1][1]:
            self._commits.clear()
        self._commits.append((time, step))
        self._forget(time)

    def rate(self, now: float) -> float:
        """Return steps per second; 0.0 before the second step.

        Args:
            now: Unix seconds.
        """
        self._forget(now)
        if len(self._commits) < 2:
            return 0.0
        (began, first), (ended, last) = self._commits[0], self._commits[-1]
        span, steps = ended - began, last - first
        # The step in flight may take as long as those before it.
        elapsed = max(span, now - began - span / steps)
        return steps / elapsed if elapsed > 0 else 0.0

    def _forget(self, now: float) -> None:
        while len(self._commits) > 2 and self._commits[1][0] <= now - _WINDOW:
            self._commits.popleft()


def model_flops_use(
    samples_per_second: float, workers: float, environment: Mapping[str, Any]
) -> float | None:
    """Return which share of the devices' peak a run reaches; None if it is not known.

    Args:
        samples_per_second: of the whole run.
        workers: that compute them, each on one device.
        environment: the journal's event.
    """
    operations, peak = environment.get("sample_flops", 0.0), environment.get("peak_flops", 0.0)
    if not peak or not workers:
        return None
    return float(samples_per_second * operations / (workers * peak))

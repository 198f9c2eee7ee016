"""How long a worker was busy: what a run costs in device-seconds."""

import time
from collections.abc import Callable

import torch


class BusyTime:
    """Counts the busy time of this process.

    On a CPU this is the CPU time of the process. On an accelerator it is the time that the device
    was held while a generation ran, without waiting for other workers: the host's CPU time says
    nothing about the cost of a device.

    Args:
        device: the device that the worker computes on.
        cpu_seconds: reads the CPU time of this process.
        wall_seconds: reads a clock that only moves forward.
    """

    def __init__(
        self,
        device: torch.device,
        cpu_seconds: Callable[[], float] = time.process_time,
        wall_seconds: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._held = device.type != "cpu"
        self._now = wall_seconds if self._held else cpu_seconds
        self._since = self._now()
        self._seconds = 0.0
        self._running = True

    def resume(self) -> None:
        """Count again: a generation begins. An accelerator's time between two does not count."""
        if self._held and not self._running:
            self._since = self._now()
        self._running = True

    def pause(self) -> None:
        """Stop counting: a generation has ended."""
        if self._held and self._running:
            self._settle()
        self._running = False

    def waited(self, seconds: float) -> None:
        """Subtract time spent waiting for other workers; CPU time contains none of it."""
        if self._held:
            self._seconds -= seconds

    def read_and_reset(self) -> float:
        """Return the busy seconds since the last call, or since the beginning."""
        if self._running or not self._held:
            self._settle()
        taken, self._seconds = self._seconds, 0.0
        return taken

    def _settle(self) -> None:
        now = self._now()
        self._seconds += now - self._since
        self._since = now

"""A worker that is too large for its node ends itself before Ray's memory monitor acts.

The monitor would end the coordinator first, though it is small (`ray_cluster/memory_monitor.py`).
So each worker watches the memory of its node. When the node is about to reach Ray's threshold, the
largest worker tells the coordinator its size and ends.
"""

import threading
import time
from collections.abc import Callable

from raytrain_plus.ray_cluster.memory_monitor import NodeMemory, is_largest_here, node_memory

_LONGEST, _SHORTEST = 1.0, 0.05  # seconds between two looks
_FASTEST = 8 * 2**30  # bytes that a node may take in a second
_AHEAD = 0.2  # seconds for which memory must last, so that there is time to act
_AGREEING = 2  # looks in a row. One would be too few: a larger worker may end after the node's
# memory was read, and before the sizes are compared.
_GIB = 2**30


class MemoryPressure:
    """Whether a node is about to use more memory than Ray allows. Pure."""

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def is_high(self, memory: NodeMemory, now: float) -> bool:
        """Take in what the node uses; returns whether a process has to free memory.

        Memory that shrinks is left alone: another worker has ended, and its memory is being freed.

        Args:
            memory: of the node.
            now: monotonic seconds.
        """
        before, self._before = self._before, (memory.used, now)
        if before is None or now <= before[1]:
            return False
        rate = (memory.used - before[0]) / (now - before[1])
        return rate >= 0 and memory.used + rate * _AHEAD >= memory.allowed

    @staticmethod
    def seconds_to_next_look(memory: NodeMemory) -> float:
        """Return for how long the free memory lasts at least."""
        return min(_LONGEST, max(_SHORTEST, (memory.allowed - memory.used) / _FASTEST - _AHEAD))


class MemoryWatch:
    """A thread that watches the node's memory on behalf of this process.

    Args:
        end: called with why this process has to end; it does not return in a worker.
        look: how the node's memory is read.
        is_largest: says whether this process is the largest on its node, and its size in bytes.
    """

    def __init__(
        self,
        end: Callable[[str], None],
        look: Callable[[], NodeMemory | None] = node_memory,
        is_largest: Callable[[], tuple[bool, int]] = is_largest_here,
    ) -> None:
        self._end = end
        self._look = look
        self._is_largest = is_largest
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="memory watch").start()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _watch(self) -> None:
        pressure, agreeing = MemoryPressure(), 0
        while (memory := self._look()) is not None:
            high = pressure.is_high(memory, time.monotonic())
            largest, size = self._is_largest() if high else (False, 0)
            agreeing = agreeing + 1 if largest else 0
            if agreeing >= _AGREEING and not self._closed.is_set():
                self._end(
                    f"it ended itself for want of memory: it used {size / _GIB:.1f} GiB, more than "
                    f"any other process of Ray's on its node. Its node used {memory}"
                )
                return
            if self._closed.wait(pressure.seconds_to_next_look(memory)):
                return

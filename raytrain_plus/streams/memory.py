"""How much memory this process may still take: what data declares is checked before it is taken."""

import heapq
import math
import resource
from collections.abc import Sequence
from pathlib import Path

from raytrain_plus.streams.columns import DataError

_FEW_ROWS = 10**6  # which need no look at the memory
_MIXING_BYTES = 32  # of memory for a row, while a window is mixed
_CGROUP = Path("/sys/fs/cgroup")


def memory_left() -> float:
    """Return the bytes of memory that this process may still take; infinite where nobody says."""
    return max(0.0, min(_of_machine(), _of_container(), _of_process()))


def check_memory(needed: float, what: str) -> None:
    """Refuse what does not fit into memory.

    Args:
        needed: bytes.
        what: takes them, as the beginning of a sentence.

    Raises:
        DataError: there is less.
    """
    if needed > (left := memory_left()):
        raise DataError(
            f"{what} takes {needed:,.0f} bytes of memory, and this process may take {left:,.0f} "
            "more: the data is damaged or made to do harm; or else use smaller files, or a machine "
            "with more memory."
        )


def check_order_memory(rows: Sequence[int], window: int | None, where: str) -> None:
    """Refuse files of so many rows that there is no memory to mix a window of them.

    Args:
        rows: of each file.
        window: how many files are mixed at a time; None for all.
        where: what to call the data in an error.

    Raises:
        DataError: there is less memory.
    """
    most = sum(heapq.nlargest(window or len(rows), rows))
    if most > _FEW_ROWS:
        check_memory(_MIXING_BYTES * most, f"mixing {most:,} rows of {where}")


def _of_machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return float(next(n for n in lines if n.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        return math.inf


def _of_container() -> float:
    try:
        limit = float((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = float((_CGROUP / "memory.current").read_text())
        counts = dict(n.split() for n in (_CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + float(counts.get("inactive_file", 0))
    except (OSError, ValueError):
        return math.inf


def _of_process() -> float:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return float(limit - pages * resource.getpagesize())

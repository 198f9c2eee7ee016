"""A node's memory, as Ray's memory monitor sees it: above a threshold it ends processes.

The monitor (Ray 2.60) ends what can be restarted first, and of that the newest first, until the
node is below its threshold by a margin. Sizes do not count. A coordinator can be restarted, and
workers cannot: it is ended before them. So workers end themselves before the monitor acts
(`elastic/worker/memory_watch.py`).
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.core.generated import common_pb2, gcs_pb2
from ray.exceptions import RayError

THRESHOLD = "RAY_memory_usage_threshold"
_DEFAULT = 0.95  # of Ray
_LEAST_FREE = "RAY_min_memory_free_bytes"
_INTERVAL = "RAY_memory_monitor_refresh_ms"
_GIB = 2**30
_ANSWER_SECONDS = 1.0  # which a survivor may wait for Ray's answer; it takes 3 ms
_TOLD = re.compile(r"Memory usage (\d+)B exceeded threshold of (\d+)B \(.* of (\d+)B limit\)")
# A container's files, each with its limit, its usage, its statistics and their fields of cached
# files, which the kernel can free.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)


@dataclass(frozen=True)
class NodeMemory:
    """The memory of a node, or of the container in which its Ray runs.

    Attributes:
        used: bytes in use, without cached files.
        total: bytes that there are.
        allowed: bytes in use above which Ray's memory monitor ends processes.
    """

    used: float
    total: float
    allowed: float

    def __str__(self) -> str:
        """Say what is used, and what Ray allows."""
        return (
            f"{self.used / _GIB:.1f} of {self.total / _GIB:.1f} GiB of memory, and Ray allows "
            f"{self.allowed / _GIB:.1f} GiB ({THRESHOLD})"
        )


def node_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroups: Path = Path("/sys/fs/cgroup")
) -> NodeMemory | None:
    """Return this node's memory; None where there is no monitor, or the system does not tell.

    Args:
        meminfo: the system's file.
        cgroups: the folder of the container's files.
    """
    if os.environ.get(_INTERVAL) == "0":
        return None
    try:
        system = _numbers(meminfo)
        total = system["MemTotal:"] * 1024
        used = total - system["MemAvailable:"] * 1024
        container = _container(cgroups)
        if container is not None and container[1] <= total:
            used, total = container
        allowed = total * float(os.environ.get(THRESHOLD, _DEFAULT))
        least_free = int(os.environ.get(_LEAST_FREE, "-1"))
    except (OSError, ValueError, KeyError):
        return None
    return NodeMemory(used, total, max(allowed, total - least_free) if least_free >= 0 else allowed)


def _container(folder: Path) -> tuple[int, int] | None:
    """Return the bytes that a container uses and may use; None if it has no limit."""
    for limit, usage, statistics, cached in _CGROUPS:
        if (folder / limit).exists():
            allowed = (folder / limit).read_text().strip()
            if not allowed.isdigit():  # "max"
                return None
            numbers = _numbers(folder / statistics)
            used = int((folder / usage).read_text()) - sum(numbers[field] for field in cached)
            return max(0, used), int(allowed)
    return None


def _numbers(path: Path) -> dict[str, int]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}


def is_largest_here(processes: Path = Path("/proc"), own: int | None = None) -> tuple[bool, int]:
    """Say whether this process is the largest of those that this node's Ray has started.

    Memory that is shared with other processes, or backed by a file, does not count.

    Args:
        processes: the system's folder.
        own: this process.

    Returns:
        Whether it is, and its size in bytes.
    """
    own = os.getpid() if own is None else own
    parent = _parent(processes / str(own))
    sizes = {}
    for process in processes.iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                if _parent(process) == parent:
                    sizes[int(process.name)] = _size(process)
    return sizes[own] == max(sizes.values()), sizes[own]


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def _size(process: Path) -> int:
    _, resident, shared, *_ = (process / "statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def memory_use(
    look: Callable[[], NodeMemory | None] = node_memory, processes: Path = Path("/proc")
) -> str:
    """Say what this process and its node use; empty where the system does not tell.

    Args:
        look: how the node's memory is read.
        processes: the system's folder.
    """
    memory = look()
    if memory is None:
        return ""
    size = _size(processes / str(os.getpid()))
    return f"its process used {size / _GIB:.1f} GiB; its node used {memory}"


def trouble(look: Callable[[], NodeMemory | None] = node_memory) -> str:
    """Say that this node's memory is above Ray's threshold; nothing if it is not.

    Args:
        look: how the memory is read.
    """
    memory = look()
    if memory is None or memory.used < memory.allowed:
        return ""
    return (
        f"; this node uses {memory}, so that Ray's memory monitor ends what is started here: free "
        "memory, use a larger node, or raise the threshold"
    )


@dataclass(frozen=True)
class Kill:
    """A process that Ray's memory monitor has ended.

    Attributes:
        size: bytes that the process used, 0 if Ray does not say.
        told: what Ray says of it.
    """

    size: int
    told: str

    def __str__(self) -> str:
        """Say what has happened, with the sizes of the process and of its node."""
        node = "its node was short of memory"
        if found := _TOLD.search(self.told):
            used, allowed, total = (int(number) for number in found.groups())
            node = f"its node used {NodeMemory(used, total, allowed)}"
        size = f", which used {self.size / _GIB:.1f} GiB" if self.size else ""
        return f"Ray's memory monitor ended its process{size}: {node}"


def kill_of(actor: Any) -> str:
    """Say that Ray's memory monitor has ended an actor's process; nothing if it has not.

    Ray knows it before the process is gone. A Ray that does not answer at once says nothing.

    Args:
        actor: the handle.
    """
    found: list[Kill] = []

    def ask() -> None:
        with contextlib.suppress(RayError, RuntimeError):  # Ray cannot be reached
            found.extend(_kills_of(actor))

    thread = threading.Thread(target=ask, daemon=True, name="memory")
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return str(found[0]) if found else ""


def _kills_of(actor: Any) -> list[Kill]:
    """Return the kills among the ends of an actor's processes, of which Ray keeps a record."""
    tables = ray._private.state.state._connect_and_get_accessor()  # noqa: SLF001
    record = tables.get_actor_info(actor._actor_id)  # noqa: SLF001
    if record is None:
        return []
    told = gcs_pb2.ActorTableData.FromString(record)
    earlier = getattr(told, "previous_incarnations", ())  # which Ray before 2.60 does not record
    ids = [told.address.worker_id, *(one.worker_id for one in earlier)]
    kills = []
    for process in filter(None, ids):
        if (record := tables.get_worker_info(ray.WorkerID(process))) is None:
            continue
        end = gcs_pb2.WorkerTableData.FromString(record)
        if end.exit_type == common_pb2.NODE_OUT_OF_MEMORY:
            size = getattr(end, "memory_used_bytes_at_death", 0)
            kills.append(Kill(size, end.exit_detail))
    return kills

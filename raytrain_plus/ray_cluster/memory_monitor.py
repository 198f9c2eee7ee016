"""A node's memory, as Ray's memory monitor sees it: above a threshold it ends processes.

The monitor (Ray 2.60) ends what can be restarted first, and of that the newest first, until the
node is below its threshold by a margin. Sizes do not count. A coordinator can be restarted, and
workers cannot: it is ended before them.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import utils
from ray.core.generated import common_pb2, gcs_pb2
from ray.exceptions import RayError

THRESHOLD = "RAY_memory_usage_threshold"
_DEFAULT = 0.95  # of Ray
_GIB = 2**30
_ANSWER_SECONDS = 1.0  # which a survivor may wait for Ray's answer; it takes 3 ms
_TOLD = re.compile(r"Memory usage (\d+)B exceeded threshold of (\d+)B \(.* of (\d+)B limit\)")


def trouble(
    used: Callable[[], float] = utils.get_used_memory,
    total: Callable[[], float] = utils.get_system_memory,
) -> str:
    """Say that this node's memory is above Ray's threshold; nothing if it is not.

    Args:
        used: bytes that are in use on this node, or in its container.
        total: bytes that there are.
    """
    try:
        share, threshold = used() / total(), float(os.environ.get(THRESHOLD, _DEFAULT))
    except (OSError, ValueError, ZeroDivisionError):
        return ""
    if share < threshold:
        return ""
    return (
        f"; this node uses {used() / _GIB:.1f} of its {total() / _GIB:.1f} GiB of memory, which is "
        f"above {threshold:.0%} ({THRESHOLD}), so that Ray's memory monitor ends what is started "
        "here: free memory, use a larger node, or raise the threshold"
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
            used, threshold, total = (int(number) for number in found.groups())
            node = (
                f"its node used {used / _GIB:.1f} of {total / _GIB:.1f} GiB of memory, and Ray "
                f"allows {threshold / _GIB:.1f} GiB ({THRESHOLD})"
            )
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

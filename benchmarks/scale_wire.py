"""What messages, bytes and connections cost a worker, measured between processes of this machine.

The figures are CPU seconds of one worker's process with all its threads: that, unlike the time, can
be measured with more workers than cores.
"""

import multiprocessing
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.traffic import Traffic, ranges_of
from raytrain_plus.elastic.transport import MeetingPoint, Transport
from raytrain_plus.training.reduction import LANE_WIDTH, Reduction, tree_sum

_HOST = "127.0.0.1"
_TENSOR = 1 << 18  # elements of float32: a quarter of a bucket
_SECONDS = 120.0


@dataclass(frozen=True)
class Found:
    """What one worker has measured.

    Attributes:
        meet_seconds: from the first to the last of the meeting, by the wall clock.
        meet_cpu: CPU seconds of it.
        descriptors: that the meeting has opened.
        step_cpu: CPU seconds of an exchange.
        step_seconds: likewise by the wall clock.
        buckets: that an exchange had.
    """

    meet_seconds: float
    meet_cpu: float
    descriptors: int
    step_cpu: float
    step_seconds: float
    buckets: int


def run(workers: int, logical_ranks: int, elements: int, steps: int) -> list[Found]:
    """Let some processes meet, and exchange gradients of so many elements."""
    context = multiprocessing.get_context("fork")  # what is imported, all have
    port, found = context.SimpleQueue(), context.SimpleQueue()
    together = context.Barrier(workers)
    ranges = ranges_of(workers, logical_ranks)
    processes: list[BaseProcess] = [
        context.Process(target=_work, args=(i, ranges, elements, steps, (port, found, together)))
        for i in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        results: list[Found] = [found.get() for _ in processes]
        for process in processes:
            process.join(_SECONDS)
    finally:
        for process in processes:
            process.kill()
    return results


def _work(
    index: int, ranges: Sequence[range], elements: int, steps: int, shared: tuple[Any, Any, Any]
) -> None:
    port, found, together = shared
    torch.set_num_threads(1)
    workers = len(ranges)
    point = None
    if index == 0:
        point = MeetingPoint(_HOST)
        for _ in range(workers - 1):
            port.put(point.address)
    address = point.address if point is not None else port.get()
    transport = Transport(index, workers, torch.device("cpu"))
    descriptors = _descriptors()
    together.wait(_SECONDS)
    wall, cpu = time.perf_counter(), time.process_time()
    transport.meet(address, "scale", _HOST)
    met = time.perf_counter() - wall, time.process_time() - cpu, _descriptors() - descriptors

    like = [torch.zeros(min(_TENSOR, elements)) for _ in range(max(1, elements // _TENSOR))]
    reduction = Reduction(like, [], ranges, transport)
    mine = Traffic(ranges, 1.0, 1).partials[index]
    rows = torch.ones(len(ranges[index]), LANE_WIDTH, dtype=torch.float64).numpy()
    for warm in (True, False):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(3 if warm else steps):
            reduction.run([like] * mine, rows, b"")
    step_cpu, step = (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps
    transport.all_gather_bytes(b"over")  # nobody hangs up while others still wait
    found.put(Found(*met, step_cpu, step, len(reduction.buckets)))
    os._exit(0)


def _descriptors() -> int:
    with suppress(FileNotFoundError):
        return len(list(Path("/proc/self/fd").iterdir()))
    return 0


def mean_step_cpu(found: Sequence[Found]) -> float:
    """Return the CPU seconds of one worker's exchange, on average."""
    return sum(one.step_cpu for one in found) / len(found)


def row_seconds() -> float:
    """Return the CPU seconds that the control lane's sum takes for each of many rows."""
    rows = torch.ones(1 << 17, LANE_WIDTH, dtype=torch.float64).numpy()
    begun = time.process_time()
    for _ in range(5):
        tree_sum(rows)
    return (time.process_time() - begun) / 5 / len(rows)

"""A worker's cost of messages, bytes and connections, measured between processes of this machine.

The figures are CPU seconds of one worker's process with all its threads. Unlike elapsed time, CPU
time can be measured with more workers than cores.
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

from benchmarks.traffic import BUCKET_BYTES, Traffic, ranges_of
from raytrain_plus.training import reduction as reduction_of
from raytrain_plus.training.endpoint import Endpoint
from raytrain_plus.training.reduction import Reduction, group_of
from raytrain_plus.training.step_header import HEADER_WIDTH
from raytrain_plus.training.transport import Transport

_HOST = "127.0.0.1"
_WARM_UP = 3  # steps
_SECONDS = 120.0


@dataclass(frozen=True)
class Found:
    """One worker's measurements.

    Attributes:
        meet_seconds: duration of the meeting, by the wall clock.
        meet_cpu: CPU seconds of the meeting.
        descriptors: number of file descriptors that the meeting has opened.
        step_cpu: CPU seconds of an exchange.
        step_seconds: the same by the wall clock.
    """

    meet_seconds: float
    meet_cpu: float
    descriptors: int
    step_cpu: float
    step_seconds: float


@dataclass(frozen=True)
class Load:
    """The traffic of a group.

    Attributes:
        logical_ranks: V.
        tensors: number of gradient tensors.
        elements: elements of each, float32.
        steps: number of exchanges, after three to warm up.
        bucket_bytes: size at which a bucket is full. Small buckets make many messages of few bytes,
            as a large group does.
    """

    logical_ranks: int
    tensors: int
    elements: int
    steps: int
    bucket_bytes: int = BUCKET_BYTES

    def traffic(self, workers: int) -> Traffic:
        """Return the traffic by the plan."""
        size = 4 * self.elements
        buckets = max(1, -(-self.tensors * size // max(size, self.bucket_bytes)))
        return Traffic(ranges_of(workers, self.logical_ranks), self.tensors * size, buckets)


def run(workers: int, load: Load) -> list[Found]:
    """Start processes that meet and exchange gradients."""
    context = multiprocessing.get_context("fork")  # all processes have what is imported here
    serving = context.Manager()
    places, found = serving.dict(), context.SimpleQueue()
    together = context.Barrier(workers)
    processes: list[BaseProcess] = [
        context.Process(target=_work, args=(i, workers, load, (places, found, together)))
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
        serving.shutdown()
    return results


def _work(index: int, workers: int, load: Load, shared: tuple[Any, Any, Any]) -> None:
    places, found, together = shared
    torch.set_num_threads(1)
    endpoint = Endpoint(_HOST, "the benchmark's secret")
    places[index] = endpoint.address
    transport = Transport(index, workers, torch.device("cpu"))
    traffic = load.traffic(workers)
    ranges, mine = traffic.ranges, traffic.partials[index]
    like = [torch.zeros(load.elements) for _ in range(load.tensors)]
    reduction_of._BUCKET_BYTES = load.bucket_bytes  # noqa: SLF001 - of this process alone
    descriptors = _descriptors()
    together.wait(_SECONDS)
    wall, cpu = time.perf_counter(), time.process_time()
    group = group_of(like, [], ranges, transport.device)
    transport.meet(endpoint, [places[i] for i in range(workers)], 1, group.part(index))
    met = time.perf_counter() - wall, time.process_time() - cpu, _descriptors() - descriptors

    reduction = Reduction(like, [], ranges, transport, group=group)
    assert len(reduction.buckets) == traffic.buckets
    rows = torch.ones(len(ranges[index]), HEADER_WIDTH, dtype=torch.float64).numpy()
    for warm in (True, False):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(_WARM_UP if warm else load.steps):
            reduction.run([like] * mine, rows, b"")
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    transport.all_gather_bytes(b"over")  # no worker closes while others still wait
    found.put(Found(*met, cpu / load.steps, wall / load.steps))
    os._exit(0)


def _descriptors() -> int:
    with suppress(FileNotFoundError):
        return len(list(Path("/proc/self/fd").iterdir()))
    return 0


def mean_step_cpu(found: Sequence[Found]) -> float:
    """Return the CPU seconds of one worker's exchange, on average."""
    return sum(one.step_cpu for one in found) / len(found)


def value_seconds() -> float:
    """Return the CPU seconds that the own values of each of many workers take in a step."""
    own = torch.ones(1 << 14, 3, dtype=torch.float64).numpy()
    begun = time.process_time()
    for _ in range(5):
        compute, seen, _ = own.T.tolist()  # as `TrainingLoop` does
        tuple(compute), seen.index(min(seen))
    return (time.process_time() - begun) / 5 / len(own)

"""One worker of `benchmarks.wire`: a program for one host of a lab.

    python -m benchmarks.wire_host SYSTEM INDEX WORKERS LOGICAL_RANKS ADDRESS FIRST_ADDRESS

SYSTEM is `ours` (the training loop and the transport of raytrain_plus, with the checks for
corruption that are on by default; no Ray) or `ring` (DistributedDataParallel on gloo, whose
all-reduce is a ring). Both train the communication-bound model on the same parts. The first line on
stdout is how this worker is reached, and the first one on stdin how all are. Each further line on
stdin is a number of steps; the answer is the seconds of each. All of it is JSON.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.corruption_cost import batches
from benchmarks.peers import train_step
from benchmarks.tasks import COMMUNICATION_BOUND, Workload
from benchmarks.traffic import ranges_of
from raytrain_plus.algorithms import Weave
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.training.endpoint import Endpoint
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica
from raytrain_plus.training.transport import Transport

# torch's type stubs lack much of what is used here.
dist: Any = torch.distributed

_RING_PORT = 29501
_LONG = 10**9  # steps


def workload_of(logical_ranks: int) -> Workload:
    """Return the workload."""
    return replace(COMMUNICATION_BOUND, logical_ranks=logical_ranks)


@dataclass(frozen=True)
class Place:
    """A worker's place in its group.

    Attributes:
        index: its index among the workers.
        ranges: the logical ranks of each worker.
        address: the address of this host.
        first: the address of the first worker's host.
    """

    index: int
    ranges: list[range]
    address: str
    first: str


def ours(place: Place) -> Callable[[], None]:
    """Return a function that runs a step of raytrain_plus."""
    endpoint = Endpoint(place.address, "the benchmark's secret")
    print(json.dumps(endpoint.address), flush=True)
    members = [tuple(address) for address in json.loads(sys.stdin.readline())]
    transport = Transport(place.index, len(place.ranges), torch.device("cpu"))
    transport.meet(endpoint, members, 1)
    workload = workload_of(place.ranges[-1].stop)
    task, weave, config = workload.load(), Weave([]), ElasticConfig()
    clock = Clock(
        total_steps=_LONG,
        steps_per_epoch=_LONG,
        batch_size=workload.batch_size,
        evaluate_every=_LONG,
    )
    replica = Replica.build(task, 17, torch.device("cpu"), weave=weave, clock=clock)
    checks = {"check_every": config.check_every, "audit_every": config.audit_every}
    loop = TrainingLoop(task, replica, weave, **checks)
    loop.begin_generation(place.ranges, transport)
    parts = batches(workload)
    mine = place.ranges[place.index]

    def step() -> None:
        audit = loop.guard.audit_of(replica.step)
        audited = parts[audit[0]] if audit is not None and audit[1] == place.index else None
        loop.run_step([dict(parts[rank]) for rank in mine], audit_part=audited)

    return step


def ring(place: Place) -> Callable[[], None]:
    """Return a function that runs a step of DistributedDataParallel."""
    print(json.dumps(place.address), flush=True)
    sys.stdin.readline()
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{place.first}:{_RING_PORT}",
        rank=place.index,
        world_size=len(place.ranges),
    )
    workload = workload_of(place.ranges[-1].stop)
    task = workload.load()
    model = DistributedDataParallel(task.model(), gradient_as_bucket_view=True)
    optimizer = task.optimizer(model)
    parts = batches(workload)
    mine = [(parts[r]["input"], parts[r]["label"]) for r in place.ranges[place.index]]

    def step() -> None:
        train_step(model, mine)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(system: str, index: str, workers: str, logical_ranks: str, *addresses: str) -> None:
    """Print `ready`, and run as many steps as each line says."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = Place(int(index), ranges_of(int(workers), int(logical_ranks)), *addresses)
    step = {"ours": ours, "ring": ring}[system](place)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(0)  # DDP's threads may outlive the interpreter, which would abort the process


if __name__ == "__main__":
    main(*sys.argv[1:])

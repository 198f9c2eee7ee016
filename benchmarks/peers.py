"""The peers of steady state: a plain PyTorch loop, and DistributedDataParallel on gloo.

They are written as a PyTorch expert would write them: one thread per process, data in memory as
tensors, gradients accumulated in place in the buckets that are sent, and sent while the last
backward still runs. `measure` runs them in separate processes: this module is their program.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.tasks import Classification, Workload

_NICENESS = 15  # that of Ray's workers, so that other programs delay both equally


@dataclass(frozen=True)
class Timeline:
    """When each step ended.

    Attributes:
        times: Unix seconds.
        cpu: seconds of CPU that all processes together had used since they began.
    """

    times: list[float]
    cpu: list[float]


def measure(workload: Workload, workers: int, steps: int) -> Timeline:
    """Train with a peer: the plain loop for one worker, DistributedDataParallel for more."""
    command = [sys.executable, "-m", "benchmarks.peers", workload.task]
    command += [str(n) for n in (workload.batch_size, workload.logical_ranks, workers, steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return Timeline(**json.loads(done.stdout.splitlines()[-1]))


def micro_batches(
    task: Classification, workload: Workload, rank: int, workers: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the inputs and labels of each step of one process, in a new order in each epoch."""
    inputs, labels = (torch.from_numpy(array) for array in task.arrays())
    rows = workload.batch_size // workload.logical_ranks
    own = workload.logical_ranks // workers * rows
    while True:
        order = torch.randperm(len(inputs))
        for batch in order[: len(order) // workload.batch_size * workload.batch_size].split(
            workload.batch_size
        ):
            parts = batch[rank * own : (rank + 1) * own].split(rows)
            yield [(inputs[part], labels[part]) for part in parts]


def train_step(model: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> None:
    """Accumulate the gradient over micro-batches; the last backward starts the all-reduce."""
    quiet: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    if isinstance(model, DistributedDataParallel):
        quiet = model.no_sync
    for number, (inputs, labels) in enumerate(parts, 1):
        with quiet() if number < len(parts) else contextlib.nullcontext():
            loss = functional.cross_entropy(model(inputs), labels) / len(parts)
            loss.backward()


def run(rank: int, workload: Workload, workers: int, steps: int, folder: Path) -> None:
    """Train as one of the processes, and write its timeline to a file."""
    os.nice(_NICENESS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = workload.load()
    model: nn.Module = task.model()
    if workers > 1:
        meeting = f"file://{folder / 'meeting'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = task.optimizer(model)
    times, cpu = [], []
    for parts in islice(micro_batches(task, workload, rank, workers), steps):
        train_step(model, parts)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.time())
        cpu.append(time.process_time())
    (folder / str(rank)).write_text(json.dumps([times, cpu]), encoding="utf-8")
    if workers > 1:
        dist.barrier()
        os._exit(0)  # DDP's threads may outlive the interpreter, which would abort the process


def main() -> None:
    """Start the processes; print the first one's timeline, with the CPU time of all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("numbers", type=int, nargs=4)
    given = parser.parse_args()
    batch_size, logical_ranks, workers, steps = given.numbers
    workload = Workload(given.task, batch_size, logical_ranks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mp.spawn(run, (workload, workers, steps, folder), nprocs=workers)
        found = [json.loads((folder / str(rank)).read_text()) for rank in range(workers)]
    total = [sum(at_step) for at_step in zip(*(cpu for _, cpu in found), strict=True)]
    print(json.dumps({"times": found[0][0], "cpu": total}))


if __name__ == "__main__":
    main()

"""CPU time of a step in addition to the model: coordinator, loop and journal.

Run as `python -m benchmarks.step_cost [--quick] [--json]`.

The model is tiny, so that all other costs show. The figure is the CPU time of the workers' and the
coordinator's processes with all their threads, per step over a long window, minus that of a bare
PyTorch loop (for two workers DistributedDataParallel) over the same micro-batches.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from benchmarks import peers, report
from benchmarks.elastic import RUN, Event, of_kind, train
from benchmarks.report import Aim, Row
from benchmarks.tasks import TINY, Workload
from raytrain_plus.names import NAMESPACE

_MOST = 0.5  # milliseconds
_WARM_UP = 0.2  # of the steps
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """A number of micro-batches on a number of workers."""

    workload: Workload
    workers: int
    steps: int
    most: float | None


CASES = (
    Case(replace(TINY, logical_ranks=1), 1, 8000, _MOST),
    Case(TINY, 1, 4000, _MOST),
    Case(TINY, 2, 3000, None),
)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(frozen=True)
class Sample:
    """CPU seconds used up to a Unix time."""

    time: float
    workers: float
    coordinator: float


class Meter:
    """Watches a run, and reads its processes' CPU time: once it is warm, and at the end.

    Args:
        first: the step after which it is warm.
        last: the last step of a sample, so that the end of the run does not count.
    """

    def __init__(self, first: int, last: int) -> None:
        self._range = range(first, last)
        self._pids: list[int] = []
        self._coordinator = 0
        self.samples: list[Sample] = []

    def __call__(self, events: list[Event]) -> None:
        """Handle new events of the journal."""
        self._pids += [event["pid"] for event in of_kind(events, "worker", state="ready")]
        steps = of_kind(events, "step")
        if steps and steps[-1]["step"] in self._range:
            self._coordinator = self._coordinator or _coordinator_pid()
            workers = sum(cpu_seconds(pid) for pid in self._pids)
            self.samples.append(Sample(time.time(), workers, cpu_seconds(self._coordinator)))


def _coordinator_pid() -> int:
    actor: Any = ray.get_actor(RUN, namespace=NAMESPACE)
    call = actor.__ray_call__.options(concurrency_group="control")
    pid: int = ray.get(call.remote(lambda _self: os.getpid()))
    return pid


def ours(case: Case, steps: int) -> tuple[float, float]:
    """Return milliseconds of CPU per step: of the workers, and of the coordinator."""
    meter = Meter(int(steps * _WARM_UP), int(steps * (1 - _WARM_UP / 2)))
    events = train(case.workload, case.workers, steps, meter)
    first, last = meter.samples[0], meter.samples[-1]
    done = sum(first.time < event["time"] <= last.time for event in of_kind(events, "step"))
    return (
        (last.workers - first.workers) / done * 1e3,
        (last.coordinator - first.coordinator) / done * 1e3,
    )


def bare(case: Case, steps: int) -> float:
    """Return milliseconds of CPU per step of the peer."""
    cpu = peers.measure(case.workload, case.workers, steps).cpu
    window = cpu[int(steps * _WARM_UP) :]
    return (window[-1] - window[0]) / (len(window) - 1) * 1e3


def compare(case: Case, *, quick: bool) -> Row:
    """Measure both in turn."""
    steps = case.steps // 2 if quick else case.steps
    found = [(*ours(case, steps), bare(case, steps)) for _ in range(1 if quick else 5)]
    workers, coordinator, peer = (report.median(values) for values in zip(*found, strict=True))
    return {
        "micro-batches": case.workload.logical_ranks,
        "workers": case.workers,
        "in workers ms": workers,
        "coordinator ms": coordinator,
        "bare ms": peer,
        "cost ms": report.median([sum(row[:2]) - row[2] for row in found]),
        "ratio": round((workers + coordinator) / peer, 2),
        "aim ms": case.most,
    }


def main() -> None:
    """Measure all cases."""
    options = report.options("CPU time per step in addition to the model")
    rows = [compare(case, quick=options.quick) for case in CASES]
    report.show("milliseconds of CPU per step", rows)
    aims = [
        Aim(f"ms of CPU per step, {row['micro-batches']} micro-batches", row["cost ms"], most=_MOST)
        for row in rows
        if row["aim ms"]
    ]
    report.finish(aims, {"step_cost": rows}, as_json=options.json)


if __name__ == "__main__":
    main()

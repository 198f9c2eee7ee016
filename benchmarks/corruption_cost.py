"""The cost of checks for silent corruption.

Run as `python -m benchmarks.corruption_cost [--quick] [--json]`.

A single worker trains three copies of each model in turn, step by step: one without checks, one
whose state is checked in each step, and one that computes one logical rank twice in each step. The
figures are CPU time; the extra cost is spread over the steps from one check or audit to the next.
The message between workers in such a step, of 48 bytes, is not counted.
"""

import time
from collections.abc import Callable

import torch

from benchmarks import report
from benchmarks.one_process import Alone
from benchmarks.report import Aim, Row
from benchmarks.tasks import COMMUNICATION_BOUND, COMPUTE_BOUND, TINY, Workload
from raytrain_plus.algorithms import Weave
from raytrain_plus.clock import Clock
from raytrain_plus.task import Batch
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica

_CHECKS = (1, 10)
_AUDITS = 100
_MOST = 1.0  # percent
_AIMED_AT = 10  # steps from check to check


def batches(workload: Workload) -> list[Batch]:
    """Return the parts of one step."""
    inputs, labels = (torch.from_numpy(array) for array in workload.load().arrays())
    rows = workload.batch_size // workload.logical_ranks
    return [
        {"input": inputs[i : i + rows], "label": labels[i : i + rows]}
        for i in range(0, workload.batch_size, rows)
    ]


def stepper(
    workload: Workload, parts: list[Batch], *, check_every: int = 0, audit_every: int = 0
) -> Callable[[], float]:
    """Return a function that runs one step and returns its milliseconds of CPU."""
    task = workload.load()
    clock = Clock(
        total_steps=10**9,
        steps_per_epoch=10**9,
        batch_size=workload.batch_size,
        evaluate_every=10**9,
    )
    weave = Weave([])
    replica = Replica.build(task, 17, torch.device("cpu"), weave=weave, clock=clock)
    loop = TrainingLoop(task, replica, weave, check_every=check_every, audit_every=audit_every)
    loop.begin_generation([range(workload.logical_ranks)], Alone())

    def step() -> float:
        audit = loop.guard.audit_of(replica.step)
        began = time.process_time()
        loop.run_step(parts, audit_part=None if audit is None else parts[audit[0]])
        return (time.process_time() - began) * 1e3

    return step


def measure(workload: Workload, rounds: int) -> Row:
    """Train the copies of a model in turn."""
    parts = batches(workload)
    kinds = {
        "plain": stepper(workload, parts),
        "check": stepper(workload, parts, check_every=1),
        "audit": stepper(workload, parts, audit_every=1),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, step in kinds.items():
            found[name].append(step())
    # The tenth percentile: on a shared machine the median depends more on other programs.
    ms = {name: round(sorted(times)[len(times) // 10], 3) for name, times in found.items()}
    check, audit = (ms[name] - ms["plain"] for name in ("check", "audit"))
    costs = {f"check every {n}, %": round(100 * check / n / ms["plain"], 3) for n in _CHECKS}
    return {
        "model": workload.task.partition(":")[2],
        "step ms": ms["plain"],
        "one check ms": round(check, 3),
        "one audit ms": round(audit, 3),
        **costs,
        f"audit every {_AUDITS}, %": round(100 * audit / _AUDITS / ms["plain"], 3),
    }


def main() -> None:
    """Measure all models."""
    options = report.options("CPU time of checks for silent corruption")
    torch.set_num_threads(1)
    cases = ((COMPUTE_BOUND, 40), (COMMUNICATION_BOUND, 40), (TINY, 2000))
    rows = [measure(load, rounds // (4 if options.quick else 1)) for load, rounds in cases]
    report.show("CPU time per step", rows)
    aims = [
        Aim(
            f"% of a step, {row['model']}: check every {_AIMED_AT}, audit every {_AUDITS}",
            round(row[f"check every {_AIMED_AT}, %"] + row[f"audit every {_AUDITS}, %"], 3),
            most=_MOST,
        )
        for row in rows
    ]
    report.finish(aims, {"corruption_cost": rows}, as_json=options.json)


if __name__ == "__main__":
    main()

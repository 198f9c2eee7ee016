"""How long planning takes, and what aligning ranges to the summation tree saves.

Run as `python -m benchmarks.plan [--quick] [--json]`.

Time: `assign` over 4096 logical ranks, 20 calls per case (quick: 5) after one to warm up, on one
core; without a previous plan, and with one of which one worker has been lost and replaced.

Communication: a worker with k maximal subtrees sends (1 + k) / 2 times what it sends in a ring
all-reduce; so a group sends (1 + mean k) / 2 times as much. The naive peer is equal ranges
that ignore the tree, with cuts at floor(i * V / W).
"""

import itertools
import random
import statistics
import time
from typing import Any

from benchmarks import report
from benchmarks.report import Aim, Row
from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.elastic.protocol.messages import Assignment
from raytrain_plus.training.tree import maximal_subtrees

LOGICAL_RANKS = 4096
WORKERS = (2, 30, 333, 1000, 2048)
LIMIT_MS = 50.0
CALLS, QUICK_CALLS = 20, 5
LEAVES = (8, 16, 30, 64)


def members(count: int, speeds: str) -> list[WorkerSpeed]:
    """Return `count` members; mixed speeds are uniform between 0.5 and 2, from a fixed seed."""
    draw = random.Random(count)
    return [
        WorkerSpeed(f"worker-{i:04}", draw.uniform(0.5, 2.0) if speeds == "mixed" else 1.0)
        for i in range(count)
    ]


def milliseconds(calls: int, *args: Any) -> list[float]:
    """Return the time of each call of `assign(*args)`, after one to warm up."""
    assign(*args)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        assign(*args)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def measure_times(calls: int) -> list[Row]:
    """Time every case."""
    rows: list[Row] = []
    for workers, speeds in itertools.product(WORKERS, ("equal", "mixed")):
        group = members(workers, speeds)
        previous = assign(LOGICAL_RANKS, group)
        replaced = [*group[1:], WorkerSpeed("spare")]
        for case, args in (
            ("none", (LOGICAL_RANKS, group)),
            ("one replaced", (LOGICAL_RANKS, replaced, previous)),
        ):
            times = milliseconds(calls, *args)
            median = statistics.median(times)
            rows.append(
                {
                    "workers": workers,
                    "speeds": speeds,
                    "previous": case,
                    "median_ms": round(median, 2),
                    "worst_ms": round(max(times), 2),
                }
            )
    return rows


def communication(logical_ranks: int, cuts: list[int]) -> float:
    """Return what a group sends, relative to a ring all-reduce: (1 + mean k) / 2."""
    counts = [
        len(maximal_subtrees(start, stop, logical_ranks))
        for start, stop in itertools.pairwise(cuts)
    ]
    return (1 + statistics.mean(counts)) / 2


def measure_communication() -> list[Row]:
    """Compare planned with equal unaligned ranges, at every number of workers from 2 to V."""
    rows: list[Row] = []
    for leaves in LEAVES:
        for workers in range(2, leaves + 1):
            plan: tuple[Assignment, ...] = assign(leaves, members(workers, "equal"))
            loads = [len(assignment.ranks) for assignment in plan]
            rows.append(
                {
                    "logical_ranks": leaves,
                    "workers": workers,
                    "planned": round(communication(leaves, [0, *(a.stop for a in plan)]), 3),
                    "unaligned": round(
                        communication(leaves, [i * leaves // workers for i in range(workers + 1)]),
                        3,
                    ),
                    # The largest load, relative to the best that whole logical ranks allow.
                    "imbalance": round(max(loads) / -(-leaves // workers) - 1, 3),
                }
            )
    return rows


def summary(sent: list[Row]) -> list[Row]:
    """Summarise communication over all numbers of workers."""
    return [
        {
            "logical_ranks": leaves,
            "planned_mean": round(statistics.mean(r["planned"] for r in rows), 3),
            "planned_worst": max(r["planned"] for r in rows),
            "unaligned_mean": round(statistics.mean(r["unaligned"] for r in rows), 3),
            "unaligned_worst": max(r["unaligned"] for r in rows),
            "imbalance_worst": max(r["imbalance"] for r in rows),
        }
        for leaves in LEAVES
        for rows in [[row for row in sent if row["logical_ranks"] == leaves]]
    ]


def main() -> None:
    """Measure both."""
    options = report.options("times assign() and its plans' communication")
    times = measure_times(QUICK_CALLS if options.quick else CALLS)
    sent = measure_communication()
    report.show(f"assign() over {LOGICAL_RANKS} logical ranks", times)
    report.show("bytes sent, relative to a ring all-reduce", sent)
    report.show("the same over all numbers of workers", summary(sent))
    slowest = max(row["median_ms"] for row in times)
    aims = [Aim("slowest median of assign() in ms", slowest, most=LIMIT_MS)]
    results = {"times": times, "communication": sent, "communication_summary": summary(sent)}
    report.finish(aims, results, as_json=options.json)


if __name__ == "__main__":
    main()

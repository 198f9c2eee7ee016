"""Goodput: the useful share of the worker-seconds that a cloud of preemptible workers offers.

Run as `python -m benchmarks.goodput [--quick] [--json]`; with `--replay [--speed X]` half an hour
of the recorded trace is also replayed on at most four real workers (`replay.py`).

Two cases are simulated (`simulator.py`), with steps of one second at full strength: the whole
recorded trace at 32 workers (AWS p3 spot instances over 11.4 hours), and 1,000 workers of which one
fails every minute on average, each replaced after a minute. All systems have the same losses and
the same start time of a worker.

raytrain_plus has the costs measured in `docs/benchmarks.md`: 0.128 s from a kill to the next
committed step (this includes that step, which is counted again: a cautious figure), and 0.045 s for
a new worker. The peer is a model of restart-from-checkpoint with the costs measured of tuned Ray
Train: 5.28 s and 5 committed steps per kill of a process, and 38 s for the loss of a node. A new
worker restarts its group too. Its work is assumed to be perfectly balanced. raytrain_plus is also
simulated with 2 s per loss, its aim for a node without power; this is the fair comparison to 38 s.

Imbalance is the cost of `plan()`: it assigns whole logical ranks, and allows an imbalance of up to
12.5 % of compute to send fewer bytes. The group chooses the limit by the time of its exchange
(`raytrain_plus/elastic/policy/imbalance.py`), which is zero here.
"""

import argparse
import random
from dataclasses import replace
from typing import Any

from benchmarks import report
from benchmarks.replay import MOST, TRACE
from benchmarks.replay import replay as replay_trace
from benchmarks.report import Aim, Row
from benchmarks.simulator import Costs, Job, simulate
from raytrain_plus.chaos.trace import Change, read_trace, scaled

_WORKERS, _LOGICAL_RANKS = 32, 1024
_MANY, _MANY_LOGICAL_RANKS = 1000, 32_768
_REPLACED = 60.0  # seconds after a failure
_HOURS, _QUICK_HOURS = 2.0, 0.25
_STEP = 1.0  # seconds of a step at full strength
_SPEED = 10.0
# An actor imports torch in some 2 s from a warm disk, in up to 17 s from a cold one.
_START = 5.0

OURS = Costs(loss=0.128, change=0.045, start=_START)
RESTART = Costs(loss=5.28, change=5.28, start=_START, redone_steps=5, planned=False)
SYSTEMS = {
    "raytrain_plus": OURS,
    "with salvage of the step in flight": replace(OURS, salvage=True),
    "with notices of preemption": replace(OURS, loss=OURS.change, noticed=True),
    "2 s per loss (a node's power is off)": replace(OURS, loss=2.0),
    "with an imbalance of an eighth throughout": replace(OURS, follows=False),
    "if all workers had equal shares": replace(OURS, planned=False),
    "Ray Train, tuned: processes killed": RESTART,
    "Ray Train, tuned: nodes lost": replace(RESTART, loss=38.0),
}
_PEER = "Ray Train, tuned: processes killed"


def failures(workers: int, seconds: float, seed: int = 0) -> list[Change]:
    """Return one failure a minute on average, at random times, each replaced a minute later."""
    draw = random.Random(seed)
    changes = [Change(0.0, workers)]
    now = draw.expovariate(1 / 60)
    while now < seconds:
        changes += [Change(now, -1), Change(now + _REPLACED, 1)]
        now += draw.expovariate(1 / 60)
    return sorted(changes, key=lambda change: change.seconds)


def compare(job: Job, changes: list[Change], until: float) -> list[Row]:
    """Simulate all systems; shares are in percent of the offered worker-seconds."""
    spent = {name: simulate(job, changes, costs, until) for name, costs in SYSTEMS.items()}
    peer = spent[_PEER].goodput
    return [
        {
            "system": name,
            "goodput": round(one.goodput, 4),
            **{
                f"{kind} %": abs(round(100 * getattr(one, kind) / one.offered, 2))  # not -0.0
                for kind in ("redone", "imbalance", "paused", "starting")
            },
            "times the peer's": round(one.goodput / peer, 3),
        }
        for name, one in spent.items()
    ]


def replayed(speed: float, *, quick: bool) -> Row:
    """Replay the trace on real workers, and simulate the same changes for comparison."""
    found: dict[str, Any] = replay_trace(speed, 600.0 if quick else 1800.0)
    starts = found["start_seconds"]
    start = report.median(starts) if starts else _START
    job = Job(8, found["seconds"] / found["steps"] / 8)
    changes = [Change(**change) for change in found["changes"]]
    # The first workers have started before the clock starts, which is at their first step. The
    # journal does not show imbalance.
    first, *others = changes
    costs = replace(OURS, start=start, planned=False)
    spent = simulate(job, [Change(-start, first.delta), *others], costs, found["seconds"])
    spent.starting -= start * first.delta
    return {
        **{k: v for k, v in found.items() if k not in ("changes", "start_seconds")},
        "starts, median s": round(start, 2),
        "simulated": round(spent.goodput, 3),
    }


def _options() -> argparse.Namespace:
    parser = report.parser("the useful share of the worker-seconds of preemptible workers")
    parser.add_argument("--replay", action="store_true", help="replay it on real workers, too")
    parser.add_argument(
        "--speed", type=float, default=_SPEED, help="how much faster; default 10: three minutes"
    )
    return parser.parse_args()


def main() -> None:
    """Simulate both cases and, if asked, replay."""
    options = _options()
    trace = read_trace(TRACE)
    changes = scaled(trace, _WORKERS)
    recorded = compare(
        Job(_LOGICAL_RANKS, _STEP * _WORKERS / _LOGICAL_RANKS), changes, trace.seconds
    )
    report.show(f"the recorded trace at {_WORKERS} workers, V = {_LOGICAL_RANKS}", recorded)
    seconds = 3600 * (_QUICK_HOURS if options.quick else _HOURS)
    job = Job(_MANY_LOGICAL_RANKS, _STEP * _MANY / _MANY_LOGICAL_RANKS)
    many = compare(job, failures(_MANY, seconds), seconds)
    report.show(f"{_MANY} workers, one failure a minute, V = {_MANY_LOGICAL_RANKS}", many)
    aims = [
        Aim(f"goodput over Ray Train's: {name}", rows[0]["times the peer's"], least=1.0)
        for name, rows in (("recorded trace", recorded), (f"{_MANY} workers", many))
    ]
    results: dict[str, Any] = {"recorded": recorded, "many": many}
    if options.replay:
        row = replayed(options.speed, quick=options.quick)
        report.show(f"half an hour of it replayed on at most {MOST} real workers", [row])
        results["replayed"] = row
    report.finish(aims, results, as_json=options.json)


if __name__ == "__main__":
    main()

"""A long campaign: many schedules of faults, none of which may change a bit.

Run as `python -m benchmarks.chaos [--runs N] [--at-once P] [--minutes M]`, or with `--report`.

`raytrain-plus chaos` is run in pieces of several seeds, over several tasks in turn. Every verdict
is appended to `benchmarks/data/chaos.jsonl`, and at the end all are written as Parquet. The
campaign continues from the verdicts in both files, so it can run in several sessions. An interrupt
ends it after the running pieces.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import get_args

from benchmarks import report
from benchmarks.record import Record, Row
from raytrain_plus.chaos.judge import State
from raytrain_plus.chaos.schedules import USUAL_KINDS

RECORD = Record("chaos", lambda row: int(row["seed"]))
_PIECE = 24  # seeds
_TASKS = "tests/end_to_end/tasks.py"


@dataclass(frozen=True)
class Case:
    """A task, and the numbers of workers and logical ranks."""

    task: str
    workers: int
    logical_ranks: int
    batch_size: int

    def command(self, seed: int, runs: int) -> list[str]:
        """Return the command for some seeds."""
        return [
            *(sys.executable, "-m", "raytrain_plus", "chaos", f"{_TASKS}:{self.task}", "--json"),
            *("--runs", str(runs), "--seed", str(seed), "--workers", str(self.workers)),
            *("--kinds", ",".join((*USUAL_KINDS, "nan_gradient"))),
            *("--logical-ranks", str(self.logical_ranks), "--batch-size", str(self.batch_size)),
        ]


CASES = (
    Case("Momentum", workers=3, logical_ranks=6, batch_size=48),
    Case("AdamW", workers=2, logical_ranks=4, batch_size=32),
    Case("Wide", workers=2, logical_ranks=6, batch_size=48),
    Case("Plain", workers=4, logical_ranks=8, batch_size=64),
)


def pieces(runs: int, done: set[int]) -> Iterator[tuple[Case, int, int]]:
    """Yield (case, first seed, seeds) of the runs that are not done yet."""
    for number, first in enumerate(range(0, runs, _PIECE)):
        left = [s for s in range(first, min(first + _PIECE, runs)) if s not in done]
        if left:
            yield CASES[number % len(CASES)], left[0], left[-1] + 1 - left[0]


def campaign(runs: int, at_once: int, minutes: float) -> None:
    """Run what has not been run yet; start nothing new after some minutes."""
    done = {row["seed"] for row in RECORD.rows()}
    until, writing, interrupted = time.monotonic() + 60 * minutes, Lock(), Event()

    def run(case: Case, seed: int, seeds: int) -> None:
        if time.monotonic() > until or interrupted.is_set():
            return
        ended = subprocess.run(
            case.command(seed, seeds), check=False, capture_output=True, text=True
        )
        if not ended.stdout.strip():
            print(f"{case} from seed {seed} printed no verdict:\n{ended.stderr}", flush=True)
            return
        rows = [_row(case, verdict) for verdict in json.loads(ended.stdout)["schedules"]]
        with writing:
            RECORD.append(rows)
        if any(row["state"] != "equal" for row in rows):
            print(ended.stderr, flush=True)  # with the schedules, so that they can be run again

    with ThreadPoolExecutor(at_once) as pool:
        try:
            for future in [pool.submit(run, *piece) for piece in pieces(runs, done)]:
                future.result()
        except KeyboardInterrupt:
            interrupted.set()


def _row(case: Case, verdict: Row) -> Row:
    return {
        "seed": verdict["seed"],
        "task": case.task,
        "workers": case.workers,
        "state": verdict["state"],
        "reason": verdict["reason"],
        "faults": [f"{f['action']} {f.get('phase') or ''}".strip() for f in verdict["faults"]],
        "not_struck": len(verdict["not_struck"]),
    }


def summary(rows: list[Row]) -> list[Row]:
    """Return the results of each task, and of all together."""
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    return [_counted(task, found) for task, found in [*by_task.items(), ("all", rows)]]


def _counted(task: str, rows: list[Row]) -> Row:
    states = Counter(row["state"] for row in rows)
    return {
        "task": task,
        "schedules": len(rows),
        **{state: states[state] for state in get_args(State)},
        "faults": sum(len(row["faults"]) for row in rows),
        "hit no worker": sum(row["not_struck"] for row in rows),
    }


def main() -> None:
    """Run and report; the exit status is 1 if a bit differed or a run failed."""
    parser = argparse.ArgumentParser(description="A long campaign of chaos")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--report", action="store_true", help="only show what is recorded")
    options = parser.parse_args()
    if not options.report:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the shell ignored it
        campaign(options.runs, options.at_once, options.minutes)
    rows = RECORD.collect()
    report.show("schedules of faults", summary(rows))
    kinds = Counter(fault.split()[0] for row in rows for fault in row["faults"])
    report.show("faults", [{"kind": kind, "times": times} for kind, times in kinds.most_common()])
    wrong = [row for row in rows if row["state"] != "equal"]
    for row in wrong:
        print(json.dumps(row))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

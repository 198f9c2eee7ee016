"""Many random schedules of faults, each held against the undisturbed run of one worker.

    python -m tests.end_to_end.chaos --runs 1000 --seed 7

Schedule number i follows from seed + i alone. Some follow each other in one run, since workers take
longest to come up. What fails is printed as JSON: `--faults` of the command line replays it, and so
does `--runs N --seed S` with the numbers that are printed.
"""

# ruff: noqa: T201 - a command, which tells people
import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raytrain_plus import Task

from . import runs, tasks
from .schedules import IN_STEP, Schedule, as_data, chain, schedule

STEPS = 50  # of a schedule
SCENES = 2  # in a schedule
EVALUATE_EVERY = 20
HANG_DEADLINE = 6.0  # seconds; more than a worker waits in `tasks.Pace`

_TOGETHER = 4  # schedules in a run
_WATCHDOG = 120.0  # seconds for a schedule
_RENEW = 50  # runs, after which a new Ray cluster is started


@dataclass(frozen=True)
class Case:
    """What is trained, and by how many.

    Attributes:
        task: the class of the task.
        logical_ranks: V.
        workers: the most workers.
    """

    task: type[Task]
    logical_ranks: int
    workers: int

    def __str__(self) -> str:
        return f"{self.task.__name__} V={self.logical_ranks} W<={self.workers}"

    def schedule(self, seeds: Sequence[int]) -> Schedule:
        """Return the schedules of some seeds, one after the other."""
        drawn = []
        wide = self.task is tasks.Wide
        for number, seed in enumerate(seeds):
            start = number * STEPS
            evaluations = [s - start for s in range(0, start + STEPS, EVALUATE_EVERY) if s > start]
            drawn.append(
                schedule(
                    seed,
                    workers=self.workers,
                    steps=STEPS,
                    scenes=SCENES,
                    evaluations=() if wide else evaluations,
                    phases=(*IN_STEP, "slice") if wide else IN_STEP,
                )
            )
        return chain(drawn, STEPS)


def case_of(seed: int, logical_ranks: int | None, workers: int | None) -> Case:
    """Draw what is trained."""
    draw = random.Random(f"case {seed}")
    v = logical_ranks or draw.choice((4, 6, 8, 16))
    return Case(
        draw.choice((tasks.Momentum, tasks.AdamW, tasks.Wide)),
        v,
        workers or draw.randint(2, min(5, v)),
    )


def disturbed(case: Case, seeds: Sequence[int], storage: Path, name: str = "") -> runs.Run:
    """Return the run to which the schedules of some seeds happen."""
    drawn = case.schedule(seeds)
    return runs.train(
        case.task(),
        storage,
        logical_ranks=case.logical_ranks,
        workers=(1, case.workers),
        steps=STEPS * len(seeds),
        faults=drawn.faults,
        wanted=drawn.wanted,
        name=name,
        hang_deadline=HANG_DEADLINE,
    )


def verdict(case: Case, seeds: Sequence[int], storage: Path, name: str = "") -> list[str]:
    """Say what is wrong with the disturbed run; nothing, if all promises are kept."""
    reference = runs.undisturbed(case.task, case.logical_ranks, steps=STEPS * len(seeds))
    run = disturbed(case, seeds, storage, name)
    return runs.differences(run, reference) + runs.flaws(run, case.schedule(seeds).faults)


def watched(case: Case, seeds: Sequence[int], storage: Path, name: str) -> list[str]:
    """Return the verdict; a run that does not end is ended, and that is one."""
    found: list[str] = []

    def judge() -> None:
        try:
            found.extend(verdict(case, seeds, storage, name))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the verdict
            found.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=judge, daemon=True)
    thread.start()
    thread.join(_WATCHDOG * (1 + len(seeds)))
    if thread.is_alive():
        found.append("it did not end")
        runs.end(name)
        thread.join(_WATCHDOG)
    return found


def main() -> int:
    """Run as a command; returns its exit status."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--runs", type=int, default=20, help="schedules")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, help="default: 2 to 5")
    options.add_argument("--logical-ranks", type=int, help="default: 4, 6, 8 or 16")
    given = options.parse_args()
    failed = 0
    storage = Path(tempfile.mkdtemp(prefix="chaos-"))
    groups = list(_groups(given.seed, given.runs))
    try:
        for first in range(0, len(groups), _RENEW):
            with runs.cluster():
                calls = [
                    partial(
                        _tell, case_of(seeds[0], given.logical_ranks, given.workers), seeds, storage
                    )
                    for seeds in groups[first : first + _RENEW]
                ]
                failed += sum(runs.at_once(*calls))
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    print(f"{given.runs} schedules in {len(groups)} runs, of which {failed} failed")
    return 1 if failed else 0


def _groups(seed: int, n: int) -> Iterator[range]:
    for first in range(seed, seed + n, _TOGETHER):
        yield range(first, min(first + _TOGETHER, seed + n))


def _tell(case: Case, seeds: range, storage: Path) -> bool:
    """Run some schedules and print how it went; returns whether it failed."""
    name = f"chaos-{seeds.start}"
    began = time.monotonic()
    found = watched(case, seeds, storage, name)
    took = f"{time.monotonic() - began:.0f} s"
    lines = [f"{'FAILED' if found else 'ok':6} {case} seeds {seeds.start}:{seeds.stop} {took}"]
    if found:
        lines += found
        lines.append(
            f"--runs {len(seeds)} --seed {seeds.start} --workers {case.workers} "
            f"--logical-ranks {case.logical_ranks}"
        )
        lines.append(json.dumps(as_data(case.schedule(seeds).faults)))
    else:
        shutil.rmtree(storage / name)
    print("\n       ".join(lines), flush=True)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

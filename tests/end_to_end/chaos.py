"""Runs with random schedules of faults, judged by more than their bits.

`raytrain-plus chaos` compares a task's runs with the undisturbed one. Here also no step may be
lost, and no worker that no fault has hit, and each fault must happen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raytrain_plus import Task
from raytrain_plus.chaos.schedules import IN_STEP, Schedule, chain, schedule

from . import runs, tasks

STEPS = 50  # of a schedule
SCENES = 2  # in a schedule
EVALUATE_EVERY = 20
HANG_DEADLINE = 6.0  # seconds; longer than a worker waits in `Pace`
START_TIMEOUT = 45.0  # seconds; longer than three workers need to start at the same time


@dataclass(frozen=True)
class Case:
    """A task, and the numbers of workers and logical ranks.

    Attributes:
        task: the name of the task's class.
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


def disturbed(case: Case, seeds: Sequence[int], storage: Path, name: str = "") -> runs.Run:
    """Return the run with the schedules of some seeds."""
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
        coordinator_deadline=HANG_DEADLINE,
        start_timeout=START_TIMEOUT,
        check_every=1,
        checkpoint_every="10ba",
    )


def verdict(case: Case, seeds: Sequence[int], storage: Path, name: str = "") -> list[str]:
    """Return what is wrong with the disturbed run; empty if all promises are kept."""
    reference = runs.undisturbed(case.task, case.logical_ranks, steps=STEPS * len(seeds))
    run = disturbed(case, seeds, storage, name)
    return runs.differences(run, reference) + runs.flaws(run, case.schedule(seeds).faults)

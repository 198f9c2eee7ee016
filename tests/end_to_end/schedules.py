"""Seeded schedules of faults: pure, so that a seed is all it takes to repeat one.

A schedule is made of scenes, each at a step of its own: something happens to the group, often
together with something else that makes it worse.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from raytrain_plus import Fault

IN_STEP = ("fetch", "forward", "backward", "exchange", "finish", "update")
IN_EVALUATION = ("evaluate", "gather")
IN_REGROUPING = ("meet", "heal")

_APART = 5  # steps between scenes, so that most strike a group that has settled
_LAST = 12  # steps after the last scene, for replacements to come
_STOPPED = 0.12  # the share of strikes that are SIGSTOP: each costs a hang's deadline
_EVERYBODY = 0.04  # the share of scenes that leave nobody: all is computed again
_WHOLE = 0.7  # the share of scenes before which the group is made whole again

Scene = Callable[["Stage"], list[Fault]]


@dataclass(frozen=True)
class Schedule:
    """What happens in a run.

    Attributes:
        faults: the disturbances.
        wanted: from which step how many workers are waited for; see `tasks.Pace`.
    """

    faults: tuple[Fault, ...]
    wanted: dict[int, int]


class Stage:
    """Where a scene is set.

    Attributes:
        draw: its source of chance.
        step: the step, from 1.
        workers: how many there should be.
        phases: of each step.
    """

    def __init__(self, draw: random.Random, step: int, workers: int, phases: Sequence[str]) -> None:
        self.draw = draw
        self.step = step
        self.workers = workers
        self.phases = phases

    def strike(self, phase: str, *, workers: int = 1, later: int = 0) -> Fault:
        """Return a strike in a phase, at anybody."""
        return Fault(
            step=self.step + later,
            action="stop" if self.draw.random() < _STOPPED else "kill",
            workers=workers,
            phase=phase,
            victim=self.draw.randrange(self.workers),
        )

    def anywhere(self) -> str:
        """Return a phase of the step."""
        return self.draw.choice(self.phases)


def lone_strike(stage: Stage) -> list[Fault]:
    return [stage.strike(stage.anywhere())]


def two_at_once(stage: Stage) -> list[Fault]:
    return [stage.strike(stage.anywhere(), workers=min(2, stage.workers))]


def one_after_the_other(stage: Stage) -> list[Fault]:
    """Two strikes in one step, in different phases: the second may come when it is tried again."""
    first, second = stage.draw.sample(stage.phases, 2)
    return [stage.strike(first), stage.strike(second)]


def all_but_one(stage: Stage) -> list[Fault]:
    return [stage.strike(stage.anywhere(), workers=max(1, stage.workers - 1))]


def everybody(stage: Stage) -> list[Fault]:
    return [stage.strike(stage.anywhere(), workers=stage.workers)]


def drain(stage: Stage) -> list[Fault]:
    victim = stage.draw.randrange(stage.workers)
    workers = stage.draw.randint(1, stage.workers)
    return [Fault(step=stage.step, action="drain", workers=workers, victim=victim)]


def shrink_and_grow(stage: Stage) -> list[Fault]:
    workers = stage.draw.randint(1, max(1, stage.workers - 1))
    return [
        Fault(step=stage.step, action="remove", workers=workers),
        Fault(step=stage.step + 1, action="add", workers=workers),
    ]


def during_evaluation(stage: Stage) -> list[Fault]:
    return [stage.strike(stage.draw.choice(IN_EVALUATION))]


def during_recovery(stage: Stage) -> list[Fault]:
    """While the survivors of one strike find together, there is another."""
    return [*lone_strike(stage), stage.strike(stage.draw.choice(IN_REGROUPING))]


def during_resize(stage: Stage) -> list[Fault]:
    return [*drain(stage), stage.strike(stage.draw.choice(IN_REGROUPING))]


def while_the_replacement_joins(stage: Stage) -> list[Fault]:
    """Strikes the replacement or whoever heals it, when it comes: at another step, any later."""
    return [*lone_strike(stage), stage.strike(stage.draw.choice(IN_REGROUPING), later=1)]


_COMMON: tuple[Scene, ...] = (
    lone_strike,
    two_at_once,
    one_after_the_other,
    all_but_one,
    drain,
    shrink_and_grow,
    during_recovery,
    during_resize,
    while_the_replacement_joins,
)


def schedule(
    seed: int,
    *,
    workers: int,
    steps: int,
    scenes: int,
    evaluations: Sequence[int] = (),
    phases: Sequence[str] = IN_STEP,
) -> Schedule:
    """Draw a schedule.

    Args:
        seed: of all chance.
        workers: the most that the run has, and how many it has most of the time.
        steps: of the run.
        scenes: how many scenes.
        evaluations: the steps after which there is one.
        phases: of each step.
    """
    draw = random.Random(seed)
    faults: list[Fault] = []
    wanted = {1: workers}
    for step in _steps(draw, steps, scenes):
        near = [evaluation for evaluation in evaluations if abs(evaluation - step) <= 1]
        scene, at = (during_evaluation, near[0]) if near else (_any(draw), step)
        struck = scene(Stage(draw, at, workers, phases))
        # Where somebody is struck while the group forms again, it has to.
        whole = draw.random() < _WHOLE or any(f.phase in IN_REGROUPING for f in struck)
        faults += struck
        wanted |= {at: 1, at + 2: workers if whole else 1}
    return Schedule(tuple(faults), wanted)


def chain(schedules: Sequence[Schedule], steps: int) -> Schedule:
    """Let schedules of `steps` steps each follow each other in one run."""
    faults: list[Fault] = []
    wanted: dict[int, int] = {}
    for number, one in enumerate(schedules):
        faults += [replace(fault, step=fault.step + number * steps) for fault in one.faults]
        wanted |= {step + number * steps: workers for step, workers in one.wanted.items()}
    return Schedule(tuple(faults), wanted)


def _any(draw: random.Random) -> Scene:
    return everybody if draw.random() < _EVERYBODY else draw.choice(_COMMON)


def _steps(draw: random.Random, steps: int, scenes: int) -> Iterator[int]:
    """Return the steps of the scenes, apart from each other."""
    room = steps - _APART * scenes - _LAST
    if room < 0:
        raise ValueError(f"{scenes} scenes do not fit into {steps} steps")
    gaps = sorted(draw.randint(0, room) for _ in range(scenes))
    return (_APART + gap + i * _APART for i, gap in enumerate(gaps))


def as_data(faults: Sequence[Fault]) -> list[dict[str, object]]:
    """Return faults as `--faults` reads them."""
    names = ("step", "action", "workers", "phase", "victim")
    return [{n: getattr(f, n) for n in names if getattr(f, n) is not None} for f in faults]

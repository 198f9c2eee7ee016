"""Seeded schedules of faults: pure, so that a seed is all it takes to repeat one.

A schedule is made of scenes, each at a step of its own: something happens to the group, often
together with something else that makes it worse.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raytrain_plus.elastic.protocol.faults import ACTIONS, Action, Fault, Phase

IN_STEP: tuple[Phase, ...] = ("fetch", "forward", "backward", "exchange", "finish", "update")
IN_EVALUATION: tuple[Phase, ...] = ("evaluate", "gather")
IN_REGROUPING: tuple[Phase, ...] = ("meet", "heal")

# All but wrong arithmetic, which takes audits of every step to be found before a short run's end,
# and but NaN gradients, each of which ends the run, so that it has to be resumed.
USUAL_KINDS: tuple[Action, ...] = (
    "kill", "stop", "terminate", "spin", "stall", "slow", "flip", "kill_all", "kill_coordinator",
    "lose_store", "drain", "add", "remove", "stop_coordinator", "hang_newcomer", "fill_disk",
    "edit_task",
)  # fmt: skip

# How often each kind strikes, where several may. Each that hangs costs a deadline.
_HANGS: dict[Action, float] = {"stop": 0.05, "spin": 0.05, "stall": 0.05}
_LOSES: dict[Action, float] = {"kill": 1.0, "terminate": 0.2, **_HANGS}
_STRIKES: dict[Action, float] = {**_LOSES, "slow": 0.1, "flip": 0.2, "miscompute": 0.2}
_SECONDS = 3.0  # of what passes

_APART = 5  # steps between scenes, so that most strike a group that has settled
_LAST = 12  # steps after the last scene, for replacements to come
_WHOLE = 0.7  # the share of scenes before which the group is made whole again


class ScheduleError(ValueError):
    """Schedules of such a kind cannot be drawn."""


@dataclass(frozen=True)
class Schedule:
    """What happens in a run.

    Attributes:
        faults: the disturbances.
        wanted: from which step how many workers are waited for; see `Pace`.
    """

    faults: tuple[Fault, ...]
    wanted: Mapping[int, int]


class Stage:
    """Where a scene is set.

    Attributes:
        draw: its source of chance.
        step: the step, from 1.
        workers: how many there should be.
        phases: of each step.
        kinds: of faults that may happen.
    """

    def __init__(
        self,
        draw: random.Random,
        step: int,
        workers: int,
        phases: Sequence[Phase],
        kinds: Sequence[Action],
    ) -> None:
        self.draw = draw
        self.step = step
        self.workers = workers
        self.phases = phases
        self.kinds = kinds

    def strike(self, phase: Phase, *, workers: int = 1, loses: bool = False) -> Fault:
        """Return a strike in a phase, at anybody.

        Args:
            phase: the phase.
            workers: how many it hits.
            loses: whether it must be one after which the group has to form again.
        """
        odds = _LOSES if loses else _STRIKES
        kinds = [kind for kind in ACTIONS if kind in self.kinds and kind in odds]
        action = self.draw.choices(kinds, [odds[kind] for kind in kinds])[0]
        return Fault(
            step=self.step,
            action=action,
            workers=workers,
            phase=phase,
            victim=self.draw.randrange(self.workers),
            seconds=_SECONDS if action == "slow" else None,
        )

    def anywhere(self) -> Phase:
        """Return a phase of the step."""
        return self.draw.choice(self.phases)


Scene = Callable[[Stage], list[Fault]]


@dataclass(frozen=True)
class _Act:
    """A scene as it was drawn; `whole`: the group is made whole again after it."""

    step: int
    faults: list[Fault]
    whole: bool


def lone_strike(stage: Stage) -> list[Fault]:
    """Strike one worker."""
    return [stage.strike(stage.anywhere())]


def two_at_once(stage: Stage) -> list[Fault]:
    """Strike two workers in the same phase."""
    return [stage.strike(stage.anywhere(), workers=min(2, stage.workers))]


def one_after_the_other(stage: Stage) -> list[Fault]:
    """Two strikes in one step, in different phases: the second may come when it is tried again."""
    first, second = stage.draw.sample(stage.phases, 2)
    return [stage.strike(first), stage.strike(second)]


def all_but_one(stage: Stage) -> list[Fault]:
    """Leave one worker."""
    return [stage.strike(stage.anywhere(), workers=max(1, stage.workers - 1))]


def everybody(stage: Stage) -> list[Fault]:
    """Strike all workers, one by one."""
    return [stage.strike(stage.anywhere(), workers=stage.workers)]


def all_killed(stage: Stage) -> list[Fault]:
    """Leave no worker: all steps are computed again."""
    return [Fault(step=stage.step, action="kill_all", phase=stage.anywhere())]


def store_lost(stage: Stage) -> list[Fault]:
    """Let checkpoints fail for a while."""
    phase = stage.anywhere()
    return [Fault(step=stage.step, action="lose_store", phase=phase, seconds=_SECONDS)]


def coordinator_killed(stage: Stage) -> list[Fault]:
    """Leave the workers without who plans for them."""
    return [Fault(step=stage.step, action="kill_coordinator")]


def coordinator_stopped(stage: Stage) -> list[Fault]:
    """Leave the workers with a coordinator that answers nothing."""
    return [Fault(step=stage.step, action="stop_coordinator")]


def newcomer_hangs(stage: Stage) -> list[Fault]:
    """Let the worker hang that comes to replace one."""
    return [Fault(step=stage.step, action="hang_newcomer"), _one_leaves(stage)]


def task_edited(stage: Stage) -> list[Fault]:
    """Edit the task's file while a worker comes to replace one, or two do, and undo it."""
    edited = Fault(step=stage.step, action="edit_task")
    return [*[edited] * stage.draw.randint(1, 2), _one_leaves(stage)]


def _one_leaves(stage: Stage) -> Fault:
    """Have a worker, a step later, that has to be replaced."""
    if _LOSES.keys() & set(stage.kinds):
        leaves = stage.strike(stage.anywhere(), loses=True)
    else:
        (leaves,) = drain(stage)
    return replace(leaves, step=stage.step + 1)


def disk_full(stage: Stage) -> list[Fault]:
    """Let the journal fail for a while, and strike a worker meanwhile."""
    full = Fault(step=stage.step, action="fill_disk", seconds=_SECONDS)
    if not _STRIKES.keys() & set(stage.kinds):
        return [full]
    return [full, replace(stage.strike(stage.anywhere()), step=stage.step + 1)]


def gradient_lost(stage: Stage) -> list[Fault]:
    """Let a gradient be NaN once: the run ends, and is resumed."""
    phase: Phase = stage.draw.choice(("fetch", "forward"))  # before the gradient is computed
    victim = stage.draw.randrange(stage.workers)
    return [Fault(step=stage.step, action="nan_gradient", phase=phase, victim=victim)]


def drain(stage: Stage) -> list[Fault]:
    """Plan some workers out."""
    victim = stage.draw.randrange(stage.workers)
    workers = stage.draw.randint(1, stage.workers)
    return [Fault(step=stage.step, action="drain", workers=workers, victim=victim)]


def shrink_and_grow(stage: Stage) -> list[Fault]:
    """Want fewer workers, and a step later as many as before."""
    workers = stage.draw.randint(1, max(1, stage.workers - 1))
    return [
        Fault(step=stage.step, action="remove", workers=workers),
        Fault(step=stage.step + 1, action="add", workers=workers),
    ]


def during_evaluation(stage: Stage) -> list[Fault]:
    """Strike who evaluates."""
    return [stage.strike(stage.draw.choice(IN_EVALUATION))]


def during_recovery(stage: Stage) -> list[Fault]:
    """While the survivors of one strike find together, there is another."""
    first = stage.strike(stage.anywhere(), loses=True)
    return [first, stage.strike(stage.draw.choice(IN_REGROUPING))]


def during_resize(stage: Stage) -> list[Fault]:
    """While some leave, others are struck."""
    return [*drain(stage), stage.strike(stage.draw.choice(IN_REGROUPING))]


def while_the_replacement_joins(stage: Stage) -> list[Fault]:
    """Strike the replacement or the worker that heals it, when it comes: at any later step."""
    first, second = during_recovery(stage)
    return [first, replace(second, step=stage.step + 1)]


# How often each is drawn, among those that the kinds allow.
_SCENES: dict[Scene, float] = {
    lone_strike: 1.0,
    two_at_once: 1.0,
    one_after_the_other: 1.0,
    all_but_one: 1.0,
    drain: 1.0,
    shrink_and_grow: 1.0,
    during_recovery: 1.0,
    during_resize: 1.0,
    while_the_replacement_joins: 1.0,
    store_lost: 1.0,
    coordinator_killed: 1.0,
    disk_full: 0.5,
    newcomer_hangs: 0.3,
    task_edited: 0.3,
    coordinator_stopped: 0.3,
    gradient_lost: 0.3,
    everybody: 0.2,
    all_killed: 0.2,
}


def schedule(
    seed: int,
    *,
    workers: int,
    steps: int,
    scenes: int,
    kinds: Sequence[Action] = USUAL_KINDS,
    evaluations: Sequence[int] = (),
    phases: Sequence[Phase] = IN_STEP,
) -> Schedule:
    """Draw a schedule.

    Args:
        seed: of all chance.
        workers: the most that the run has, and how many it has most of the time.
        steps: of the run.
        scenes: how many scenes.
        kinds: of faults that may happen.
        evaluations: the steps after which there is one.
        phases: of each step.

    Raises:
        ScheduleError: the scenes do not fit into the steps, or no scene is of such kinds.
    """
    draw = random.Random(seed)
    possible = _possible(kinds, workers)
    acts: list[_Act] = []
    for place in _steps(draw, steps, scenes):
        scene, step = draw.choices(list(possible), list(possible.values()))[0], place
        near = [evaluation for evaluation in evaluations if abs(evaluation - place) <= 1]
        if near and lone_strike in possible:
            scene, step = during_evaluation, near[0]
        faults = scene(Stage(draw, step, workers, phases, kinds))
        acts.append(_Act(step, faults, draw.random() < _WHOLE))
    return Schedule(tuple(f for act in acts for f in act.faults), _wanted(acts, workers))


def _wanted(acts: Sequence[_Act], workers: int) -> dict[int, int]:
    """Say when to wait for a whole group.

    A fault that strikes while the group forms again needs a group that can form: more than one
    worker before it, and another worker after it.
    """
    wanted = {1: workers}
    regroups = [any(f.phase in IN_REGROUPING for f in act.faults) for act in acts]
    for i, act in enumerate(acts):
        whole = act.whole or any(regroups[i : i + 2])
        wanted |= {act.step: 1, act.step + 2: workers if whole else 1}
    return wanted


def chain(schedules: Sequence[Schedule], steps: int) -> Schedule:
    """Let schedules of `steps` steps each follow each other in one run."""
    return join([later(one, number * steps) for number, one in enumerate(schedules)])


def later(one: Schedule, steps: int) -> Schedule:
    """Return the same schedule some steps later."""
    faults = tuple(replace(fault, step=fault.step + steps) for fault in one.faults)
    return Schedule(faults, {step + steps: workers for step, workers in one.wanted.items()})


def join(schedules: Sequence[Schedule]) -> Schedule:
    """Return what happens in a run that several schedules share."""
    wanted = {step: workers for one in schedules for step, workers in one.wanted.items()}
    return Schedule(tuple(fault for one in schedules for fault in one.faults), wanted)


def _possible(kinds: Sequence[Action], workers: int) -> dict[Scene, float]:
    """Return the scenes that certain kinds of faults make, and how often each is drawn.

    Raises:
        ScheduleError: there is no such kind, there are none, or half of a pair is missing.
    """
    unknown = sorted(set(kinds) - set(ACTIONS))
    if unknown or not kinds:
        given = f"there is no kind of fault {', '.join(unknown)}" if unknown else "no kind is given"
        raise ScheduleError(f"{given}: there are {', '.join(ACTIONS)}")
    if ("add" in kinds) != ("remove" in kinds):
        raise ScheduleError(
            "kinds add and remove go together, since what one changes the other takes back: give "
            "both or neither"
        )
    leaves = {"drain", *_LOSES}
    for kind in ("hang_newcomer", "edit_task"):
        if kind in kinds and not leaves & set(kinds):
            raise ScheduleError(
                f"kind {kind} needs one after which a worker is replaced: give one of "
                f"{', '.join(sorted(leaves))}, too"
            )
    strikes, loses = set(kinds) & _STRIKES.keys(), set(kinds) & _LOSES.keys()
    needs: dict[Scene, bool] = {
        **dict.fromkeys(_SCENES, bool(strikes)),
        drain: "drain" in kinds,
        shrink_and_grow: "add" in kinds,
        store_lost: "lose_store" in kinds,
        coordinator_killed: "kill_coordinator" in kinds,
        coordinator_stopped: "stop_coordinator" in kinds,
        newcomer_hangs: "hang_newcomer" in kinds and workers > 1,
        task_edited: "edit_task" in kinds and workers > 1,
        disk_full: "fill_disk" in kinds,
        gradient_lost: "nan_gradient" in kinds,
        all_killed: "kill_all" in kinds,
        during_recovery: bool(loses) and workers > 1,
        while_the_replacement_joins: bool(loses) and workers > 1,
        during_resize: bool(strikes) and "drain" in kinds and workers > 1,
    }
    return {scene: odds for scene, odds in _SCENES.items() if needs[scene]}


def _steps(draw: random.Random, steps: int, scenes: int) -> Iterator[int]:
    """Return the steps of the scenes, apart from each other."""
    room = steps - _APART * scenes - _LAST
    if room < 0:
        raise ScheduleError(
            f"{scenes} scenes do not fit into {steps} steps: a schedule needs "
            f"{_APART * scenes + _LAST}"
        )
    gaps = sorted(draw.randint(0, room) for _ in range(scenes))
    return (_APART + gap + i * _APART for i, gap in enumerate(gaps))

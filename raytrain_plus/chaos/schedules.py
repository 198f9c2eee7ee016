"""Seeded schedules of faults: pure functions, so a seed is enough to repeat a schedule.

A schedule consists of scenes, each at a different step. A scene is a fault of the group, often
combined with another fault that makes it worse.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raytrain_plus.elastic.protocol.faults import ACTIONS, Action, Fault, Phase

IN_STEP: tuple[Phase, ...] = ("fetch", "forward", "backward", "exchange", "finish", "update")
IN_EVALUATION: tuple[Phase, ...] = ("evaluate", "gather")
IN_REGROUPING: tuple[Phase, ...] = ("meet", "heal")

# All kinds except two. Wrong arithmetic is found before the end of a short run only if every step
# is audited. A NaN gradient ends the run, so that it has to be resumed.
USUAL_KINDS: tuple[Action, ...] = (
    "kill", "stop", "terminate", "spin", "stall", "slow", "flip", "kill_all", "kill_coordinator",
    "lose_store", "drain", "add", "remove", "stop_coordinator", "hang_newcomer", "fill_disk",
    "edit_task",
)  # fmt: skip

# Relative frequency of each kind, if several are possible. Each hang costs a whole deadline.
_HANGS: dict[Action, float] = {"stop": 0.05, "spin": 0.05, "stall": 0.05}
_LOSES: dict[Action, float] = {"kill": 1.0, "terminate": 0.2, **_HANGS}
_STRIKES: dict[Action, float] = {**_LOSES, "slow": 0.1, "flip": 0.2, "miscompute": 0.2}
_SECONDS = 3.0  # length of temporary faults

_APART = 5  # steps between scenes, so that most strike a group that has settled
_LAST = 12  # steps after the last scene, for replacements to come
_WHOLE = 0.7  # the share of scenes before which the group is made whole again


class ScheduleError(ValueError):
    """Schedules with these settings cannot be drawn."""


@dataclass(frozen=True)
class Schedule:
    """The faults of a run.

    Attributes:
        faults: the disturbances.
        wanted: step -> workers to wait for from then on; see `Pace`.
    """

    faults: tuple[Fault, ...]
    wanted: Mapping[int, int]


class Stage:
    """The conditions of a scene.

    Attributes:
        draw: source of random numbers.
        step: step of the scene, from 1.
        workers: number of workers that there should be.
        phases: phases of each step.
        kinds: kinds of faults that may happen.
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
        """Return a fault that strikes any worker in a phase.

        Args:
            phase: the phase.
            workers: number of workers that it strikes.
            loses: whether it must be a fault after which the group has to form again.
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
        """Return a random phase of the step."""
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
    """Strike twice in one step, in different phases: the second may hit the step's retry."""
    first, second = stage.draw.sample(stage.phases, 2)
    return [stage.strike(first), stage.strike(second)]


def all_but_one(stage: Stage) -> list[Fault]:
    """Leave one worker."""
    return [stage.strike(stage.anywhere(), workers=max(1, stage.workers - 1))]


def all_one_by_one(stage: Stage) -> list[Fault]:
    """Strike all workers, one by one."""
    return [stage.strike(stage.anywhere(), workers=stage.workers)]


def all_killed(stage: Stage) -> list[Fault]:
    """Kill all workers at once: all steps are computed again."""
    return [Fault(step=stage.step, action="kill_all", phase=stage.anywhere())]


def store_lost(stage: Stage) -> list[Fault]:
    """Let checkpoints fail for a while."""
    phase = stage.anywhere()
    return [Fault(step=stage.step, action="lose_store", phase=phase, seconds=_SECONDS)]


def coordinator_killed(stage: Stage) -> list[Fault]:
    """Kill the coordinator."""
    return [Fault(step=stage.step, action="kill_coordinator")]


def coordinator_stopped(stage: Stage) -> list[Fault]:
    """Stop the coordinator, so that it does not answer."""
    return [Fault(step=stage.step, action="stop_coordinator")]


def newcomer_hangs(stage: Stage) -> list[Fault]:
    """Let a replacement worker hang while it starts."""
    return [Fault(step=stage.step, action="hang_newcomer"), _one_leaves(stage)]


def task_edited(stage: Stage) -> list[Fault]:
    """Edit the task's file while one or two replacement workers start, and undo the edit."""
    edited = Fault(step=stage.step, action="edit_task")
    return [*[edited] * stage.draw.randint(1, 2), _one_leaves(stage)]


def _one_leaves(stage: Stage) -> Fault:
    """Return a fault one step later after which a worker must be replaced."""
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
    """Drain some workers."""
    victim = stage.draw.randrange(stage.workers)
    workers = stage.draw.randint(1, stage.workers)
    return [Fault(step=stage.step, action="drain", workers=workers, victim=victim)]


def shrink_and_grow(stage: Stage) -> list[Fault]:
    """Request fewer workers, and a step later as many as before."""
    workers = stage.draw.randint(1, max(1, stage.workers - 1))
    return [
        Fault(step=stage.step, action="remove", workers=workers),
        Fault(step=stage.step + 1, action="add", workers=workers),
    ]


def during_evaluation(stage: Stage) -> list[Fault]:
    """Strike who evaluates."""
    return [stage.strike(stage.draw.choice(IN_EVALUATION))]


def during_recovery(stage: Stage) -> list[Fault]:
    """Strike again while the survivors of the first strike form a group."""
    first = stage.strike(stage.anywhere(), loses=True)
    return [first, stage.strike(stage.draw.choice(IN_REGROUPING))]


def during_resize(stage: Stage) -> list[Fault]:
    """Strike some workers while others leave."""
    return [*drain(stage), stage.strike(stage.draw.choice(IN_REGROUPING))]


def while_the_replacement_joins(stage: Stage) -> list[Fault]:
    """Strike the replacement or the worker that heals it, at the later step when it joins."""
    first, second = during_recovery(stage)
    return [first, replace(second, step=stage.step + 1)]


# Relative frequency of each scene, among those that the kinds allow.
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
    all_one_by_one: 0.2,
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
        seed: seed of all random choices.
        workers: most workers of the run, and its number of workers most of the time.
        steps: steps of the run.
        scenes: number of scenes.
        kinds: kinds of faults that may happen.
        evaluations: the steps that are followed by an evaluation.
        phases: phases of each step.

    Raises:
        ScheduleError: the scenes do not fit into the steps, or no scene has these kinds.
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
    """Return when to wait for a whole group.

    A fault that strikes while the group forms again needs a group that can form: it needs more
    than one worker before it, and another worker after it.
    """
    wanted = {1: workers}
    regroups = [any(f.phase in IN_REGROUPING for f in act.faults) for act in acts]
    for i, act in enumerate(acts):
        whole = act.whole or any(regroups[i : i + 2])
        wanted |= {act.step: 1, act.step + 2: workers if whole else 1}
    return wanted


def chain(schedules: Sequence[Schedule], steps: int) -> Schedule:
    """Shift schedules of `steps` steps each, so that they follow each other in one run."""
    return join([later(one, number * steps) for number, one in enumerate(schedules)])


def later(one: Schedule, steps: int) -> Schedule:
    """Return the same schedule some steps later."""
    faults = tuple(replace(fault, step=fault.step + steps) for fault in one.faults)
    return Schedule(faults, {step + steps: workers for step, workers in one.wanted.items()})


def join(schedules: Sequence[Schedule]) -> Schedule:
    """Return the joined schedule of a run that several schedules share."""
    wanted = {step: workers for one in schedules for step, workers in one.wanted.items()}
    return Schedule(tuple(fault for one in schedules for fault in one.faults), wanted)


def _possible(kinds: Sequence[Action], workers: int) -> dict[Scene, float]:
    """Return the scenes that the given kinds of faults allow, and their relative frequencies.

    Raises:
        ScheduleError: a kind is unknown, no kind is given, or half of a pair is missing.
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

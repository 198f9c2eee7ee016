"""Trains a task many times under different faults, and reports each run that differs in a bit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray.train

from raytrain_plus.chaos.judge import Act, Verdict, ended_by_gradient, judge
from raytrain_plus.chaos.pace import Pace
from raytrain_plus.chaos.schedules import (
    USUAL_KINDS,
    Schedule,
    ScheduleError,
    join,
    later,
    schedule,
)
from raytrain_plus.configure import check_sizes
from raytrain_plus.elastic.client.following import Watcher
from raytrain_plus.elastic.protocol.faults import Action, left
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.storage.store import store_of
from raytrain_plus.task import Task
from raytrain_plus.trainer import ElasticTrainer, TrainingFailedError, cluster

_TOGETHER = 12  # schedules in a run, since starting workers takes the most time
_SCENES = 2  # scenes in a schedule
_LEAST_DEADLINE = 6.0  # seconds
_LEAST_SILENCE = 10.0  # seconds; a coordinator has five seconds for each answer
_PACED = 2.0  # seconds that a worker waits in `Pace`
_TIMES = 4.0  # times the slowest step of the undisturbed run
_LEAST_START = 30.0  # seconds
_STARTS = 6.0  # times the start of the undisturbed run's only worker, since several start at once

Show = Callable[[str], AbstractContextManager[Watcher]]


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """The task to train, and how to disturb it.

    Attributes:
        task: a Task, or its import path.
        storage: folder for the runs; runs that are equal are removed.
        runs: number of schedules.
        seed: schedule number i is determined by `seed + i` and the attributes below.
        kinds: kinds of faults.
        workers: most workers; a run continues with the workers that are left.
        logical_ranks: V, the number of logical ranks.
        steps: steps of each schedule, an even number: it evaluates in its middle and at its end.
        batch_size: samples per step.
        data: the training data. Default: `task.data()`.
        keep: whether to keep also the runs that are equal.
        name: prefix of each run's name.
    """

    task: Task | str
    storage: Path
    runs: int = 20
    seed: int = 0
    kinds: tuple[Action, ...] = USUAL_KINDS
    workers: int = 3
    logical_ranks: int = 8
    steps: int = 50
    batch_size: int = 256
    data: str | None = None
    keep: bool = False
    name: str = "chaos"

    def __post_init__(self) -> None:
        if self.steps % 2:
            raise ScheduleError(f"steps is {self.steps}; it must be even, such as {self.steps + 1}")
        if self.runs < 1:
            raise ScheduleError(f"runs is {self.runs}; it must be at least 1")
        if self.workers < 1:
            raise ScheduleError(
                f"workers is {self.workers}: faults strike the processes of workers, and a local "
                "run, with 0 workers, has none. Give at least 1"
            )
        check_sizes(self.batch_size, self.logical_ranks, (1, self.workers))
        self.schedule(self.seed, evaluates=False)  # so that wrong settings are reported at once

    @property
    def together(self) -> int:
        """The number of schedules that share a run."""
        return min(self.runs, _TOGETHER)

    @property
    def duration(self) -> str:
        """The duration of each run, the undisturbed one included."""
        return f"{self.together * self.steps}ba"

    @property
    def evaluate_every(self) -> str:
        """The interval between evaluations of each run."""
        return f"{self.steps // 2}ba"

    def schedule(self, seed: int, *, evaluates: bool) -> Schedule:
        """Draw the schedule of a seed.

        Raises:
            ScheduleError: these kinds make no schedule, or the steps are too few.
        """
        return schedule(
            seed,
            workers=self.workers,
            steps=self.steps,
            scenes=_SCENES,
            kinds=self.kinds,
            evaluations=(self.steps // 2,) if evaluates else (),
        )

    def trainer(
        self, name: str, act: Schedule | None = None, *, resume: bool = False, **elastic: Any
    ) -> ElasticTrainer:
        """Configure one run.

        Args:
            name: suffix to the campaign's name.
            act: the faults. Default: an undisturbed run of one worker.
            resume: whether to resume the run of that name.
            elastic: further settings of ElasticConfig.
        """
        full = f"{self.name}-{name}"
        held = Pace(folder=self.storage / full, wanted=dict(act.wanted)) if act else None
        workers = (1, self.workers) if act else 1
        return ElasticTrainer(
            task=self.task,
            data=self.data,
            batch_size=self.batch_size,
            duration=self.duration,
            evaluate_every=self.evaluate_every,
            logical_ranks=self.logical_ranks,
            algorithms=[held] if held else [],
            scaling_config=ray.train.ScalingConfig(num_workers=workers),
            run_config=ray.train.RunConfig(name=full, storage_path=str(self.storage)),
            elastic=ElasticConfig(
                checkpoint_every=f"{max(1, self.steps // 5)}ba",
                check_every=1,
                audit_every=1 if "miscompute" in self.kinds else 100,
                **elastic,
            ),
            faults=act.faults if act else (),
            resume=resume,
        )

    def command(self) -> str:
        """Return the command that trains like a run of the campaign, given a file of faults."""
        data = f" --data {self.data}" if self.data else ""
        return (
            f"raytrain-plus train {self.task}{data} --batch-size {self.batch_size} "
            f"--logical-ranks {self.logical_ranks} --workers 1:{self.workers} "
            f"--duration {self.duration} --evaluate-every {self.evaluate_every} --faults FILE"
        )


def verdicts(campaign: Campaign, show: Show) -> Iterator[Verdict]:
    """Train, and yield a verdict on each schedule, in order.

    Args:
        campaign: the task, and how to disturb it.
        show: makes the watcher that shows a run's progress, from the run's title.

    Raises:
        ScheduleError: such schedules cannot be drawn.
        TrainingFailedError: the undisturbed run failed.
        KeyboardInterrupt: the user interrupts it.
    """
    undisturbed = campaign.trainer("undisturbed")
    evaluates = undisturbed.spec.evaluation_data is not None
    seeds = range(campaign.seed, campaign.seed + campaign.runs)
    drawn = {seed: campaign.schedule(seed, evaluates=evaluates) for seed in seeds}
    with cluster(2 * campaign.workers):  # draining workers still hold their resources
        reference, error = _train(undisturbed, "undisturbed", show)
        if error:
            raise TrainingFailedError(error, {"checkpoint": None})
        deadlines = {
            "hang_deadline": hang_deadline(reference),
            "coordinator_deadline": max(_LEAST_SILENCE, hang_deadline(reference)),
            "start_timeout": start_timeout(reference),
        }
        for first in range(0, campaign.runs, campaign.together):
            acts = _acts(campaign, seeds[first : first + campaign.together], drawn)
            while acts:
                judged = _judge(campaign, acts, reference, deadlines, show)
                yield from judged
                acts = acts[len(judged) :]
    if not campaign.keep:
        store_of(undisturbed.spec.folder).clear()


def hang_deadline(reference: Sequence[Event]) -> float:
    """Return the seconds without progress after which a worker of a disturbed run hangs."""
    times = [event["time"] for event in reference if event["event"] == "step"]
    slowest = max((b - a for a, b in pairwise(times)), default=0.0)
    return max(_LEAST_DEADLINE, _PACED + _TIMES * slowest)


def start_timeout(reference: Sequence[Event]) -> float:
    """Return the seconds after which a new worker of a disturbed run fails to start."""
    began = [event["time"] for event in reference if event["event"] == "run"]
    ready = [event["time"] for event in reference if event.get("state") == "ready"]
    return max(_LEAST_START, _STARTS * (ready[0] - began[0]) if began and ready else 0.0)


def _acts(campaign: Campaign, seeds: range, drawn: Mapping[int, Schedule]) -> list[Act]:
    """Assign each schedule its steps in a run."""
    steps = campaign.steps
    return [
        Act(seed, i * steps + 1, (i + 1) * steps, later(drawn[seed], i * steps))
        for i, seed in enumerate(seeds)
    ]


def _judge(
    campaign: Campaign,
    acts: list[Act],
    reference: list[Event],
    deadlines: Mapping[str, Any],
    show: Show,
) -> list[Verdict]:
    """Run several schedules in one run."""
    title = f"{acts[0].seed}-{acts[-1].seed}"
    joined = join([act.schedule for act in acts])
    trainer = campaign.trainer(title, joined, **deadlines)
    events, error = _train(trainer, f"seeds {title}", show)
    while ended_by_gradient(events, error):  # expected; faults that have struck do not strike again
        struck = [event for event in events if event["event"] == "fault"]
        rest = Schedule(tuple(left(joined.faults, struck)), joined.wanted)
        trainer = campaign.trainer(title, rest, resume=True, **deadlines)
        events, error = _train(trainer, f"seeds {title}", show)
    judged = judge(acts, reference, events, error)
    if not campaign.keep and all(verdict.state == "equal" for verdict in judged):
        store_of(trainer.spec.folder).clear()
    return judged


def _train(trainer: ElasticTrainer, title: str, show: Show) -> tuple[list[Event], str]:
    """Return the journal of a run, and why it failed; empty if it did not fail."""
    error = ""
    try:
        with show(title) as watcher:
            summary = trainer.fit(watcher).return_value
    except TrainingFailedError as failed:
        error, summary = str(failed), failed.summary
    if summary.get("state") == "stopped":
        raise KeyboardInterrupt
    return list(journal.each(journal_of(trainer.spec.folder))), error

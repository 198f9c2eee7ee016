"""A sweep as its user defines it."""

from dataclasses import dataclass, field
from typing import Any

from raytrain_plus.frontier.designs import Design, factorial
from raytrain_plus.frontier.errors import SweepError
from raytrain_plus.frontier.points import Objective
from raytrain_plus.frontier.space import RecipeSpace, check_durations
from raytrain_plus.names import check_name
from raytrain_plus.task import Task, load_task
from raytrain_plus.training.metrics import metrics_of


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which recipes to try, on which task, and by which metric.

    Attributes:
        name: name of the sweep's folder.
        task: a Task, or its import path; its data and evaluation data are used.
        space: the recipes, with the baseline and the durations.
        objective: one of the task's metrics and its direction.
        seeds: all trials use the first; promoted recipes use the others also. Default five.
        beyond: durations longer than the space's, for the baseline only. They extend its curve, so
            recipes that are better than the baseline at the space's longest duration get a speed-up
            too. Default none.
        factors: aspects, by class name, of a factorial design. Default: none is run.
        design_at: the design's duration, one of the space's. Default the shortest. At a longer one
            there are baselines as cheap as the aspects that save time.
        design_seeds: number of seeds of the design. Default 1. Contributions of aspects and pairs
            have an interval only with two or more.
        resolution: resolution of the design; None is a full design. Default None.
        most_promoted: number of recipes that may be promoted from each duration. Default 8.
        explore: the sampler's share of the training for promotions and for the sampler, while
            there is something to promote. Default 0.3.
        most_drawn: number of trials that the sampler may propose. Default: no limit but the budget.
        logical_ranks: V of every run, and the most workers that a trial can have. Default 4.
        least_workers: number of workers that a trial needs. Default 1.
        resources: resources of each worker. Default `{"CPU": 1}`.
        evaluate_every: a part of a run such as `"0.25dur"`. The default, `"1dur"`, evaluates only
            at the end. More frequent evaluation costs time and allows early stopping.
        calibrate_every: number of trials between two calibrations; 0 for none. Default 10.
        most_failures: number of failed trials in a row that ends the sweep. Default 4.
    """

    name: str
    task: Task | str
    space: RecipeSpace
    objective: Objective
    seeds: tuple[int, ...] = (17, 18, 19, 20, 21)
    beyond: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    resolution: int | None = None
    design_at: str | None = None
    design_seeds: int = 1
    most_promoted: int = 8
    explore: float = 0.3
    most_drawn: int | None = None
    logical_ranks: int = 4
    least_workers: int = 1
    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    evaluate_every: str = "1dur"
    calibrate_every: int = 10
    most_failures: int = 4

    def __post_init__(self) -> None:
        check_name(self.name, "sweep name")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SweepError(f"seeds are {self.seeds}: give at least one, and none twice")
        check_durations((*self.space.rungs, *self.beyond))
        if self.design_at is not None and self.design_at not in self.space.rungs:
            raise SweepError(
                f"design_at is {self.design_at!r}, and the space's durations are "
                f"{', '.join(self.space.rungs)}: take one of these"
            )
        if not 1 <= self.design_seeds <= len(self.seeds):
            raise SweepError(
                f"design_seeds is {self.design_seeds}; it must be from 1 to {len(self.seeds)}, the "
                "number of seeds"
            )
        for name in ("logical_ranks", "least_workers", "most_promoted", "most_failures"):
            if getattr(self, name) < 1:
                raise SweepError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.explore <= 1:
            raise SweepError(f"explore is {self.explore}; it is a part, from 0 to 1")
        if self.least_workers > self.logical_ranks:
            raise SweepError(
                f"least_workers is {self.least_workers}, and a run of {self.logical_ranks} "
                "logical_ranks has no use for so many: raise logical_ranks"
            )
        unknown = sorted(set(self.factors) - self.space.names.keys())
        if unknown:
            raise SweepError(
                f"factors name {', '.join(unknown)}, which the space does not have; it has "
                f"{', '.join(self.space.names) or 'none'}"
            )

    @property
    def design(self) -> Design | None:
        """The factorial design, if there is one."""
        if not self.factors:
            return None
        return factorial(self.factors, self.resolution, self.space.refusal)

    def loaded_task(self) -> Task:
        """Return the task, and check that it reports the objective.

        Raises:
            SweepError: the task does not report it, or has no evaluation data.
            TaskError: the task cannot be loaded.
        """
        task = load_task(self.task, dict(self.space.baseline.task))
        known = sorted(metrics_of(task))
        if self.objective.metric not in known:
            raise SweepError(
                f"the objective is {self.objective.metric!r}, and the task reports "
                f"{', '.join(known) or 'no metric'}: name one of these, or define it in metrics()"
            )
        if task.evaluation_data() is None:
            raise SweepError(
                "the task has no evaluation data, so no recipe has a quality: define its "
                "evaluation_data()"
            )
        return task

    def described(self) -> dict[str, Any]:
        """Return, as JSON, the settings that must not change when a sweep is resumed."""
        task = self.task if isinstance(self.task, str) else type(self.task).__qualname__
        return {
            "name": self.name,
            "task": task,
            "space": self.space.model_dump(mode="json"),
            "metric": self.objective.metric,
            "mode": self.objective.mode,
            "logical_ranks": self.logical_ranks,
        }

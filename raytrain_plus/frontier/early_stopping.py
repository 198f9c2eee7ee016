"""Early stopping: which trials end before their last step, and the Ray Tune scheduler.

A trial is stopped if its loss is not finite. It is also stopped if a known point would dominate it
even after `slack` times the greatest gain that any complete trial of its duration made from there
on. A stopped trial is counted, but cannot be a point on the frontier.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.points import FinishedTrial, Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.worker_pool.server import stop_run


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """The state of a trial at some moment; higher quality is always better here.

    Attributes:
        progress: the part of the run that is done, in (0, 1].
        cost: device-seconds so far.
        quality: quality at the last evaluation, NaN before the first.
        loss: loss of the last step.
    """

    progress: float
    cost: float
    quality: float = math.nan
    loss: float = 0.0


def why_stop_early(
    now: TrialProgress,
    curves: Sequence[Sequence[TrialProgress]],
    points: Sequence[tuple[float, float]],
    slack: float = 1.5,
) -> str:
    """Return why a trial should stop; empty if it should go on.

    Args:
        now: its present state.
        curves: complete trials of the same duration, each from its first evaluation to its last.
        points: (cost, quality) of all known points, at any duration.
        slack: factor on the greatest known gain, to allow a trial to gain more. Default 1.5.
    """
    if not math.isfinite(now.loss):
        return f"its loss is {now.loss}"
    if not math.isfinite(now.quality) or now.progress >= 1.0:
        return ""
    gains = [
        curve[-1].quality - before[-1].quality
        for curve in curves
        if (before := [one for one in curve if one.progress <= now.progress])
    ]
    if len(gains) < _FEWEST:
        return ""
    best = now.quality + slack * max(0.0, *gains)
    for cost, quality in points:
        if cost <= now.cost and quality >= best:
            return (
                f"at {now.progress:.0%} it has cost {now.cost:.4g} s and can hardly get better "
                f"than {abs(best):.4g}; {abs(quality):.4g} is known for {cost:.4g} s"
            )
    return ""


_FEWEST = 3  # complete trials that are needed before any trial is stopped


class EarlyStopping(FIFOScheduler):  # type: ignore[misc]
    """Runs trials in their order of arrival, and stops those that cannot reach the frontier.

    Args:
        folder: the sweep's folder.
        objective: the metric and its direction.
        worker_pool: the name of the worker pool.
    """

    def __init__(self, folder: SweepFolder, objective: Objective, worker_pool: str) -> None:
        super().__init__()
        self._folder = folder
        self._objective = objective
        self._worker_pool = worker_pool
        self._curves: dict[tuple[str, str], list[TrialProgress]] = defaultdict(list)
        self._complete: set[tuple[str, str]] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Read a trial's state; if it is to stop, first keep it as finished."""
        del tune_controller
        decision: str = TrialScheduler.CONTINUE
        now = self._noted(trial, result)
        duration = trial.config["recipe"]["duration"]
        curves = [self._curves[key] for key in self._complete if key[0] == duration]
        complete = [t for t in self._folder.finished() if t.outcome == "complete"]
        points = [(t.cost, self._objective.sign * t.quality) for t in complete]
        why = why_stop_early(now, curves, points)
        if why:
            self._folder.finish(
                FinishedTrial(
                    name=result["name"],
                    purpose=trial.config["purpose"],
                    outcome="dominated",
                    recipe=Recipe.model_validate(trial.config["recipe"]),
                    seed=trial.config["seed"],
                    cost=result["cost"],
                    started=result["started"],
                    ended=result["timestamp"],
                    error=why,
                )
            )
            stop_run(
                self._worker_pool, result["run"]
            )  # Tune itself keeps its process for another trial
            decision = TrialScheduler.STOP
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Record a trial that has run to its end."""
        del tune_controller
        if result.get("outcome") == "complete":
            self._noted(trial, result)
            self._complete.add((trial.config["recipe"]["duration"], result["name"]))

    def _noted(self, trial: Any, result: dict[str, Any]) -> TrialProgress:
        quality = result.get("quality", math.nan)
        now = TrialProgress(
            progress=result["progress"],
            cost=result["cost"],
            quality=self._objective.sign * quality,
            loss=result["loss"],
        )
        self._curves[trial.config["recipe"]["duration"], result["name"]].append(now)
        return now

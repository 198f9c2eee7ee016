"""Early stopping: which trials end before their last step, and the scheduler of Ray Tune for it.

A trial is stopped if its loss is not finite. It is also stopped if a known point would dominate it
even with more than the greatest gain that any complete trial of its duration made from there on. A
stopped trial is counted, and is no point on the frontier.
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
    """How a trial stands at some moment; quality always so that more is better.

    Attributes:
        progress: the part of the run that is done, in (0, 1].
        cost: device-seconds so far.
        quality: of the last evaluation, not a number before the first.
        loss: of the last step.
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
    """Say why a trial need not go on; empty where it should.

    Args:
        now: how it stands.
        curves: complete trials of the same duration, each from its first evaluation to its last.
        points: (cost, quality) of what is known, at any duration.
        slack: by how much more than the greatest known gain a trial may still gain. Default 1.5.
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


_FEWEST = 3  # complete trials to learn from


class EarlyStopping(FIFOScheduler):  # type: ignore[misc]
    """Lets trials run in the order in which they come, and stops those that are hopeless.

    Args:
        folder: of the sweep.
        objective: what is to be good.
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
        """Take notice of how a trial stands; keep it as finished before it is stopped."""
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
            )  # Tune itself lets its process wait for another trial
            decision = TrialScheduler.STOP
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Learn from a trial that has run to its end."""
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

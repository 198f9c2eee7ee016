"""Ending trials early that surely come to nothing; what is sure says `hopeless.py`."""

import math
from collections import defaultdict
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.hopeless import Glimpse, why_hopeless
from raytrain_plus.frontier.points import FinishedTrial, Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.worker_pool.server import stop_run


class EarlyEnd(FIFOScheduler):  # type: ignore[misc]
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
        self._curves: dict[tuple[str, str], list[Glimpse]] = defaultdict(list)
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
        why = why_hopeless(now, curves, points)
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

    def _noted(self, trial: Any, result: dict[str, Any]) -> Glimpse:
        quality = result.get("quality", math.nan)
        now = Glimpse(
            progress=result["progress"],
            cost=result["cost"],
            quality=self._objective.sign * quality,
            loss=result["loss"],
        )
        self._curves[trial.config["recipe"]["duration"], result["name"]].append(now)
        return now

"""A trial, as Ray Tune runs it: one complete elastic run of a recipe on the sweep's worker pool."""

import math
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.tune
from ray.exceptions import RayActorError

from raytrain_plus.algorithms.naming import import_class
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.elastic.protocol.run_state import RunState
from raytrain_plus.frontier.agenda import Proposal
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.early_stopping import TrialProgress
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.points import FinishedTrial
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.loggers import Logger
from raytrain_plus.observe.journal import Event
from raytrain_plus.trainer import ElasticTrainer, TrainingFailedError
from raytrain_plus.worker_pool.server import abandon_run, lives, stop_run

_PARTING = 30.0  # seconds for a run to end after a request to stop


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The setting that all trials of a sweep share.

    Attributes:
        sweep: the sweep as its user defines it.
        folder: the sweep's folder.
        worker_pool: the name of the worker pool.
        workers: number of workers in the pool.
        data: the training data and the evaluation data.
        loggers: of each trial.
    """

    sweep: Sweep
    folder: Path
    worker_pool: str
    workers: int
    data: tuple[Any, Any]
    loggers: Sequence[Logger] = ()


class RecipeTrial(ray.tune.Trainable):  # type: ignore[misc]
    """Trains one recipe to its end; each evaluation is a result, and so is the end.

    Its process may run several trials one after another. An error that the task raises is a result.
    """

    def setup(
        self,
        config: Mapping[str, Any],
        paths: Sequence[str],
        setting: "Sequence[ray.ObjectRef[Setting]]",
    ) -> None:
        """Begin the first trial.

        Args:
            config: config of the trial.
            paths: folders to import the task from.
            setting: one item, a Ray reference, since it may hold objects that need `paths` first.
        """
        sys.path[:0] = [path for path in paths if path not in sys.path]
        (self._setting,) = ray.get(list(setting))
        space = self._setting.sweep.space
        space.import_aspects()
        for name in space.baseline.algorithms:  # the driver had imported these
            import_class(name)
        self._folder = SweepFolder(self._setting.folder)
        self._begin(config)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Begin another trial in this process."""
        self._leave()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the trial's state at its next evaluation, or how it has ended.

        Raises:
            TrainingFailedError: the run was ended from outside, which says nothing of the recipe.
            RayActorError: the worker pool has ended.
        """
        told = self._told.get()
        if isinstance(told, Exception):
            raise told
        return told

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: all that must be kept is in the sweep's folder."""

    def cleanup(self) -> None:
        """End everything that belongs to the trial."""
        self._leave()

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._name: str = config["name"]
        self._proposal = Proposal(
            purpose=config["purpose"],
            recipe=Recipe.model_validate(config["recipe"]),
            seed=config["seed"],
        )
        self._run = self._folder.new_run(self._name)
        self._told: queue.Queue[dict[str, Any] | Exception] = queue.Queue()
        self._started = time.time()
        self._cost, self._loss, self._steps = 0.0, 0.0, 1
        self._thread = threading.Thread(target=self._train, daemon=True, name="trial")
        self._thread.start()

    def _leave(self) -> None:
        if not self._thread.is_alive():
            return
        stop_run(self._setting.worker_pool, self._run)
        self._thread.join(_PARTING)
        if self._thread.is_alive():
            abandon_run(self._setting.worker_pool, self._run)

    def _train(self) -> None:
        summary: Mapping[str, Any] = {}
        error = ""
        try:
            summary = self._trainer().fit(self._watch).return_value
        except TrainingFailedError as failure:
            summary, error = failure.summary, str(failure)
            if summary.get("state") == RunState.LOST:
                self._told.put(failure)
                abandon_run(self._setting.worker_pool, self._run)
                return
        except Exception as failure:  # noqa: BLE001 - a recipe that cannot be run is a result
            # Without the worker pool no other recipe can be run either.
            if isinstance(failure, RayActorError) or not lives(self._setting.worker_pool):
                self._told.put(failure)
                return
            error = f"{type(failure).__name__}: {failure}"
        if summary.get("state") == "stopped":
            return  # the scheduler that stopped it has recorded it
        finished = self._finished(summary, error)
        self._folder.finish(finished)
        self._told.put(
            {
                **self._stand(1.0, finished.quality),
                "outcome": finished.outcome,
                "cost": finished.cost,
                "error": error,
                "done": True,
            }
        )

    def _trainer(self) -> ElasticTrainer:
        setting, recipe = self._setting, self._proposal.recipe
        sweep = setting.sweep
        data, evaluation_data = setting.data
        most = min(setting.workers, sweep.logical_ranks)
        return ElasticTrainer(
            task=sweep.task,
            task_settings=dict(recipe.task),
            data=data,
            evaluation_data=evaluation_data,
            batch_size=recipe.batch_size,
            duration=recipe.duration,
            evaluate_every=sweep.evaluate_every,
            seed=self._proposal.seed,
            logical_ranks=sweep.logical_ranks,
            algorithms=recipe.aspects(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=(sweep.least_workers, most),
                resources_per_worker=dict(sweep.resources),
            ),
            run_config=ray.train.RunConfig(name=self._run, storage_path=str(self._folder.runs)),
            elastic=ElasticConfig(worker_pool=setting.worker_pool, checkpoint_every=None),
            loggers=setting.loggers,
            group=sweep.name,
        )

    def _watch(self, events: list[Event]) -> None:
        for event in events:
            if event["event"] == "run":
                self._steps = event["total_steps"]
            elif event["event"] == "step":
                diverges = math.isfinite(self._loss) and not math.isfinite(event["loss"])
                self._cost += event["busy_seconds"]
                self._loss = event["loss"]
                if diverges:
                    self._told.put(self._stand(event["step"] / self._steps))
            elif event["event"] == "evaluate" and 0 < event["step"] < self._steps:
                quality = event["metrics"][self._setting.sweep.objective.metric]
                self._told.put(self._stand(event["step"] / self._steps, quality))

    def _stand(self, progress: float, quality: float = math.nan) -> dict[str, Any]:
        glimpse = TrialProgress(
            progress=progress, cost=self._cost, quality=quality, loss=self._loss
        )
        return {
            **vars(glimpse),
            "name": self._name,
            "run": self._run,
            "started": self._started,
            "done": False,
        }

    def _finished(self, summary: Mapping[str, Any], error: str) -> FinishedTrial:
        metric = self._setting.sweep.objective.metric
        quality = float(summary.get("metrics", {}).get(metric, math.nan))
        complete = not error and math.isfinite(quality)
        return FinishedTrial(
            name=self._name,
            purpose=self._proposal.purpose,
            outcome="failed" if error else "complete" if complete else "dominated",
            recipe=self._proposal.recipe,
            seed=self._proposal.seed,
            cost=summary.get("device_seconds", self._cost),
            quality=quality if complete else math.nan,
            started=self._started,
            ended=time.time(),
            aspect_costs={
                name: cost["seconds"] for name, cost in summary.get("algorithms", {}).items()
            },
            error=error,
        )

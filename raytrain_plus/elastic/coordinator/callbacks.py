"""Calls the callbacks of Ray Train's RunConfig with what the journal of a run says.

They run where loggers do, next to the coordinator, and never keep training waiting. Ray Train calls
`after_report` when its workers report. Here that is after each evaluation and each checkpoint. All
workers have the same values, so that `metrics` has one entry.
"""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ray.train

from raytrain_plus.loggers.protocol import LoggedRun, Logger, Row
from raytrain_plus.ray_cluster.train_context import run_context
from raytrain_plus.storage.store import Store

_EVALUATION = "evaluation/"


class WorkerLostError(RuntimeError):
    """A worker that has ended, for `after_exception`. The run goes on."""


class CallbackLogger(Logger):
    """Calls callbacks in order. One that raises is named in the output, and called again later.

    Args:
        callbacks: of the RunConfig.
        run: the RunConfig.
        scaling: the ScalingConfig.
        options: for the file system that holds the checkpoints.
    """

    def __init__(
        self,
        callbacks: Sequence[ray.train.UserCallback],
        run: ray.train.RunConfig,
        scaling: ray.train.ScalingConfig,
        options: Mapping[str, Any],
    ) -> None:
        self._callbacks = callbacks
        self._run, self._scaling = run, scaling
        self._options = options
        self._values: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self._context: Any = None

    def open(self, run: LoggedRun) -> int | None:
        """Make the context that callbacks get."""
        self._context = run_context(self._run, self._scaling, run.run_id)
        return None

    def write(self, rows: Sequence[Row]) -> None:
        """Report evaluations and checkpoints, and lost workers as exceptions."""
        for row in rows:
            found = {
                name.removeprefix(_EVALUATION): value
                for name, value in row.values.items()
                if name.startswith(_EVALUATION)
            }
            self._metrics |= found
            if not found:
                self._values |= row.values
            checkpoint = None
            if place := row.texts.get("checkpoint"):
                checkpoint = ray_checkpoint(Store(place, self._options))
            if found or checkpoint is not None:
                loss = {"loss": self._values["loss"]} if "loss" in self._values else {}
                metrics = {**loss, **self._metrics, "steps": row.step}
                self._call("after_report", [metrics], checkpoint)
            if lost := row.texts.get("worker lost"):
                self._call("after_exception", {0: WorkerLostError(lost)})

    def close(self, summary: Mapping[str, Any]) -> None:
        """Report a run that has failed."""
        if summary.get("state") == "failed":
            self._call("after_exception", {0: RuntimeError(summary.get("error", ""))})

    def _call(self, method: str, *arguments: Any) -> None:
        for one in self._callbacks:
            try:
                getattr(one, method)(self._context, *arguments)
            except Exception:  # noqa: BLE001 - the run goes on, and the other callbacks, too
                traceback.print_exc()


def ray_checkpoint(place: Store) -> ray.train.Checkpoint:
    """Return a checkpoint's folder as Ray Train's Checkpoint."""
    if place.is_local:
        return ray.train.Checkpoint(str(place.local_path))
    # By default it would use pyarrow's own clients, which read other configurations.
    files, path = place.for_arrow()
    return ray.train.Checkpoint(path, filesystem=files)

"""Writes a run's values to MLflow."""

import importlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from raytrain_plus.loggers.protocol import LoggedRun, Logger, Row
from raytrain_plus.loggers.rows import flat, markdown

_RUN_ID, _POSITION = "raytrain_plus.run_id", "raytrain_plus.position"
_MOST_METRICS, _MOST_PARAMETERS, _LONGEST = 1000, 100, 500  # of one request; of a parameter
_END = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass
class MLflowLogger(Logger):
    """Writes to an MLflow server or a folder. The run is found again by a tag with its id.

    Attributes:
        tracking_uri: of the server, or `file:/folder`. Default: MLflow's own (the variable
            `MLFLOW_TRACKING_URI`).
        experiment: the experiment's name. Default: the sweep's, or `raytrain_plus`.
        tags: further tags of the run.
    """

    keeps_files: ClassVar[bool] = True

    tracking_uri: str | None = None
    experiment: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def open(self, run: LoggedRun) -> int:
        """Find the run by its tag, or create it."""
        self._folder = run.folder
        importlib.import_module("mlflow")
        tracking = importlib.import_module("mlflow.tracking")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = tracking.MlflowClient(self.tracking_uri)
        name = self.experiment or run.group or "raytrain_plus"
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{_RUN_ID}` = '{run.run_id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
            return int(found[0].data.tags.get(_POSITION, 0))
        group = {"raytrain_plus.sweep": run.group} if run.group else {}
        tags = {**self.tags, **group, _RUN_ID: run.run_id}
        self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        parameters = [
            self._entities.Param(_key(key), str(value)[:_LONGEST])
            for key, value in _leaves(run.config, "").items()
        ]
        for i in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[i : i + _MOST_PARAMETERS])
        return 0

    def write(self, rows: Sequence[Row]) -> None:
        """Write the values of the rows; the position goes with the last of them.

        Files become artifacts. One that cannot be stored is named by a tag, with the reason.
        """
        metrics: list[Any] = []
        for row in rows:
            for name, path in row.files.items():
                self._store(name, path)
            self._store_samples(row)
            at = int(row.time * 1000)
            metrics += [
                self._entities.Metric(_key(name), value, at, row.step)
                for name, value in row.values.items()
            ]
            if len(metrics) >= _MOST_METRICS // 2 or row is rows[-1]:
                self._send(metrics, row)
                metrics = []

    def _store_samples(self, row: Row) -> None:
        """Store the samples of an evaluation as a folder: a table, and their images."""
        if not row.samples:
            return
        folder = f"samples/step_{row.step:08d}"
        with tempfile.TemporaryDirectory() as temporary:
            table = Path(temporary) / "samples.md"
            table.write_text(markdown(row.samples))
            self._store("samples", table, folder)
        for path in {sample["image"]: None for sample in row.samples if "image" in sample}:
            self._store(path, self._folder / path, folder)

    def _store(self, name: str, path: Path, folder: str | None = None) -> None:
        try:
            self._client.log_artifact(self._id, str(path), folder)
        except Exception as error:  # noqa: BLE001 - the store of artifacts is another server
            self._client.set_tag(self._id, f"raytrain_plus.not_stored.{_key(name)}", str(error))

    def _send(self, metrics: Sequence[Any], last: Row) -> None:
        tags = [self._entities.RunTag(_POSITION, str(last.position))]
        tags += [self._entities.RunTag(_key(name), text) for name, text in last.texts.items()]
        for i in range(_MOST_METRICS, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[i : i + _MOST_METRICS])
        self._client.log_batch(self._id, metrics=metrics[:_MOST_METRICS], tags=tags)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Write how the run has ended."""
        for name in ("digest", "checkpoint", "error"):
            if summary.get(name):
                self._client.set_tag(self._id, f"raytrain_plus.{name}", str(summary[name])[:5000])
        for name, value in flat(summary.get("metrics", {}), "final/").items():
            self._client.log_metric(self._id, _key(name), value)
        self._client.set_terminated(self._id, _END.get(str(summary.get("state")), "FINISHED"))


def _key(name: str) -> str:
    """Return a name of the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def _leaves(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found

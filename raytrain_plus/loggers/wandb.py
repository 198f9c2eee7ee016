"""Writes a run's values to Weights & Biases."""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from raytrain_plus.loggers.protocol import LoggedRun, Logger, Row

_POSITION = "raytrain_plus/position"


@dataclass
class WandbLogger(Logger):
    """Writes to Weights & Biases. A resumed run continues the same W&B run; a sweep is a group.

    The key comes from `wandb login` or the variable `WANDB_API_KEY` on the coordinator's node.

    Attributes:
        project: W&B's project. Default: W&B's own.
        entity: the user or team. Default: W&B's own.
        group: a name that joins runs. Default: the sweep's.
        mode: `online`, `offline` or `disabled`. Default: W&B's own (the variable `WANDB_MODE`).
        tags: of the run.
    """

    keeps_files: ClassVar[bool] = True

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    mode: str | None = None
    tags: Sequence[str] = field(default_factory=tuple)

    def open(self, run: LoggedRun) -> int | None:
        """Start W&B's run, or go on with it."""
        self._folder = run.folder
        wandb = self._wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            id=run.run_id,
            name=run.name,
            group=self.group or run.group,
            tags=list(self.tags),
            config=dict(run.config),
            mode=self.mode,
            resume="allow",
            dir=str(run.folder),
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="step")
        known = self._run.summary.get(_POSITION)
        return int(known) if known is not None else None

    def write(self, rows: Sequence[Row]) -> None:
        """Write the values of the rows, and upload their files."""
        for row in rows:
            for path in row.files.values():
                self._run.save(str(path), base_path=str(path.parent), policy="now")
            values = {name: x if math.isfinite(x) else str(x) for name, x in row.values.items()}
            table = {"samples": self._table(row)} if row.samples else {}
            place = {"step": row.step, _POSITION: row.position}
            self._run.log({**values, **row.texts, **table, **place})

    def _table(self, row: Row) -> Any:
        """Return the samples as a table of W&B, with their images."""
        names = list(dict.fromkeys(name for sample in row.samples for name in sample))

        def cell(sample: Mapping[str, str], name: str) -> Any:
            path = self._folder / sample.get(name, "")
            is_image = name == "image" and path.is_file()
            return self._wandb.Image(str(path)) if is_image else sample.get(name, "")

        data = [[cell(sample, name) for name in names] for sample in row.samples]
        return self._wandb.Table(columns=names, data=data)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Write how the run has ended."""
        for name in ("state", "digest", "checkpoint", "error"):
            if summary.get(name):
                self._run.summary[name] = summary[name]
        self._run.finish(exit_code=0 if summary.get("state") != "failed" else 1)

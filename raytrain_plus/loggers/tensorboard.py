"""Writes a run's values as TensorBoard event files."""

import importlib
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_plus.loggers.protocol import LoggedRun, Logger, Row
from raytrain_plus.loggers.rows import markdown


@dataclass
class TensorBoardLogger(Logger):
    """Writes event files, which `tensorboard --logdir FOLDER` shows.

    Attributes:
        folder: where; a run's files are in a folder of its name. Default: `tensorboard` in the
            run's folder.
    """

    folder: str | None = None

    def open(self, run: LoggedRun) -> None:
        """Open a new event file. It hides what an earlier file has of later steps."""
        self._folder = run.folder
        board = importlib.import_module("tensorboardX")
        place = f"{self.folder}/{run.name}" if self.folder else str(run.folder / "tensorboard")
        self._writer = board.SummaryWriter(
            place,
            purge_step=run.step + 1 if run.step else None,
            filename_suffix=f".{uuid.uuid4().hex[:8]}",  # a file of the same second is not replaced
        )
        if not run.step:
            self._writer.add_text("config", _as_table(run.config), 0)

    def write(self, rows: Sequence[Row]) -> None:
        """Write the values of the rows."""
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step, walltime=row.time)
            for name, text in row.texts.items():
                self._writer.add_text(name, text, row.step, walltime=row.time)
            self._add_samples(row)
        self._writer.flush()

    def _add_samples(self, row: Row) -> None:
        """Add the samples as a table, and their images as the files have them."""
        if row.samples:
            self._writer.add_text("samples", markdown(row.samples), row.step, walltime=row.time)
        for path in {sample["image"]: None for sample in row.samples if "image" in sample}:
            with suppress(OSError):  # its file was removed
                kinds = importlib.import_module("tensorboardX.proto.summary_pb2")
                image = kinds.Summary.Image(encoded_image_string=(self._folder / path).read_bytes())
                tag = f"samples/{Path(path).stem}"
                summary = kinds.Summary(value=[kinds.Summary.Value(tag=tag, image=image)])
                self._writer.file_writer.add_summary(summary, row.step, row.time)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        self._writer.add_text("result", _as_table(summary), int(summary.get("step", 0)))
        self._writer.close()


def _as_table(values: Mapping[str, Any]) -> str:
    """Return a Markdown table."""
    rows = [f"| {key} | {str(value).replace('|', '/')[:500]} |" for key, value in values.items()]
    return "\n".join(["| name | value |", "| --- | --- |", *rows])

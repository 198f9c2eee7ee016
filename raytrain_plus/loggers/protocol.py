"""What a logger is: an object that writes the values of a run somewhere, in order and once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol


class LoggerError(ValueError):
    """A logger that does not exist, has other settings, or lacks its library."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The run whose values a logger writes.

    Attributes:
        name: the run's name.
        run_id: tells it from other runs of its name; the same after a resume.
        folder: the run's folder; of a run in an object store a folder whose files are copied there.
        config: how it is configured, without secrets.
        group: of a sweep's trial, the name of the sweep; else None.
        step: the last step that this logger has written; 0 at first.
    """

    name: str
    run_id: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one moment of a run.

    Attributes:
        position: of the event in the journal, from 1. It grows from row to row.
        step: committed steps.
        time: Unix time.
        values: numbers by name; some may be NaN or infinite.
        texts: other news by name, such as why training paused.
        samples: rows and texts that an evaluation shows, as texts by name. An `image` is the path
            of a file in the run's folder.
        files: files by name, for loggers with `keeps_files`. The last row of a run has its report,
            `report.html`.
    """

    position: int
    step: int
    time: float
    values: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()


class Logger(Protocol):
    """Writes a run's values somewhere. Derive from it, and override `write`.

    A logger runs in a process of its own on the coordinator's node. It may fail, hang or be slow:
    the run does not wait for it. After a failure it is made again from its pickled form, opened,
    and given the rows that it has not written yet.

    Attributes:
        keeps_files: it stores the files of rows. Default False: rows have none.
    """

    keeps_files: ClassVar[bool] = False

    def open(self, run: LoggedRun) -> int | None:  # noqa: ARG002 - for overriding
        """Start to write a run, or go on with one.

        Returns:
            The position of the last row that is safely written, if the logger knows it. Then no row
            is lost or written twice, even if its process dies at any moment. None, the default:
            the position is kept in the run's folder after each `write`, and rows may be written
            again after a crash between the two.
        """
        return None

    def write(self, rows: Sequence[Row]) -> None:
        """Write some rows, in order. When this returns, they are safe."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """End: the run has ended. It may be opened again if the run is resumed.

        Args:
            summary: the journal's `end` event: state, metrics, digest, checkpoint.
        """

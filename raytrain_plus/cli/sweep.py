"""The command that runs a sweep, and the same function for a file that runs itself."""

import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.status import Status

from raytrain_plus.cli import frontier
from raytrain_plus.cli.answers import Debug, Json, answer, without_ray_notices
from raytrain_plus.cli.log import LoggerOption
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.errors import SweepError
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.interrupts import RunInterrupted, end_at_signals
from raytrain_plus.loggers.naming import make_logger, parse_logger
from raytrain_plus.task import import_named

_ATTRIBUTE = "SWEEP"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Budget = Annotated[str, typer.Option(help="Time of the whole pool, such as 90s, 30m, 2h or 1h30m.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Workers in the pool. Default: as many as fit on the cluster."),
]
Resume = Annotated[bool, typer.Option(help="Go on with the sweep that is in the folder.")]
Storage = Annotated[
    str, typer.Option(help="Where sweeps are kept, one folder each; all nodes must see it.")
]


def sweep(  # noqa: PLR0913 - one option each
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="It defines SWEEP.")],
    *,
    budget: Budget,
    workers: Workers = None,
    resume: Resume = False,
    logger: LoggerOption = None,
    storage: Storage = "sweeps",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Try recipes on a pool of workers, and record the cost and quality of each.

    It writes the report at its end. While it runs, use `raytrain-plus frontier DIR --watch`.
    """

    def run() -> dict[str, Any]:
        found = import_named(f"{file}:{_ATTRIBUTE}", "sweep")
        if not isinstance(found, Sweep):
            raise SweepError(
                f"{_ATTRIBUTE} of {file} is a {type(found).__name__}: make it a "
                "raytrain_plus.frontier.definition.Sweep"
            )
        given = {
            "budget": seconds_of(budget),
            "workers": workers,
            "resume": resume,
            "loggers": [make_logger(*parse_logger(text)) for text in logger or []],
        }
        again = f"raytrain-plus sweep {file} --budget {budget} --storage {storage} --resume"
        return _run(found, storage, again, as_json=as_json, **given)

    answer(run, as_json=as_json, debug=debug)


def main(defined: Sweep) -> None:
    """Run a sweep from the file that defines it, with the options of `raytrain-plus sweep`."""
    end_at_signals()

    def program(
        *,
        budget: Budget,
        workers: Workers = None,
        resume: Resume = False,
        storage: Storage = "sweeps",
        as_json: Json = False,
        debug: Debug = False,
    ) -> None:
        def run() -> dict[str, Any]:
            given = {"budget": seconds_of(budget), "workers": workers, "resume": resume}
            again = f"python {sys.argv[0]} --budget {budget} --storage {storage} --resume"
            return _run(defined, storage, again, as_json=as_json, **given)

        answer(run, as_json=as_json, debug=debug)

    typer.run(program)


def seconds_of(text: str) -> float:
    """Return a time such as `90s`, `30m` or `1h30m` in seconds.

    Raises:
        SweepError: the text has another form, or is zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds or "".join(number + unit for number, unit in parts) != text:
        raise SweepError(f"a budget of {text!r} is no time above zero such as 90s, 30m or 1h30m")
    return seconds


def _run(
    defined: Sweep, storage: str, again: str, *, as_json: bool, **given: Any
) -> dict[str, Any]:
    from raytrain_plus.frontier.sweep import run_sweep  # noqa: PLC0415 - Tune takes seconds

    terminal = Console(stderr=True, markup=False)
    with SweepLine(defined, given["budget"], terminal) as line, without_ray_notices():
        try:
            summary = run_sweep(defined, storage=storage, watcher=line, **given)
        except RunInterrupted as error:
            summary = {
                **error.summary,
                "report": _reported(Path(error.summary["folder"]), terminal),
            }
            raise RunInterrupted(error.number, f"{error}; to go on: {again}", summary) from None
    summary["report"] = _reported(Path(summary["folder"]), terminal)
    if not as_json:
        for key, value in summary.items():
            Console(markup=False).print(f"{key:15} {value}", highlight=False)
    return summary


def _reported(folder: Path, terminal: Console) -> str | None:
    """Write the report of all trials so far; its packages may be missing, the sweep needs none."""
    try:
        page: str = frontier.write(folder, folder / frontier.FOLDER)["page"]
    except ValueError as error:
        terminal.print(f"no report: {error}", highlight=False, soft_wrap=True)
        return None
    return page


class SweepLine:
    """One line: counts of ended and running trials, the best so far, and the time.

    Args:
        defined: the sweep.
        budget: budget in seconds.
        console: console to show it on; nothing is shown unless it is a terminal.
    """

    def __init__(self, defined: Sweep, budget: float, console: Console) -> None:
        self._defined = defined
        self._budget = budget
        self._status = Status("starting the pool", console=console)
        self._shown = console.is_terminal

    def __enter__(self) -> Self:
        if self._shown:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()

    def __call__(self, folder: SweepFolder) -> None:
        """Read the state of the sweep."""
        if self._shown:
            self._status.update(self.text(folder))

    def text(self, folder: SweepFolder) -> str:
        """Return the line."""
        finished = folder.finished()
        objective = self._defined.objective
        known = [trial.quality for trial in finished if trial.outcome == "complete"]
        best = max(known, key=lambda quality: objective.sign * quality, default=None)
        counts = {
            outcome: sum(trial.outcome == outcome for trial in finished)
            for outcome in ("complete", "dominated", "failed")
        }
        said = [f"{count} {outcome}" for outcome, count in counts.items() if count]
        running = len(folder.proposals()) - len(finished)
        sessions = [event for event in folder.events() if event["event"] == "session"]
        now = time.time() - sessions[-1]["time"] if sessions else 0.0
        parts = [
            self._defined.name,
            f"trials: {', '.join(said) or 'none'}, {running} running",
            f"best {objective.metric} {best:.4f}" if best is not None else "",
            f"{now / 60:.1f} min of this session; budget {self._budget / 60:.1f} min in all",
        ]
        return "  ".join(part for part in parts if part)

"""The commands that use a trained model: evaluate it, and predict rows with it."""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from raytrain_plus.algorithms.naming import parse_settings
from raytrain_plus.cli.answers import (
    DEFAULT_STORAGE,
    Code,
    Debug,
    Json,
    Storage,
    answer,
    without_ray_notices,
)
from raytrain_plus.configure import with_options
from raytrain_plus.inference import evaluate as evaluating
from raytrain_plus.inference import predict as predicting
from raytrain_plus.inference.loaded import Job, job_of
from raytrain_plus.inference.output import check_free, folder_at
from raytrain_plus.inference.trained_model import TrainedModel, find_model
from raytrain_plus.redaction import redact
from raytrain_plus.run_file import by_name
from raytrain_plus.storage.locations import parse_options
from raytrain_plus.task import Task, TaskWarning, import_code

_LINE_SECONDS = 5.0  # between two lines of progress where the output is no terminal

TaskName = Annotated[str, typer.Argument(help="module:attribute or file.py:attribute")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The name, folder or URL of a run or of one of its checkpoints; or a safetensors file "
        "or a folder that export has written.",
    ),
]
Which = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="WHICH",
        help="Of a run: latest, a step, or best:METRIC (best:METRIC:min prefers small values).",
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes on Ray; 0: this process alone, without Ray.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Per process. Default: as the run.")]
Gpu = Annotated[
    bool | None, typer.Option("--gpu/--no-gpu", help="Use a GPU. Default: as the run, if any.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option(metavar="key=value", help="A field of the task. May be repeated."),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="For the data's store; VALUE may be JSON."),
]
CheckpointOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="For the checkpoints' store; VALUE may be JSON."),
]


def evaluate(  # noqa: PLR0913, PLR0917 - one option each
    task: TaskName,
    model: Model,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]URL",
            help="A stream, an Arrow or Parquet file or folder. May be repeated with names. "
            "Default: the run's own evaluation data.",
        ),
    ] = None,
    checkpoint: Which = "latest",
    workers: Workers = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Of the run. Default: the run's, or 256.")
    ] = None,
    logical_ranks: Annotated[
        int | None, typer.Option(min=1, help="Of the run. Default: the run's, or 8.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the run. Default: the run's, or 17.")] = None,
    threads: Threads = None,
    gpu: Gpu = None,
    setting: Setting = None,
    code: Code = None,
    storage: Storage = DEFAULT_STORAGE,
    storage_option: DataOption = None,
    checkpoint_option: CheckpointOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a trained model: the numbers of the run's own evaluation, on any number of workers.

    A setting that is not given is the run's.
    """

    def run() -> dict[str, Any]:
        found = _found(model, storage, checkpoint, checkpoint_option)
        job, loaded = _job(task, found, code, setting, seed=seed, threads=threads, gpu=gpu)
        sizes = evaluating.sizes_of(found, batch_size=batch_size, logical_ranks=logical_ranks)
        given = _sets(data, storage_option)
        with _progress("parts measured") as progress, without_ray_notices():
            metrics = evaluating.measured(
                job, loaded, data=given, sizes=sizes, workers=workers, progress=progress
            )
        if not as_json:
            _show(found, metrics)
        return {**_described(found), "metrics": metrics}

    answer(run, as_json=as_json, debug=debug)


def predict(  # noqa: PLR0913, PLR0917 - one option each
    task: TaskName,
    model: Model,
    to: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of Parquet files to write.")
    ],
    data: Annotated[
        str, typer.Option(metavar="URL", help="A stream, an Arrow or Parquet file or folder.")
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column of the data to add. May be repeated."),
    ] = None,
    checkpoint: Which = "latest",
    workers: Workers = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows in one call of the task's predict.")
    ] = predicting.BATCH_SIZE,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue with what a killed command has left.")
    ] = False,
    threads: Threads = None,
    gpu: Gpu = None,
    setting: Setting = None,
    code: Code = None,
    storage: Storage = DEFAULT_STORAGE,
    storage_option: DataOption = None,
    checkpoint_option: CheckpointOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict each row of data once, in order, into Parquet files; on any number of workers.

    The columns are what the task's predict(model, batch) returns. The folder appears when all rows
    are there.
    """

    def run() -> dict[str, Any]:
        folder = folder_at(to)
        check_free(folder)
        found = _found(model, storage, checkpoint, checkpoint_option)
        job, loaded = _job(task, found, code, setting, seed=None, threads=threads, gpu=gpu)
        (rows,) = with_options(parse_options(storage_option or [], "storage option"), data)
        work = predicting.predicting(job, loaded, data=rows, keep=keep or [], batch_size=batch_size)
        began = time.monotonic()
        with _progress("rows predicted") as progress, without_ray_notices():
            before = predicting.written(work, folder, workers, resume=resume, progress=progress)
        seconds = time.monotonic() - began
        if not as_json:
            typer.echo(f"{folder}: {work.rows:,} rows in {len(work.parts):,} files")
        return {
            **_described(found),
            "folder": str(folder),
            "rows": work.rows,
            "rows_resumed": before,
            "files": len(work.parts),
            "seconds": seconds,
        }

    answer(run, as_json=as_json, debug=debug)


def _found(model: str, storage: str, checkpoint: str, options: list[str] | None) -> TrainedModel:
    given = parse_options(options or [], "checkpoint option")
    return find_model(model, storage=storage, checkpoint=checkpoint, options=given)


def _job(
    task: str,
    model: TrainedModel,
    code: list[str] | None,
    setting: list[str] | None,
    **how: Any,
) -> tuple[Job, Task]:
    for module in code or []:
        import_code(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TaskWarning)
        made = job_of(task, model, task_settings=parse_settings(setting or [], "the task"), **how)
    for one in caught:
        if issubclass(one.category, TaskWarning):
            sys.stderr.write(redact(f"warning: {one.message}\n"))
    return made


def _sets(data: list[str] | None, options: list[str] | None) -> Any:
    if not data:
        return None
    named = by_name(data)
    sets = named if isinstance(named, dict) else {"": named}
    given = parse_options(options or [], "storage option")
    opened = dict(zip(sets, with_options(given, *sets.values()), strict=True))
    return opened.get("", opened)


def _described(model: TrainedModel) -> dict[str, Any]:
    run = {"run": model.run, "step": model.step} if model.is_checkpoint else {}
    return {"model": redact(model.place), **run}


def _show(model: TrainedModel, metrics: dict[str, Any]) -> None:
    console = Console(markup=False)
    at = f" after step {model.step}" if model.is_checkpoint else ""
    console.print(f"{redact(model.place)}{at}", highlight=False, soft_wrap=True)
    table = Table("metric", "value", box=None)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    console.print(table)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a command is: a bar on a terminal, or a line every few seconds."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        yield _Lines(what)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(shown, completed=done, total=of)


class _Lines:
    """Writes plain lines of progress, not too many."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + _LINE_SECONDS

    def __call__(self, done: int, of: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_SECONDS
            sys.stderr.write(f"{done:,} of {of:,} {self._what}\n")

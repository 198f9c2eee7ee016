"""The `data` commands: make and check streams."""

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raytrain_plus.cli.answers import Debug, Json, answer
from raytrain_plus.redaction import redact
from raytrain_plus.storage.locations import parse_options
from raytrain_plus.streams.check import inspect_stream, verify_stream
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.convert import (
    Data,
    RowBatch,
    Wanted,
    check_apart,
    names_of,
    read_any,
    write_parquet,
)
from raytrain_plus.streams.format import Compression
from raytrain_plus.streams.reorder import mixed
from raytrain_plus.streams.writer import StreamWriter

data_app = typer.Typer(help="Make and check streams.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="A path or any URL that fsspec knows.")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help="For fsspec; VALUE may be JSON, as in anon=false. May be repeated.",
    ),
]


@data_app.command()
def write(  # noqa: PLR0913 - one option each
    source: Annotated[
        str,
        typer.Argument(
            help="A file, folder or pattern: Parquet, Arrow, CSV, JSON lines; or a folder with a "
            "folder of images for each label."
        ),
    ],
    destination: Annotated[str, typer.Argument(help="The stream: a path or URL.")],
    *,
    file_size: Annotated[str, typer.Option(help="Uncompressed bytes per file.")] = "64MiB",
    compression: Annotated[
        Compression, typer.Option(help="Compression of the stored files.")
    ] = "zstd",
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="The columns to keep. Default: all.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test, by the files' names; or all.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A text column whose values become numbers."),
    ] = None,
    labels_from: Annotated[
        str | None,
        typer.Option(
            metavar="STREAM", help="Give labels the numbers that they have in this stream."
        ),
    ] = None,
    order: Annotated[
        Literal["mixed", "kept"] | None,
        typer.Option(
            help="mixed: rows in a random order from --seed, which needs disk space for all in "
            "$TMPDIR; kept: the order of the files. Default: kept, but mixed for images, since "
            "folders sort them by label."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the mixed order.")] = 0,
    parallel: Annotated[int, typer.Option(help="Number of files stored at once.")] = 4,
    only_writer: Annotated[
        bool,
        typer.Option(
            "--only-writer",
            help="No other process writes there: write without conditional requests.",
        ),
    ] = False,
    storage_option: Options = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a stream from data in other formats."""

    def run() -> dict[str, Any]:
        options = _options(storage_option)
        chosen = Wanted(
            columns=columns.split(",") if columns else None,
            split=split,
            seed=seed if order != "kept" else None,
        )
        with _warnings_told():
            chosen = replace(chosen, labels=_labels(source, options, chosen, label, labels_from))
            written = _write_stream(
                source,
                destination,
                options,
                chosen,
                is_mixed=order == "mixed",
                file_size=file_size,
                compression=compression,
                parallel=parallel,
                only_writer=only_writer,
            )
        return _said(written, as_json=as_json)

    answer(run, as_json=as_json, debug=debug)


@data_app.command()
def convert(  # noqa: PLR0913 - one option each
    source: Annotated[str, typer.Argument(help="A stream, or any source of `data write`.")],
    destination: Annotated[str, typer.Argument(help="A path or URL.")],
    *,
    to: Annotated[Literal["parquet", "stream"], typer.Option(help="The other form.")] = "parquet",
    file_size: Annotated[
        str, typer.Option(help="Uncompressed bytes per file of a stream.")
    ] = "64MiB",
    compression: Annotated[Compression, typer.Option(help="Of a stream.")] = "zstd",
    storage_option: Options = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a stream to Parquet, or to a stream with another file size or compression."""

    def run() -> dict[str, Any]:
        options = _options(storage_option)
        if to == "parquet":
            with _warnings_told(), _read(source, options, Wanted()) as data:
                rows = write_parquet(data, destination, options)
            return _said({"url": redact(destination), "rows": rows}, as_json=as_json)
        with _warnings_told():
            written = _write_stream(
                source, destination, options, Wanted(), file_size=file_size, compression=compression
            )
        return _said(written, as_json=as_json)

    answer(run, as_json=as_json, debug=debug)


@data_app.command()
def inspect(
    source: Source,
    *,
    storage_option: Options = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a stream contains; reads only its manifest."""
    answer(
        lambda: _said(inspect_stream(source, _options(storage_option)), as_json=as_json),
        as_json=as_json,
        debug=debug,
    )


@data_app.command()
def verify(
    source: Source,
    *,
    storage_option: Options = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read a stream and check hashes, rows, schema and order; exit status 1 if one is wrong."""

    def run() -> dict[str, Any]:
        with _bar(None) as advance:
            found = verify_stream(source, _options(storage_option), advance)
        return _said(found, as_json=as_json)

    if answer(run, as_json=as_json, debug=debug)["problems"]:
        raise typer.Exit(1)


def _labels(
    source: str,
    options: dict[str, Any],
    choice: Wanted,
    columns: list[str] | None,
    stream: str | None,
) -> dict[str, Any]:
    """Return the names of labels: those of another stream, and the values of text columns."""
    found: dict[str, Any] = {}
    if stream is not None:
        found = inspect_stream(stream, options).get("labels", {})
        if not found:
            raise DataError(f"{stream} has no names of labels.")
    missing = [name for name in columns or [] if name not in found]
    if missing:
        found |= names_of(source, options, choice, missing)
    return found


def _write_stream(
    source: str,
    destination: str,
    options: dict[str, Any],
    choice: Wanted,
    *,
    is_mixed: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Write a stream from any readable source; returns what the stream contains."""
    check_apart(source, destination)
    with (
        tempfile.TemporaryDirectory(prefix="raytrain_plus-") as scratch,
        _read(source, options, choice) as read,
        StreamWriter(
            destination, storage_options=options, labels=read.labels, **settings
        ) as writer,
    ):
        data = read
        if is_mixed and choice.seed is not None and not read.is_mixed:
            data = mixed(read, choice.seed, Path(scratch))
        for batch in data.batches:
            writer.write(batch.table, batch.place)
    return inspect_stream(destination, options)


@contextlib.contextmanager
def _read(source: str, options: dict[str, Any], choice: Wanted) -> Iterator[Data]:
    """Open a source, and show the progress of reading."""
    data = read_any(source, options, choice)
    with _bar(data.rows) as advance:
        yield replace(data, batches=_watched(data.batches, advance))


def _options(given: list[str] | None) -> dict[str, Any]:
    return parse_options(given or [])


def _said(answered: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    if not as_json:
        for key, value in answered.items():
            shown = value
            if isinstance(value, dict):
                shown = ", ".join(f"{name}: {_short(kind)}" for name, kind in value.items())
            elif isinstance(value, list):
                shown = "\n             ".join(value) or "none"
            elif isinstance(value, int):
                shown = f"{value:,}"
            Console(soft_wrap=True, markup=False).print(
                f"{key:12} {shown}", highlight=False, markup=False
            )
    return answered


@contextlib.contextmanager
def _warnings_told() -> Iterator[None]:
    """Show each warning about the data once, as a sentence without its source line."""
    shown = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            sys.stderr.write(redact(f"warning: {message}\n"))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _short(value: Any) -> str:
    """Return a column's type, or the first of its labels."""
    if not isinstance(value, list | tuple):
        return str(value)
    shown = ", ".join(f"{number} = {name}" for number, name in enumerate(value[:10]))
    return f"{shown}, ..." if len(value) > 10 else shown


def _watched(
    batches: Iterator[RowBatch], advance: Callable[[pa.Table], None]
) -> Iterator[RowBatch]:
    for batch in batches:
        yield batch
        advance(batch.table)


@contextlib.contextmanager
def _bar(rows: int | None) -> Iterator[Callable[[pa.RecordBatch | pa.Table], None]]:
    """Show progress in rows, on a terminal only."""
    console = Console(stderr=True, markup=False)
    columns = (
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=rows)
        yield lambda batch: progress.advance(task, batch.num_rows)

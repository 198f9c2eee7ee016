"""The `data` commands: make, convert and check streams, and tokenize text."""

import contextlib
import json
import os
import sys
import tempfile
import time
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
from raytrain_plus.streams.documents import read_documents
from raytrain_plus.streams.encoding import ready
from raytrain_plus.streams.format import Compression
from raytrain_plus.streams.reorder import mixed
from raytrain_plus.streams.retyping import parse_types
from raytrain_plus.streams.stream import parse_bytes
from raytrain_plus.streams.text import Dialect
from raytrain_plus.streams.tokens import (
    AUTO,
    Packing,
    read_tokenizer,
    summary,
    tokenize_documents,
)
from raytrain_plus.streams.writer import StreamWriter

_LINE_EVERY = 10.0  # seconds

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
FileSize = Annotated[str, typer.Option(help="Uncompressed bytes per file of a stream.")]
StoredAs = Annotated[Compression, typer.Option(help="Compression of a stream's files.")]
OnlyWriter = Annotated[
    bool,
    typer.Option(
        "--only-writer",
        help="No other process writes there: write without conditional requests.",
    ),
]
Columns = Annotated[
    str | None, typer.Option(metavar="A,B", help="The columns to keep. Default: all.")
]
Split = Annotated[
    str | None,
    typer.Option(help="train, validation or test, by the names of files and folders; or all."),
]
TypesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--type",
        metavar="COLUMN=TYPE",
        help="Convert a column, each value exactly: int8 to int64, uint8 to uint64, float16 to "
        "float64, bool, string, binary; TYPE[N] for lists of N. Text is read as numbers. May be "
        "repeated.",
    ),
]
Rename = Annotated[
    list[str] | None,
    typer.Option(metavar="OLD=NEW", help="Give a column another name. May be repeated."),
]
Fill = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE",
        help="What replaces nulls in a column; VALUE may be JSON. Default: nulls are refused. May "
        "be repeated.",
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        metavar="CHARACTER",
        help="CSV: between fields; tab for a tab. Default: a comma, and a tab in .tsv.",
    ),
]
Quote = Annotated[str, typer.Option(metavar="CHARACTER", help="CSV: around fields; none for none.")]
Escape = Annotated[
    str | None,
    typer.Option(metavar="CHARACTER", help="CSV: before a character without special meaning."),
]
Header = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="CSV: the columns' names. Default: the first line has them."),
]
EncodingOption = Annotated[str, typer.Option(help="CSV and text: by Python's name for it.")]
NullValue = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="CSV: a field with this text has no value. May be repeated."),
]
BlockSize = Annotated[
    str, typer.Option(help="CSV: bytes read at a time; a longer row enlarges it.")
]


@data_app.command()
def write(  # noqa: PLR0913 - one option each
    source: Annotated[
        str,
        typer.Argument(
            help="A file, folder or pattern: Parquet, Arrow, CSV, JSON lines; a folder with a "
            "folder of images for each label; a data set of MDS, LitData or WebDataset; a stream."
        ),
    ],
    destination: Annotated[str, typer.Argument(help="The stream: a path or URL.")],
    *,
    file_size: FileSize = "64MiB",
    compression: StoredAs = "zstd",
    columns: Columns = None,
    split: Split = None,
    types: TypesOption = None,
    rename: Rename = None,
    fill: Fill = None,
    delimiter: Delimiter = None,
    quote: Quote = '"',
    escape: Escape = None,
    header: Header = None,
    encoding: EncodingOption = "utf-8",
    null_value: NullValue = None,
    block_size: BlockSize = "8MiB",
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
    only_writer: OnlyWriter = False,
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
            types=parse_types(types or []),
            names=_names(rename),
            fill=_fills(fill),
            dialect=_dialect(delimiter, quote, escape, header, encoding, null_value, block_size),
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
    file_size: FileSize = "64MiB",
    compression: StoredAs = "zstd",
    columns: Columns = None,
    split: Split = None,
    types: TypesOption = None,
    rename: Rename = None,
    fill: Fill = None,
    delimiter: Delimiter = None,
    quote: Quote = '"',
    escape: Escape = None,
    header: Header = None,
    encoding: EncodingOption = "utf-8",
    null_value: NullValue = None,
    block_size: BlockSize = "8MiB",
    only_writer: OnlyWriter = False,
    storage_option: Options = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a stream, or data in other formats, to Parquet or to a stream."""

    def run() -> dict[str, Any]:
        options = _options(storage_option)
        chosen = Wanted(
            columns=columns.split(",") if columns else None,
            split=split,
            types=parse_types(types or []),
            names=_names(rename),
            fill=_fills(fill),
            dialect=_dialect(delimiter, quote, escape, header, encoding, null_value, block_size),
        )
        if to == "parquet":
            check_apart(source, destination)
            with _warnings_told(), _read(source, options, chosen) as data:
                rows = write_parquet(data, destination, options)
            return _said({"url": redact(destination), "rows": rows}, as_json=as_json)
        with _warnings_told():
            written = _write_stream(
                source,
                destination,
                options,
                chosen,
                file_size=file_size,
                compression=compression,
                only_writer=only_writer,
            )
        return _said(written, as_json=as_json)

    answer(run, as_json=as_json, debug=debug)


@data_app.command()
def tokenize(  # noqa: PLR0913 - one option each
    source: Annotated[
        str,
        typer.Argument(
            help="Documents: any source of `data write` with a column of text, one document a row; "
            "or text files (.txt), one document each."
        ),
    ],
    destination: Annotated[str, typer.Argument(help="The stream: a path or URL.")],
    *,
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="A tokenizer.json, or a folder that has one (Hugging Face's)."
        ),
    ],
    pack: Annotated[
        int | None,
        typer.Option(
            metavar="LENGTH",
            help="Pack documents into rows of this many tokens. Default: a row for each document.",
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="The column with the documents.")] = "text",
    into: Annotated[str, typer.Option(help="The column of token numbers.")] = "input_ids",
    overlap: Annotated[
        int, typer.Option(help="Tokens that a row repeats from the end of the one before.")
    ] = 0,
    no_split: Annotated[
        bool,
        typer.Option(
            "--no-split",
            help="Never divide a document: refuse one that is longer than a row.",
        ),
    ] = False,
    truncate: Annotated[
        bool,
        typer.Option("--truncate", help="With --no-split: cut long documents, and count them."),
    ] = False,
    remainder: Annotated[
        Literal["pad", "drop"],
        typer.Option(help="What becomes of the tokens that do not fill the last row."),
    ] = "pad",
    begin: Annotated[
        str,
        typer.Option(
            metavar="TOKEN",
            help="Before each document; auto: what the tokenizer puts there; none: nothing.",
        ),
    ] = AUTO,
    end: Annotated[
        str,
        typer.Option(
            metavar="TOKEN",
            help="After each document; auto: the folder's eos_token, else what the tokenizer puts "
            "there; none: nothing.",
        ),
    ] = AUTO,
    special_as_text: Annotated[
        bool,
        typer.Option(
            "--special-as-text",
            help="Tokenize special tokens that are written in a document as text.",
        ),
    ] = False,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Documents are lists of messages, for the tokenizer's chat template.",
        ),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(help="Processes that tokenize; the result is the same. Default: all cores."),
    ] = None,
    file_size: FileSize = "64MiB",
    compression: StoredAs = "zstd",
    split: Split = None,
    delimiter: Delimiter = None,
    quote: Quote = '"',
    escape: Escape = None,
    header: Header = None,
    encoding: EncodingOption = "utf-8",
    null_value: NullValue = None,
    block_size: BlockSize = "8MiB",
    only_writer: OnlyWriter = False,
    storage_option: Options = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a stream of token numbers from documents of text."""

    def run() -> dict[str, Any]:
        options = _options(storage_option)
        packing = Packing(
            length=pack, overlap=overlap, whole=no_split, truncate=truncate, remainder=remainder
        )
        made = read_tokenizer(
            tokenizer, begin=begin, end=end, special_as_text=special_as_text, chat=chat
        )
        chosen = Wanted(
            columns=[column],
            split=split,
            dialect=_dialect(delimiter, quote, escape, header, encoding, null_value, block_size),
        )
        check_apart(source, destination)
        with (
            _warnings_told(),
            _watched_data(read_documents(source, column, options, chosen)) as documents,
            StreamWriter(
                destination,
                storage_options=options,
                vocabularies={into: made.vocabulary},
                file_size=file_size,
                compression=compression,
                only_writer=only_writer,
                warn=False,
            ) as writer,
            ready(made.encoding, _processes(processes)) as encode,
        ):
            counts = tokenize_documents(
                documents, writer, made, packing, encode, source=column, column=into
            )
        written = inspect_stream(destination, options)
        return _said({**written, **summary(made, counts)}, as_json=as_json)

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
            destination,
            storage_options=options,
            labels=read.labels,
            vocabularies=read.vocabularies,
            **settings,
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
    with _watched_data(read_any(source, options, choice)) as data:
        yield data


@contextlib.contextmanager
def _watched_data(data: Data) -> Iterator[Data]:
    """Show the progress of reading."""
    with _bar(data.rows) as advance:
        yield replace(data, batches=_watched(data.batches, advance))


def _names(given: list[str] | None) -> dict[str, str]:
    """Return the new names of columns.

    Raises:
        DataError: one is not of the form OLD=NEW, or is given twice.
    """
    names: dict[str, str] = {}
    for text in given or []:
        old, equals, new = text.partition("=")
        if not (old and equals and new) or old in names:
            raise DataError(
                f"--rename {text!r} is not of the form OLD=NEW, with each OLD given once."
            )
        names[old] = new
    return names


def _fills(given: list[str] | None) -> dict[str, Any]:
    """Return what replaces nulls, by column; a value that is JSON is parsed.

    Raises:
        DataError: one is not of the form COLUMN=VALUE, or is given twice.
    """
    fill: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not (name and equals) or name in fill:
            raise DataError(
                f"--fill {text!r} is not of the form COLUMN=VALUE, with each COLUMN given once."
            )
        try:
            fill[name] = json.loads(value)
        except ValueError:
            fill[name] = value
    return fill


def _dialect(
    delimiter: str | None,
    quote: str,
    escape: str | None,
    header: str | None,
    encoding: str,
    nulls: list[str] | None,
    block_size: str,
) -> Dialect:
    tab = ("tab", "\\t")
    return Dialect(
        delimiter="\t" if delimiter in tab else delimiter,
        quote=None if quote == "none" else quote,
        escape=escape,
        header=tuple(header.split(",")) if header else None,
        encoding=encoding,
        nulls=tuple(nulls or ()),
        block_size=parse_bytes(block_size),
    )


def _processes(given: int | None) -> int:
    """Return how many processes tokenize.

    Raises:
        DataError: the number is not at least 1.
    """
    if given is not None and given < 1:
        raise DataError(f"the number of processes is {given}, but must be at least 1.")
    return given or len(os.sched_getaffinity(0))


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
    """Return a column's type, the first of its labels, or its tokenizer."""
    if isinstance(value, dict):
        return f"{value['size']:,} tokens of the tokenizer {value['tokenizer'][:12]}"
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
    """Show progress in rows: as a bar, or off a terminal as a line every few seconds."""
    console = Console(stderr=True, markup=False)
    columns = (
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=rows)
        if console.is_terminal:
            yield lambda batch: progress.advance(task, batch.num_rows)
        else:
            yield _Lines(rows).advance


class _Lines:
    """Shows progress as lines.

    Args:
        total: the number of rows, if it is known.
    """

    def __init__(self, total: int | None) -> None:
        self._of = "" if total is None else f" of {total:,}"
        self._done, self._next = 0, time.monotonic() + _LINE_EVERY

    def advance(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Add rows that are done."""
        self._done += rows.num_rows
        if time.monotonic() >= self._next:
            sys.stderr.write(f"{self._done:,}{self._of} rows\n")
            self._next = time.monotonic() + _LINE_EVERY

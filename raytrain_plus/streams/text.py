"""Reads CSV and JSON lines; the type of a column follows from all of its values.

It follows from all rows of all files, never from the first block only. A column of CSV is numeric
only if the numbers keep everything that the text says: `007` is text, and so are dates. An empty
field among numbers is an error, since a tensor cannot hold it. A caller who knows better gives the
types of columns and the dialect of the files.
"""

import codecs
import contextlib
import io
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain_plus.streams.columns import DataError, LeftOutWarning, listed
from raytrain_plus.streams.foreign import is_pointer, told_of_pointer
from raytrain_plus.streams.rows import RowError, chunks, table_of
from raytrain_plus.streams.unpacking import ERRORS

_ROWS_AT_ONCE = 1024
BLOCK, _LARGEST_BLOCK = 1 << 23, (1 << 31) - 1  # bytes; a row must fit into a block
_WHOLE = r"^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^(-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]+)?|-?\.[0-9]+([eE][+-]?[0-9]+)?)$"
_SPECIAL = r"^(?i:nan|[+-]?inf|[+-]?infinity)$"
_TRUTH = r"^(true|false|True|False|TRUE|FALSE)$"
_MISSING = ("", "NA", "N/A", "n/a", "#N/A", "null", "NULL", "None", "none", "<NA>", "-", "?")

_END = "\x04"  # each field of the row that is added to a CSV file: ASCII's end of transmission
_MARK = b"\xef\xbb\xbf"  # the byte order mark of UTF-8, which some editors write first


@dataclass
class _Guess:
    """The type of a CSV column, from the values seen so far.

    Attributes:
        whole, number, truth: whether all values seen are whole numbers, numbers, or booleans.
        seen: whether any value was seen.
        largest, smallest: the limits of the whole numbers.
        missing: the first row without a value, and its text.
        odd: the first row in a column of numbers that is not a number, and its text.
    """

    whole: bool = True
    number: bool = True
    truth: bool = True
    seen: bool = False
    largest: int = 0
    smallest: int = 0
    missing: tuple[str, str] | None = None
    odd: tuple[str, str] | None = None

    def see(self, where: str, first_row: int, texts: pa.Array) -> None:
        """Add a block of the column's values."""
        if not (self.number or self.truth):
            return
        absent = pc.or_(pc.is_in(texts, pa.array(_MISSING)), pc.is_null(texts))
        if self.missing is None and pc.any(named := pc.is_in(texts, pa.array(_MISSING))).as_py():
            row = named.index(True).as_py()
            self.missing = f"{where}, row {first_row + row + 1:,}", texts[row].as_py()
        there = texts.filter(pc.invert(absent))
        if not len(there):
            return
        whole = pc.match_substring_regex(there, _WHOLE)
        number = pc.or_(
            pc.match_substring_regex(there, _NUMBER), pc.match_substring_regex(there, _SPECIAL)
        )
        if self.number and not pc.all(number).as_py():
            if self.seen or pc.any(number).as_py():
                text = there[pc.invert(number).index(True).as_py()]
                row = texts.index(text).as_py()
                self.odd = f"{where}, row {first_row + row + 1:,}", text.as_py()
            self.number = self.whole = False
        if self.whole:
            self.whole = pc.all(whole).as_py()
        if self.whole:
            self._measure(there)
        self.truth = self.truth and pc.all(pc.match_substring_regex(there, _TRUTH)).as_py()
        self.seen = True

    def _measure(self, texts: pa.Array) -> None:
        long = pc.greater(pc.utf8_length(texts), 18)
        ends = [0]
        short = texts.filter(pc.invert(long))
        if len(short):
            found = pc.min_max(short.cast(pa.int64())).as_py()
            ends += [found["min"], found["max"]]
        ends += [int(text) for text in texts.filter(long).to_pylist()]
        self.smallest = min(self.smallest, *ends)
        self.largest = max(self.largest, *ends)

    @property
    def type(self) -> pa.DataType:
        """The type that holds every value exactly."""
        if self.seen and self.whole:
            if self.smallest >= -(2**63) and self.largest < 2**63:
                return pa.int64()
            return pa.uint64() if self.smallest >= 0 and self.largest < 2**64 else pa.string()
        if self.seen and self.number:
            return pa.float64()
        return pa.bool_() if self.seen and self.truth else pa.string()


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How CSV is written.

    Attributes:
        delimiter: the character between fields. Default: the tab in `.tsv`, else the comma.
        quote: the character around a field that has a delimiter or a line break in it; None if
            there is none.
        escape: the character before a character that has no special meaning; None if there is none.
        header: the names of the columns; None if the first line has them.
        encoding: of the text, by Python's name for it.
        nulls: texts that mean that a row has no value.
        block_size: bytes that are read at a time. A longer row enlarges it.

    Raises:
        DataError: a setting is not valid.
    """

    delimiter: str | None = None
    quote: str | None = '"'
    escape: str | None = None
    header: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    nulls: tuple[str, ...] = ()
    block_size: int = BLOCK

    def __post_init__(self) -> None:
        named = {"delimiter": self.delimiter, "quote": self.quote, "escape": self.escape}
        for name, value in named.items():
            if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n"):
                raise DataError(
                    f"the {name} of CSV is {value!r}, but must be one ASCII character, and no line "
                    "break."
                )
        given = [value for value in named.values() if value is not None]
        if len(set(given)) < len(given):
            raise DataError(
                f"delimiter, quote and escape of CSV are {', '.join(map(repr, given))}: give "
                "different characters."
            )
        if self.header is not None and len(set(self.header)) < len(self.header):
            raise DataError(f"the header of CSV names a column twice: {listed(self.header)}.")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise DataError(
                f"the encoding {self.encoding!r} is not known: give one of Python's, such as "
                "utf-8, latin-1, cp1252 or utf-16."
            ) from error
        if not 1 <= self.block_size <= _LARGEST_BLOCK:
            raise DataError(
                f"the block size is {self.block_size:,} bytes, but must be at most "
                f"{_LARGEST_BLOCK:,}."
            )

    @property
    def is_utf8(self) -> bool:
        """Whether the text is UTF-8 or ASCII."""
        return codecs.lookup(self.encoding).name in ("utf-8", "utf-8-sig", "ascii")


@dataclass(frozen=True)
class TextFile:
    """A text file.

    Attributes:
        open: opens it at its beginning.
        where: its name in an error.
        delimiter: the character between the fields of CSV.
        dialect: how its CSV is written otherwise.
    """

    open: Callable[[], IO[bytes]]
    where: str
    delimiter: str = ","
    dialect: Dialect = field(default_factory=Dialect)


def csv_types(
    files: Sequence[TextFile],
    columns: Sequence[str] | None = None,
    texts: Iterable[str] = (),
) -> dict[str, pa.DataType]:
    """Return the types that hold every value of some CSV files; reads all of them.

    Args:
        files: at least one.
        columns: the wanted columns; default all.
        texts: columns that are text, whatever their values look like.

    Raises:
        DataError: a file is not CSV, or the files do not fit together.
    """
    kept = set(texts)
    guesses: dict[str, _Guess] = {}
    for file in files:
        with _opened(file) as opened:
            names = _header(opened, file)
        if columns is None:
            names = _with_names(names, file.where)
        if columns is not None and (missing := [name for name in columns if name not in names]):
            raise DataError(f"{file.where} has no column {listed(missing)}; it has {listed(names)}")
        for name in columns or names:
            if file is files[0]:
                is_free = name not in kept
                guesses[name] = _Guess(number=is_free, truth=is_free)
        if columns is None and set(names) != set(guesses):
            raise DataError(
                f"{files[0].where} and {file.where} differ in their columns, by "
                f"{listed(sorted(set(names) ^ set(guesses)))}: all must have the same ones. "
                "Choose columns that agree, or write the files again."
            )
        for first, table in _texts(file, columns or names):
            for name, column in zip(table.column_names, table.columns, strict=True):
                guesses[name].see(file.where, first, column.combine_chunks())
    for name, guess in guesses.items():
        _check(name, guess)
    return {name: guess.type for name, guess in guesses.items()}


def csv_tables(file: TextFile, types: Mapping[str, pa.DataType]) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a CSV file, with the number of the first of each table, from 0.

    Args:
        file: what to read.
        types: the types of the wanted columns, as `csv_types` returns them.

    Raises:
        DataError: it is not CSV, or the type of a column does not hold a number exactly.
    """
    for first, table in _texts(file, list(types)):
        yield (
            first,
            pa.table(
                {
                    name: _typed(column.combine_chunks(), types[name], name, file.where, first)
                    for name, column in zip(table.column_names, table.columns, strict=True)
                }
            ),
        )


def _with_names(names: list[str], where: str) -> list[str]:
    """Return the columns of a CSV file, without a first one that has no name.

    That is the index that pandas writes. A model would take these row numbers for a feature.

    Raises:
        DataError: another column has no name.
    """
    nameless = [place for place, name in enumerate(names, 1) if not name.strip()]
    if nameless == [1] and len(names) > 1:
        warnings.warn(
            f"the first column of {where} has no name and is left out: it is the index of a pandas "
            "frame (`to_csv(index=False)` does not write it). Give it a name to keep it",
            LeftOutWarning,
            stacklevel=3,
        )
        return names[1:]
    if nameless:
        raise DataError(
            f"column {nameless[0]} of {where} has no name: give it one in the first line, or "
            "remove the column."
        )
    return names


def _check(name: str, guess: _Guess) -> None:
    if guess.missing is not None and guess.type != pa.string():
        where, text = guess.missing
        raise DataError(
            f"{where}: column {name!r} has no value ({text!r}), and the others have the type "
            f"{guess.type}: fill it in, drop the row, or leave the column out."
        )
    if guess.odd is not None and guess.type == pa.string():
        where, text = guess.odd
        warnings.warn(
            f"column {name!r} is kept as text, since {where} has {text!r:.80} where others have "
            "numbers",
            stacklevel=3,
        )


def _typed(texts: pa.Array, kind: pa.DataType, name: str, where: str, first: int) -> pa.Array:
    if kind == pa.string():
        return texts
    if kind == pa.bool_():
        return pc.equal(pc.utf8_lower(texts), "true")
    values = texts.cast(kind)
    if kind == pa.float64():
        held = values.to_numpy(zero_copy_only=False)
        suspects = np.flatnonzero(~(np.abs(held) < 2**53))  # infinity and NaN, too
        for row in suspects.tolist():
            text = texts[row].as_py()
            if text is None:
                continue
            is_whole = re.match(_WHOLE, text) is not None
            finite = re.match(_NUMBER, text) is not None
            value = float(held[row])
            if (finite and not np.isfinite(value)) or (is_whole and int(value) != int(text)):
                raise DataError(
                    f"{where}, row {first + row + 1:,}: column {name!r} holds {text}, which "
                    "float64 does not hold exactly, and fractions elsewhere: leave the column out."
                )
    return values


@contextmanager
def _opened(file: TextFile) -> Iterator[IO[bytes]]:
    """Open a file; an error of unpacking becomes one that names the file.

    Raises:
        DataError: it is packed, and damaged, cut short, or followed by other bytes.
    """
    try:
        with file.open() as opened:
            if file.dialect.is_utf8:
                yield opened
            else:
                yield io.BufferedReader(_Recoded(opened, file))
    except ERRORS as error:
        raise DataError(
            f"{file.where} cannot be read: {error}. If it is packed, it may be damaged or cut "
            "short, or not be packed as its name says: pack or copy it again."
        ) from error


def _texts(file: TextFile, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """Yield the fields of a CSV file, each block as a table of strings."""
    first, block = 0, file.dialect.block_size
    while True:
        try:
            done = 0
            for batch in _blocks(file, columns, block):
                # If a row does not fit into a block, the file is read again in larger blocks.
                fresh = batch.slice(max(0, first - done))
                done += batch.num_rows
                if fresh.num_rows:
                    yield first, _with_nulls(_decoded_texts(fresh, file.where, first), file)
                    first += fresh.num_rows
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error) or block >= _LARGEST_BLOCK:
                raise DataError(_why(file, columns, block, error)) from error
            block = min(_LARGEST_BLOCK, 4 * block)
        else:
            return


def _decoded_texts(batch: pa.RecordBatch, where: str, first: int) -> pa.Table:
    """Return a block's fields as strings.

    Raises:
        DataError: one is not UTF-8.
    """
    try:
        return pa.table({n: c.cast(pa.string()) for n, c in zip(batch.schema.names, batch.columns)})  # noqa: B905
    except pa.ArrowInvalid as error:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for row, content in enumerate(column.to_pylist()):
                try:
                    content.decode()
                except UnicodeDecodeError:
                    raise DataError(
                        f"{where}, row {first + row + 1:,}: column {name!r} is not UTF-8 "
                        f"({content!r:.60}): store the text as UTF-8, or give its encoding "
                        "(`--encoding`)."
                    ) from error
        raise


def _why(file: TextFile, columns: Sequence[str], block: int, error: pa.ArrowInvalid) -> str:
    """Return why a file is not CSV; reads it again, without threads, to find the row."""
    odd: list[Any] = []
    with contextlib.suppress(pa.ArrowInvalid):
        for _ in _blocks(file, columns, block, odd):
            pass
    if not odd:
        return f"{file.where} cannot be read: {error}"
    found = odd[0]
    row, named = found.number - 1, "the first line names"
    if file.dialect.header is not None:
        row, named = found.number, "the header has"
    return (
        f"{file.where}, row {row:,}: it has {found.actual_columns} fields "
        f"({found.text!r:.80}), and {named} {found.expected_columns}. Quote a value "
        f"that contains {file.delimiter!r}, and write a field for each column."
    )


def _blocks(
    file: TextFile, columns: Sequence[str], block: int, odd: list[Any] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the fields of a CSV file as bytes, without the row that `_Ended` adds.

    Args:
        file: what to read.
        columns: the wanted columns.
        block: bytes to read at once.
        odd: receives the first row with a wrong number of fields; this makes reading slower.
    """
    from pyarrow import csv  # noqa: PLC0415 - imports pandas, which few need

    def refuse(row: Any) -> str:
        if odd is not None:
            odd.append(row)
        return "error"

    with _opened(file) as opened:
        names = _header(opened, file)
    end = b"\n" + file.delimiter.join([_END] * len(names)).encode()
    with _opened(file) as opened:
        reader = csv.open_csv(
            _Ended(opened, end),
            # Arrow numbers rows only without threads.
            read_options=csv.ReadOptions(
                block_size=block,
                use_threads=odd is None,
                column_names=None if file.dialect.header is None else names,
            ),
            parse_options=_parse_options(file, refuse),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.binary()),
                include_columns=list(columns),
                strings_can_be_null=False,
            ),
        )
        yield from _without_end(reader, file)


def _parse_options(file: TextFile, refuse: Callable[[Any], str] | None = None) -> Any:
    from pyarrow import csv  # noqa: PLC0415 - imports pandas, which few need

    return csv.ParseOptions(
        newlines_in_values=True,
        delimiter=file.delimiter,
        quote_char=file.dialect.quote or False,
        escape_char=file.dialect.escape or False,
        invalid_row_handler=refuse,
    )


def _with_nulls(table: pa.Table, file: TextFile) -> pa.Table:
    """Return fields in which the texts that mean "no value" are null."""
    if not file.dialect.nulls:
        return table
    nulls = pa.array(file.dialect.nulls, pa.string())
    columns = [
        pc.if_else(pc.is_in(column, nulls), pa.scalar(None, pa.string()), column)
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


class _Recoded(io.RawIOBase):
    """The text of a file, as UTF-8."""

    def __init__(self, file: IO[bytes], text: TextFile) -> None:
        self._file, self._text = file, text
        self._decoder = codecs.getincrementaldecoder(text.dialect.encoding)()
        self._held = memoryview(b"")
        self._lines = 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            content = self._file.read(1 << 20)
            try:
                text = self._decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                line = self._lines + bytes(error.object[: error.start]).count(b"\n")
                raise DataError(
                    f"{self._text.where}, near line {line:,}: it is not {error.encoding}: "
                    f"{error.reason}. Give the encoding of the text (`--encoding`)."
                ) from error
            self._lines += text.count("\n")
            self._held = memoryview(text.encode())
            if not content and not self._held:
                return 0
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count


class _Ended:
    """A CSV file with one row added at its end, to detect a quoted field that is never closed.

    Arrow does not report such a field: everything after it, also the added row, becomes its value.
    """

    closed = False

    def __init__(self, file: IO[bytes], end: bytes) -> None:
        self._file, self._end = file, end

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; the added row comes last."""
        content = self._file.read(size)
        if content:
            return content
        end, self._end = self._end, b""
        return end

    def readable(self) -> bool:
        """Return True, which Arrow requires."""
        return True


def _without_end(batches: Iterable[pa.RecordBatch], file: TextFile) -> Iterator[pa.RecordBatch]:
    """Yield the rows before the one that `_Ended` adds.

    Raises:
        DataError: the added row became part of another row.
    """
    held: pa.RecordBatch | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        if held is not None:
            yield held
        held = batch
    end, quote = _END.encode(), file.dialect.quote
    if held is None or any(column[-1].as_py() != end for column in held.columns):
        raise DataError(
            f"{file.where} ends within a quoted field: a quotation mark ({quote}) is not closed. "
            f"Close it, or write it twice ({quote}{quote}) where it is part of a value. If the "
            "file has no quoted fields, say so (`--quote none`)."
        )
    yield held.slice(0, held.num_rows - 1)


def _header(opened: IO[bytes], file: TextFile) -> list[str]:
    from pyarrow import csv  # noqa: PLC0415 - imports pandas, which few need

    if file.dialect.header is not None:
        return list(file.dialect.header)
    head = b""
    while (line := opened.readline()) and (not head.strip() or _is_open(head, file)):
        head += line
        if head.strip() and not _is_open(head, file):
            break
    if is_pointer(head):
        raise DataError(told_of_pointer(file.where))
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the first line of {file.where} is not UTF-8 ({head!r:.60}): store the text as UTF-8, "
            "or give its encoding (`--encoding`)."
        ) from error
    try:
        table = csv.read_csv(
            pa.BufferReader(head),
            read_options=csv.ReadOptions(autogenerate_column_names=True, block_size=len(head) + 1),
            parse_options=_parse_options(file),
            convert_options=csv.ConvertOptions(strings_can_be_null=False, null_values=[]),
        )
    except pa.ArrowInvalid as error:
        told = f"{file.where} has no line with the names of its columns: {error}"
        raise DataError(told) from error
    names = [str(column[0].as_py()) for column in table.columns]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        told = f"{file.where} has more than one column {listed(twice)}: rename one of them."
        raise DataError(told)
    is_guess = file.dialect.delimiter is None
    if is_guess and len(names) == 1 and re.search(r"[;\t|]", names[0]):
        raise DataError(
            f"the first line of {file.where} is {names[0]!r:.80}: its fields are not separated by "
            "commas (.csv) or tabs (.tsv). Name the character (`--delimiter`)."
        )
    if all(re.match(_NUMBER, name) for name in names):
        raise DataError(
            f"the first line of {file.where} holds numbers ({', '.join(names):.80}), but must name "
            "the columns: add such a line or give the names (`--header A,B`), or the first row "
            "would be lost."
        )
    return names


def _is_open(head: bytes, file: TextFile) -> bool:
    """Say whether a quoted field goes on after some lines."""
    escape, quote = file.dialect.escape, file.dialect.quote
    if escape is not None:
        head = re.sub(re.escape(escape.encode()) + b".", b"", head, flags=re.DOTALL)
    return quote is not None and head.count(quote.encode()) % 2 == 1


# -- JSON


def json_tables(
    file: TextFile, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of JSON lines, or of one JSON list of objects, as `csv_tables`.

    Args:
        file: what to read.
        columns: the wanted columns; default all.

    Raises:
        DataError: a row is not a JSON object, or does not fit to the others.
    """
    first = 0
    for rows in chunks(_objects(file, columns), _ROWS_AT_ONCE):
        try:
            yield first, table_of(rows)
        except RowError as error:
            raise DataError(f"{file.where}, row {first + error.row + 1:,}: {error}.") from error
        first += len(rows)


def _objects(file: TextFile, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    with _opened(file) as opened:
        start = opened.read(64).removeprefix(_MARK).lstrip()
    if is_pointer(start):
        raise DataError(told_of_pointer(file.where))
    with _opened(file) as opened:
        is_list = start[:1] == b"["
        found = _listed(opened, file.where) if is_list else _lines(opened, file.where)
        for row, value in enumerate(found):
            where = f"{file.where}, row {row + 1:,}"
            if not isinstance(value, dict):
                raise DataError(
                    f'{where}: it is {value!r:.60}, but must be an object, as in {{"x": 1}}.'
                )
            if columns is None:
                yield value
                continue
            if missing := [name for name in columns if name not in value]:
                raise DataError(f"{where}: it has no column {listed(missing)}.")
            yield {name: value[name] for name in columns}


def _lines(file: IO[bytes], where: str) -> Iterator[Any]:
    decoder = _decoder()
    for number in itertools.count(1):
        line = file.readline()
        if not line:
            return
        if text := line.removeprefix(_MARK).strip():
            yield _decoded(decoder, text, f"{where}, line {number:,}")


def _listed(file: IO[bytes], where: str) -> list[Any]:
    decoded = _decoded(_decoder(), file.read().removeprefix(_MARK), where)
    return list(decoded)


def _decoded(decoder: json.JSONDecoder, text: bytes, where: str) -> Any:
    try:
        return decoder.decode(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON: {error}. Each line must be one object, as in "
            '{"x": 1}; or the file one list of them.'
        ) from error


def _decoder() -> json.JSONDecoder:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(found)
        if len(whole) < len(found):
            names = [name for name, _ in found]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"an object has more than one {listed(twice)}")
        return whole

    def number(text: str) -> float:
        value = float(text)
        if not np.isfinite(value):
            raise ValueError(f"{text} is outside of float64")
        return value

    return json.JSONDecoder(object_pairs_hook=pairs, parse_float=number)

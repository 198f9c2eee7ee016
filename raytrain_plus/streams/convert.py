"""Reads what a stream can be made of.

These are Parquet, Arrow, CSV, JSON lines, folders of images, streams, and the shards of other
tools: MDS, LitData and WebDataset.
"""

import contextlib
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_plus.seeds import seed_for
from raytrain_plus.storage.locations import file_system, local_path
from raytrain_plus.storage.store import Store
from raytrain_plus.streams import litdata, mds
from raytrain_plus.streams.columns import (
    DataError,
    data_columns,
    fill_nulls,
    listed,
    plain_table,
    plain_type,
)
from raytrain_plus.streams.decoding import explained
from raytrain_plus.streams.files import recognized
from raytrain_plus.streams.folders import (
    INCOMPLETE,
    SPLITS,
    Contents,
    DataPath,
    check_regular,
    data_set_of_split,
    form_of,
    is_hidden,
    is_split,
    paths_below,
    select,
    split_of_folder,
    suffix_of,
    without_pattern,
)
from raytrain_plus.streams.foreign import (
    LITDATA,
    MDS,
    format_of_files,
    format_of_index,
    is_pointer,
    told,
    told_of_pointer,
)
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.labels import (
    Labels,
    check_distinct,
    check_same,
    labels_of,
    numbers_of,
    with_names,
)
from raytrain_plus.streams.order import permutation
from raytrain_plus.streams.retyping import Types, retyped
from raytrain_plus.streams.rows import RowError, table_of
from raytrain_plus.streams.shards import FreeArray, Selection
from raytrain_plus.streams.stream import read_manifest
from raytrain_plus.streams.text import Dialect, TextFile, csv_tables, csv_types, json_tables
from raytrain_plus.streams.unpacking import open_unpacked
from raytrain_plus.streams.vocabulary import Vocabularies
from raytrain_plus.streams.webdataset import webdataset_rows
from raytrain_plus.streams.widening import InexactError, cast_exactly, wider

_READ_ROWS = 8192
_READ_IMAGES = 64
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 1024, 32 << 20  # of shards of other tools


@dataclass(frozen=True)
class RowBatch:
    """Consecutive rows of a source, and a function that names the place of each in messages."""

    table: pa.Table
    place: Callable[[int], str]


@dataclass(frozen=True)
class Data:
    """The rows of a source.

    Attributes:
        batches: the rows.
        rows: the number of rows, if it is known.
        labels: column -> the names of its numbers.
        is_mixed: the rows are in a random order.
        vocabularies: column of token numbers -> the tokenizer that made them.
    """

    batches: Iterator[RowBatch]
    rows: int | None = None
    labels: Labels = field(default_factory=dict)
    is_mixed: bool = False
    vocabularies: Vocabularies = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """Which part of some data is wanted, and in which form.

    Attributes:
        columns: the columns; default all.
        split: as in a `Stream`.
        labels: column -> names. Their numbers replace the text in these columns, and the names of
            folders of images.
        seed: for the random order in which images are read, since the folders sort them by label;
            None keeps the order of names.
        types: column -> type. Values are converted, each exactly, and text is read as numbers.
        names: column -> its new name.
        fill: column, by its new name -> what replaces its nulls.
        dialect: how CSV is written.
    """

    columns: Sequence[str] | None = None
    split: str | None = None
    labels: Labels = field(default_factory=dict)
    seed: int | None = None
    types: Types = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    fill: Mapping[str, Any] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=Dialect)


def read_any(
    source: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    choice: Wanted | None = None,
) -> Data:
    """Return the rows of a file or folder, in the order of the files' names.

    Args:
        source: a stream; or a file, a folder of files of one form (Parquet and Arrow, CSV, or JSON
            lines), or a pattern; see `folders.py`. Or a folder with a folder of images for each
            label, as in `cats/1.png`. The images become the columns `image` (the bytes of the
            files), `label` (the label's number in the order of names) and `name`. If the folder
            is a split, such as `photos/val`, the names are those of all splits.
        options: passed to fsspec's filesystem.
        choice: what is wanted of the data; default all.

    Raises:
        DataError: there is no such data, or its format is unknown, or it has several formats.
    """
    choice = choice or Wanted()
    place, pattern = without_pattern(source)
    fs, root = file_system(place, options)
    named = os.fspath(source)
    try:
        if (local := local_path(place)) is not None and local.exists() and not local.is_dir():
            check_regular(local)
        if fs.isfile(root):
            data = _of_file(fs, root, named, choice)
        elif pattern is None and fs.exists(f"{root.rstrip('/')}/{MANIFEST}"):
            data = _of_index(fs, root, Store(source, options), choice)
        else:
            paths = paths_below(fs, root, pattern)
            inner = data_set_of_split(paths, choice.split) if pattern is None else None
            if inner is not None:
                at = f"{os.fspath(place).rstrip('/')}/{inner}"
                data = _of_index(fs, f"{root}/{inner}", Store(at, options), _whole_split(choice))
            else:
                data = _of_folder(fs, root, select(paths, named, choice.split), choice)
    except OSError as error:
        raise DataError(f"{named} cannot be read: {error}") from error
    data = _with_numbers(data, choice.labels)
    if choice.types:
        data = replace(data, batches=_retyped(data.batches, choice.types))
    data = _renamed(data, choice.names) if choice.names else data
    return replace(data, batches=_filled(data.batches, choice.fill)) if choice.fill else data


def check_apart(source: str, destination: str) -> None:
    """Check that a stream is not written into its own source.

    Raises:
        DataError: the destination is the source, or lies in it.
    """
    folder, pattern = without_pattern(source)
    one, other = _whole(folder), _whole(destination)
    if pattern is None and (one == other or other.startswith(f"{one}/")):
        raise DataError(
            f"{destination} lies in {source}, the source: write to another place, or the next "
            "conversion would read what is written as data."
        )


def _whole(place: str | os.PathLike[str]) -> str:
    local = local_path(place)
    return os.fspath(place).rstrip("/") if local is None else os.path.realpath(local)


def _of_file(fs: Any, path: str, named: str, choice: Wanted) -> Data:
    folder, _, name = path.rpartition("/")
    form = form_of(name)
    if form in (None, "images"):
        foreign = format_of_files([name])
        if foreign is not None:
            raise DataError(told(named, foreign))
        raise DataError(
            f"{named} ends in {suffix_of(name) or 'nothing'!r}, which is not read here: give "
            "Parquet, Arrow, CSV (.csv, .tsv), JSON lines (.jsonl), tar files (.tar), or a folder "
            "of them or of images."
        )
    return _of_folder(fs, folder, Contents(form, (DataPath(name),)), choice)


def _of_folder(fs: Any, root: str, contents: Contents, choice: Wanted) -> Data:
    if contents.form == "images":
        return _of_images(fs, root, contents.files, choice)
    if contents.form == "table":
        return _of_tables([_TableFile(fs, root, found) for found in contents.files], choice)
    if contents.form == "tar":
        tars = (f"{root}/{found.path}" for found in contents.files)
        return Data(_row_batches(_tar_rows(fs, tars, _selection(choice))))
    files = [(found, _text_file(fs, root, found, choice.dialect)) for found in contents.files]
    if contents.form == "json":
        return Data(_json_batches(files, choice.columns))
    own = None
    if choice.columns is not None:
        own = [name for name in choice.columns if name not in contents.files[0].partitions]
    types = csv_types([file for _, file in files], own, choice.types)

    def read() -> Iterator[RowBatch]:
        for found, file in files:
            for first, table in csv_tables(file, types):
                whole = _with_partitions(table, found, choice.columns)
                yield RowBatch(whole, _rows_of(file.where, first))

    return Data(read())


def _json_batches(
    files: Sequence[tuple[DataPath, TextFile]], columns: Sequence[str] | None
) -> Iterator[RowBatch]:
    for found, file in files:
        own = columns and [name for name in columns if name not in found.partitions]
        for first, table in json_tables(file, own):
            whole = _with_partitions(table, found, columns)
            yield RowBatch(whole, _rows_of(file.where, first))


def _text_file(fs: Any, root: str, found: DataPath, dialect: Dialect) -> TextFile:
    path = f"{root}/{found.path}"
    return TextFile(
        open=functools.partial(open_unpacked, fs, path),
        where=path,
        delimiter=dialect.delimiter or ("\t" if suffix_of(path) == ".tsv" else ","),
        dialect=dialect,
    )


def _rows_of(where: str, first: int) -> Callable[[int], str]:
    return lambda row: f"{where}, row {first + row + 1:,}"


def _with_partitions(
    table: pa.Table, found: DataPath, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return rows with the wanted columns, including those of their partition folders."""
    for name, value in found.partitions.items():
        if name not in table.column_names and (columns is None or name in columns):
            kind = pa.int64() if isinstance(value, int) else pa.string()
            table = table.append_column(name, pa.repeat(pa.scalar(value, kind), table.num_rows))
    return table if columns is None else table.select(list(columns))


# -- Arrow and Parquet


class _TableFile:
    """An Arrow or Parquet file in any file system."""

    def __init__(self, fs: Any, root: str, found: DataPath) -> None:
        self.found, self._fs = found, fs
        self.path = f"{root}/{found.path}"
        with explained(self.path), fs.open(self.path, "rb") as file:
            self.kind, _ = recognized(file, self.path)
            file.seek(0)
            if self.kind == "Parquet":
                parquet = _parquet_file(file)
                self.schema, self.rows = parquet.schema_arrow, parquet.metadata.num_rows
            else:
                reader = _opened(file, self.kind)
                is_empty = self.kind == "Arrow IPC" and not reader.num_record_batches
                self.schema, self.rows = reader.schema, 0 if is_empty else None

    def tables(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """Yield the rows of some columns, including those of partition folders."""
        own = set(self.schema.names)
        wanted = [name for name in columns or self.schema.names if name in own]
        with explained(self.path), self._fs.open(self.path, "rb") as file:
            for batch in self._batches(file, wanted):
                batch.validate(full=True)
                table = pa.Table.from_batches([batch]).select(wanted).replace_schema_metadata()
                yield _with_partitions(table, self.found, columns)

    def _batches(self, file: Any, wanted: list[str]) -> Iterator[pa.RecordBatch]:
        if self.kind == "Parquet":
            yield from _parquet_file(file).iter_batches(_READ_ROWS, columns=wanted)
        elif self.kind == "Arrow IPC":
            reader = _opened(file, self.kind)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        else:
            yield from _opened(file, self.kind)

    def types(self, columns: Sequence[str] | None) -> dict[str, pa.DataType]:
        """Return the plain types of the wanted columns, including those of partition folders."""
        twice = [name for name, count in Counter(self.schema.names).items() if count > 1]
        if twice:
            raise DataError(
                f"{self.path} has more than one column {listed(twice)}: rename one of them."
            )
        table = _with_partitions(self.schema.remove_metadata().empty_table(), self.found)
        present = dict(zip(table.column_names, table.schema.types, strict=True))
        missing = [name for name in columns or () if name not in present]
        if missing:
            raise DataError(
                f"{self.path} has no column {listed(missing)}; it has {listed(present)}."
            )
        return {name: plain_type(present[name]) for name in columns or data_columns(list(present))}


def _parquet_file(file: Any) -> Any:
    from pyarrow import parquet  # noqa: PLC0415 - imports pandas, which few need

    return parquet.ParquetFile(file)


def _opened(file: Any, kind: str) -> Any:
    return (pa.ipc.open_file if kind == "Arrow IPC" else pa.ipc.open_stream)(file)


def _of_tables(files: Sequence[_TableFile], choice: Wanted) -> Data:
    # A file without rows may have columns of any type: pandas gives them the null type.
    files = [file for file in files if file.rows != 0] or files[:1]
    first = files[0]
    types = first.types(choice.columns)
    widest = dict.fromkeys(types, first.path)
    labels: dict[str, tuple[str, ...]] = labels_of(first.schema)
    for file in files[1:]:
        own = file.types(choice.columns)
        if own.keys() != types.keys():
            differing = listed(sorted(own.keys() ^ types.keys()))
            raise DataError(
                f"{first.path} and {file.path} differ in their columns, by {differing}: all files "
                "must have the same ones. Choose columns that agree (`--columns`), or write the "
                "files again."
            )
        for name, kind in own.items():
            both = wider(types[name], kind)
            if both is None:
                raise DataError(
                    f"column {name!r} is {types[name]} in {widest[name]} and {kind} in "
                    f"{file.path}: no type holds both. Write the files again with one type, or "
                    "leave the column out (`--columns`)."
                )
            if both != types[name]:
                types[name], widest[name] = both, file.path
        check_same(labels, labels_of(file.schema), first.path, file.path)
    order = list(types)

    def read() -> Iterator[RowBatch]:
        for file in files:
            before = 0
            for table in file.tables(order):
                yield RowBatch(table, _rows_of(file.path, before))
                before += table.num_rows

    known = [file.rows for file in files if file.rows is not None]
    rows = sum(known) if len(known) == len(files) else None
    return Data(read(), rows, {name: names for name, names in labels.items() if name in types})


# -- streams


def _of_stream(store: Store, choice: Wanted) -> Data:
    manifest = read_manifest(store)
    if choice.split not in (None, "all"):
        raise DataError(
            f"{store.url} is a stream without splits, so split {choice.split!r} selects nothing in "
            "it: leave it out, or give the stream of that split."
        )
    columns = list(choice.columns or data_columns(list(manifest.columns)))
    if missing := [name for name in columns if name not in manifest.columns]:
        raise DataError(
            f"{store.url} has no column {listed(missing)}; it has {listed(manifest.columns)}."
        )

    def read() -> Iterator[RowBatch]:
        for entry in manifest.files:
            content = store.read(entry.name, entry.stored_bytes, entry.sha256)
            table = pa.ipc.open_file(content).read_all().select(columns)
            yield RowBatch(table, _rows_of(store.where(entry.name), 0))

    labels = {name: names for name, names in manifest.labels.items() if name in columns}
    known = {name: found for name, found in manifest.vocabularies.items() if name in columns}
    return Data(read(), manifest.rows, labels, vocabularies=known)


# -- the shards of other tools


def _of_index(fs: Any, root: str, store: Store, choice: Wanted) -> Data:
    """Return the rows of a folder with an index: a stream, MDS or LitData."""
    text = fs.cat_file(f"{root}/{MANIFEST}")
    foreign = format_of_index(text)
    if foreign is None or foreign not in (MDS, LITDATA):
        return _of_stream(store, choice)
    if choice.split not in (None, "all"):
        raise DataError(
            f"{root} has no splits, so split {choice.split!r} selects nothing in it: leave it out, "
            "or give the folder of that split."
        )
    index = json.loads(text)

    def read(name: str) -> bytes:
        try:
            content: bytes = fs.cat_file(f"{root}/{name}")
        except FileNotFoundError as error:
            raise DataError(
                f"{root}/{name} is missing, and the index names it: copy the data set again."
            ) from error
        return content

    exists = functools.cache(lambda name: bool(fs.exists(f"{root}/{name}")))
    with _index_errors(f"{root}/{MANIFEST}", foreign.name):
        if foreign is MDS:
            rows = mds.mds_rows(index, root, read, exists, _selection(choice))
            count = mds.count_of(index)
        else:
            rows = litdata.litdata_rows(index, root, read, _selection(choice))
            count = litdata.count_of(index)

    def read_rows() -> Iterator[RowBatch]:
        with _index_errors(f"{root}/{MANIFEST}", foreign.name):
            yield from _row_batches(rows)

    return Data(read_rows(), count)


@contextlib.contextmanager
def _index_errors(where: str, name: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where} is that of {name}, and is damaged or of a version that is not known here: "
            f"{error!r}."
        ) from error


def _whole_split(choice: Wanted) -> Wanted:
    """Return what is wanted of a data set that is one split."""
    return replace(choice, split=None)


def _selection(choice: Wanted) -> Selection:
    return Selection(choice.columns, tuple(choice.types))


def _tar_rows(
    fs: Any, paths: Iterable[str], wanted: Selection
) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in paths:
        with open_unpacked(fs, path) as file:
            yield from webdataset_rows(file, path, wanted)


def _row_batches(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[RowBatch]:
    """Yield rows as tables, of a bounded number of rows and bytes."""
    places: list[str] = []
    held: list[Mapping[str, Any]] = []
    size = 0
    for place, row in rows:
        places.append(place)
        held.append(row)
        size += sum(len(v) for v in row.values() if isinstance(v, bytes | str))
        size += sum(v.nbytes for v in row.values() if isinstance(v, np.ndarray))
        size += sum(v.values.nbytes for v in row.values() if isinstance(v, FreeArray))
        if len(held) >= _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield _row_batch(places, held)
            places, held, size = [], [], 0
    if held:
        yield _row_batch(places, held)


def _row_batch(places: list[str], rows: list[Mapping[str, Any]]) -> RowBatch:
    """Return rows as a table; an array of free length becomes a list of its own type."""
    free = [name for name, value in rows[0].items() if isinstance(value, FreeArray)]
    plain = [
        {name: 0 if isinstance(value, FreeArray) else value for name, value in row.items()}
        for row in rows
    ]
    try:
        table = table_of(plain)
    except RowError as error:
        raise DataError(f"{places[error.row]}: {error}.") from error
    for name in free:
        arrays = [row[name].values for row in rows if isinstance(row[name], FreeArray)]
        odd = [i for i, array in enumerate(arrays) if array.dtype != arrays[0].dtype]
        if odd or len(arrays) < len(rows):
            raise DataError(
                f"{places[odd[0] if odd else 0]}: column {name!r} holds arrays of several types or "
                "dimensions: leave it out (`--columns`), or write the data again."
            )
        column = pa.array(arrays)
        table = table.set_column(table.column_names.index(name), name, column)
    return RowBatch(table, places.__getitem__)


# -- images


def _of_images(fs: Any, root: str, found: Sequence[DataPath], choice: Wanted) -> Data:
    inside = [PurePosixPath(each.path) for each in found]
    # With a split, as in `train/cats/1.png`, the label is the second folder.
    depth = int(choice.split is not None and all(split_of_folder(p.parts[0]) for p in inside))
    flat = [path for path in inside if len(path.parts) < depth + 2]
    if flat:
        raise DataError(
            f"{root}/{flat[0]} has no label: put each image into a folder named after its label, "
            f"as in {root}/cats/1.png."
        )
    labels = {path.parts[depth] for path in inside}
    if len(labels) == 1 and all(len(path.parts) > depth + 2 for path in inside):
        (only,) = labels
        raise DataError(
            f"all images of {root} lie in folders in {only!r}: give {root}/{only}, so that "
            "those folders are the labels."
        )
    if "label" in choice.labels:
        names = list(choice.labels["label"])
    else:
        splits = root if depth else _parent_of_split(root)
        names = sorted(_joined(labels, [] if splits is None else _labels_of_splits(fs, splits)))
        check_distinct(names, f"the folders of {root}")
    unknown = sorted(labels - set(names))
    if unknown:
        raise DataError(
            f"{root} has images of {listed(unknown)}, which are not among the given labels: "
            f"{listed(names)}."
        )
    if choice.seed is not None:
        drawn = permutation(len(inside), seed_for(choice.seed, "images"))
        inside = [inside[i] for i in drawn.tolist()]
    numbers = {name: number for number, name in enumerate(names)}

    def read() -> Iterator[RowBatch]:
        for start in range(0, len(inside), _READ_IMAGES):
            some = inside[start : start + _READ_IMAGES]
            content = [_image(fs, f"{root}/{path}") for path in some]
            table = pa.table(
                {
                    "image": pa.array(content, pa.binary()),
                    "label": pa.array([numbers[path.parts[depth]] for path in some], pa.int64()),
                    "name": pa.array(map(str, some), pa.string()),
                }
            )
            where = [f"{root}/{path}" for path in some]
            yield RowBatch(
                table.select(list(choice.columns or table.column_names)), where.__getitem__
            )

    return Data(read(), len(inside), {"label": tuple(names)}, choice.seed is not None)


def _image(fs: Any, path: str) -> bytes:
    """Return the bytes of an image.

    Raises:
        DataError: it is empty, or a pointer of Git LFS.
    """
    content: bytes = fs.cat_file(path)
    if not content:
        raise DataError(f"{path} is empty (0 bytes): remove it, or write it again.")
    if is_pointer(content):
        raise DataError(told_of_pointer(path))
    return content


def _parent_of_split(root: str) -> str | None:
    """Return the folder of all splits, such as `photos` for `photos/val`; None for no split."""
    parent, _, name = root.rstrip("/").rpartition("/")
    return parent if parent and is_split(name) else None


def _labels_of_splits(fs: Any, folder: str) -> list[set[str]]:
    """Return the labels of each split in a folder of images such as `train/cats/1.png`."""
    found = []
    try:
        entries = [str(path).rstrip("/") for path in fs.ls(folder, detail=False)]
        for entry in entries:
            if split_of_folder(entry.rpartition("/")[2]) and fs.isdir(entry):
                paths = [PurePosixPath(p) for p in paths_below(fs, entry) if not is_hidden(p)]
                images = [path for path in paths if form_of(path.name) == "images"]
                found.append({path.parts[0] for path in images if len(path.parts) > 1})
    except OSError:  # the user may have access to one split only
        return []
    return found


def _joined(labels: set[str], others: Sequence[set[str]]) -> set[str]:
    """Return labels with those of all splits that share one of them, directly or indirectly."""
    found = set(labels)
    while related := [one for one in others if one & found and not one <= found]:
        found.update(*related)
    return found


# -- labels


def names_of(
    source: str | os.PathLike[str],
    options: Mapping[str, Any] | None,
    choice: Wanted,
    columns: Sequence[str],
) -> dict[str, list[str]]:
    """Return the different texts of some columns, sorted, over all splits of some data.

    So all splits have the same numbers, even if some have no rows of a label.

    Raises:
        DataError: as `read_any` and `names_in`, for the chosen split.
    """
    found = names_in(read_any(source, options, choice), columns)
    others = SPLITS if choice.split not in (None, "all") else ()
    for split in others:
        try:
            more = names_in(read_any(source, options, replace(choice, split=split)), columns)
        except DataError:  # there is no such split, or it has no labels
            continue
        for name, names in more.items():
            found[name] = sorted({*found[name], *names})
    return found


def names_in(data: Data, columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the different texts of some columns, sorted; reads all rows.

    Raises:
        DataError: there is no such column, or it holds no text.
    """
    found: dict[str, set[str]] = {name: set() for name in columns}
    for batch in data.batches:
        for name, names in found.items():
            if name not in batch.table.column_names:
                raise DataError(f"{batch.place(0)}: there is no column {name!r} of labels.")
            texts = plain_table(batch.table.select([name])).column(0)
            if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
                raise DataError(
                    f"{batch.place(0)}: column {name!r} is {texts.type}; labels are made of text."
                )
            different = texts.unique().to_pylist()
            if any(text is None or not text.strip() for text in different):
                row = next(i for i, t in enumerate(texts.to_pylist()) if not (t and t.strip()))
                raise DataError(
                    f"{batch.place(row)}: the label in column {name!r} is {texts[row].as_py()!r}: "
                    "fill it in, or drop the row."
                )
            names.update(different)
    for name, names in found.items():
        check_distinct(names, f"column {name!r}")
    return {name: sorted(names) for name, names in found.items()}


def _with_numbers(data: Data, labels: Labels) -> Data:
    """Return data with numbers instead of text in the columns that have names."""
    if not labels:
        return data

    def read() -> Iterator[RowBatch]:
        for batch in data.batches:
            table = plain_table(batch.table)
            for name, names in labels.items():
                if name not in table.column_names:
                    continue
                column = table.column(name)
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    numbers, row, text = numbers_of(column, names)
                    if numbers is None:
                        raise DataError(
                            f"{batch.place(row)}: column {name!r} holds {text!r}, which is not "
                            f"among its labels, {listed(names)}."
                        )
                    place = table.column_names.index(name)
                    table = table.set_column(place, name, numbers)
            yield RowBatch(table, batch.place)

    given = {name: tuple(names) for name, names in labels.items()}
    for name, names in data.labels.items():
        if name in given and tuple(names) != given[name]:
            check_same({name: names}, {name: given[name]}, "the data", "what was given")
    return replace(data, batches=read(), labels={**data.labels, **given})


# -- types and names


def _column_of(table: pa.Table, name: str, batch: RowBatch, what: str) -> pa.ChunkedArray:
    """Return a column that an option names; DataError if there is none."""
    if name not in table.column_names:
        raise DataError(f"{batch.place(0)}: {what}, and there is {listed(table.column_names)}.")
    return table.column(name)


def _retyped(batches: Iterator[RowBatch], types: Types) -> Iterator[RowBatch]:
    for batch in batches:
        table = plain_table(batch.table)
        for name, kind in types.items():
            column = _column_of(table, name, batch, f"a type is given for column {name!r}")
            column = retyped(column, kind, name, batch.place)
            table = table.set_column(table.column_names.index(name), name, column)
        yield RowBatch(table, batch.place)


def _filled(batches: Iterator[RowBatch], fill: Mapping[str, Any]) -> Iterator[RowBatch]:
    for batch in batches:
        table = plain_table(batch.table)
        for name, value in fill.items():
            column = _column_of(table, name, batch, f"a value is given to fill column {name!r}")
            try:
                if pa.types.is_null(column.type):
                    chunks = [pa.array([value] * len(column))]
                else:
                    chunks = [fill_nulls(chunk, value) for chunk in column.chunks]
            except (DataError, pa.ArrowException) as error:
                raise DataError(f"{batch.place(0)}: filling column {name!r}: {error}") from error
            filled = pa.chunked_array(chunks, chunks[0].type if chunks else column.type)
            table = table.set_column(table.column_names.index(name), name, filled)
        yield RowBatch(table, batch.place)


def _renamed(data: Data, names: Mapping[str, str]) -> Data:
    def read() -> Iterator[RowBatch]:
        for batch in data.batches:
            before = batch.table.column_names
            if missing := [name for name in names if name not in before]:
                raise DataError(
                    f"{batch.place(0)}: there is no column {listed(missing)} to rename; there is "
                    f"{listed(before)}."
                )
            after = [names.get(name, name) for name in before]
            twice = [name for name, count in Counter(after).items() if count > 1]
            if twice:
                raise DataError(
                    f"{batch.place(0)}: two columns would be named {listed(twice)}: give "
                    "other names."
                )
            yield RowBatch(batch.table.rename_columns(after), batch.place)

    return replace(
        data,
        batches=read(),
        labels={names.get(name, name): found for name, found in data.labels.items()},
        vocabularies={names.get(name, name): v for name, v in data.vocabularies.items()},
    )


# -- the other way


def write_parquet(data: Data, folder: str, options: Any = None) -> int:
    """Write rows as a folder of Parquet files, one for each batch; returns the number of rows.

    The names of labels are kept in the files' metadata, as Hugging Face's `ClassLabel`. While the
    folder is written, it contains a file `_incomplete`, and is refused as data.

    Raises:
        DataError: the folder contains data already, or cannot be written; or the batches have
            different types.
    """
    from pyarrow import parquet  # noqa: PLC0415 - imports pandas, which few need

    store = Store(folder, options)
    there = [name for name in store.sizes() if form_of(name) and not is_hidden(name)]
    if there:
        raise DataError(f"{store.url} contains data already ({there[0]}): write to another place.")
    store.write(INCOMPLETE, b"")
    rows, schema = 0, None
    for number, batch in enumerate(data.batches):
        table = plain_table(batch.table)
        schema = schema or with_names(table.schema, data.labels)
        sink = pa.BufferOutputStream()
        parquet.write_table(_as_schema(table, schema, batch), sink, compression="zstd")
        store.write(f"part-{number:06d}.parquet", sink.getvalue().to_pybytes())
        rows += table.num_rows
    store.delete(INCOMPLETE)
    return rows


def _as_schema(table: pa.Table, schema: pa.Schema, batch: RowBatch) -> pa.Table:
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    before = 0
    try:
        columns = [
            pa.chunked_array([cast_exactly(c, kind) for c in table.column(name).chunks], kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
    except (InexactError, KeyError) as error:
        raise DataError(
            f"{batch.place(before)}: its types differ from those of the rows before ({error}): "
            "make a stream of the data first, which finds the types of all rows."
        ) from error
    return pa.Table.from_arrays(columns, schema=schema)

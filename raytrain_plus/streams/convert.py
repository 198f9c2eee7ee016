"""What a stream can be made of: Parquet, Arrow, CSV, JSON lines, and folders of images."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from raytrain_plus.seeds import seed_for
from raytrain_plus.storage.locations import file_system, local_path
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError, listed, plain_table, plain_type
from raytrain_plus.streams.decoding import explained
from raytrain_plus.streams.files import recognized
from raytrain_plus.streams.folders import (
    INCOMPLETE,
    SPLITS,
    Contents,
    DataPath,
    check_regular,
    form_of,
    is_hidden,
    is_split,
    paths_below,
    select,
    suffix_of,
    without_pattern,
)
from raytrain_plus.streams.foreign import format_of_files, told
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.labels import Labels, check_same, labels_of, numbers_of, with_names
from raytrain_plus.streams.order import permutation
from raytrain_plus.streams.stream import read_manifest
from raytrain_plus.streams.text import TextFile, csv_tables, csv_types, json_tables
from raytrain_plus.streams.widening import InexactError, cast_exactly, wider

_READ_ROWS = 8192
_READ_IMAGES = 64
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}


@dataclass(frozen=True)
class Block:
    """Consecutive rows of what is read, and where each of them comes from, for people."""

    table: pa.Table
    place: Callable[[int], str]


@dataclass(frozen=True)
class Data:
    """What is read.

    Attributes:
        pieces: its rows.
        rows: how many there are, if that is known.
        labels: column -> the names of its numbers.
        is_mixed: the rows are in an order that was drawn.
    """

    pieces: Iterator[Block]
    rows: int | None = None
    labels: Labels = field(default_factory=dict)
    is_mixed: bool = False


@dataclass(frozen=True)
class Wanted:
    """What is wanted of some data.

    Attributes:
        columns: the columns; default all.
        split: as in a `Stream`.
        labels: names whose numbers replace text in these columns, and name folders of images.
        seed: images are read in an order that is drawn from it, for the folders' names sort them
            by label; None keeps the order of names.
    """

    columns: Sequence[str] | None = None
    split: str | None = None
    labels: Labels = field(default_factory=dict)
    seed: int | None = None


def read_any(
    source: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    choice: Wanted | None = None,
) -> Data:
    """Return the rows of a file or folder, in the order of the files' names.

    Args:
        source: a stream; or a file, a folder of files of one form (Parquet and Arrow, CSV, or JSON
            lines), or a pattern; see `folders.py`. Or a folder with a folder of images for each
            label, as in `cats/1.png`: they become the columns `image` (the files' bytes as they
            are), `label` (the label's number in the order of names) and `name`. The names are
            those of all splits, where the folder is one, as `photos/val`.
        options: passed to fsspec's filesystem.
        choice: what is wanted of it; default all.

    Raises:
        DataError: there is no such data, or it is of no known format or of more than one.
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
            data = _of_stream(Store(source, options), choice)
        else:
            contents = select(paths_below(fs, root, pattern), named, choice.split)
            data = _of_folder(fs, root, contents, choice)
    except OSError as error:
        raise DataError(f"{named} cannot be read: {error}") from error
    return _with_numbers(data, choice.labels)


def check_apart(source: str, destination: str) -> None:
    """Refuse to write a stream into what it is made of.

    Raises:
        DataError: one of the two places is the other, or lies in it.
    """
    folder, pattern = without_pattern(source)
    one, other = _whole(folder), _whole(destination)
    if pattern is None and (one == other or other.startswith(f"{one}/")):
        raise DataError(
            f"{destination} lies in {source}, which is read: write to another place, or what is "
            "written would be read as data the next time."
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
            "Parquet, Arrow, CSV (.csv, .tsv), JSON lines (.jsonl), or a folder of them or of "
            "images."
        )
    return _of_folder(fs, folder, Contents(form, (DataPath(name),)), choice)


def _of_folder(fs: Any, root: str, contents: Contents, choice: Wanted) -> Data:
    if contents.form == "images":
        return _of_images(fs, root, contents.files, choice)
    if contents.form == "table":
        return _of_tables([_TableFile(fs, root, found) for found in contents.files], choice)
    files = [(found, _text_file(fs, root, found)) for found in contents.files]
    if contents.form == "json":
        return Data(_json_pieces(files, choice.columns))
    own = None
    if choice.columns is not None:
        own = [name for name in choice.columns if name not in contents.files[0].partitions]
    types = csv_types([file for _, file in files], own)

    def read() -> Iterator[Block]:
        for found, file in files:
            for first, table in csv_tables(file, types):
                whole = _with_partitions(table, found, choice.columns)
                yield Block(whole, _rows_of(file.where, first))

    return Data(read())


def _json_pieces(
    files: Sequence[tuple[DataPath, TextFile]], columns: Sequence[str] | None
) -> Iterator[Block]:
    for found, file in files:
        own = columns and [name for name in columns if name not in found.partitions]
        for first, table in json_tables(file, own):
            whole = _with_partitions(table, found, columns)
            yield Block(whole, _rows_of(file.where, first))


def _text_file(fs: Any, root: str, found: DataPath) -> TextFile:
    path = f"{root}/{found.path}"
    packed = _PACKED.get(PurePosixPath(path).suffix.lower())
    return TextFile(
        open=functools.partial(fs.open, path, "rb", compression=packed),
        where=path,
        delimiter="\t" if suffix_of(path) == ".tsv" else ",",
    )


def _rows_of(where: str, first: int) -> Callable[[int], str]:
    return lambda row: f"{where}, row {first + row + 1:,}"


def _with_partitions(
    table: pa.Table, found: DataPath, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return rows with the columns that the names of their folders give, and no others."""
    for name, value in found.partitions.items():
        if name not in table.column_names and (columns is None or name in columns):
            kind = pa.int64() if isinstance(value, int) else pa.string()
            table = table.append_column(name, pa.repeat(pa.scalar(value, kind), table.num_rows))
    return table if columns is None else table.select(list(columns))


# -- Arrow and Parquet


class _TableFile:
    """An Arrow or Parquet file anywhere."""

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
                self.schema, self.rows = _opened(file, self.kind).schema, None

    def tables(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """Yield the rows of some columns; those of folders' names are added."""
        own = set(self.schema.names)
        wanted = [name for name in columns or self.schema.names if name in own]
        with explained(self.path), self._fs.open(self.path, "rb") as file:
            for batch in self._batches(file, wanted):
                batch.validate(full=True)
                table = pa.Table.from_batches([batch]).select(wanted)
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
        """Return the plain types of the columns that are wanted, with those of folders' names."""
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
        return {name: plain_type(present[name]) for name in columns or present}


def _parquet_file(file: Any) -> Any:
    from pyarrow import parquet  # noqa: PLC0415 - imports pandas, which few need

    return parquet.ParquetFile(file)


def _opened(file: Any, kind: str) -> Any:
    return (pa.ipc.open_file if kind == "Arrow IPC" else pa.ipc.open_stream)(file)


def _of_tables(files: Sequence[_TableFile], choice: Wanted) -> Data:
    first = files[0]
    types = first.types(choice.columns)
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
            if wider(types[name], kind) is None:
                raise DataError(
                    f"column {name!r} is {types[name]} in {first.path} and {kind} in {file.path}: "
                    "no type holds both. Write the files again with one type, or leave the column "
                    "out (`--columns`)."
                )
        check_same(labels, labels_of(file.schema), first.path, file.path)
    order = list(types)

    def read() -> Iterator[Block]:
        for file in files:
            before = 0
            for table in file.tables(order):
                yield Block(table, _rows_of(file.path, before))
                before += table.num_rows

    known = [file.rows for file in files if file.rows is not None]
    rows = sum(known) if len(known) == len(files) else None
    return Data(read(), rows, {name: names for name, names in labels.items() if name in types})


# -- streams


def _of_stream(store: Store, choice: Wanted) -> Data:
    manifest = read_manifest(store)
    columns = list(choice.columns or manifest.columns)
    if missing := [name for name in columns if name not in manifest.columns]:
        raise DataError(
            f"{store.url} has no column {listed(missing)}; it has {listed(manifest.columns)}."
        )

    def read() -> Iterator[Block]:
        for entry in manifest.files:
            content = store.read(entry.name, entry.stored_bytes, entry.sha256)
            table = pa.ipc.open_file(content).read_all().select(columns)
            yield Block(table, _rows_of(store.where(entry.name), 0))

    labels = {name: names for name, names in manifest.labels.items() if name in columns}
    return Data(read(), manifest.rows, labels)


# -- images


def _of_images(fs: Any, root: str, found: Sequence[DataPath], choice: Wanted) -> Data:
    inside = [PurePosixPath(each.path) for each in found]
    # With a split, as in `train/cats/1.png`, the label is the second folder.
    depth = int(choice.split is not None and all(is_split(path.parts[0]) for path in inside))
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
            f"all images of {root} lie in {only!r}, in folders of their own: name "
            f"{root}/{only}, so that those are the labels."
        )
    if "label" in choice.labels:
        names = list(choice.labels["label"])
    else:
        splits = root if depth else _parent_of_split(root)
        names = sorted(_joined(labels, [] if splits is None else _labels_of_splits(fs, splits)))
    unknown = sorted(labels - set(names))
    if unknown:
        raise DataError(
            f"{root} has images of {listed(unknown)}, which are not among the labels that were "
            f"given: {listed(names)}."
        )
    if choice.seed is not None:
        drawn = permutation(len(inside), seed_for(choice.seed, "images"))
        inside = [inside[i] for i in drawn.tolist()]
    numbers = {name: number for number, name in enumerate(names)}

    def read() -> Iterator[Block]:
        for start in range(0, len(inside), _READ_IMAGES):
            some = inside[start : start + _READ_IMAGES]
            content = [fs.cat_file(f"{root}/{path}") for path in some]
            table = pa.table(
                {
                    "image": pa.array(content, pa.binary()),
                    "label": pa.array([numbers[path.parts[depth]] for path in some], pa.int64()),
                    "name": pa.array(map(str, some), pa.string()),
                }
            )
            where = [f"{root}/{path}" for path in some]
            yield Block(table.select(list(choice.columns or table.column_names)), where.__getitem__)

    return Data(read(), len(inside), {"label": tuple(names)}, choice.seed is not None)


def _parent_of_split(root: str) -> str | None:
    """Return the folder of all splits, as `photos` of `photos/val`; None for no split."""
    parent, _, name = root.rstrip("/").rpartition("/")
    return parent if parent and is_split(name) else None


def _labels_of_splits(fs: Any, folder: str) -> list[set[str]]:
    """Return the labels of each split in a folder of images, as of `train/cats/1.png`."""
    found = []
    try:
        entries = [str(path).rstrip("/") for path in fs.ls(folder, detail=False)]
        for entry in entries:
            if is_split(entry.rpartition("/")[2]) and fs.isdir(entry):
                paths = [PurePosixPath(p) for p in paths_below(fs, entry) if not is_hidden(p)]
                images = [path for path in paths if form_of(path.name) == "images"]
                found.append({path.parts[0] for path in images if len(path.parts) > 1})
    except OSError:  # this user may read the one split only
        return []
    return found


def _joined(labels: set[str], others: Sequence[set[str]]) -> set[str]:
    """Return labels with those of all others that share one, also by way of a third."""
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
    """Return the different texts of some columns, sorted, in all splits of some data.

    So a split has the same numbers as the others, whatever labels its own rows have.

    Raises:
        DataError: as `read_any` and `names_in`, of the split that was chosen.
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
    for piece in data.pieces:
        for name, names in found.items():
            if name not in piece.table.column_names:
                raise DataError(f"{piece.place(0)}: there is no column {name!r} of labels.")
            texts = plain_table(piece.table.select([name])).column(0)
            if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
                raise DataError(
                    f"{piece.place(0)}: column {name!r} is {texts.type}; labels are made of text."
                )
            names.update(texts.unique().to_pylist())
    return {name: sorted(names) for name, names in found.items()}


def _with_numbers(data: Data, labels: Labels) -> Data:
    """Return data with numbers in the place of text in the columns that have names."""
    if not labels:
        return data

    def read() -> Iterator[Block]:
        for piece in data.pieces:
            table = plain_table(piece.table)
            for name, names in labels.items():
                if name not in table.column_names:
                    continue
                column = table.column(name)
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    numbers, row, text = numbers_of(column, names)
                    if numbers is None:
                        raise DataError(
                            f"{piece.place(row)}: column {name!r} holds {text!r}, which is not "
                            f"among its labels, {listed(names)}."
                        )
                    place = table.column_names.index(name)
                    table = table.set_column(place, name, numbers)
            yield Block(table, piece.place)

    given = {name: tuple(names) for name, names in labels.items()}
    for name, names in data.labels.items():
        if name in given and tuple(names) != given[name]:
            check_same({name: names}, {name: given[name]}, "the data", "what was given")
    return replace(data, pieces=read(), labels={**data.labels, **given})


# -- the other way


def write_parquet(data: Data, folder: str, options: Any = None) -> int:
    """Write rows as a folder of Parquet files, one for each piece; returns the rows.

    The names of labels are kept in the files' metadata, as Hugging Face's `ClassLabel`. While the
    folder is written, it holds a file `_incomplete`, and is refused as data.

    Raises:
        DataError: the folder holds data already, or cannot be written; or the pieces are not of
            one type.
    """
    from pyarrow import parquet  # noqa: PLC0415 - imports pandas, which few need

    store = Store(folder, options)
    there = [name for name in store.sizes() if form_of(name) and not is_hidden(name)]
    if there:
        raise DataError(
            f"there is data in {store.url} already ({there[0]}): write to another place."
        )
    store.write(INCOMPLETE, b"")
    rows, schema = 0, None
    for number, piece in enumerate(data.pieces):
        table = plain_table(piece.table)
        schema = schema or with_names(table.schema, data.labels)
        sink = pa.BufferOutputStream()
        parquet.write_table(_as_schema(table, schema, piece), sink, compression="zstd")
        store.write(f"part-{number:06d}.parquet", sink.getvalue().to_pybytes())
        rows += table.num_rows
    store.delete(INCOMPLETE)
    return rows


def _as_schema(table: pa.Table, schema: pa.Schema, piece: Block) -> pa.Table:
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
            f"{piece.place(before)}: its rows do not have the types of the rows before ({error}): "
            "make a stream of the data first, which finds the types of all rows."
        ) from error
    return pa.Table.from_arrays(columns, schema=schema)

"""A stream: a data set at any fsspec URL, as a user names it, and opened for reading."""

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from raytrain_plus.redaction import redacted_repr
from raytrain_plus.storage.store import Stat, Store, stat_of
from raytrain_plus.streams.cache import Cache, Entry, node_cache
from raytrain_plus.streams.columns import Column, DataError, columns_of
from raytrain_plus.streams.decoding import check_values, decode, explained, least_bytes, values_in
from raytrain_plus.streams.files import DataFile, confirm, inspect_file
from raytrain_plus.streams.folders import (
    DataPath,
    paths_in,
    select,
    suffix_of,
    tables_of,
    without_pattern,
)
from raytrain_plus.streams.footers import common_columns, common_labels, parquet_files
from raytrain_plus.streams.format import (
    MANIFEST,
    PINNED_WINDOW,
    FileEntry,
    Manifest,
    order_digest,
)
from raytrain_plus.streams.labels import Labels
from raytrain_plus.streams.memory import check_order_memory
from raytrain_plus.streams.plain import plain_table
from raytrain_plus.streams.prefetch import Prefetcher
from raytrain_plus.streams.source import Function, Opened, Source, Transform
from raytrain_plus.streams.traffic import TRAFFIC

DEFAULT_CACHE_LIMIT = 16 << 30
_LARGEST_MANIFEST = 1 << 30  # bytes: some five million files
# How many times fewer bytes compression can leave, of nothing but zeros.
_MOST_COMPRESSED = {"none": 1, "lz4": 260, "zstd": 40_000}
_FILE_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
_IMBALANCE = 1 << 20  # bytes that a file may have beyond what is declared
_RAW_FORMAT = "2"  # of the cache's entries: part of their names
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


@dataclass(frozen=True)
class Stream:
    """A data set that streams to the workers that need it.

    Args:
        url: a folder that `raytrain-plus data write` or a `StreamWriter` has made, or one of
            Parquet files: `s3://bucket/folder`, `file:///folder`, a path, or any URL that fsspec
            knows.
        transform: called in the background with each sample (column name -> tensor, `str` or
            `bytes`) and a `torch.Generator` of the sample's own, to draw from; returns the sample
            to train on. It must be a function that can be imported or pickled.
        per: "batch" calls the transform with whole parts instead, and a generator for each.
        columns: the columns to read. Default: those that the task asks for, else all.
        split: of a folder of Parquet files: "train", "validation" or "test", as the names of its
            files and folders say; "all" reads all of them. Default: there must be one only.
        shuffle: whether to mix; default True.
        window: K, how many files a lane mixes at a time: it is part of the order. Default 8.
        cache: the folder of the cache on each node. Default: `raytrain_plus/streams` below
            `$XDG_CACHE_HOME`, which by default is `~/.cache`.
        cache_limit: bytes that the cache may take, as a number or like "20GB". Default 16 GiB.
        storage_options: passed to fsspec's filesystem; never written to a journal.
        deadline: seconds without progress after which a store's fault is an error. Default 60.

    Raises:
        DataError: a setting is out of range.
    """

    url: str | os.PathLike[str]
    _: KW_ONLY
    transform: Function | None = None
    per: Literal["sample", "batch"] = "sample"
    columns: Sequence[str] | None = None
    split: str | None = None
    shuffle: bool = True
    window: int = 8
    cache: str | os.PathLike[str] | None = None
    cache_limit: int | str = DEFAULT_CACHE_LIMIT
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    deadline: float = 60.0

    __repr__ = redacted_repr

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise DataError(f"columns is {self.columns!r}, but must be a list of names.")
        if self.window < 1:
            raise DataError(f"window is {self.window}, but must be at least 1 file.")
        if self.deadline <= 0:
            raise DataError(f"deadline is {self.deadline}, but must be above 0 seconds.")
        if self.per not in ("sample", "batch"):
            raise DataError(f"per is {self.per!r}, but must be 'sample' or 'batch'.")
        parse_bytes(self.cache_limit)

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache on this node."""
        if self.cache is not None:
            return Path(self.cache).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser().absolute() / "raytrain_plus" / "streams"


def parse_bytes(size: int | str) -> int:
    """Return a number of bytes: 1000, "64MB", "1.5 GiB".

    Raises:
        DataError: it is none, or not above zero.
    """
    text = str(size).strip().upper()
    digits = text.rstrip("KMGTIB ")
    unit = text[len(digits) :].strip()
    try:
        count = int(float(digits) * _UNITS[unit])
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{size!r} is not a size: give a number of bytes, or one with KB, MB, GB, TB, KiB, "
            "MiB, GiB or TiB."
        ) from error
    if count <= 0:
        raise DataError(f"{size!r} is not a size: it must be above zero.")
    return count


@dataclass(frozen=True)
class StreamFile:
    """One shard file of a stream, read through the node's cache.

    Attributes:
        store: where it is.
        cache: the node's.
        entry: what the manifest says of it.
        columns: the selected ones.
        is_parquet: as it is stored; else an Arrow IPC file.
        in_place: it lies on this machine, and raw: nothing is gained by the cache.
        is_exact: the entry's `raw_bytes` is what its values take; else it is a guess.
        stat: what the store said of it when it was opened; None where a manifest has its hash, and
            the entry's `sha256` is that of its bytes.
        constants: values of columns that the names of its folders give, and it has not.
        labels: column -> the names of its numbers, where the data says them.
    """

    store: Store
    cache: Cache
    entry: FileEntry
    columns: dict[str, Column]
    is_parquet: bool = False
    in_place: bool = False
    is_exact: bool = True
    stat: Stat | None = None
    constants: Mapping[str, int | str] = field(default_factory=dict)
    labels: Labels = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Its rows."""
        return self.entry.rows

    @property
    def where(self) -> str:
        """What to call it in an error."""
        return self.store.where(self.entry.name)

    @cached_property
    def key(self) -> str:
        """Its name in the cache: equal for equal contents."""
        text = f"{_RAW_FORMAT}:{self.is_parquet}:{self.entry.sha256}"
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def open(self, cancelled: threading.Event) -> Opened:
        """Return its values, mapped into memory.

        Raises:
            DataError: it cannot be had, or is not as the manifest says.
        """
        if self.in_place:
            path = self.store.local_path / self.entry.name
            with explained(self.where):
                stat = stat_of(path)
                mapped = pa.memory_map(str(path))
                if mapped.size() != self.entry.stored_bytes or not _is_verified(path, self.entry):
                    raise DataError(
                        f"{path} is not the file that its manifest names: it is damaged, or was "
                        "written over. Write the data set again."
                    )
            return Opened(self._values(mapped), confirm=partial(confirm, path, stat))
        held = self.fetch(cancelled)
        return Opened(self._values(pa.BufferReader(held.buffer())), held.close)

    def fetch(self, cancelled: threading.Event, *, ahead: bool = False) -> Entry:
        """Return its entry in the cache; downloads and decodes it if it is not there.

        Args:
            cancelled: when it is set, waiting ends.
            ahead: it is not needed yet.
        """
        return self.cache.get(
            self.key,
            self.entry.raw_bytes,
            lambda: self._download(cancelled),
            cancelled,
            ahead=ahead,
        )

    def identify(self) -> list[Any]:
        """Return what tells it from others: its hash, or its name and what the store says of it."""
        if self.stat is None:
            return [self.entry.sha256]
        told = [self.entry.name, self.stat.size, self.stat.validator]
        return [*told, *sorted(self.constants.items())]

    def digest(self) -> str:
        """Return the SHA-256 of its bytes; downloads them if no manifest has it."""
        if self.stat is None:
            return self.entry.sha256
        return hashlib.sha256(self._content(threading.Event())).hexdigest()

    def _content(self, cancelled: threading.Event) -> bytes:
        """Return its bytes as they are stored, once it is clear that they are the right ones."""
        entry = self.entry
        sha256 = entry.sha256 if self.stat is None else None
        self._confirm()
        content = self.store.read(entry.name, entry.stored_bytes, sha256, cancelled=cancelled)
        self._confirm()
        return content

    def _confirm(self) -> None:
        if self.stat is not None and self.store.stat(self.entry.name) != self.stat:
            raise DataError(
                f"{self.where} was replaced or written over since it was opened: data must not "
                "change during a run. Write changed data to another place, and start the run again."
            )

    def _download(self, cancelled: threading.Event) -> memoryview:
        entry = self.entry
        content = self._content(cancelled)
        TRAFFIC.fetched(entry.stored_bytes)
        most = self.cache.limit
        if self.stat is None:  # what it declares is exact, but for what lies between the values
            most = min(most, 2 * entry.raw_bytes + _IMBALANCE)
        where = self.store.where(entry.name)
        return as_raw(content, where, is_parquet=self.is_parquet, most=most)

    def _values(self, raw: Any) -> Any:
        where = self.store.where(self.entry.name)
        with explained(where):
            table = pa.ipc.open_file(raw).read_all()
            own = [name for name in self.columns if name not in self.constants]
            check_values(table, own, where, in_place=True)
        if table.num_rows != self.rows:
            raise DataError(
                f"{where} has {table.num_rows} rows, but its manifest says {self.rows}: write the "
                "data set again."
            )
        return values_in(table, self.columns, where, self.constants)


def as_raw(content: bytes, where: str, *, is_parquet: bool, most: int) -> memoryview:
    """Return a file as an Arrow IPC file of one record batch, not compressed: it can be mapped.

    Args:
        content: the file.
        where: to call it in an error.
        is_parquet: else it is an Arrow IPC file.
        most: bytes that its values may take.

    Raises:
        DataError: it is damaged, or larger than it may be.
    """
    table = decode(content, where, is_parquet=is_parquet, most=most)
    with explained(where):
        return write_raw(plain_table(table))


def write_raw(table: pa.Table) -> memoryview:
    """Return a table as an Arrow IPC file of one record batch, not compressed."""
    sink = pa.BufferOutputStream()
    table = table.combine_chunks()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def open_stream(stream: Stream, selection: Sequence[str] | None = None) -> Source:
    """Open a stream for reading: its manifest, or once per node the footers of Parquet files.

    Args:
        stream: what to read.
        selection: columns that are wanted, unless the stream selects or transforms them itself.

    Raises:
        DataError: there is no such data, or not of the right columns; or the store failed.
    """
    place, pattern = without_pattern(stream.url)
    store = Store(place, stream.storage_options, deadline=stream.deadline)
    cache = node_cache(stream.cache_folder, parse_bytes(stream.cache_limit))
    wanted = stream.columns
    if stream.transform is None and selection is not None:
        wanted = selection  # else the transform decides what the task gets
    if pattern is None and suffix_of(store.url.split("?")[0]) in _FILE_SUFFIXES and store.is_file():
        return _open_file(stream, selection, store, cache, wanted)
    manifest = None
    if pattern is None and MANIFEST in store.names():
        manifest = read_manifest(store)
        files = _from_manifest(store, manifest, cache, wanted)
    else:
        named = store.where(pattern) if pattern else store.url
        contents = select(paths_in(store, pattern), named, stream.split)
        files = _from_footers(store, cache, wanted, tables_of(contents, named))
    if not files:
        raise DataError(f"{store.url} has no rows: there is nothing to train on.")
    lookahead = None if files[0].in_place else Prefetcher(files, cache)
    source = Source(
        files,
        (open_stream, (stream, selection)),
        window=stream.window,
        shuffle=stream.shuffle,
        transform=stream.transform and Transform(stream.transform, stream.per == "batch"),
        lookahead=lookahead,
    )
    source.labels = files[0].labels
    if manifest is not None:
        source.label_skew = manifest.label_skew
    return source


def _open_file(
    stream: Stream,
    selection: Sequence[str] | None,
    store: Store,
    cache: Cache,
    wanted: Sequence[str] | None,
) -> Source:
    """Open a single file; its rows are mixed as those of a local file are."""
    file: DataFile | StreamFile
    if store.is_local:
        file = inspect_file(store.local_path, wanted)
    else:
        folder, name = store.url.rsplit("/", 1)
        inside = Store(folder, stream.storage_options, deadline=stream.deadline)
        files = _from_footers(inside, cache, wanted, [DataPath(name)])
        if not files:
            raise DataError(f"{store.url} has no rows: there is nothing to train on.")
        Prefetcher(files, cache).check_room(1)
        file = files[0]
    source = Source(
        [file],
        (open_stream, (stream, selection)),
        window=None,
        shuffle=stream.shuffle,
        in_pieces=True,
        transform=stream.transform and Transform(stream.transform, stream.per == "batch"),
    )
    source.labels = file.labels
    source.waits_for_store = not store.is_local
    return source


def read_manifest(store: Store) -> Manifest:
    """Return a stream's manifest, once it is clear that it is read as it was written.

    Raises:
        DataError: there is none, it is damaged, or this version reads in another order.
    """
    where = store.where(MANIFEST)
    if (size := store.stat(MANIFEST).size) > _LARGEST_MANIFEST:
        raise DataError(f"{where} is damaged: no manifest has {size:,} bytes. Write it again.")
    manifest = Manifest.parse(store.read(MANIFEST), where)
    for file in manifest.files:
        check_declared_sizes(file, manifest, store.where(file.name))
    check_order_memory([file.rows for file in manifest.files], PINNED_WINDOW, where)
    if manifest.order != order_digest([file.rows for file in manifest.files]):
        raise DataError(
            f"{store.where(MANIFEST)} was written by a version that reads rows in another order "
            "than this one: use that version, or write the data set again."
        )
    return manifest


def check_declared_sizes(file: FileEntry, manifest: Manifest, where: str) -> None:
    """Check that a file can hold the rows that its manifest declares.

    Raises:
        DataError: it cannot.
    """
    least = least_bytes(manifest.schema, file.rows)
    most = _MOST_COMPRESSED[manifest.compression] * file.stored_bytes + _IMBALANCE
    if least > file.raw_bytes or file.raw_bytes > most:
        raise DataError(
            f"the manifest says that {where} has {file.rows:,} rows in {file.raw_bytes:,} bytes, "
            f"stored as {file.stored_bytes:,}: that cannot be. Write the data set again."
        )


def _from_manifest(
    store: Store, manifest: Manifest, cache: Cache, selection: Sequence[str] | None
) -> list[StreamFile]:
    columns = columns_of(manifest.schema, selection, store.url)
    in_place = store.is_local and manifest.compression == "none"
    return [
        StreamFile(store, cache, entry, columns, in_place=in_place, labels=manifest.labels)
        for entry in manifest.files
        if entry.rows
    ]


def _from_footers(
    store: Store, cache: Cache, selection: Sequence[str] | None, found: Sequence[DataPath]
) -> list[StreamFile]:
    files = parquet_files(store, cache.folder, found)
    columns, labels = common_columns(files, selection, store), common_labels(files, store)
    return [
        StreamFile(
            store,
            cache,
            file.entry,
            columns,
            is_parquet=True,
            is_exact=file.is_exact,
            stat=file.stat,
            constants=file.constants,
            labels=labels,
        )
        for file in files
        if file.entry.rows
    ]


_verified: set[tuple[str, int, int]] = set()


def _is_verified(path: Path, entry: FileEntry) -> bool:
    """Say whether a file has the bytes that its manifest names; looks once per process."""
    stat = path.stat()
    seen = (str(path), stat.st_ino, stat.st_mtime_ns)
    if seen not in _verified:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                return False
        _verified.add(seen)
    return True

"""A stream: a data set at any fsspec URL, as a user configures it, and opened for reading.

Its files are those that a manifest names. A folder of Parquet files without a manifest is also a
stream: the footers are read once, and the node keeps their content.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import ByteSize, TypeAdapter, ValidationError

from raytrain_plus.redaction import redacted_repr
from raytrain_plus.storage.locations import local_path
from raytrain_plus.storage.store import Stat, Store, stat_of
from raytrain_plus.streams.cache import TRAFFIC, Cache, Entry, Prefetcher, node_cache
from raytrain_plus.streams.columns import (
    Column,
    DataError,
    check_setting,
    columns_of,
    difference,
    is_whole,
    null_error,
    plain_table,
    with_constants,
)
from raytrain_plus.streams.decoding import (
    check_order_memory,
    check_values,
    decode,
    explained,
    least_bytes,
    values_in,
)
from raytrain_plus.streams.files import DataFile, confirm, inspect_file
from raytrain_plus.streams.folders import (
    PARQUET_SUFFIXES,
    DataPath,
    paths_in,
    select,
    suffix_of,
    tables_of,
    without_pattern,
)
from raytrain_plus.streams.foreign import is_pointer, told_of_pointer
from raytrain_plus.streams.format import (
    MANIFEST,
    PINNED_WINDOW,
    FoundFile,
    ShardEntry,
    StreamManifest,
    decode_schema,
    encode_schema,
    order_digest,
)
from raytrain_plus.streams.labels import Labels, check_same, labels_of, only_known_features
from raytrain_plus.streams.parquet_footer import Footer, read_footer
from raytrain_plus.streams.source import Function, Opened, Source, Transform, closed_on_error

DEFAULT_CACHE_LIMIT = 16 << 30
_LARGEST_MANIFEST = 1 << 30  # bytes: some five million files
# The largest factor by which compression can shrink data, if all bytes are zero.
_MOST_COMPRESSED = {"none": 1, "lz4": 260, "zstd": 40_000}
_FILE_SUFFIXES = (*PARQUET_SUFFIXES, ".arrow", ".feather", ".ipc")
_MARGIN = 1 << 20  # bytes by which a file may be larger than declared
_RAW_FORMAT = "2"  # the version of the cache's entries, part of their names
_SIZE = TypeAdapter(ByteSize)


@dataclass(frozen=True)
class Stream:
    """A data set that streams to the workers that need it.

    Args:
        url: a folder that `raytrain-plus data write` or a `StreamWriter` has made, or a folder of
            Parquet files: `s3://bucket/folder`, `file:///folder`, a path, or any URL that fsspec
            knows.
        transform: called in the background with each sample (column name -> tensor, `str` or
            `bytes`) and a `torch.Generator` for random numbers, which belongs to the sample;
            returns the sample to train on. It must be a function that can be imported or pickled.
        per: "batch" calls the transform with whole parts instead, each with a generator.
        columns: the columns to read. Default: those that the task names, else all.
        fill: column -> what replaces its nulls. Default: nulls are refused.
        split: of a folder of Parquet files: "train", "validation" or "test", as in the names of
            its files and folders; "all" reads all of them. Default: there must be only one.
        shuffle: whether to mix the rows; default True.
        window: K, how many files a lane mixes at a time. It is part of the order. Default 8.
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
    fill: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    shuffle: bool = True
    window: int = 8
    cache: str | os.PathLike[str] | None = None
    cache_limit: int | str = DEFAULT_CACHE_LIMIT
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    deadline: float = 60.0

    __repr__ = redacted_repr

    def __post_init__(self) -> None:
        columns, wait, options = self.columns, self.deadline, self.storage_options
        is_list = isinstance(columns, Sequence) and not isinstance(columns, str)
        is_names = columns is None or (is_list and all(isinstance(one, str) for one in columns))
        is_time = isinstance(wait, int | float) and 0 < wait < math.inf
        is_function = self.transform is None or callable(self.transform)
        for name, value, valid, must in (
            ("columns", columns, is_names, "a list of names"),
            ("window", self.window, is_whole(self.window, 1), "at least 1 file"),
            ("deadline", wait, is_time, "above 0 seconds"),
            ("shuffle", self.shuffle, isinstance(self.shuffle, bool), "True or False"),
            ("per", self.per, self.per in ("sample", "batch"), "'sample' or 'batch'"),
            ("split", self.split, isinstance(self.split, str | None), "the name of a split"),
            ("transform", self.transform, is_function, "a function"),
            ("storage_options", type(options), isinstance(options, Mapping), "a mapping"),
            ("fill", self.fill, isinstance(self.fill, Mapping), "a mapping from column to value"),
        ):
            check_setting(name, value, valid=valid, must=must)
        local_path(self.url)
        parse_bytes(self.cache_limit)

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache on this node."""
        if self.cache is not None:
            return Path(self.cache).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser().absolute() / "raytrain_plus" / "streams"


def parse_bytes(size: int | str) -> int:
    """Return a number of bytes from 1000, "64MB", "1.5 GiB" and the like.

    Raises:
        DataError: it is not a size, or not above zero.
    """
    try:
        count = int(_SIZE.validate_python(size))
    except ValidationError as error:
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
        cache: the node's cache.
        entry: its entry in the manifest.
        columns: the selected columns.
        is_parquet: it is stored as Parquet; else it is an Arrow IPC file.
        in_place: it is on this machine and not compressed, so it is read without the cache.
        is_exact: the entry's `raw_bytes` is the size of its values; else it is a guess.
        stat: what the store said about it when it was opened; None if a manifest has its hash. Then
            the entry's `sha256` is that of its bytes.
        constants: column -> value, from its partition folders, for columns that it does not have.
        labels: column -> the names of its numbers, if the data contains them.
    """

    store: Store
    cache: Cache
    entry: ShardEntry
    columns: dict[str, Column]
    is_parquet: bool = False
    in_place: bool = False
    is_exact: bool = True
    stat: Stat | None = None
    constants: Mapping[str, int | str] = field(default_factory=dict)
    labels: Labels = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Its number of rows."""
        return self.entry.rows

    @property
    def where(self) -> str:
        """Its name in an error."""
        return self.store.where(self.entry.name)

    @cached_property
    def key(self) -> str:
        """Its name in the cache: equal for equal contents."""
        text = f"{_RAW_FORMAT}:{self.is_parquet}:{self.entry.sha256}"
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def open(self, cancelled: threading.Event) -> Opened:
        """Return its values, mapped into memory.

        Raises:
            DataError: it cannot be read, or differs from the manifest.
        """
        if self.in_place:
            path = self.store.local_path / self.entry.name
            with explained(self.where):
                stat = stat_of(path)
                mapped = pa.memory_map(str(path))
                if mapped.size() != self.entry.stored_bytes or not _is_verified(path, self.entry):
                    raise DataError(
                        f"{path} is not the file that its manifest names: it is damaged, or was "
                        "overwritten. Write the data set again."
                    )
            return Opened(self._values(mapped), confirm=partial(confirm, path, stat))
        held = self.fetch(cancelled)
        return Opened(self._values(pa.BufferReader(held.buffer())), held.close)

    def fetch(self, cancelled: threading.Event, *, ahead: bool = False) -> Entry:
        """Return its entry in the cache; downloads and decodes it if it is not there.

        Args:
            cancelled: if it is set, waiting ends.
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
        """Return what identifies it: its hash, or its name and what the store says about it."""
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
        """Return its stored bytes, after checking that they are the right ones."""
        entry = self.entry
        sha256 = entry.sha256 if self.stat is None else None
        self._confirm()
        content = self.store.read(entry.name, entry.stored_bytes, sha256, cancelled=cancelled)
        self._confirm()
        return content

    def _confirm(self) -> None:
        if self.stat is not None and self.store.stat(self.entry.name) != self.stat:
            raise DataError(
                f"{self.where} was replaced or overwritten since it was opened: data must not "
                "change during a run. Write changed data to another place, and start the run again."
            )

    def _download(self, cancelled: threading.Event) -> memoryview:
        entry = self.entry
        content = self._content(cancelled)
        TRAFFIC.fetched(entry.stored_bytes)
        most = self.cache.limit
        if self.stat is None:  # what it declares is exact, except for padding
            most = min(most, 2 * entry.raw_bytes + _MARGIN)
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
    """Return a file as an uncompressed Arrow IPC file of one record batch, which can be mapped.

    Args:
        content: the file.
        where: its name in an error.
        is_parquet: it is a Parquet file; else it is an Arrow IPC file.
        most: bytes that its values may take.

    Raises:
        DataError: it is damaged or too large.
    """
    table = decode(content, where, is_parquet=is_parquet, most=most)
    with explained(where):
        return write_raw(plain_table(table))


def write_raw(table: pa.Table) -> memoryview:
    """Return a table as an uncompressed Arrow IPC file of one record batch."""
    sink = pa.BufferOutputStream()
    table = table.combine_chunks()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def open_stream(stream: Stream, selection: Sequence[str] | None = None) -> Source:
    """Open a stream for reading: its manifest, or once per node the footers of Parquet files.

    Args:
        stream: what to read.
        selection: the wanted columns, unless the stream selects or transforms them itself.

    Raises:
        DataError: there is no such data, or its columns are wrong; or the store failed.
    """
    place, pattern = without_pattern(stream.url)
    if pattern is not None and is_web(os.fspath(stream.url)):
        raise DataError(
            f"{stream.url} is a pattern, and a web server does not list its files: name each file."
        )
    store = Store(place, stream.storage_options, deadline=stream.deadline)
    cache = node_cache(stream.cache_folder, parse_bytes(stream.cache_limit))
    wanted = stream.columns
    if stream.transform is None and selection is not None:
        wanted = selection  # with a transform, its output decides what the task gets
    is_named = pattern is None and suffix_of(store.url.split("?")[0]) in _FILE_SUFFIXES
    if is_named and is_web(store.url):  # which has no folders
        check_on_web(store)
    if is_named and (is_web(store.url) or store.is_file()):
        return _open_file(stream, selection, store, cache, wanted)
    manifest = None
    if pattern is None and _has_manifest(store):
        manifest = read_manifest(store)
        if stream.split not in (None, "all"):
            raise DataError(
                f"{store.url} is a stream without splits, so `split` {stream.split!r} selects "
                "nothing in it: leave it out, or give the stream of that split."
            )
        files = _from_manifest(store, manifest, cache, wanted, stream.fill)
    else:
        named = store.where(pattern) if pattern else store.url
        contents = select(paths_in(store, pattern), named, stream.split)
        files = _from_footers(store, cache, wanted, tables_of(contents, named), stream.fill)
    if not files:
        raise DataError(f"{store.url} has no rows: there is nothing to train on.")
    lookahead = None if files[0].in_place else Prefetcher(files, cache)
    with closed_on_error(lookahead):  # the source closes it from here on
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
        source.vocabularies = {
            name: found for name, found in manifest.vocabularies.items() if name in source.columns
        }
    return source


def _has_manifest(store: Store) -> bool:
    """Say whether a folder is a stream.

    Raises:
        DataError: it is none, and a web server has no list of its files.
    """
    if not is_web(store.url):
        return MANIFEST in store.names()
    if store.exists(MANIFEST):
        return True
    raise DataError(
        f"{store.url} is neither a stream nor a data file, and a web server does not list the "
        "files of a folder: name each file, as in data=['https://host/a.parquet', "
        "'https://host/b.parquet']."
    )


def check_on_web(store: Store, name: str = "") -> None:
    """Check that a web server has a file.

    Raises:
        DataError: it has not, or cannot be reached. The library does not say which.
    """
    if is_web(store.url) and not store.exists(name):
        where = store.where(name) if name else store.url
        raise DataError(
            f"{where} cannot be read: there is no such file, or its server is not there or not "
            "trusted (TLS). Check the URL with `curl -I`."
        )


def is_web(url: str) -> bool:
    """Say whether a URL is that of a web server."""
    return url.startswith(("http://", "https://"))


def open_urls(urls: Sequence[str], selection: Sequence[str] | None, reopen: Any) -> Source:
    """Open several Parquet files, each by its URL.

    Args:
        urls: of the files, all in one store.
        selection: the wanted columns; None for all.
        reopen: as for a Source.

    Raises:
        DataError: they are in several stores, a URL is given twice, or a file cannot be read.
    """
    first = Stream(urls[0])
    first_url, last_url = min(urls), max(urls)
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(first_url, last_url, strict=False)
    )
    root = "".join(letter for letter, _ in same)
    root = first_url[: max(0, (root if len(urls) > 1 else first_url).rfind("/"))]
    if root.count("/") < 2 or root.endswith(":/"):
        raise DataError(
            f"the URLs {', '.join(urls[:3])} are in several stores: give files of one store, or "
            "several streams as a Mixture."
        )
    if len(set(urls)) < len(urls):
        raise DataError("the list of URLs names a file twice: its rows would count twice.")
    store = Store(root, first.storage_options, deadline=first.deadline)
    for url in urls:
        check_on_web(store, url[len(root) + 1 :])
    cache = node_cache(first.cache_folder, parse_bytes(first.cache_limit))
    found = [DataPath(url[len(root) + 1 :]) for url in urls]
    files = _from_footers(store, cache, selection, found, {})
    if not files:
        raise DataError(f"{root} has no rows: there is nothing to train on.")
    lookahead = Prefetcher(files, cache)
    with closed_on_error(lookahead):
        source = Source(files, reopen, window=first.window, lookahead=lookahead)
    source.labels = files[0].labels
    return source


def _open_file(
    stream: Stream,
    selection: Sequence[str] | None,
    store: Store,
    cache: Cache,
    wanted: Sequence[str] | None,
) -> Source:
    """Open a single file; its rows are mixed like those of a local file."""
    file: DataFile | StreamFile
    if store.is_local:
        file = inspect_file(store.local_path, wanted, fill=stream.fill)
    else:
        folder, name = store.url.rsplit("/", 1)
        inside = Store(folder, stream.storage_options, deadline=stream.deadline)
        files = _from_footers(inside, cache, wanted, [DataPath(name)], stream.fill)
        if not files:
            raise DataError(f"{store.url} has no rows: there is nothing to train on.")
        with contextlib.closing(Prefetcher(files, cache)) as lookahead:
            lookahead.check_room(1)
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


def read_manifest(store: Store) -> StreamManifest:
    """Return a stream's manifest, after checking that this version reads its order.

    Raises:
        DataError: there is none, it is damaged, or this version reads in another order.
    """
    where = store.where(MANIFEST)
    if (size := store.stat(MANIFEST).size) > _LARGEST_MANIFEST:
        raise DataError(f"{where} is damaged: no manifest has {size:,} bytes. Write it again.")
    manifest = StreamManifest.parse(store.read(MANIFEST), where)
    for file in manifest.files:
        check_declared_sizes(file, manifest, store.where(file.name))
    check_order_memory([file.rows for file in manifest.files], PINNED_WINDOW, where)
    if manifest.order != order_digest([file.rows for file in manifest.files]):
        raise DataError(
            f"{store.where(MANIFEST)} was written by a version that reads rows in another order "
            "than this one: use that version, or write the data set again."
        )
    return manifest


def check_declared_sizes(file: ShardEntry, manifest: StreamManifest, where: str) -> None:
    """Check that a file can hold the rows that its manifest declares.

    Raises:
        DataError: it cannot hold them.
    """
    least = least_bytes(manifest.schema, file.rows)
    most = _MOST_COMPRESSED[manifest.compression] * file.stored_bytes + _MARGIN
    if least > file.raw_bytes or file.raw_bytes > most:
        raise DataError(
            f"the manifest says that {where} has {file.rows:,} rows in {file.raw_bytes:,} bytes, "
            f"stored as {file.stored_bytes:,}: that is impossible. Write the data set again."
        )


def _from_manifest(
    store: Store,
    manifest: StreamManifest,
    cache: Cache,
    selection: Sequence[str] | None,
    fill: Mapping[str, Any],
) -> list[StreamFile]:
    columns = columns_of(manifest.schema, selection, store.url, fill)
    in_place = store.is_local and manifest.compression == "none"
    return [
        StreamFile(store, cache, entry, columns, in_place=in_place, labels=manifest.labels)
        for entry in manifest.files
        if entry.rows
    ]


def _from_footers(
    store: Store,
    cache: Cache,
    selection: Sequence[str] | None,
    found: Sequence[DataPath],
    fill: Mapping[str, Any],
) -> list[StreamFile]:
    files = [file for file in parquet_files(store, cache.folder, found) if file.entry.rows]
    if not files:
        return []
    columns = common_columns(files, selection, store, fill)
    labels = common_labels(files, store)
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
    ]


_verified: set[tuple[str, int, int]] = set()


def _is_verified(path: Path, entry: ShardEntry) -> bool:
    """Say whether a file has the bytes that its manifest names; reads it once per process."""
    stat = path.stat()
    seen = (str(path), stat.st_ino, stat.st_mtime_ns)
    if seen not in _verified:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                return False
        _verified.add(seen)
    return True


# -- the footers of a folder of Parquet files without a manifest

_READERS = 16
_TAIL = 64 << 10  # bytes: most footers are shorter
_KEPT_FORMAT = 3  # the version of the file in which a node keeps footers


@dataclass(frozen=True)
class ParquetFile:
    """What the footer of a Parquet file says.

    Attributes:
        entry: the entry that a manifest would have for the file. Its `sha256` is a hash of what the
            store says about it, not of its bytes; its `raw_bytes` is a guess unless `is_exact`.
        schema: the schema of its columns.
        nulls: for columns whose statistics count nulls: column -> whether its values are plain.
        is_exact: the writer stored the size of all values.
        stat: what the store says about it.
        constants: column -> value, from its partition folders, for columns that it does not have.
        labels: column -> the names of its numbers, if the file contains them.
    """

    entry: ShardEntry
    schema: pa.Schema
    nulls: dict[str, bool]
    is_exact: bool
    stat: Stat
    constants: Mapping[str, int | str]
    labels: Labels


def parquet_files(store: Store, folder: Path, found: Sequence[DataPath]) -> list[ParquetFile]:
    """Return what the footers of a folder's files say; reads them unless the node keeps them.

    Args:
        store: the folder.
        folder: where the node keeps the content of footers.
        found: the paths of the files in the folder.

    Raises:
        DataError: a file is damaged, or has another format.
    """
    chosen = [each.path for each in found]
    for name in chosen:
        if suffix_of(name) not in PARQUET_SUFFIXES:
            raise DataError(
                f"{store.where(name)} is an Arrow file: a stream without a manifest is a folder of "
                "Parquet files. Make a stream of it with `raytrain-plus data write`, or train on "
                "the folder by its path."
            )
    with ThreadPoolExecutor(_READERS) as readers:
        stats = list(readers.map(store.stat, chosen))
        listing = json.dumps(
            [_KEPT_FORMAT, store.url, list(chosen), [(s.size, s.exact) for s in stats]]
        )
        kept = folder / f"footers-{hashlib.sha256(listing.encode()).hexdigest()[:40]}.json"
        described = _kept(kept)
        if described is None:
            footers = readers.map(partial(_footer, store), chosen, [s.size for s in stats])
            described = _described(list(footers))
            content = json.dumps(described).encode()
            digest = hashlib.sha256(content).hexdigest().encode()
            Store(folder).write(kept.name, digest + b"\n" + content)
    schemas = [decode_schema(text) for text in described["schemas"]]
    names = [set(schema.names) for schema in schemas]
    labels = [labels_of(schema) for schema in schemas]
    return [
        ParquetFile(
            FoundFile(
                name=name,
                rows=said["rows"],
                stored_bytes=stat.size,
                raw_bytes=said["raw_bytes"],
                sha256=hashlib.sha256(f"{store.where(name)}:{stat}".encode()).hexdigest(),
            ),
            schemas[said["schema"]],
            said["nulls"],
            said["is_exact"],
            stat,
            {
                key: value
                for key, value in each.partitions.items()
                if key not in names[said["schema"]]
            },
            labels[said["schema"]],
        )
        for each, name, stat, said in zip(found, chosen, stats, described["files"], strict=True)
    ]


def common_columns(
    files: Sequence[ParquetFile],
    selection: Sequence[str] | None,
    store: Store,
    fill: Mapping[str, Any] | None = None,
) -> dict[str, Column]:
    """Return the selected columns, which all files have.

    The files may differ in the order of columns, in columns that are not selected, and in types
    that become the same values.

    Raises:
        DataError: the files differ, or one contains nulls.
    """
    first = files[0]
    columns: dict[str, Column] = {}
    seen: set[tuple[int, ...]] = set()
    for file in files:
        where = store.where(file.entry.name)
        kind = (id(file.schema), *map(hash, sorted(file.constants)))
        if kind not in seen:
            seen.add(kind)
            own = columns_of(with_constants(file.schema, file.constants), selection, where, fill)
            columns = columns or own
            if own != columns:
                raise DataError(
                    f"{store.where(first.entry.name)} and {where} differ in their columns: "
                    f"{difference(columns, own)}. All files of a stream must have the same ones; "
                    "select those that agree, or write the files again."
                )
        for name, is_plain in file.nulls.items():
            column = columns.get(name)
            # A list's count includes its empty lists, and the path of an image may be null.
            is_fixed = column and column.kind == "tensor" and 0 not in column.shape
            if column and column.fill is None and (is_plain or is_fixed):
                raise null_error(name, where)
    return columns


def common_labels(files: Sequence[ParquetFile], store: Store) -> Labels:
    """Return the names of labels that the files' columns have.

    Raises:
        DataError: a number means different names in two of them.
    """
    first = files[0]
    for other in {id(file.labels): file for file in files}.values():
        one, two = (store.where(file.entry.name) for file in (first, other))
        check_same(first.labels, other.labels, one, two)
    return first.labels


def _kept(path: Path) -> dict[str, Any] | None:
    """Return the kept content of footers; None if it is absent or damaged."""
    try:
        digest, content = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    described: dict[str, Any] = json.loads(content)
    return described


def _described(footers: Sequence[tuple[Footer, str]]) -> dict[str, Any]:
    schemas = {text: None for _, text in footers}
    numbers = {text: number for number, text in enumerate(schemas)}
    return {
        "schemas": list(schemas),
        "files": [
            {
                "rows": footer.rows,
                "raw_bytes": footer.decoded,
                "is_exact": footer.is_exact,
                "schema": numbers[text],
                "nulls": {
                    chunk.leaf.path[0]: len(chunk.leaf.path) == 1 and not chunk.leaf.repeated
                    for chunk in footer.chunks
                    if chunk.nulls
                },
            }
            for footer, text in footers
        ],
    }


def _footer(store: Store, name: str, size: int) -> tuple[Footer, str]:
    from pyarrow import parquet  # noqa: PLC0415 - imports pandas, which few need

    tail = store.read_range(name, max(0, size - _TAIL), size)
    where = store.where(name)
    if is_pointer(tail):
        raise DataError(told_of_pointer(where))
    if size < 12 or tail[-4:] != b"PAR1":
        raise DataError(f"{where} is cut short, or no Parquet file: write it again.")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > size:
        raise DataError(f"{where} is damaged: its footer is longer than the file. Write it again.")
    if length > len(tail):
        tail = store.read_range(name, size - length, size)
    footer = read_footer(tail, where)
    with explained(where):
        schema = parquet.read_metadata(pa.BufferReader(tail)).schema.to_arrow_schema()
    return footer, encode_schema(only_known_features(schema))

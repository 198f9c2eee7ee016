"""Map-style datasets: rows that a user's `__getitem__` makes.

A row is a function of its number, so our order shuffles such a dataset like any other. If
`__getitem__` draws random numbers, its rows are made in a process of their own, whose global
generators are seeded for each row. In the worker's process they could not be: the training thread
draws from the same generators. So the bits are the same on any number of workers.

Rows are made by one thread, since many datasets are not safe for more (open files, HDF5).
`processes` makes rows in several processes; each has a copy of the dataset.
"""

import contextlib
import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from ray import cloudpickle

from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.streams.columns import Column, DataError, check_setting, is_whole, listed
from raytrain_plus.streams.row_process import RowError, RowProcesses
from raytrain_plus.streams.source import Function, Opened, Source, Transform

_SAMPLES = 16  # rows that identify a dataset, with its length
_PAIR = ("input", "label")
_SETTINGS = ("names", "transform", "per", "processes", "shuffle")
MOST_BYTES = 256 << 20
"""Bytes of a pickled dataset that go to each worker."""

# One row at a time in this process: several sources may share a dataset that is not thread-safe.
_ONE_ROW = threading.Lock()


@dataclass(frozen=True)
class MapDataset:
    """A map-style dataset, with how to read it.

    Args:
        dataset: has `__len__` and `__getitem__`, such as a `torch.utils.data.Dataset`. A row is a
            dictionary from column to value, a named tuple, a pair of input and label, or the input
            alone. Values may be tensors, arrays, images of PIL (which become uint8 of shape
            (channels, height, width)), numbers, text, bytes, and structures of them.
        names: the columns of a row that is a tuple. Default: `("input", "label")`.
        transform: called with each row and a `torch.Generator` of its own, as in a `Stream`.
        per: "batch" calls the transform with whole parts instead.
        processes: make rows in this many processes of each worker. Default: in the worker's own
            process, or in one more if rows are random.
        shuffle: whether to mix the rows; default True.

    Raises:
        DataError: a setting is out of range.
    """

    dataset: Any
    _: KW_ONLY
    names: Sequence[str] | None = None
    transform: Function | None = None
    per: Literal["sample", "batch"] = "sample"
    processes: int | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        wants, given, names = self.processes, self.dataset, self.names
        is_rows = hasattr(given, "__len__") and hasattr(given, "__getitem__")
        is_list = isinstance(names, Sequence) and not isinstance(names, str)
        is_names = names is None or (is_list and all(isinstance(one, str) for one in names))
        is_function = self.transform is None or callable(self.transform)
        for name, value, valid, must in (
            ("dataset", given, is_rows, "an object with __len__ and __getitem__"),
            ("names", names, is_names, "a list of names"),
            ("transform", self.transform, is_function, "a function"),
            ("per", self.per, self.per in ("sample", "batch"), "'sample' or 'batch'"),
            ("processes", wants, wants is None or is_whole(wants, 1), "at least 1"),
            ("shuffle", self.shuffle, isinstance(self.shuffle, bool), "True or False"),
        ):
            check_setting(name, value, valid=valid, must=must)

    def keep_pickled(self) -> None:
        """Pickle the dataset, if that is possible, as it is before its first row is made."""
        if not hasattr(self, "_kept"):
            with contextlib.suppress(DataError):
                object.__setattr__(self, "_kept", self.pickled())

    def pickled(self) -> bytes:
        """Return the dataset as it travels to another process.

        Raises:
            DataError: it cannot be pickled, or is too large.
        """
        kept: bytes | None = getattr(self, "_kept", None)
        if kept is not None:
            return kept
        content: bytes
        try:
            content = cloudpickle.dumps(self.dataset)
        except Exception as error:
            raise DataError(
                f"{self.where} cannot be pickled, so that it cannot go to a worker: {error}. Open "
                "files and connections in `__getitem__` when they are first needed; or give the "
                "name of a function that makes the dataset, data='module:function'."
            ) from error
        if len(content) > MOST_BYTES:
            raise DataError(
                f"{self.where} has {len(content):,} bytes when it is pickled, and at most "
                f"{MOST_BYTES:,} go to each worker: let it hold paths and not contents; or give "
                "the name of a function that makes it, data='module:function'; or write its rows "
                "with a StreamWriter."
            )
        return content

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return _unpickled, (self.pickled(), cloudpickle.dumps(settings))

    @property
    def where(self) -> str:
        """Its name in an error."""
        return f"the dataset {type(self.dataset).__name__}"


def _unpickled(dataset: bytes, settings: bytes) -> MapDataset:
    found = MapDataset(cloudpickle.loads(dataset), **cloudpickle.loads(settings))
    object.__setattr__(found, "_kept", dataset)
    return found


def names_of_elements(count: int) -> Sequence[str] | None:
    """Return the columns of tuples of one or two elements; None for more."""
    return _PAIR[:count] if 1 <= count <= len(_PAIR) else None


class DatasetSource(Source):
    """The rows of a map-style dataset; made by `open_dataset`.

    Args:
        given: the dataset, with how to read it.
        selection: the wanted columns; None for all.

    Raises:
        DataError: it has no rows, a row cannot be made, or its rows are not a function of their
            numbers.
    """

    def __init__(self, given: MapDataset, selection: Sequence[str] | None) -> None:
        self._given, self._selection = given, selection
        given.keep_pickled()  # before files are opened, which cannot be pickled
        self._reader: _Reader = _InThread(given.dataset)
        count = _length_of(given)
        self._samples = np.unique(np.linspace(0, max(0, count - 1), _SAMPLES).astype(np.int64))
        rows, self._identity, is_random = self._probed(self._samples.tolist() if count else [])
        self._names = list(rows[0]) if rows else []
        columns = {name: _column_of([row[name] for row in rows]) for name in self._names}
        super().__init__(
            [_Rows(count, given.where, columns, self._identity, self._digest_of_all)],
            (open_dataset, (given, selection)),
            window=None,
            shuffle=given.shuffle,
            in_pieces=True,
            transform=given.transform and Transform(given.transform, given.per == "batch"),
        )
        wanted = given.processes or (1 if is_random else 0)
        if wanted:
            self._reader = RowProcesses(given.pickled(), wanted)

    def read_rows(self, files: Any, rows: Any, seed: int, place: tuple[int, int, Any]) -> list[Any]:
        """Return the wanted columns of some rows.

        Args:
            files: the index of each row's piece.
            rows: its index in that piece.
            seed: of the run.
            place: the epoch, the lane, and the positions of the rows in it, from which the seed of
                a row follows.

        Raises:
            DataError: a row cannot be made, or has other columns than the first.
        """
        epoch, lane, positions = place
        numbers = (np.asarray(files) * (self._piece_rows or 1) + np.asarray(rows)).tolist()
        if isinstance(self._reader, _InThread):  # the rows draw nothing, and the training does
            return self._read(numbers)
        return self._read(numbers, [seed_for(seed, "row", epoch, lane, int(p)) for p in positions])

    def count_items(self, column: str) -> int:
        """Refuse to count tokens in rows that must all be made for it.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"the items of column {column!r} of {self._given.where} can only be counted by making "
            "all of its rows: give durations in epochs (ep), batches (ba) or samples (sp)."
        )

    def close(self) -> None:
        """End the processes that make rows, if there are any."""
        super().close()
        self._reader.close()

    def _read(self, numbers: list[int], seeds: list[int] | None = None) -> list[Any]:
        try:
            made = self._reader.read(numbers, seeds)
        except RowError as error:
            raise DataError(f"row {error.number + 1:,} of {self._given.where}: {error}") from error
        rows = [self._columns_of(row, number) for row, number in zip(made, numbers, strict=True)]
        names = getattr(self, "_names", None) or list(rows[0])
        for row, number in zip(rows, numbers, strict=True):
            if list(row) != names:
                raise DataError(
                    f"row {number + 1:,} of {self._given.where} has the columns {listed(row)}, and "
                    f"row 1 has {listed(names)}: all rows must have the same."
                )
        return rows

    def _columns_of(self, row: Any, number: int) -> dict[str, Any]:
        """Return a row as the wanted columns."""
        where = f"row {number + 1:,} of {self._given.where}"
        if not isinstance(row, Mapping):
            row = _named(row, self._given.names, where)
        found = {str(name): _tensors_of(value) for name, value in row.items()}
        if self._selection is None:
            return found
        missing = [name for name in self._selection if name not in found]
        if missing:
            raise DataError(f"{where} has no column {listed(missing)}; it has {listed(found)}.")
        return {name: found[name] for name in self._selection}

    def _probed(self, numbers: list[int]) -> tuple[list[Any], str, bool]:
        """Return some rows, their hash, and whether making them draws random numbers.

        Raises:
            DataError: a row is another one the second time, although the generators are the same.
        """
        if not numbers:
            return [], "", False
        seeds = [seed_for(0, "row", number) for number in numbers]
        with _generators_kept():
            seed_global_generators(0)
            before = _drawn()
            self._read(numbers)  # without seeds: only `__getitem__` draws
            is_random = _drawn() != before
            rows = self._read(numbers, seeds)
            found = [_hash_of(rows), _hash_of(self._read(numbers, seeds))]
        if found[0] != found[1]:
            raise DataError(
                f"{self._given.where} makes another row of the same number the second time, "
                "although torch's, NumPy's and Python's global generators have the same seeds: it "
                "uses a generator of its own, a clock or a counter. Draw from the global "
                "generators, which are seeded for each row; or in a `transform`, which gets a "
                "generator: MapDataset(dataset, transform=FUNCTION)."
            )
        return rows, found[0], is_random

    def _digest_of_all(self) -> str:
        found = hashlib.sha256()
        for number in range(self.total_rows):
            found.update(_hash_of(self._read([number], [seed_for(0, "row", number)])).encode())
        return found.hexdigest()


def open_dataset(given: MapDataset, selection: Sequence[str] | None = None) -> DatasetSource:
    """Open a map-style dataset for reading.

    Raises:
        DataError: as `DatasetSource`.
    """
    return DatasetSource(given, selection)


class _Rows:
    """What a Source asks of its shard; the rows themselves are read by `read_rows`."""

    def __init__(
        self,
        rows: int,
        where: str,
        columns: dict[str, Column],
        identity: str,
        digest: Callable[[], str],
    ) -> None:
        self.rows, self.where, self.columns = rows, where, columns
        self._identity, self.digest = identity, digest

    def open(self, cancelled: threading.Event) -> Opened:
        del cancelled
        raise ValueError(f"the rows of {self.where} are made one by one")

    def identify(self) -> list[Any]:
        return [self._identity]


class _Reader(Protocol):
    def read(self, numbers: Sequence[int], seeds: Sequence[int] | None = None) -> list[Any]: ...

    def close(self) -> None: ...


class _InThread:
    """Makes rows in the calling thread."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def read(self, numbers: Sequence[int], seeds: Sequence[int] | None = None) -> list[Any]:
        rows = []
        for place, number in enumerate(numbers):
            try:
                with _ONE_ROW:
                    if seeds is not None:
                        seed_global_generators(seeds[place])
                    rows.append(self._dataset[number])
            except Exception as error:
                raise RowError(number, f"it cannot be made: {error!r}") from error
        return rows

    def close(self) -> None:
        pass


def _length_of(given: MapDataset) -> int:
    try:
        return len(given.dataset)
    except TypeError as error:
        raise DataError(f"{given.where} has no length: {error}. Define __len__.") from error


def _named(row: Any, names: Sequence[str] | None, where: str) -> dict[str, Any]:
    """Return the elements of a row that is no dictionary, by name."""
    fields = getattr(row, "_fields", None)
    elements = list(row) if isinstance(row, tuple | list) else [row]
    names = names or fields or names_of_elements(len(elements))
    if names is None or len(names) != len(elements):
        known = "" if names is None else f", and `names` are {listed(names)}"
        raise DataError(
            f"{where} has {len(elements)} elements{known}: name each, as in MapDataset(dataset, "
            "names=['image', 'mask', 'label']), or return a dictionary."
        )
    return dict(zip(names, elements, strict=True))


def _tensors_of(value: Any) -> Any:
    """Return a value with tensors in the place of arrays and images, also inside of structures."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic):
        return torch.as_tensor(value)
    if hasattr(value, "getbands"):  # an image of PIL, which need not be installed
        pixels = torch.from_numpy(np.array(value))
        return pixels.permute(2, 0, 1).contiguous() if pixels.ndim == 3 else pixels[None]
    if isinstance(value, Mapping):
        return {name: _tensors_of(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_tensors_of(inner) for inner in value]
    return value


def _column_of(values: list[Any]) -> Column:
    """Return what a column is, by its values in some rows."""
    first = values[0]
    if isinstance(first, str):
        return Column(np.dtype(object), kind="string")
    if isinstance(first, bytes):
        return Column(np.dtype(object), kind="binary")
    if isinstance(first, bool | int | float):
        return Column(torch.as_tensor(first).numpy().dtype)
    if not isinstance(first, torch.Tensor):
        return Column(np.dtype(object), kind="nested", meaning=type(first).__name__)
    dtype = first.float().numpy().dtype if first.dtype == torch.bfloat16 else first.numpy().dtype
    shapes = {tuple(value.shape) for value in values if isinstance(value, torch.Tensor)}
    if len(shapes) > 1:
        return Column(dtype, (-1, *first.shape[1:]), "list")
    return Column(dtype, tuple(first.shape))


def _hash_of(value: Any) -> str:
    """Return the SHA-256 of a value: of its structure, and of the bytes of its tensors."""
    found = hashlib.sha256()

    def add(one: Any) -> None:
        if isinstance(one, torch.Tensor):
            plain = one.float() if one.dtype == torch.bfloat16 else one
            found.update(f"{one.dtype}{tuple(one.shape)}".encode())
            found.update(np.ascontiguousarray(plain.numpy(force=True)).tobytes())
        elif isinstance(one, Mapping):
            for name, inner in one.items():
                found.update(f"{name!r}:".encode())
                add(inner)
        elif isinstance(one, list):
            found.update(f"[{len(one)}".encode())
            for inner in one:
                add(inner)
        else:
            found.update(f"{type(one).__name__} {one!r};".encode())

    add(value)
    return found.hexdigest()


def _drawn() -> tuple[Any, ...]:
    """Return the states of the global generators, to compare."""
    of_numpy: Any = np.random.get_state()  # noqa: NPY002 - a dataset may draw from it
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        of_numpy[1].tobytes(),
        of_numpy[2:],
    )


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put the states of the global generators back afterwards."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002

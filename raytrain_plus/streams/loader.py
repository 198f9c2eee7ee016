"""Makes batches of tensors from rows, ahead of the training loop.

The content of a batch follows from (source, order, step, lane) alone. A worker gives the lanes that
it computes and its first step. After a resize the new owner of a lane reads the same rows.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raytrain_plus.seeds import seed_for
from raytrain_plus.streams.columns import Column, DataError, listed
from raytrain_plus.streams.map_dataset import DatasetSource
from raytrain_plus.streams.order import Indices, Order, Ordering
from raytrain_plus.streams.source import Function, Source

Batch = dict[str, Any]
"""Column name -> tensor of shape (rows, *shape); or a list with a value per row: a tensor, a str,
bytes, or for nested columns a list or a dictionary."""

# Seconds that `close` waits for a read in progress; after them the thread ends by itself.
_PATIENCE = 5.0
_NUMBERS = (bool, int, float, np.ndarray, np.generic, torch.Tensor)
_BEAT = 1.0  # seconds between two signs of life while a store is slow

# PyTorch has few operations for unsigned integers that are wider than a byte.
_WIDENED = {np.dtype(kind): np.dtype(np.int64) for kind in (np.uint16, np.uint32, np.uint64)}


def steps_per_epoch(order: Ordering, part_rows: int) -> int:
    """Return how many whole steps of `part_rows` rows per lane an epoch has.

    Raises:
        ValueError: `part_rows` is below 1, or the shortest lane does not fill one step.
    """
    _check_part_rows(part_rows)
    steps = order.shortest_lane // part_rows
    if steps == 0:
        raise ValueError(
            f"the batch is larger than the data: {order.lanes} logical ranks of {part_rows} "
            f"samples make a batch of {order.lanes * part_rows}, but the data has "
            f"{int(np.sum(order.rows))} rows ({order.shortest_lane} per logical rank). Use a "
            "smaller batch size, fewer logical ranks or more data."
        )
    return steps


def load_part(
    source: Source, order: Ordering, epoch: int, lane: int, start: int, stop: int
) -> Batch:
    """Return the rows at positions start..stop (exclusive) of one lane in one epoch.

    PyTorch allocates every tensor, because kernels choose their path by alignment: the same values
    at another alignment could give other bits. Types stay, except that uint16, uint32 and uint64
    become int64.

    Args:
        source: Where the rows are.
        order: Which rows these are.
        epoch: The epoch, from 0.
        lane: The lane, in 0..V-1.
        start: The first position in the lane.
        stop: The position after the last.

    Returns:
        For each column a tensor of shape (stop - start, *shape of the column), or a list if it has
        no fixed shape; or the output of the source's transform for these.

    Raises:
        ValueError: The positions are outside of the lane.
        DataError: A file cannot be read, or a value is null or above the range of int64.
    """
    files, rows = order.locate(epoch, lane, start, stop)
    batch = _load(source, order, epoch, lane, np.arange(start, stop), files, rows)
    if source.collate is None:
        return batch
    what = f"{len(rows)} rows, the first of them {source.named(files[0], rows[0])}"
    return _collated(source.collate, batch, len(rows), what)


def evaluation_parts(source: Source, order: Order, part_rows: int, lane: int) -> Iterator[Batch]:
    """Yield every sample of one lane exactly once, in the order in which it is stored.

    The rows of a batch follow from the data and the number of lanes alone. The last batch of a lane
    has the rows that are left. It is not padded, since the padding could change the result of a
    model. If a single row would be left, it joins the batch before it, because many models cannot
    compute one row alone (batch norm with the batch's own statistics, `squeeze()`).

    Args:
        source: Where the rows are.
        order: How rows are cut into lanes. It is read without shuffling.
        part_rows: Rows of every batch but the last, at least 1.
        lane: The lane, in 0..V-1. A lane without rows yields nothing.

    Yields:
        A batch of `part_rows` rows, the last of 2 to `part_rows + 1`, or of 1 if the lane has no
        other row or `part_rows` is 1.

    Raises:
        ValueError: `part_rows` is below 1, or there is no such lane.
        DataError: As `load_part`.
    """
    _check_part_rows(part_rows)
    plain = replace(order, shuffle=False) if order.shuffle else order
    length = plain.lane_rows(lane)
    for start in range(0, length, part_rows):
        left = length - start
        if left == 1 and start > 0 and part_rows > 1:
            return  # it has joined the batch before
        rows = left if left == part_rows + 1 and part_rows > 1 else min(left, part_rows)
        yield load_part(source, plain, 0, lane, start, start + rows)


def load_step_part(
    source: Source, order: Ordering, step: int, lane: int, *, part_rows: int, steps: int
) -> Batch:
    """Return what one lane reads in one step, exactly as the `Loader`.

    Args:
        source: Where the rows are.
        order: Which rows these are.
        step: The step, counted from 0 over the whole run.
        lane: The lane.
        part_rows: Samples per logical rank and step.
        steps: Steps of an epoch.
    """
    epoch, t = divmod(step, steps)
    return load_part(source, order, epoch, lane, t * part_rows, (t + 1) * part_rows)


class Loader:
    """Produces the parts of consecutive steps for some lanes, in a background thread.

    Step s is in epoch s // n and reads positions t*b .. t*b+b of each lane, with t = s % n, b the
    rows of a part and n the steps of an epoch. The thread holds at most `depth` steps.

    Args:
        source: Where the rows are.
        order: The order of the rows, made for this source.
        part_rows: b, samples per logical rank and step.
        lanes: The logical ranks that this worker computes.
        first_step: The first step to produce, counted from 0 over the whole run.
        depth: How many steps to prepare ahead.

    Raises:
        ValueError: An argument is out of range, the order is for other data, or the batch is
            larger than the data.
    """

    def __init__(
        self,
        source: Source,
        order: Ordering,
        *,
        part_rows: int,
        lanes: range,
        first_step: int,
        depth: int = 2,
    ) -> None:
        if not lanes or min(lanes) < 0 or max(lanes) >= order.lanes:
            raise ValueError(f"lanes is {lanes}, but the order has lanes 0..{order.lanes - 1}.")
        if first_step < 0:
            raise ValueError(f"first_step is {first_step}, but steps count from 0.")
        if depth < 1:
            raise ValueError(f"depth is {depth}, but at least 1 step must be prepared ahead.")
        if not np.array_equal(order.rows, source.rows):
            raise ValueError(
                f"the order is for {len(order.rows)} files with {int(np.sum(order.rows))} rows, "
                f"but the source has {len(source.rows)} with {source.total_rows}: make the order "
                "with rows=source.rows."
            )
        self._source, self._order = source, order
        self._part_rows, self._lanes, self._depth = part_rows, lanes, depth
        self._steps = steps_per_epoch(order, part_rows)
        # Lanes are read side by side: with fewer open files, files would be reopened at each step.
        window = order.window or 1
        if source.lookahead is None:
            source.open_files = max(source.open_files, (len(lanes) + 1) * window)
        else:  # open files occupy the cache, which others need as well
            source.open_files = len(lanes) * window + 1
        source.cancelled = self._cancelled = threading.Event()
        self._changed = threading.Condition()
        self._ready: deque[list[Batch]] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(
            target=self._produce, args=(first_step,), name="raytrain_plus loader", daemon=True
        )
        self._thread.start()

    def next(self, waiting: Callable[[], None] = lambda: None) -> list[Batch]:
        """Return the next step's batches, one per lane in the order of `lanes`; waits for them.

        Args:
            waiting: called about once a second while a store is slow. The store has a deadline of
                its own, so such a wait is not a hang.

        Raises:
            RuntimeError: The loader is closed.
            Exception: The error that ended the background thread, with its traceback.
        """
        with self._changed:
            while not self._changed.wait_for(
                lambda: self._ready or self._error or self._closed, _BEAT
            ):
                if self._source.is_fetching:
                    waiting()
            if self._closed:
                raise RuntimeError("this loader is closed: make a new one to continue reading.")
            if self._ready:
                parts = self._ready.popleft()
                self._changed.notify_all()
                return parts
            assert self._error is not None
            raise self._error

    def close(self) -> None:
        """End the background thread and drop its batches. May be called twice."""
        self._cancelled.set()
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_PATIENCE)

    def _produce(self, first_step: int) -> None:
        try:
            self._look_ahead(first_step)
            for step in itertools.count(first_step):
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                    if self._closed:
                        return
                parts = self._load_step(step)
                with self._changed:
                    if self._closed:
                        return
                    self._ready.append(parts)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - the caller must see every error
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _look_ahead(self, step: int) -> None:
        if self._source.lookahead is not None:
            epoch, t = divmod(step, self._steps)
            self._source.lookahead.expect(
                self._order, epoch, self._lanes, t * self._part_rows, self._cancelled
            )

    def _load_step(self, step: int) -> list[Batch]:
        """Return one batch per lane; fewer if the loader is closed during this call."""
        if self._source.lookahead is not None:
            epoch, t = divmod(step, self._steps)
            self._source.lookahead.moved(self._order, epoch, t * self._part_rows)
        sizes = {"part_rows": self._part_rows, "steps": self._steps}
        parts = []
        for lane in self._lanes:
            if self._closed:
                break
            parts.append(load_step_part(self._source, self._order, step, lane, **sizes))
        return parts


def _check_part_rows(part_rows: int) -> None:
    if part_rows < 1:
        raise ValueError(f"part_rows is {part_rows}, but a part has at least 1 sample.")


def _load(
    source: Source,
    order: Ordering,
    epoch: int,
    lane: int,
    positions: Indices,
    files: Indices,
    rows: Indices,
) -> Batch:

    def named(i: int) -> str:
        return source.named(files[i], rows[i])

    if isinstance(source, DatasetSource):
        made_rows = source.read_rows(files, rows, order.seed, (epoch, lane, positions))
        if source.transform is None or source.transform.per_batch:
            batch = _stacked("the dataset", made_rows, named, source)
        else:
            batch = {name: [row[name] for row in made_rows] for name in made_rows[0]}
    else:
        source.confirm(files)
        batch = {
            name: _load_column(source, name, column, files, rows)
            for name, column in source.columns.items()
        }
        source.confirm(files)  # the files have not changed since the source was opened
    if source.transform is None:
        return batch
    function = source.transform.function
    if source.transform.per_batch:
        what = f"{len(rows)} rows, the first of them {source.named(files[0], rows[0])}"
        place = (epoch, lane, int(positions[0]))
        return _transformed(function, batch, _generator(order.seed, place), what)
    samples: list[dict[str, Any]] = []
    for i, position in enumerate(positions):
        what = source.named(files[i], rows[i])
        sample = {name: values[i] for name, values in batch.items()}
        generator = _generator(order.seed, (epoch, lane, int(position)))
        made = _transformed(function, sample, generator, what)
        if samples and made.keys() != samples[0].keys():
            raise DataError(
                f"the transform gives other columns for other samples: {listed(made)} for {what}, "
                f"and {listed(samples[0])} for {source.named(files[0], rows[0])}. Every sample "
                "must have the same ones."
            )
        samples.append(made)
    return _stacked("the transform", samples, named, source)


def _stacked(
    who: str, samples: Sequence[dict[str, Any]], named: Callable[[int], str], source: Source
) -> Batch:
    """Return samples as the columns of a batch.

    Args:
        who: has made them, for the errors.
        samples: at least one, all with the same columns.
        named: returns the name of a sample.
        source: where they are from. If the task has a `collate`, their shapes may differ.
    """
    free = source.collate is not None
    return {
        name: _stack(who, name, [sample[name] for sample in samples], named, is_free=free)
        for name in samples[0]
    }


def _transformed(
    function: Function, given: dict[str, Any], generator: torch.Generator, what: str
) -> dict[str, Any]:
    """Return the output of a transform for a sample or a batch.

    Raises:
        DataError: it fails, or does not return columns; the message names the rows.
    """
    wanted = "value. It cannot leave samples out: leave them out of the data."
    return _columns_of("the transform", lambda: function(given, generator), what, wanted)


def _columns_of(name: str, call: Callable[[], Any], what: str, wanted: str) -> dict[str, Any]:
    """Return the columns that the user's code makes.

    Args:
        name: of the code, for the errors.
        call: runs it.
        what: the rows that it gets, for the errors.
        wanted: what a column must be.

    Raises:
        DataError: it fails, or does not return columns; the message names the rows.
    """
    try:
        made = call()
    except Exception as error:
        raise DataError(f"{name} fails on {what}: {error!r}") from error
    if not isinstance(made, Mapping) or not made:
        got = "nothing" if made is None else f"{type(made).__name__} {made!r:.80}"
        raise DataError(
            f"{name} returns {got} for {what}; it must return a dictionary from column to {wanted}"
        )
    return dict(made)


def _collated(collate: Callable[[Sequence[Batch]], Any], batch: Batch, n: int, what: str) -> Batch:
    """Return the batch that a task's `collate` makes of the rows of a batch.

    Raises:
        DataError: it fails, or does not return columns of as many rows.
    """
    rows = [{name: values[i] for name, values in batch.items()} for i in range(n)]
    wanted = "a tensor of shape (rows, ...) or a list."
    made = _columns_of("task.collate()", lambda: collate(rows), what, wanted)
    for name, values in made.items():
        is_rows = isinstance(values, list) or (isinstance(values, torch.Tensor) and values.ndim > 0)
        if not is_rows or len(values) != n:
            said = f"of {len(values)} rows" if is_rows else "no list and no tensor of rows"
            raise DataError(
                f"task.collate() returns column {name!r}, which is {said}, for {what}: each column "
                f"must be a tensor of shape ({n}, ...) or a list of {n}."
            )
    return made


def _generator(seed: int, place: tuple[int, ...]) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, "transform", *place))


def _stack(
    who: str, name: str, values: list[Any], named: Callable[[int], str], *, is_free: bool
) -> Any:
    """Return a batch's column: a tensor if all samples' values have one shape, else a list."""
    is_number = [isinstance(value, _NUMBERS) for value in values]
    if not any(is_number):
        return values
    if not all(is_number):
        i, j = is_number.index(True), is_number.index(False)
        raise DataError(
            f"{who} gives column {name!r} as {type(values[i]).__name__} for {named(i)} and "
            f"as {type(values[j]).__name__} for {named(j)}: give one kind for all samples."
        )
    values = [torch.as_tensor(value) for value in values]
    first = values[0]
    kinds = [(value.dtype, tuple(value.shape)) for value in values]
    other = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is None:
        return torch.stack(values)
    if is_free or all(value.ndim == 1 and value.dtype == first.dtype for value in values):
        return values  # lists of any length
    found = [f"{kinds[i][0]} of shape {kinds[i][1]} for {named(i)}" for i in (0, other)]
    raise DataError(
        f"{who} gives column {name!r} in different shapes: {found[0]}, and {found[1]}. "
        "Samples of a batch must have one shape, or be of one dimension; or the task needs a "
        "`collate` that makes a batch of them."
    )


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """Return a batch with its tensors on a device; other values stay."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, dict):
            return {name: moved(one) for name, one in value.items()}
        return [moved(one) for one in value] if isinstance(value, list) else value

    return {name: moved(value) for name, value in batch.items()}


def _load_column(
    source: Source, name: str, column: Column, files: Indices, rows: Indices
) -> torch.Tensor | list[Any]:
    if column.kind in ("string", "binary", "nested"):
        return source.gather_list(files, rows, name)
    if column.kind == "list":
        places = zip(source.gather_list(files, rows, name), files, rows, strict=True)
        return [
            _widened(name, values, partial(_named_item, source, file, row))
            for values, file, row in places
        ]
    shape = (len(rows), *column.shape)
    dtype = _WIDENED.get(column.dtype, column.dtype)
    tensor = torch.empty(shape, dtype=_torch_type(dtype))
    if dtype == column.dtype:
        source.gather(files, rows, name, tensor.numpy())
        return tensor
    narrow = np.empty(shape, column.dtype)
    source.gather(files, rows, name, narrow)
    tensor.copy_(_widened(name, narrow, lambda i: source.named(files[i], rows[i])))
    return tensor


def _named_item(source: Source, file: int, row: int, item: int) -> str:
    return f"item {item + 1:,} of {source.named(file, row)}"


@cache
def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    # An array is the only documented way from a NumPy type to a PyTorch type.
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _widened(name: str, values: npt.NDArray[Any], named: Callable[[int], str]) -> torch.Tensor:
    """Return a copy as a tensor, of a type that PyTorch computes with.

    Args:
        name: the column.
        values: what to copy.
        named: returns the place of an item of the first dimension, for an error.

    Raises:
        DataError: a value does not fit into that type.
    """
    dtype = _WIDENED.get(values.dtype, values.dtype)
    if dtype != values.dtype:
        most = np.iinfo(dtype).max
        if int(values.max(initial=0)) > most:
            place = tuple(np.argwhere(values > most)[0].tolist())
            raise DataError(
                f"{named(place[0])}: column {name!r} holds {values[place]}, but PyTorch computes "
                f"with int64, up to {most}: store smaller values, or leave this column out."
            )
    tensor = torch.empty(values.shape, dtype=_torch_type(dtype))
    tensor.numpy()[...] = values
    return tensor

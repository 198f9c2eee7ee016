"""Batches: each worker loads the same rows, from any step on, and never hangs."""

import threading
import traceback
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import Loader, evaluation_parts, load_part, steps_per_epoch
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.order import Order

N, V, B = 103, 4, 6
PATIENCE = 30


def make_source(n=N):
    images = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return open_source(
        pa.table(
            {
                "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
                "label": np.arange(n),
            }
        )
    )


def make_order(source, **options):
    return Order(**({"rows": source.rows, "lanes": V, "seed": 7, "window": None} | options))


def labels_of_steps(lanes, first_step, steps, source=None, order=None):
    """Load some steps and return the labels of each, (steps, lanes, B)."""
    source = source or make_source()
    order = order or make_order(source)
    loader = Loader(source, order, part_rows=B, lanes=lanes, first_step=first_step)
    try:
        return [[part["label"].tolist() for part in loader.next()] for _ in range(steps)]
    finally:
        loader.close()


@pytest.mark.parametrize("cuts", [[0, 1, 2, 3, 4], [0, 2, 4], [0, 1, 4], [0, 3, 4]])
def test_lanes_hold_the_same_rows_on_any_worker(cuts):
    alone = labels_of_steps(range(V), 0, 9)
    workers = [labels_of_steps(range(start, stop), 0, 9) for start, stop in pairwise(cuts)]
    together = [[part for parts in step for part in parts] for step in zip(*workers, strict=True)]
    assert together == alone


def test_lanes_hold_other_rows_when_there_are_more_of_them():
    source = make_source()
    halves = labels_of_steps(range(2), 0, 4, source, make_order(source, lanes=8))
    assert halves != labels_of_steps(range(2), 0, 4, source)


def test_a_loader_that_starts_later_continues_with_the_same_rows():
    whole = labels_of_steps(range(V), 0, 12)
    for first in range(12):
        assert labels_of_steps(range(V), first, 12 - first) == whole[first:]


def test_a_step_reads_its_part_of_each_lane():
    source = make_source()
    order = make_order(source)
    steps = steps_per_epoch(order, B)
    expected = [
        [
            load_part(source, order, step // steps, lane, start, start + B)["label"].tolist()
            for lane in range(V)
        ]
        for step in range(2 * steps)
        for start in [step % steps * B]
    ]
    assert labels_of_steps(range(V), 0, 2 * steps, source, order) == expected


def test_every_epoch_reads_other_rows_first_and_none_twice():
    steps = steps_per_epoch(make_order(make_source()), B)
    assert steps == (N // V) // B == 4
    loaded = labels_of_steps(range(V), 0, 2 * steps)
    for epoch in (loaded[:steps], loaded[steps:]):
        labels = [label for step in epoch for part in step for label in part]
        assert len(set(labels)) == len(labels) == steps * V * B
    assert loaded[:steps] != loaded[steps:]


def test_a_batch_larger_than_the_data_is_refused_with_its_numbers():
    source = make_source(10)
    order = make_order(source)
    for make in (
        lambda: steps_per_epoch(order, 3),
        lambda: Loader(source, order, part_rows=3, lanes=range(V), first_step=0),
    ):
        with pytest.raises(ValueError, match=r"4 logical ranks of 3 .* batch of 12.* 10 rows"):
            make()
    assert steps_per_epoch(order, 2) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"part_rows": 0}, "part_rows is 0"),
        ({"lanes": range(3, 5)}, r"lanes is range\(3, 5\).* lanes 0\.\.3"),
        ({"lanes": range(2, 2)}, r"lanes is range\(2, 2\)"),
        ({"first_step": -1}, "first_step is -1"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_a_loader_refuses_invalid_arguments(wrong, says):
    source = make_source()
    arguments = {"part_rows": B, "lanes": range(V), "first_step": 0} | wrong
    with pytest.raises(ValueError, match=says):
        Loader(source, make_order(source), **arguments)


def test_an_order_for_other_data_is_refused():
    with pytest.raises(ValueError, match="104 rows, but the source has 103 with 103"):
        Loader(
            make_source(), make_order(make_source(104)), part_rows=B, lanes=range(V), first_step=0
        )


def test_a_part_holds_the_rows_that_the_order_names():
    source = make_source()
    order = make_order(source)
    batch = load_part(source, order, 2, 1, 5, 9)
    files, _ = order.locate(2, 1, 5, 9)
    assert batch["label"].tolist() == files.tolist()
    assert batch["image"].shape == (4, 2, 3)
    assert batch["image"][:, 0, 0].tolist() == (files * 6).tolist()


def test_tensors_are_new_and_aligned():
    source = make_source()
    order = make_order(source)
    batches = [load_part(source, order, 0, 0, start, start + 3) for start in range(20)]
    for batch in batches:
        for tensor in batch.values():
            assert tensor.data_ptr() % 64 == 0
            assert tensor.is_contiguous()
            assert not tensor.requires_grad
    batches[0]["label"].fill_(-1)
    assert (load_part(source, order, 0, 0, 0, 3)["label"] >= 0).all()


def test_rows_of_a_tensor_need_not_be_aligned():
    whole = load_part(make_source(), make_order(make_source()), 0, 0, 0, 3)["image"]
    assert whole[1:].data_ptr() % 64 != 0


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        ("bool", torch.bool),
        ("int8", torch.int8),
        ("int16", torch.int16),
        ("int32", torch.int32),
        ("int64", torch.int64),
        ("uint8", torch.uint8),
        ("uint16", torch.int64),
        ("uint32", torch.int64),
        ("uint64", torch.int64),
        ("float16", torch.float16),
        ("float32", torch.float32),
        ("float64", torch.float64),
    ],
)
def test_types_are_kept_except_that_wide_unsigned_integers_become_int64(stored, loaded):
    values = np.array([0, 1, 1, 0]).astype(stored)
    if values.dtype.kind in "iu":
        values[2] = min(np.iinfo(stored).max, np.iinfo(np.int64).max)
    source = open_source(pa.table({"x": values}))
    x = load_part(source, Order(rows=source.rows, lanes=1, seed=0, shuffle=False), 0, 0, 0, 4)["x"]
    assert x.dtype == loaded
    assert x.tolist() == values.tolist()


def test_an_integer_beyond_int64_is_refused():
    ids = pa.array([1, 2**63], pa.uint64())
    source = open_source(pa.table({"id": ids}))
    order = Order(rows=source.rows, lanes=1, seed=0, shuffle=False)
    assert load_part(source, order, 0, 0, 0, 1)["id"].tolist() == [1]
    words = r"row 2 \(counted from 1\) of the table: column 'id' holds 9223372036854775808"
    with pytest.raises(DataError, match=words):
        load_part(source, order, 0, 0, 0, 2)
    lists = open_source(pa.table({"id": pa.array([[1], [2, 2**63]], pa.list_(pa.uint64()))}))
    with pytest.raises(DataError, match=f"item 2 of {words}"):
        load_part(lists, order, 0, 0, 0, 2)


class Watched:
    """A source that counts gathers, and can fail or wait at one of them."""

    def __init__(self, fail_at=None, wait_at=None):
        self._source = make_source()
        self.gathers = 0
        self.fail_at, self.wait_at = fail_at, wait_at
        self.waiting, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self._source, name)

    def gather(self, files, rows, column, out):
        self.gathers += 1
        if self.gathers == self.fail_at:
            raise DataError("the disk is gone")
        if self.gathers == self.wait_at:
            self.waiting.set()
            assert self.go_on.wait(PATIENCE)
        self._source.gather(files, rows, column, out)


def start(source, depth=2):
    return Loader(
        source, make_order(source), part_rows=B, lanes=range(1), first_step=0, depth=depth
    )


def full(loader):
    """Wait until the loader is full."""
    with loader._changed:
        assert loader._changed.wait_for(lambda: len(loader._ready) == loader._depth, PATIENCE)
    return loader


def test_an_error_in_the_thread_reaches_the_caller_after_the_good_steps():
    loader = start(Watched(fail_at=5))
    assert [len(loader.next()) for _ in range(2)] == [1, 1]
    for _ in range(2):
        with pytest.raises(DataError, match="the disk is gone") as caught:
            loader.next()
        frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert "gather" in frames
        assert "_produce" in frames
    loader.close()
    assert not loader._thread.is_alive()


def test_without_a_fault_the_same_steps_have_no_error():
    loader = start(Watched())
    assert [len(loader.next()) for _ in range(5)] == [1] * 5
    loader.close()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_depth_steps_are_prepared(depth):
    source = Watched()
    loader = full(start(source, depth))
    assert source.gathers == depth * len(source.columns)
    loader.next()
    full(loader)
    assert source.gathers == (depth + 1) * len(source.columns)
    loader.close()


def test_a_full_loader_closes_at_once_and_may_be_closed_twice():
    loader = full(start(Watched()))
    loader.close()
    assert not loader._thread.is_alive()
    assert not loader._ready
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        loader.next()


def test_a_loader_is_closed_even_while_a_read_hangs(monkeypatch):
    monkeypatch.setattr("raytrain_plus.streams.loader._PATIENCE", 0.01)
    source = Watched(wait_at=1)
    loader = start(source)
    assert source.waiting.wait(PATIENCE)
    loader.close()
    assert loader._thread.is_alive()
    source.go_on.set()
    loader._thread.join(PATIENCE)
    assert not loader._thread.is_alive()
    assert not loader._ready


def test_closing_wakes_a_waiting_caller(monkeypatch):
    monkeypatch.setattr("raytrain_plus.streams.loader._PATIENCE", 0.01)
    source = Watched(wait_at=1)
    loader = start(source)
    assert source.waiting.wait(PATIENCE)
    errors = []

    def wait():
        try:
            loader.next()
        except RuntimeError as error:
            errors.append(error)

    caller = threading.Thread(target=wait)
    caller.start()
    loader.close()
    caller.join(PATIENCE)
    assert len(errors) == 1
    source.go_on.set()


def test_a_loader_keeps_the_files_of_all_its_lanes_open(tmp_path):
    for number in range(40):
        table = pa.table({"label": np.arange(5) + 5 * number})
        with pa.ipc.new_file(str(tmp_path / f"{number:02}.arrow"), table.schema) as writer:
            writer.write_table(table)
    source = open_source(tmp_path)
    order = Order(rows=source.rows, lanes=V, seed=1, window=source.window)
    loader = Loader(source, order, part_rows=B, lanes=range(V), first_step=0)
    assert source.open_files == (V + 1) * 8
    loader.close()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "part_rows"), [(N, 6), (24, 6), (2, 6), (1, 1), (16, 3), (7, 3)])
def test_evaluation_sees_every_sample_once_and_nothing_else(rows, part_rows, shuffle):
    source = make_source(rows)
    order = make_order(source, shuffle=shuffle)
    seen = []
    for lane in range(V):
        sizes = []
        for batch in evaluation_parts(source, order, part_rows, lane):
            assert len(batch["image"]) == len(batch["label"])
            sizes.append(len(batch["label"]))
            seen += batch["label"].tolist()
        assert sizes[:-1] == [part_rows] * (len(sizes) - 1)
        alone = sum(sizes) == 1 or part_rows == 1
        assert all(size == 1 if alone else 2 <= size <= part_rows + 1 for size in sizes[-1:])
    assert seen == list(range(rows))


def test_a_lane_without_rows_has_nothing_to_evaluate():
    source = make_source(2)
    counts = [len(list(evaluation_parts(source, make_order(source), 2, lane))) for lane in range(V)]
    assert sorted(counts) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="part_rows is 0"):
        list(evaluation_parts(source, make_order(source), 0, 0))
    with pytest.raises(ValueError, match="lane is 4"):
        list(evaluation_parts(source, make_order(source), 1, 4))

"""The mixture: exact shares, a closed form that equals counting, and changes at a step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.mixture_order import MixedOrder, block_counts
from raytrain_plus.streams.order import Order

weights = st.lists(st.floats(0.5, 10), min_size=1, max_size=5)
LANES = 3


def mixed(shares, *, rows=40, changes=None, block=32, seed=5, part_rows=4):
    orders = [Order(rows=[rows + i, rows], lanes=LANES, seed=seed) for i in range(len(shares))]
    return MixedOrder(
        orders=orders,
        shares=shares,
        changes=changes or {},
        part_rows=part_rows,
        seed=seed,
        block=block,
    )


@given(weights, st.integers(256, 4096))
def test_every_block_has_each_streams_share_within_one_row(shares, block):
    counts = block_counts(shares, block)
    assert counts.sum() == block
    assert (np.abs(counts - np.array(shares) / sum(shares) * block) < 1).all()


def test_shares_that_cannot_be_kept_are_refused():
    for shares, words in (
        ([1.0, -1.0], "none below 0"),
        ([0.0, 0.0], "one above"),
        ([float("nan")], "numbers"),
        ([1.0, 1e-6], "without a place in a block of 32"),
    ):
        with pytest.raises(DataError, match=words):
            block_counts(shares, 32)


@given(weights, st.integers(0, 10_000), st.integers(0, LANES - 1))
def test_any_block_has_exactly_the_given_counts(shares, block_number, lane):
    order = mixed(shares, block=256)
    start = block_number * 256
    streams, _ = order.places(lane, start, start + 256)
    counted = np.bincount(streams, minlength=len(shares))
    assert counted.tolist() == block_counts(shares, 256).tolist()


@given(weights, st.integers(0, 500), st.integers(1, 200), st.integers(0, LANES - 1))
def test_seeking_equals_reading_from_the_start(shares, start, length, lane):
    changes = {20: shares[::-1], 33: [1.0] * len(shares)}
    order, other = (mixed(shares, changes=changes, block=128) for _ in range(2))
    streams, taken = order.places(lane, 0, start + length)
    seen = [0] * len(shares)
    for stream, one in zip(streams, taken, strict=True):  # each stream is read without a gap
        assert one == seen[stream]
        seen[stream] += 1
    sought = other.places(lane, start, start + length)
    assert sought[0].tolist() == streams[start:].tolist()
    assert sought[1].tolist() == taken[start:].tolist()


def test_shares_change_exactly_at_the_step():
    order = mixed([1, 0], changes={10: [0, 1]}, part_rows=4)
    streams, _ = order.places(0, 0, 80)
    assert streams.tolist() == [0] * 40 + [1] * 40


def test_the_rows_are_those_of_the_streams_own_orders():
    order = mixed([3, 1], rows=50)
    for lane in range(LANES):
        files, rows = order.locate(0, lane, 0, 60)
        streams, taken = order.places(lane, 0, 60)
        for stream, own in enumerate(order.orders):
            here = streams == stream
            length = own.lane_rows(lane)
            expected = [
                own.locate(int(q) // length, lane, int(q) % length, int(q) % length + 1)
                for q in taken[here]
            ]
            assert (files[here] - 2 * stream).tolist() == [int(f[0]) for f, _ in expected]
            assert rows[here].tolist() == [int(r[0]) for _, r in expected]


def test_an_epoch_follows_the_one_before_without_a_gap():
    order = mixed([2, 1], part_rows=4)
    steps = order.shortest_lane // 4
    _, end = order.places(0, 0, (steps + 1) * 4)
    files, rows = order.locate(1, 0, 0, 4)
    streams, _ = order.places(0, steps * 4, steps * 4 + 4)
    assert len(files) == len(rows) == 4
    assert end[-4:].tolist() == order.places(0, steps * 4, steps * 4 + 4)[1].tolist()
    assert (files // 2).tolist() == streams.tolist()


def test_the_pattern_is_pinned():
    streams, taken = mixed([2, 1, 1], block=16).places(1, 100, 116)
    assert streams.tolist() == GOLDEN_STREAMS
    assert taken.tolist() == GOLDEN_TAKEN


def test_the_announced_files_are_the_files_that_are_read():
    order = mixed([3, 1], rows=24)
    steps = order.shortest_lane // 4
    needed = order.needs(0, range(LANES), 8)
    read = {int(file) for lane in range(LANES) for file in order.locate(0, lane, 8, 4 * steps)[0]}
    soon = {next(needed)[1] for _ in range(6 * len(order.rows))}
    assert read <= soon
    away = order.next_use(0, 8)
    assert away.shape == (4,)
    assert (away[sorted(read)] < 4 * steps * 4).all()


GOLDEN_STREAMS = [2, 1, 0, 2, 0, 2, 0, 0, 2, 0, 0, 1, 2, 0, 0, 0]
GOLDEN_TAKEN = [24, 26, 50, 25, 51, 26, 52, 53, 27, 54, 55, 27, 28, 56, 57, 58]

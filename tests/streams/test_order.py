"""The order of samples: a permutation per epoch, with seeking, local to windows, and fixed."""

import subprocess
import sys
import time
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.seeds import seed_for
from raytrain_plus.streams.order import Order, permutation

MASK = 2**64 - 1


@st.composite
def orders(draw):
    rows = draw(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any))
    return Order(
        rows=rows,
        lanes=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 2**64 - 1)),
        window=draw(st.none() | st.integers(1, 5)),
        shuffle=draw(st.booleans()),
    )


def whole_lane(order, epoch, lane):
    files, rows = order.locate(epoch, lane, 0, order.lane_rows(lane))
    return list(zip(files.tolist(), rows.tolist(), strict=True))


def every_row(order):
    return [(file, row) for file, rows in enumerate(order.rows) for row in range(rows)]


def splitmix64(key, n):
    """Compute the paper's formula, one output at a time: the oracle of `permutation`."""
    outputs = []
    for _ in range(n):
        key = (key + 0x9E3779B97F4A7C15) & MASK
        z = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        outputs.append(z ^ (z >> 31))
    return outputs


def test_the_oracle_gives_the_published_outputs_of_splitmix64():
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(n=st.integers(0, 200), key=st.integers(0, MASK))
def test_a_permutation_sorts_the_outputs_of_splitmix64(n, key):
    outputs = splitmix64(key, n)
    assert permutation(n, key).tolist() == sorted(range(n), key=outputs.__getitem__)


def test_permutations_never_change():
    assert permutation(10, 1234567).tolist() == [1, 3, 7, 0, 5, 8, 2, 6, 9, 4]
    assert permutation(8, MASK).tolist() == [2, 7, 3, 4, 5, 0, 1, 6]
    assert permutation(10, 0).dtype == np.int64


def naive_lane(order, epoch, lane):
    """Read a lane as the description says, with lists: the oracle of `Order`."""

    def mixed(things, *place):
        outputs = splitmix64(seed_for(order.seed, *place), len(things)) if order.shuffle else things
        return [thing for _, thing in sorted(zip(outputs, things, strict=True))]

    total = int(sum(order.rows))
    files = mixed(list(range(len(order.rows))), "files")
    rows = [(file, row) for file in files for row in range(order.rows[file])]
    cut = rows[lane * total // order.lanes : (lane + 1) * total // order.lanes]
    pieces = [[place for place in cut if place[0] == file] for file in files]
    pieces = mixed([piece for piece in pieces if piece], "lane", epoch, lane)
    size = order.window or len(pieces) or 1
    windows = [
        list(chain.from_iterable(pieces[first : first + size]))
        for first in range(0, len(pieces), size)
    ]
    return [
        place
        for number, window in enumerate(windows)
        for place in mixed(window, "window", epoch, lane, number)
    ]


@given(order=orders(), epoch=st.integers(0, 3))
def test_an_order_follows_its_description(order, epoch):
    for lane in range(order.lanes):
        assert whole_lane(order, epoch, lane) == naive_lane(order, epoch, lane)


def test_an_order_never_changes():
    order = Order(rows=[3, 1, 4, 0, 2], lanes=2, seed=17, window=2)
    assert whole_lane(order, 0, 0) == [(0, 2), (4, 1), (4, 0), (0, 1), (0, 0)]
    assert whole_lane(order, 0, 1) == [(2, 2), (1, 0), (2, 0), (2, 3), (2, 1)]
    assert whole_lane(order, 1, 0) == [(0, 1), (0, 2), (4, 0), (4, 1), (0, 0)]
    assert whole_lane(order, 1, 1) == [(2, 2), (2, 3), (2, 0), (2, 1), (1, 0)]


@given(order=orders(), epoch=st.integers(0, 3))
def test_an_epoch_reads_every_row_exactly_once(order, epoch):
    read = [place for lane in range(order.lanes) for place in whole_lane(order, epoch, lane)]
    assert sorted(read) == every_row(order)


@given(order=orders(), data=st.data())
def test_seeking_equals_reading_on(order, data):
    lane = data.draw(st.integers(0, order.lanes - 1))
    length = order.lane_rows(lane)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    spans = list(pairwise([0, *cuts, length]))
    expected = whole_lane(order, 1, lane)
    located = {}
    for start, stop in data.draw(st.permutations(spans)):
        files, rows = order.locate(1, lane, start, stop)
        located[start, stop] = list(zip(files.tolist(), rows.tolist(), strict=True))
    assert [place for span in spans for place in located[span]] == expected


@given(order=orders())
def test_lanes_differ_by_at_most_one_row(order):
    lengths = [order.lane_rows(lane) for lane in range(order.lanes)]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) == order.shortest_lane
    assert sum(lengths) == sum(order.rows)


@given(order=orders())
def test_at_most_one_file_less_than_there_are_lanes_is_split(order):
    owners = {}
    for lane in range(order.lanes):
        for file, _ in whole_lane(order, 0, lane):
            owners.setdefault(file, set()).add(lane)
    assert sum(len(lanes) > 1 for lanes in owners.values()) <= order.lanes - 1


@given(order=orders(), epoch=st.integers(0, 3))
def test_lanes_keep_their_rows_from_epoch_to_epoch(order, epoch):
    for lane in range(order.lanes):
        assert set(whole_lane(order, epoch, lane)) == set(whole_lane(order, epoch + 1, lane))


def most_files_at_a_time(places):
    """Return the most files needed at once, if a file is kept from its first to its last use."""
    spans = {}
    for position, (file, _) in enumerate(places):
        first, _ = spans.get(file, (position, position))
        spans[file] = first, position
    return max(
        sum(first <= position <= last for first, last in spans.values())
        for position in range(len(places))
    )


@given(rows=st.lists(st.integers(1, 9), min_size=6, max_size=12), window=st.integers(1, 4))
def test_a_lane_needs_at_most_as_many_files_at_a_time_as_a_window_has(rows, window):
    order = Order(rows=rows, lanes=2, seed=3, window=window)
    for lane in range(2):
        assert most_files_at_a_time(whole_lane(order, 0, lane)) <= window


def test_without_windows_a_lane_needs_more_files_at_a_time():
    order = Order(rows=[9] * 12, lanes=2, seed=3, window=None)
    assert most_files_at_a_time(whole_lane(order, 0, 0)) > 4


def test_every_row_of_a_window_can_come_first():
    firsts = {whole_lane(Order(rows=[2, 2], lanes=1, seed=s), 0, 0)[0] for s in range(64)}
    assert firsts == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_seeds_epochs_and_lanes_give_different_orders():
    def lane(seed=1, epoch=0, window=4):
        order = Order(rows=[10] * 10, lanes=1, seed=seed, window=window)
        return whole_lane(order, epoch, 0)

    assert lane() == lane()
    assert lane() != lane(seed=2)
    assert lane() != lane(epoch=1)
    assert lane() != lane(window=5)
    order = Order(rows=[10, 10], lanes=2, seed=1, shuffle=True, window=1)
    one, other = ([row for _, row in whole_lane(order, 0, lane)] for lane in (0, 1))
    assert one != other


@given(
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any), lanes=st.integers(1, 9)
)
def test_without_shuffling_rows_come_as_they_are_stored(rows, lanes):
    order = Order(rows=rows, lanes=lanes, seed=5, window=2, shuffle=False)
    read = [place for lane in range(lanes) for place in whole_lane(order, 3, lane)]
    assert read == every_row(order)


def test_with_shuffling_rows_do_not_come_as_they_are_stored():
    order = Order(rows=[5, 5, 5], lanes=1, seed=5)
    assert whole_lane(order, 0, 0) != every_row(order)


def test_a_million_files_of_one_row_cost_a_few_sorts():
    def seconds(work):
        begun = time.thread_time()  # of CPU: a busy machine does not change the ratio
        work()
        return time.thread_time() - begun

    def locate():
        files, _ = Order(rows=rows, lanes=1, seed=1, window=None).locate(0, 0, 999_000, 10**6)
        assert len(set(files.tolist())) == 1000

    rows = np.ones(10**6, np.int64)
    keys = np.random.default_rng(0).integers(0, 2**63, 10**6)
    located, sorted_once = (
        min(seconds(work) for _ in range(3))
        for work in (locate, lambda: np.argsort(keys, kind="stable"))
    )
    assert located < 20 * sorted_once  # 4; a loop over the files would be 40


@settings(max_examples=20)
@given(order=orders())
def test_changing_the_callers_rows_changes_nothing(order):
    mine = np.array(order.rows)
    again = Order(
        rows=mine, lanes=order.lanes, seed=order.seed, window=order.window, shuffle=order.shuffle
    )
    mine[:] = 99
    assert whole_lane(again, 0, 0) == whole_lane(order, 0, 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rows": []}, "rows"),
        ({"rows": [0, 0]}, "at least one above"),
        ({"rows": [3, -1]}, "-1"),
        ({"rows": [1.5]}, "whole numbers"),
        ({"rows": [[1]]}, "rows"),
        ({"lanes": 0}, "lanes is 0"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_an_order_refuses_invalid_arguments(wrong, says):
    with pytest.raises(ValueError, match=says):
        Order(**({"rows": [2, 2], "lanes": 2, "seed": 0} | wrong))


def test_a_place_outside_the_lane_is_refused_with_its_length():
    order = Order(rows=[5], lanes=2, seed=0)
    with pytest.raises(ValueError, match=r"1\.\.3 .* lane 0, which has 2 rows"):
        order.locate(0, 0, 1, 3)
    with pytest.raises(ValueError, match=r"2\.\.1"):
        order.locate(0, 0, 2, 1)
    with pytest.raises(ValueError, match="lane is 2"):
        order.locate(0, 2, 0, 1)
    with pytest.raises(ValueError, match="epoch is -1"):
        order.locate(-1, 0, 0, 1)


def test_the_order_knows_neither_ray_nor_arrow():
    code = "import sys, raytrain_plus.streams.order; print({'ray', 'pyarrow'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"

"""The tree sum has one association, for any distribution of its parts over workers."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.training.tree import (
    Accumulator,
    additions,
    fold,
    maximal_subtrees,
    subtree_count,
)


def plus(left, right):
    """Add symbols: the nested tuple is the association itself."""
    return ("+", left, right)


def plus_in_place(left, right):
    left += right
    return left


def distributed(values, cuts, add):
    """Sum as a group does: one accumulator per range, then the additions of all partial sums."""
    leaves = len(values)
    slots, nodes = [], []
    for start, stop in itertools.pairwise([0, *cuts, leaves]):
        accumulator = Accumulator(start, stop, leaves, add)
        for value in values[start:stop]:
            accumulator.push(value)
        slots += accumulator.partials
        nodes += maximal_subtrees(start, stop, leaves)
    assert len(slots) == len(nodes)
    for destination, source in additions(nodes, leaves):
        slots[destination] = add(slots[destination], slots[source])
    return slots[0]


def nodes_with_parents(start, stop, parent=None) -> Iterator[tuple]:
    """List the tree by its definition: split at the largest power of two below the length."""
    yield (start, stop), parent
    if stop - start > 1:
        split = 1
        while 2 * split < stop - start:
            split *= 2
        yield from nodes_with_parents(start, start + split, (start, stop))
        yield from nodes_with_parents(start + split, stop, (start, stop))


@st.composite
def leaves_and_cuts(draw, most=300):
    leaves = draw(st.integers(1, most))
    cuts = draw(st.sets(st.integers(1, leaves - 1), max_size=30)) if leaves > 1 else set()
    return leaves, sorted(cuts)


@pytest.mark.parametrize("leaves", range(1, 41))
def test_nodes_are_aligned_blocks(leaves):
    blocks = {
        (start, min(start + 2**k, leaves))
        for k in range(leaves.bit_length() + 1)
        for start in range(0, leaves, 2**k)
    }
    assert {node for node, _ in nodes_with_parents(0, leaves)} == blocks


@pytest.mark.parametrize("leaves", range(1, 41))
def test_maximal_subtrees_are_those_whose_parent_is_outside_the_range(leaves):
    tree = list(nodes_with_parents(0, leaves))
    for start, stop in itertools.combinations(range(leaves + 1), 2):

        def inside(node, start=start, stop=stop):
            return node is not None and start <= node[0] and node[1] <= stop

        expected = sorted(n for n, parent in tree if inside(n) and not inside(parent))
        assert maximal_subtrees(start, stop, leaves) == expected
        assert subtree_count(np.array(start), stop, leaves) == len(expected)


@given(st.integers(1, 10**9), st.data())
def test_subtree_count_holds_for_large_trees(leaves, data):
    start = data.draw(st.integers(0, leaves - 1))
    stop = data.draw(st.integers(start + 1, leaves))
    for end in (stop, leaves):
        count = subtree_count(np.array([start]), np.array([end]), leaves)
        assert count.tolist() == [len(maximal_subtrees(start, end, leaves))]


def test_subtree_count_broadcasts():
    starts, sizes = np.arange(5), np.arange(1, 4)[:, None]
    counts = subtree_count(starts, starts + sizes, 8)
    assert counts.shape == (3, 5)
    assert counts.dtype == np.int64


@pytest.mark.parametrize("leaves", range(1, 11))
def test_every_partition_gives_the_association_of_one_worker(leaves):
    values = [str(i) for i in range(leaves)]
    expected = fold(values, plus)
    for pieces in range(leaves):
        for cuts in itertools.combinations(range(1, leaves), pieces):
            assert distributed(values, cuts, plus) == expected


@pytest.mark.parametrize("leaves", range(1, 41))
def test_equal_ranges_give_the_association_of_one_worker(leaves):
    values = [str(i) for i in range(leaves)]
    expected = fold(values, plus)
    for workers in range(1, leaves + 1):
        cuts = [i * leaves // workers for i in range(1, workers)]
        assert distributed(values, cuts, plus) == expected


@given(leaves_and_cuts())
def test_random_partitions_give_the_association_of_one_worker(case):
    leaves, cuts = case
    values = [str(i) for i in range(leaves)]
    assert distributed(values, cuts, plus) == fold(values, plus)


@given(leaves_and_cuts(), st.integers(0, 2**32 - 1))
def test_float32_sums_in_place_have_the_bits_of_one_worker(case, seed):
    leaves, cuts = case
    values = np.random.default_rng(seed).standard_normal((leaves, 7), dtype=np.float32)
    expected = fold([row.copy() for row in values], np.add)
    total = distributed([row.copy() for row in values], cuts, plus_in_place)
    assert total.tobytes() == expected.tobytes()


def test_other_orders_of_summation_have_other_bits():
    """The negative control: the checks above would notice a wrong order."""
    symbols = [str(i) for i in range(8)]
    left_to_right = list(itertools.accumulate(symbols, plus))[-1]
    assert left_to_right != fold(symbols, plus)

    values = list(np.random.default_rng(17).standard_normal((8, 100), dtype=np.float32))
    bits = fold(values, np.add).tobytes()
    assert sum(values[1:], start=values[0]).tobytes() != bits
    # A ring over 2 workers is a tree by chance; over 4, each element starts at another worker.
    parts = [values[i] + values[i + 1] for i in range(0, 8, 2)]
    for first in range(4):
        ring = parts[first:] + parts[:first]
        assert sum(ring[1:], start=ring[0]).tobytes() != bits


def test_a_part_of_the_tree_is_finished_by_the_same_call():
    nodes = [(8, 10), (10, 11), (11, 12), (12, 13)]
    shifted = [(start - 8, stop - 8) for start, stop in nodes]
    assert additions(shifted, 5) == [(1, 2), (0, 1), (0, 3)]


class Counted:
    """A value that counts the live objects of its class."""

    alive = 0

    def __init__(self):
        Counted.alive += 1

    def __del__(self):
        Counted.alive -= 1

    def __iadd__(self, other):
        return self


@pytest.mark.parametrize("leaves", [1, 2, 3, 7, 8, 13, 32, 40])
def test_accumulator_holds_as_few_values_as_documented(leaves):
    for start, stop in itertools.combinations(range(leaves + 1), 2):
        accumulator = Accumulator(start, stop, leaves, plus_in_place)
        peak = 0
        for _ in range(start, stop):
            value = Counted()
            peak = max(peak, Counted.alive)
            accumulator.push(value)
            del value
        sizes = [b - a for a, b in maximal_subtrees(start, stop, leaves)]
        assert peak == max(j + n.bit_length() for j, n in enumerate(sizes))
        assert peak <= (stop - start).bit_length() - 1 + len(sizes)
        assert Counted.alive == len(accumulator.partials) == len(sizes)


def test_accumulator_refuses_too_many_and_too_few_leaves():
    accumulator = Accumulator(2, 4, 8, plus)
    accumulator.push("2")
    with pytest.raises(ValueError, match=r"1 of the 2 leaves in \[2, 4\)"):
        _ = accumulator.partials
    accumulator.push("3")
    with pytest.raises(ValueError, match="complete"):
        accumulator.push("4")
    assert accumulator.partials == [("+", "2", "3")]


@pytest.mark.parametrize("bounds", [(0, 0, 4), (3, 2, 4), (-1, 2, 4), (0, 5, 4), (0, 1, 0)])
def test_ranges_outside_the_tree_are_refused(bounds):
    with pytest.raises(ValueError, match="must satisfy 0 <= start < stop"):
        maximal_subtrees(*bounds)
    with pytest.raises(ValueError, match="must satisfy 0 <= start < stop"):
        Accumulator(*bounds, plus)


@pytest.mark.parametrize(
    ("nodes", "leaves", "message"),
    [
        ([], 4, "subtree 0 is missing"),
        ([(0, 2)], 4, "subtree 1 is missing"),
        ([(0, 2), (3, 4)], 4, r"subtree 1 is \(3, 4\)"),  # a gap
        ([(0, 2), (1, 2), (2, 4)], 4, r"subtree 1 is \(1, 2\)"),  # an overlap
        ([(0, 1), (1, 3), (3, 4)], 4, r"subtree 1 is \(1, 3\)"),  # not a node
        ([(0, 3), (3, 4)], 4, r"subtree 0 is \(0, 3\)"),  # not a node, too
        ([(2, 4), (0, 2)], 4, r"subtree 0 is \(2, 4\)"),  # out of order
        ([(0, 4), (4, 5)], 4, "already cover all 4"),
        ([(0, 0)], 0, "at least one leaf"),
    ],
)
def test_ranges_that_are_not_a_partition_into_nodes_are_refused(nodes, leaves, message):
    with pytest.raises(ValueError, match=message):
        additions(nodes, leaves)


def test_an_empty_sum_is_refused():
    with pytest.raises(ValueError, match="at least one leaf"):
        fold([], plus)


@given(st.data())
def test_the_nodes_of_an_unfinished_sum_are_the_subtrees_of_the_pushed_ranks(data):
    leaves = data.draw(st.integers(1, 40))
    start = data.draw(st.integers(0, leaves - 1))
    stop = data.draw(st.integers(start + 1, leaves))
    sums = Accumulator(start, stop, leaves, lambda a, b: a + b)
    assert (sums.nodes, sums.end) == ([], start)
    for leaf in range(start, stop):
        sums.push([leaf])
        nodes = sums.nodes
        assert [(a, b) for a, b, _ in nodes] == maximal_subtrees(start, leaf + 1, leaves)
        assert all(value == list(range(a, b)) for a, b, value in nodes)
        assert sums.end == leaf + 1

"""The sum by halves has the bits of the tree, for any workers, any ranges and any vector."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.traffic import ranges_of
from raytrain_plus.training.halving import halving
from raytrain_plus.training.tree import additions, fold, maximal_subtrees


@st.composite
def groups(draw, most_workers=24):
    """Draw the logical ranks of each worker of a group."""
    workers = draw(st.integers(1, most_workers))
    leaves = draw(st.integers(workers, 8 * workers))
    cuts = draw(
        st.sets(st.integers(1, leaves - 1), min_size=workers - 1, max_size=workers - 1)
        if workers > 1
        else st.just(set())
    )
    ends = [0, *sorted(cuts), leaves]
    return [range(a, b) for a, b in itertools.pairwise(ends)]


def partials_of(ranges, vectors):
    """Return, for each worker, the sums of its maximal subtrees."""
    leaves = ranges[-1].stop
    return [
        [
            fold(list(vectors[start:stop].copy()), lambda a, b: a + b)
            for start, stop in maximal_subtrees(ranks.start, ranks.stop, leaves)
        ]
        for ranks in ranges
    ]


def exchanged(planned, partials):
    """Do what all workers' rounds say, level by level; return each worker's total."""
    workers = range(len(partials))
    parts = [planned.rounds(worker) for worker in workers]
    rows = [[row.copy() for row in mine] for mine in partials]
    totals = [np.full(len(partials[0][0]), np.nan, np.float32) for _ in workers]
    for level in range(planned.levels):
        arrived = delivered([part.reduce[level] for part in parts], lambda w, row: rows[w][row])
        for worker in workers:
            sum_round(parts[worker].reduce[level], rows[worker], iter(arrived[worker]))
    for worker in workers:
        piece = slice(*parts[worker].piece)
        totals[worker][piece] = rows[worker][parts[worker].main][piece]
    for level in range(planned.levels):
        rounds = [part.gather[level] for part in parts]
        arrived = delivered(rounds, lambda w, _: totals[w])
        for worker in workers:
            for move, box in zip(rounds[worker].receives, arrived[worker], strict=True):
                totals[worker][move.start : move.stop] = box
    return totals


def delivered(rounds, source):
    """Return what each worker receives in a round, in the order of its receives."""
    on_the_way = defaultdict(list)
    for worker, mine in enumerate(rounds):
        for peer, row, start, stop in mine.sends:
            on_the_way[worker, peer].append(source(worker, row)[start:stop].copy())
    arrived = [
        [on_the_way[move.peer, worker].pop(0) for move in mine.receives]
        for worker, mine in enumerate(rounds)
    ]
    assert not any(on_the_way.values())
    return arrived


def sum_round(mine, rows, boxes):
    for row, start, stop, is_left, other in mine.adds:
        kept = rows[row][start:stop]
        theirs = next(boxes) if other is None else rows[other][start:stop]
        assert len(kept) == len(theirs) > 0
        rows[row][start:stop] = theirs + kept if is_left else kept + theirs
    assert next(boxes, None) is None


@settings(max_examples=300, deadline=None)
@given(groups(), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_worker_gets_the_bits_of_the_tree(ranges, length, seed):
    draws = np.random.default_rng(seed)
    leaves = ranges[-1].stop
    vectors = (draws.standard_normal((leaves, length)) * 10.0 ** draws.integers(-6, 6)).astype(
        np.float32
    )
    expected = fold(list(vectors.copy()), lambda a, b: a + b)
    totals = exchanged(halving(ranges, length), partials_of(ranges, vectors))
    for total in totals:
        assert total.tobytes() == expected.tobytes()


def test_another_order_of_additions_has_other_bits():
    """The control: the vectors tell a ring's order from the tree's."""
    draws = np.random.default_rng(1)
    vectors = draws.standard_normal((24, 40)).astype(np.float32)
    expected = fold(list(vectors.copy()), lambda a, b: a + b)
    ring = vectors[0].copy()
    for vector in vectors[1:]:
        ring = ring + vector
    assert ring.tobytes() != expected.tobytes()


@settings(max_examples=100, deadline=None)
@given(groups(12), st.integers(1, 20))
def test_left_operands_stay_left(ranges, length):
    """An addition that does not commute shows it: a number is the text of how it was computed."""
    leaves = ranges[-1].stop
    names = np.array([[f"{leaf}"] * length for leaf in range(leaves)], dtype=object)

    def join(a, b):
        return "(" + a + " " + b + ")"

    partials = [
        [
            fold(list(names[start:stop].copy()), join)
            for start, stop in maximal_subtrees(ranks.start, ranks.stop, leaves)
        ]
        for ranks in ranges
    ]
    expected = list(fold(list(names.copy()), join))
    planned = halving(ranges, length)
    found = joined(planned, partials, join)
    assert all(total == expected for total in found)


def joined(planned, partials, join):
    """Return the total: each piece as the worker that keeps it has computed it."""
    rows = {}
    for worker, mine in enumerate(partials):
        slots = [slot for slot, host in enumerate(planned.hosts) if host == worker]
        rows |= {slot: list(row) for slot, row in zip(slots, mine, strict=True)}
    for hop in sorted(planned.hops, key=lambda hop: hop.level):
        for i in range(hop.start, hop.stop):
            mine, theirs = rows[hop.receiver][i], rows[hop.sender][i]
            rows[hop.receiver][i] = join(theirs, mine) if hop.is_left else join(mine, theirs)
            rows[hop.sender][i] = None  # who gives an element away has it no more
    length = len(partials[0][0])
    total = [None] * length
    for worker, (start, stop) in enumerate(planned.pieces):
        total[start:stop] = rows[planned.mains[worker]][start:stop]
    return [total]


@settings(max_examples=100, deadline=None)
@given(groups(40), st.integers(1, 3000))
def test_pieces_are_a_partition_and_nearly_equal(ranges, length):
    pieces = sorted(piece for piece in halving(ranges, length).pieces if piece[0] < piece[1])
    assert [a for a, _ in pieces] == [0, *(b for _, b in pieces[:-1])]
    assert pieces[-1][1] == length
    sizes = [b - a for a, b in halving(ranges, length).pieces]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=100, deadline=None)
@given(groups(16))
def test_the_additions_are_those_of_the_direct_exchange(ranges):
    planned = halving(ranges, 1)
    assert len(planned.hops) == len(additions(planned.slots, ranges[-1].stop))


@pytest.mark.parametrize(
    ("workers", "messages", "partners"), [(10, 8, 5), (100, 20, 14), (1000, 30, 20)]
)
def test_messages_and_partners_grow_with_the_logarithm(workers, messages, partners):
    planned = halving(ranges_of(workers, 8 * workers), 1 << 16)
    sent, lengths = planned.sent()
    assert max(sent) <= messages  # directly: 2 (W - 1)
    assert max(map(len, planned.partners())) <= partners
    assert sum(lengths) / workers <= 2 << 16  # a ring's traffic


def test_one_worker_needs_no_one():
    planned = halving([range(5)], 7)
    assert planned.hops == ()
    assert planned.levels == 0
    assert planned.rounds(0).piece == (0, 7)

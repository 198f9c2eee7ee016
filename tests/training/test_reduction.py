"""A reduction gives the same bits for every number of workers and every division into ranges."""

import itertools
import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.training import bucket, reduction
from raytrain_plus.training.halving import halving
from raytrain_plus.training.reduction import Reduction
from raytrain_plus.training.step_header import (
    HEADER_WIDTH,
    NEW_SCALARS,
    SUMMED,
    WEIGHT,
    tree_sum,
)
from raytrain_plus.training.tree import Accumulator, fold
from tests.training.wires import Network, bits

SIZES = [1, 2, 3, 4, 5, 6, 8, 16]
ATTACHMENT = b"from rank 0"

# Odd sizes, empty tensors, several dtypes: as in a real model.
GRADIENTS = [
    ((3, 5, 7), torch.float32),
    ((), torch.float32),
    ((0,), torch.float32),
    ((65,), torch.float64),
    ((129,), torch.bfloat16),
    ((2, 0, 3), torch.float16),
    ((31,), torch.float16),
    ((64,), torch.float32),
    ((9,), torch.complex64),
]
BUFFERS = [((63,), torch.float32), ((0,), torch.float64), ((1,), torch.float64), ((5,), torch.half)]


def draw_leaf(shapes, generator):
    """Return tensors with magnitudes for which each order of summation gives other bits."""
    leaf = []
    for shape, dtype in shapes:
        spread = torch.exp2(torch.randint(-8, 9, shape, generator=generator).float())
        values = torch.randn(shape, generator=generator) * spread
        if dtype.is_complex:
            values = torch.complex(values, values.flip(0))
        leaf.append(values.to(dtype))
    return leaf


def draw(ranks, shapes, seed=0):
    """Return the tensors of each logical rank, and the step header's rows."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [draw_leaf(shapes, generator) for _ in range(ranks)]
    rows = torch.randn((ranks, HEADER_WIDTH), generator=generator, dtype=torch.float64).numpy()
    rows[:, WEIGHT] = np.abs(rows[:, WEIGHT]) + 1
    rows[:, NEW_SCALARS] = 0
    return leaves, rows


def add(left, right):
    return [a + b for a, b in zip(left, right, strict=True)]


def folded(leaves, rows, n_gradients):
    """Return the right result of a reduction, computed directly: the oracle."""
    weight = float(fold([row[WEIGHT] for row in rows], lambda a, b: a + b))
    total = fold(leaves, add)
    return [t / (weight if i < n_gradients else len(leaves)) for i, t in enumerate(total)]


class Group:
    """Workers with one reduction each, which may run several times."""

    def __init__(self, ranges, like, n_gradients):
        self.ranges = ranges
        self.network = Network(len(ranges))
        self.reductions = [
            Reduction(
                like[:n_gradients],
                like[n_gradients:],
                ranges,
                self.network.wire(i),
                len(ATTACHMENT),
            )
            for i in range(len(ranges))
        ]

    def run(self, leaves, rows):
        def one(wire):
            mine = self.ranges[wire.index]
            sums = Accumulator(mine.start, mine.stop, len(leaves), add)
            for rank in mine:
                sums.push(leaves[rank])
            attachment = ATTACHMENT if wire.index == 0 else b"something else"
            own = self.reductions[wire.index]
            return own.run(sums.partials, rows[mine.start : mine.stop], attachment)

        return self.network.run(one)


def ranges_of(ranks, workers):
    return [a.ranks for a in assign(ranks, [WorkerSpeed(f"w{i:02}") for i in range(workers)])]


def cut_at(ranks, cuts):
    return [range(start, stop) for start, stop in itertools.pairwise([0, *cuts, ranks])]


def bits_of(reduced):
    tensors = [bits(t) for t in [*reduced.gradients, *reduced.buffers]]
    header = np.asarray(reduced.header)[:SUMMED].tobytes()
    return [*tensors, header, reduced.of_workers.tobytes(), reduced.attachment]


def expected_bits(leaves, rows, n_gradients, ranges):
    tensors = map(bits, folded(leaves, rows, n_gradients))
    own = np.ascontiguousarray(rows[[ranks.start for ranks in ranges], SUMMED:])
    return [*tensors, fold(list(rows[:, :SUMMED]), np.add).tobytes(), own.tobytes(), ATTACHMENT]


@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize(("bucket_bytes", "halves"), [(1, True), (4 << 20, False)])
def test_every_number_of_workers_gives_the_bits_of_the_oracle(
    ranks, bucket_bytes, halves, monkeypatch
):
    monkeypatch.setattr(reduction, "_BUCKET_BYTES", bucket_bytes)
    monkeypatch.setattr(bucket, "by_halves", lambda *_: halves)
    shapes = [*GRADIENTS, *BUFFERS]
    like = draw(1, shapes)[0][0]
    for workers in range(1, ranks + 1):
        group = Group(ranges_of(ranks, workers), like, len(GRADIENTS))
        for seed in (1, 2):  # no value of a step may remain in the next one
            leaves, rows = draw(ranks, shapes, seed)
            expected = expected_bits(leaves, rows, len(GRADIENTS), group.ranges)
            for reduced in group.run(leaves, rows):
                assert bits_of(reduced) == expected
                for total, leaf in zip(reduced.gradients, leaves[0], strict=False):
                    assert (total.dtype, total.shape) == (leaf.dtype, leaf.shape)


@st.composite
def ranks_and_cuts(draw):
    ranks = draw(st.sampled_from(SIZES))
    cuts = draw(st.sets(st.integers(1, ranks - 1), max_size=5)) if ranks > 1 else set()
    return ranks, sorted(cuts)


SHAPES = st.lists(
    st.tuples(
        st.one_of(st.just(()), st.tuples(st.integers(0, 200)), st.just((3, 43))),
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(ranks_and_cuts(), SHAPES, SHAPES, st.integers(0, 2**32), st.booleans())
def test_every_division_into_ranges_gives_the_bits_of_the_oracle(
    case, gradients, buffers, seed, halves
):
    ranks, cuts = case
    leaves, rows = draw(ranks, [*gradients, *buffers], seed)
    ranges = cut_at(ranks, cuts)
    expected = expected_bits(leaves, rows, len(gradients), ranges)
    with mock.patch.object(bucket, "by_halves", return_value=halves):
        group = Group(ranges, leaves[0], len(gradients))
        for reduced in group.run(leaves, rows):
            assert bits_of(reduced) == expected


def test_more_workers_and_buckets_make_a_sum_by_halves_cheaper():
    def choice(workers, buckets, size=1 << 12):
        planned = halving(ranges_of(8 * workers, workers), bucket.UNITS)
        return bucket.by_halves(planned, [size] * buckets)

    assert not choice(4, 1)  # what is short is over sooner with fewer rounds
    assert choice(4, 24)
    assert choice(64, 1)
    chosen = [choice(workers, 4) for workers in (3, 4, 6, 8, 16, 32, 100)]
    assert chosen == sorted(chosen)  # once it is cheaper, it stays so


@pytest.mark.parametrize("workers", [3, 5, 8])
def test_a_sum_by_halves_sends_fewer_messages(workers, monkeypatch):
    taken = {}
    for halves in (False, True):
        monkeypatch.setattr(bucket, "by_halves", lambda *_, halves=halves: halves)
        leaves, rows = draw(2 * workers, [((1000,), torch.float32)])
        group = Group(ranges_of(2 * workers, workers), leaves[0], 1)
        group.run(leaves, rows)
        of_group = group.reductions[0]._group
        rounds = [one for i in range(workers) for one in of_group.part(i).doubling.rounds]
        header = sum(len(one.sends) for one in rounds)
        assert header == (workers * 3 if halves and workers == 8 else header)
        taken[halves] = group.network.taken - header
    if workers == 8:
        assert (taken[False], taken[True]) == (8 * 14, 8 * 6)
    assert taken[True] <= taken[False]


@pytest.mark.parametrize(("ranks", "workers"), [(4, 2), (5, 3), (6, 4)])
def test_large_vectors_are_sent_in_slices_and_keep_their_bits(ranks, workers, monkeypatch):
    monkeypatch.setattr(bucket, "by_halves", lambda *_: False)
    shapes = [((700_001,), torch.float32), ((3, 11), torch.float32)]
    leaves, rows = draw(ranks, shapes)
    large = Group(ranges_of(ranks, workers), leaves[0], 1)
    expected = expected_bits(leaves, rows, 1, large.ranges)
    assert [bits_of(reduced) for reduced in large.run(leaves, rows)] == [expected] * workers

    leaves, rows = draw(ranks, [((500,), torch.float32), shapes[1]])
    small = Group(large.ranges, leaves[0], 1)
    small.run(leaves, rows)
    lanes = workers * (workers - 1)
    assert large.network.taken - lanes == 4 * (small.network.taken - lanes)


def test_other_orders_of_summation_have_other_bits():
    """The negative control: the tests above notice a wrong order."""
    leaves, rows = draw(8, GRADIENTS)
    expected = bits(folded(leaves, rows, len(GRADIENTS))[0])
    weight = rows[:, WEIGHT].sum()
    left_to_right = [leaf[0] / weight for leaf in itertools.accumulate(leaves, add)][-1]
    assert bits(left_to_right) != expected

    # Each worker sums its range from left to right, and then the workers' sums are added likewise:
    # the result depends on W.
    by_workers = set()
    for workers in range(1, 9):
        parts = [
            list(itertools.accumulate(leaves[r.start : r.stop], add))[-1]
            for r in ranges_of(8, workers)
        ]
        by_workers.add(bits(list(itertools.accumulate(parts, add))[-1][0]))
    assert len(by_workers) > 1


def test_one_changed_bit_in_one_part_changes_the_result():
    leaves, rows = draw(6, [((70,), torch.float64)])
    group = Group(ranges_of(6, 3), leaves[0], 1)
    before = [bits_of(reduced) for reduced in group.run(leaves, rows)]
    leaves[4][0].view(torch.int64)[69] ^= 1 << 50
    after = [bits_of(reduced) for reduced in group.run(leaves, rows)]
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert after[0] == after[1] == after[2]


def test_gradients_are_divided_by_the_weight_and_buffers_by_the_ranks():
    rows = np.zeros((3, HEADER_WIDTH))
    rows[:, WEIGHT] = 1.5, 0.0, 2.5  # a rank whose samples are all dropped has no weight
    leaves = [[torch.tensor([1.0]), torch.tensor([6.0])] for _ in range(3)]
    for cuts in ([], [1], [2], [1, 2]):
        for reduced in Group(cut_at(3, cuts), leaves[0], 1).run(leaves, rows):
            assert reduced.gradients[0].tolist() == [3 / 4]
            assert reduced.buffers[0].tolist() == [18 / 3]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32))
def test_the_step_header_is_summed_in_the_order_of_the_tree(ranks, width, seed):
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((ranks, width)) * 2.0 ** draw.integers(-30, 30, (ranks, width))
    expected = fold(list(rows), np.add)
    assert tree_sum(rows).tobytes() == expected.tobytes()


def test_a_step_header_summed_from_left_to_right_has_other_bits():
    """The negative control."""
    rows = draw(9, [])[1]
    assert [sum(column) for column in rows.T.tolist()] != tree_sum(rows).tolist()


def test_a_steps_gradient_check_is_one_transfer(monkeypatch):
    """Several buckets, one `tolist`: each transfer would wait for the device."""
    gradients = [torch.zeros(1 << 20) for _ in range(4)] + [torch.zeros(3, dtype=torch.float64)]
    wire = Network(1).wire(0)
    reduction = Reduction(gradients, [], [range(2)], wire)
    assert len(reduction.buckets) > 2
    rows = np.zeros((2, HEADER_WIDTH))
    rows[:, WEIGHT] = 1.0

    class Transfers(TorchDispatchMode):
        copies = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.copies += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    lists = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: lists.append(t) or tolist(t))
    found = []
    for value in (1.0, math.nan):
        lists.clear()
        gradients[-1][1] = value
        with Transfers() as transfers:
            reduced = reduction.run([[g.clone() for g in gradients]], rows, b"")
        assert (transfers.copies, len(lists)) == (0, 1)
        found.append((reduced.finite, reduced.present))
    assert found == [(True, [True] * 5), (False, [True] * 5)]


def test_a_step_without_weight_leaves_no_nan_behind():
    """Such a step is refused; the padding between tensors, which the next step sums, stays zero."""
    gradients = [torch.zeros(3), torch.zeros(5)]
    reduction = Reduction(gradients, [], [range(1)], Network(1).wire(0))
    rows = np.zeros((1, HEADER_WIDTH))
    for weight in (0.0, 2.0):
        rows[0, WEIGHT] = weight
        reduced = reduction.run([[torch.ones(3), torch.ones(5)]], rows, b"")
    assert reduced.finite
    assert torch.equal(reduced.gradients[1], torch.full((5,), 0.5))

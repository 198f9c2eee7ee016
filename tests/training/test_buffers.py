"""Buffers are equal after a step, for any distribution of logical ranks over workers."""

import copy
import itertools

import pytest
import torch
from torch import nn

from raytrain_plus.training.buffers import Buffers
from raytrain_plus.training.reduction import Reduction
from raytrain_plus.training.step_header import HEADER_WIDTH
from raytrain_plus.training.tree import Accumulator, fold
from tests.training.wires import Network, bits

FEATURES = 3
SPREADS = [(3, []), (3, [1]), (3, [2]), (3, [1, 2]), (6, []), (6, [4]), (6, [1, 3]), (7, [5])]


def part(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn((4, FEATURES), generator=generator) * (rank + 1) + rank


def normed():
    return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.BatchNorm1d(FEATURES, momentum=None))


def add(left, right):
    return [a + b for a, b in zip(left, right, strict=True)]


def trained(model, ranks, cuts=(), steps=2):
    """Run the forwards of some steps, distributed over workers; return each worker's model."""
    ranges = [range(a, b) for a, b in itertools.pairwise([0, *cuts, ranks])]
    models = [copy.deepcopy(model) for _ in ranges]
    held = [Buffers(one) for one in models]
    network = Network(len(ranges))
    wires = [network.wire(i) for i in range(len(ranges))]
    size = held[0].integer_bytes
    reductions = [
        Reduction([], own.floating, ranges, wire, size)
        for own, wire in zip(held, wires, strict=True)
    ]
    for step in range(steps):
        leaves, integers = [], b""
        for one, buffers, mine in zip(models, held, ranges, strict=True):
            buffers.snapshot()
            sums = Accumulator(mine.start, mine.stop, ranks, add)
            for rank in mine:
                buffers.restore()
                one(part(step, rank))
                sums.push(buffers.changes())
                if rank == 0:
                    integers = buffers.integers()
            leaves.append(sums.partials)

        def reduce(wire, leaves=leaves, integers=integers):
            rows = torch.ones((len(ranges[wire.index]), HEADER_WIDTH), dtype=torch.float64).numpy()
            attachment = integers if wire.index == 0 else bytes(size)
            return reductions[wire.index].run(leaves[wire.index], rows, attachment)

        for buffers, reduced in zip(held, network.run(reduce), strict=True):
            buffers.commit(reduced.buffers, reduced.attachment)
    return models


def bits_of(model):
    return {name: bits(buffer) for name, buffer in model.named_buffers()}


@pytest.mark.parametrize(("ranks", "cuts"), SPREADS)
def test_statistics_and_counters_do_not_depend_on_the_number_of_workers(ranks, cuts):
    alone = bits_of(trained(normed(), ranks)[0])
    for model in trained(normed(), ranks, cuts):
        assert bits_of(model) == alone


def test_buffers_carried_from_rank_to_rank_depend_on_the_number_of_workers():
    """The negative control: without restoring, buffers depend on how many ranks a worker has."""
    ends = []
    for mine in ([0, 1, 2], [0, 1]):
        model = normed()
        for rank in mine:
            model(part(0, rank))
        ends.append(bits_of(model))
    assert ends[0]["0.running_mean"] != ends[1]["0.running_mean"]
    assert ends[0]["0.num_batches_tracked"] != ends[1]["0.num_batches_tracked"]


def test_statistics_move_by_the_mean_of_their_changes_and_counters_by_one():
    model = normed()
    moved = []
    for rank in range(5):
        one = copy.deepcopy(model)
        one(part(0, rank))
        moved.append(one[0].running_var - model[0].running_var)
    expected = model[0].running_var + fold(moved, torch.add) / 5
    after = trained(model, 5, [2, 3], steps=1)[0]
    assert bits(after[0].running_var) == bits(expected)
    assert after[0].num_batches_tracked == 1
    assert trained(model, 5, [2, 3], steps=3)[0][1].num_batches_tracked == 3


class Unchanging(nn.Module):
    """Buffers that no forward changes: masks, tables, flags."""

    def __init__(self):
        super().__init__()
        mask = torch.full((4, 4), -torch.inf).triu(1)
        self.register_buffer("mask", mask)
        self.register_buffer("zeros", torch.tensor([-0.0, 0.0, torch.inf]))
        self.register_buffer("table", torch.sin(torch.arange(200.0)))
        self.register_buffer("halves", torch.linspace(-3, 3, 33).half())
        self.register_buffer("rotary", torch.polar(torch.ones(40), torch.arange(40.0)))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("small", torch.tensor(-7, dtype=torch.int8))
        self.register_buffer("empty", torch.zeros((0, 3)))
        self.register_buffer("no_flags", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("missing", None)
        self.register_buffer("moving", torch.zeros(FEATURES))

    def forward(self, x):
        self.moving += x.detach().mean(0)
        return x


@pytest.mark.parametrize(("ranks", "cuts"), [*SPREADS, (5, [1, 2, 4]), (4, [2]), (1, [])])
def test_unchanged_buffers_keep_every_bit(ranks, cuts):
    before = bits_of(Unchanging())
    for model in trained(Unchanging(), ranks, cuts, steps=3):
        after = bits_of(model)
        assert after.pop("moving") != before["moving"]  # so the check would notice a change
        assert after == {name: value for name, value in before.items() if name != "moving"}


class Counting(nn.Module):
    """Counters and a statistic, changed in place or replaced."""

    def __init__(self, replace):
        super().__init__()
        self.replace = replace
        self.register_buffer("count", torch.tensor(5))
        self.register_buffer("seen", torch.tensor([False]))
        self.register_buffer("mean", torch.ones(FEATURES))

    def forward(self, x):
        if self.replace:
            self.count = self.count + 1
            self.seen = torch.tensor([True])
            self.mean = 0.9 * self.mean + x.mean(0)
        else:
            self.count += 1
            self.seen.fill_(True)
            self.mean.copy_(0.9 * self.mean + x.mean(0))
        return x


@pytest.mark.parametrize(("ranks", "cuts"), SPREADS)
def test_a_forward_may_replace_a_buffer(ranks, cuts):
    in_place = bits_of(trained(Counting(replace=False), ranks)[0])
    for model in trained(Counting(replace=True), ranks, cuts):
        assert bits_of(model) == in_place
        assert model.count == 7
        assert model.seen


def test_a_replaced_buffer_is_the_old_tensor_again_after_a_step():
    model = Counting(replace=True)
    before = dict(model.named_buffers())
    buffers = Buffers(model)
    model(part(0, 0))
    assert model.count is not before["count"]  # the control: the forward replaced it
    changes, integers = buffers.changes(), buffers.integers()
    buffers.commit(changes, integers)
    assert all(value is before[name] for name, value in model.named_buffers())
    assert model.count == 6


def test_restoring_undoes_the_changes_of_a_failed_forward():
    class Broken(Counting):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("out of luck")

    for replace in (True, False):
        model = Broken(replace)
        before = bits_of(model)
        buffers = Buffers(model)
        with pytest.raises(RuntimeError, match="out of luck"):
            model(part(0, 0))
        assert bits_of(model) != before
        buffers.restore()
        assert bits_of(model) == before


def test_integers_are_those_of_logical_rank_zero():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.tensor(0))

        def forward(self, x):
            self.last.fill_(int(x[0, 0] * 1000))

    last = int(part(1, 0)[0, 0] * 1000)
    assert last != int(part(1, 1)[0, 0] * 1000)
    for cuts in ([], [1], [2], [1, 2]):
        for model in trained(Own(), 3, cuts):
            assert model.last == last


class Twins(nn.Module):
    """Two modules that share one statistic and one counter."""

    def __init__(self):
        super().__init__()
        self.left, self.right = Counting(replace=False), Counting(replace=False)
        for name in ("count", "seen", "mean"):
            self.right.register_buffer(name, getattr(self.left, name))

    def forward(self, x):
        return self.right(self.left(x))


def test_shared_buffers_count_once_and_stay_shared():
    buffers = Buffers(Twins())
    assert len(buffers.floating) == 1
    assert buffers.integer_bytes == 8 + 1
    for cuts in ([], [1], [1, 2]):
        for model in trained(Twins(), 3, cuts, steps=1):
            assert model.left.mean is model.right.mean
            assert model.left.count is model.right.count
            assert model.left.count == 7  # two forwards of one logical rank
            assert bits_of(model) == bits_of(trained(Twins(), 3, steps=1)[0])

"""A group allows the imbalance that its exchange is worth, and does not oscillate."""

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.elastic.policy.assignment import IMBALANCE, WorkerSpeed, assign
from raytrain_plus.elastic.policy.imbalance import CHOICES, Imbalance
from raytrain_plus.training.tree import maximal_subtrees


class Group:
    """Equally fast workers, one second per logical rank; the exchange takes time for its bytes.

    Args:
        unit: seconds that sending the gradients once takes.
        hidden: seconds of the exchange that overlap the last rank's backward; at most 1.
        noise: the largest relative error of measurements.
        looks: whether the hidden seconds are measured.
    """

    def __init__(
        self, logical_ranks, workers, unit=0.0, hidden=0.0, *, noise=0.0, looks=True, seed=0
    ):
        self.unit, self.hidden, self.noise, self.looks = unit, hidden, noise, looks
        self.members = [WorkerSpeed(f"w{i:03}") for i in range(workers)]
        self.imbalance = Imbalance()
        self.draw = random.Random(seed)
        self.plan = assign(logical_ranks, self.members)
        self.changes = []

    def run(self, windows):
        """Run some windows, and plan again each time this is advised."""
        for _ in range(windows):
            measured = {m.worker: 1 / self._about(1.0) for m in self.members}
            seen, unseen = map(self._about, self.exchange(self.plan))
            self.imbalance.judge(self.plan, self.members, measured, seen, unseen * self.looks)
            if self.imbalance.advises():
                self.changes.append(self.imbalance.follow())
                self.plan = self.planned(self.imbalance.value)
                assert not self.imbalance.advises()
        return self

    def planned(self, imbalance):
        return assign(self.plan[-1].stop, self.members, self.plan, imbalance)

    def exchange(self, plan):
        stop = plan[-1].stop
        sent = 1 + max(len(maximal_subtrees(a.start, a.stop, stop)) for a in plan)
        hidden = min(self.hidden, self.unit * sent)
        return self.unit * sent - hidden, hidden

    def seconds(self, plan=None):
        """Return how long a step takes."""
        plan = plan or self.plan
        return max(len(a.ranks) for a in plan) + self.exchange(plan)[0]

    def best(self):
        """Return how long a step would take at the best imbalance."""
        return min(self.seconds(self.planned(imbalance)) for imbalance in CHOICES)

    def _about(self, exact):
        return exact * self.draw.uniform(1 - self.noise, 1 + self.noise)


SIZES = st.integers(2, 12).flatmap(lambda w: st.tuples(st.integers(w, 40 * w), st.just(w)))
SHARES = st.floats(0.0, 0.7).map(lambda x: x**2)  # of a step is sending


def loads(group):
    return [len(a.ranks) for a in group.plan]


def test_three_workers_share_128_ranks():
    """If bytes matter, two workers have 48 ranks; if they do not, no worker has more than 43."""
    assert max(loads(Group(128, 3, unit=5.0).run(10))) == 48
    assert max(loads(Group(128, 3).run(10))) == 43


@settings(deadline=None)
@given(SIZES, SHARES)
def test_the_group_finds_the_best_imbalance_by_measuring(size, share):
    group = Group(*size, unit=share * size[0] / size[1]).run(10)
    assert group.seconds() <= group.best() / 0.97 + 1e-9


@settings(deadline=None)
@given(SIZES, SHARES, st.floats(0.0, 1.0))
def test_each_change_saves_time_even_if_hidden_communication_becomes_visible(size, share, hidden):
    group = Group(*size, share * size[0] / size[1], hidden)
    while True:
        before, changes = group.seconds(), len(group.changes)
        if len(group.run(2).changes) == changes:
            break
        assert group.seconds() <= 0.97 * before + 1e-9
    assert group.run(50).seconds() == before


def test_a_group_that_ignores_hidden_communication_gets_slower():
    """The negative control: the slowdown is found."""
    looking, blind = (Group(50, 3, 0.5, hidden=1.0, looks=looks) for looks in (True, False))
    before = blind.seconds()
    assert looking.run(50).changes == []
    assert blind.run(50).changes
    assert blind.seconds() > 1.05 * before


@settings(deadline=None, max_examples=20)
@given(SIZES, SHARES, st.floats(0.0, 1.0), st.integers(0, 2**32))
def test_noise_changes_little_in_a_thousand_windows(size, share, hidden, seed):
    group = Group(*size, share * size[0] / size[1], hidden, noise=0.03, seed=seed).run(1000)
    assert len(group.changes) <= 2 * math.log2(1000)


def test_a_lasting_slow_network_is_followed_and_a_changing_one_is_not():
    group = Group(128, 3).run(10)
    assert max(loads(group)) == 43
    group.unit = 5.0
    assert max(loads(group.run(10))) == 48
    for _ in range(500):
        group.unit = 5.0 - group.unit
        group.run(3)
    assert len(group.changes) <= 2 + 2 * math.log2(500)


def test_the_allowed_imbalance_outlives_the_group():
    group = Group(128, 3).run(10)
    assert (wanted := group.imbalance.value) < IMBALANCE
    assert group.imbalance.follow() == wanted  # a worker joins


def test_one_window_is_not_enough():
    group = Group(128, 3).run(1)
    assert group.changes == []
    assert group.imbalance.follow() == IMBALANCE  # a worker joins
    assert len(group.run(2).changes) == 1


def test_choices_start_with_the_default_and_decrease():
    assert CHOICES[0] == IMBALANCE
    assert list(CHOICES) == sorted(CHOICES, reverse=True)

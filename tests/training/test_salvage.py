"""Results of a failed step are not computed again, and the bits stay the same."""

import random
import threading

import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import Aspect
from raytrain_plus.training import exchange, reduction
from raytrain_plus.training.exchange import Exchange
from tests.training.small_tasks import (
    CLASSES,
    FEATURES,
    Branching,
    Noisy,
    Normed,
    Plain,
    loop_alone,
    make_loop,
)
from tests.training.small_tasks import part as batch_of
from tests.training.wires import Network, NetworkDownError

RANKS = 8
CUTS = {
    1: [range(8)],
    2: [range(3), range(3, 8)],
    3: [range(2), range(2, 4), range(4, 8)],
    4: [range(2), range(2, 4), range(4, 6), range(6, 8)],
}


class LostError(RuntimeError):
    pass


class Computed(Aspect):
    """Records which parts are computed; it does not advise the backward, so siblings are merged."""

    _log: list

    def model_post_init(self, _):
        self._log = []

    def batch(self, step):
        self._log.append((step.number, step.logical_rank))
        yield


class EachLeaf(Aspect):
    """Advises the backward, so that each part's gradients are computed separately."""

    def backward(self, _):
        yield


class Worker:
    """A loop that is interrupted as it enters its n-th phase, and logs the computed parts."""

    def __init__(self, task, cuts, wire, algorithms=(), lock=None):
        self.computed = Computed()
        self.patience = None
        self.lock = lock
        self.held = False
        self.thread = None
        self.loop = make_loop(
            task, cuts, wire, algorithms=(self.computed, *algorithms), enter=self.enter
        )

    def enter(self, phase):
        if threading.get_ident() == self.thread and self.lock is not None:
            self.turn(phase in ("forward", "backward", "update"))
        if self.patience is not None:
            self.patience -= 1
            if self.patience < 0:
                raise LostError(phase)

    def turn(self, wanted):
        """Hold the lock while computing: all workers draw from the process's global generators."""
        if wanted and not self.held:
            self.lock.acquire()
        elif not wanted and self.held:
            self.lock.release()
        self.held = wanted

    def train(self, cuts, wire, until):
        self.thread = threading.get_ident()
        # Per thread; the number of threads affects the bits.
        torch.set_num_threads(1)
        loop = self.loop
        results = []
        try:
            while loop.replica.step < until:
                parts = [batch_of(loop.replica.step, r) for r in cuts[wire.index]]
                results.append(loop.run_step(parts))
        except (LostError, NetworkDownError):
            wire.network.cut()  # as an abort does
        finally:
            self.patience = None
            if self.lock is not None:
                self.turn(wanted=False)
        loop.end_generation()
        return results


class Group:
    """Workers that train, lose a worker, and go on."""

    def __init__(self, task, workers, algorithms=(), *, draws=False):
        self.task, self.algorithms = task, algorithms
        self.lock = threading.Lock() if draws else None
        network = Network(workers)
        cuts = CUTS[workers]
        self.members = [self.newcomer(cuts, network.wire(i)) for i in range(workers)]

    def newcomer(self, cuts, wire):
        return Worker(self.task, cuts, wire, self.algorithms, self.lock)

    def train(self, until):
        cuts = CUTS[len(self.members)]
        network = Network(len(self.members))
        for i, member in enumerate(self.members):
            member.loop.begin_generation(cuts, network.wire(i))
        return network.run(lambda w: self.members[w.index].train(cuts, w, until))

    def resize(self, workers, lost=None):
        """Remove a worker, bring all others to the latest step, and add newcomers."""
        if lost is not None:
            del self.members[lost]
        members = self.members[:workers]
        while len(members) < workers:
            members.append(self.newcomer([range(RANKS)], Network(1).wire(0)))
        ahead = max((m.loop.replica for m in self.members), key=lambda r: r.step)
        tensors = {name: t.clone() for name, t in ahead.tensors().items()}
        for member in members:
            if member.loop.replica.step < ahead.step or member.loop.replica.torn:
                member.loop.replica.load(tensors, ahead.scalars())
        self.members = members
        return ahead.step

    def computed(self, step):
        """Return the logical ranks computed for a step since the last call."""
        found = []
        for member in self.members:
            found += [rank for number, rank in member.computed._log if number == step]
            member.computed._log.clear()
        return sorted(found)

    def digests(self):
        return {member.loop.replica.digest() for member in self.members}


def undisturbed(task, steps, algorithms=(), ranks=RANKS):
    loop = loop_alone(task, ranks, algorithms=algorithms)
    for step in range(steps):
        loop.run_step([batch_of(step, r) for r in range(ranks)])
    return loop.replica.digest()


class Large(Plain):
    """A model above the size from which the exchange runs during the backward."""

    def model(self):
        return nn.Sequential(
            nn.Linear(FEATURES, 512), nn.BatchNorm1d(512), nn.Linear(512, 512),
            nn.Linear(512, CLASSES),
        )  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Make the main thread add in the same order as the workers' threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["one bucket", "many buckets", "during the backward"])
def cut(request, monkeypatch):
    if request.param != "one bucket":
        monkeypatch.setattr(reduction, "_BUCKET_BYTES", 1)
    if request.param == "during the backward":
        monkeypatch.setattr(exchange, "_OVERLAP_BYTES", 0)
    return request.param


@pytest.mark.parametrize("algorithms", [(), (EachLeaf(),)])
def test_a_single_worker_continues_after_an_interruption_in_any_phase(algorithms):
    expected = undisturbed(Noisy("AdamW"), 3, algorithms)
    reused = []
    for phases in range(1000):
        group = Group(Noisy("AdamW"), 1, algorithms)
        group.train(1)
        group.computed(0)
        group.members[0].patience = phases
        if group.train(2)[0]:
            break
        first = group.computed(1)
        (result, _) = group.train(3)[0]
        assert group.computed(1) == list(range(result.salvaged, RANKS))
        assert result.salvaged >= len(first) - 1  # only the part that was being computed is lost
        assert group.digests() == {expected}
        reused.append(result.salvaged)
    assert set(reused) == set(range(RANKS + 1))
    assert reused == sorted(reused)


@pytest.mark.parametrize("times", [2, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", [Normed("AdamW"), Branching()])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_survivors_compute_only_lost_parts(task, after, cut, times):
    """Each worker is interrupted in some phase, and the last one is lost."""
    expected = undisturbed(task, 3)
    chance = random.Random(f"{after} {cut}")
    saved = 0
    for done in range(12):
        if done >= times and saved:
            break
        group = Group(task, 3)
        group.train(1)
        for member in group.members:
            member.patience = chance.randrange(24)
        group.train(2)
        step = group.resize(after, lost=2)
        group.computed(step)
        results = group.train(3)
        again = group.computed(step)
        assert [member.loop.replica.step for member in group.members] == [3] * after
        assert group.digests() == {expected}
        for result in results:
            if step < 3:
                assert result[0].salvaged == RANKS - len(again)
                saved += result[0].salvaged
    assert saved > 0


def lose_one_of_four(task, **options):
    """Lose the last of four workers after all have computed; return what three compute again."""
    group = Group(task, 4, **options)
    group.train(1)
    lost = group.members[3]
    lost.enter, before = None, lost.enter

    def dies(phase):
        if phase == "exchange":
            raise LostError
        before(phase)

    lost.loop._enter = dies
    group.train(2)
    assert group.resize(3, lost=3) == 1
    group.computed(1)
    (first, second), *_ = group.train(3)
    return group, group.computed(1), first.salvaged, second.salvaged


@pytest.mark.parametrize("task", [Normed("AdamW"), Noisy(), Branching(), Large()])
def test_only_the_lost_workers_ranks_are_computed_again(task):
    group, again, *salvaged = lose_one_of_four(task, draws=isinstance(task, Noisy))
    assert group.digests() == {undisturbed(task, 3)}
    assert again == [6, 7]
    assert salvaged == [6, 0]


def test_without_salvage_all_are_computed_again(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(Exchange, "_harvest", lambda _: [])
    group, again, *salvaged = lose_one_of_four(Normed("AdamW"))
    assert group.digests() == {undisturbed(Normed("AdamW"), 3)}
    assert again == list(range(RANKS))
    assert salvaged == [0, 0]


def test_results_of_another_state_are_not_used():
    loop = loop_alone(Plain(), RANKS)
    interrupted = Group(Plain(), 1).members[0]
    interrupted.patience = 9
    interrupted.train(CUTS[1], Network(1).wire(0), 1)
    replica = interrupted.loop.replica
    with torch.no_grad():
        for p in loop.replica.model.parameters():
            p.mul_(2)
    for state, expected in ((replica, 4), (loop.replica, 0)):
        if state is not replica:
            replica.load(state.tensors(), state.scalars())
        interrupted.loop.begin_generation(CUTS[1], Network(1).wire(0))
        assert sum(s.stop - s.start for s in interrupted.loop._salvaged) == expected


def test_nothing_is_kept_once_a_step_is_committed():
    group = Group(Normed(), 1)
    group.members[0].patience = 9
    group.train(1)
    loop = group.members[0].loop
    assert loop._salvaged
    group.train(1)
    assert loop.replica.step == 1
    assert not loop._salvaged


def test_a_partial_sum_does_not_wait_for_a_sibling_that_is_there():
    group = Group(Normed("AdamW"), 2)
    group.train(1)

    def dies(phase):
        if phase == "exchange":
            raise LostError

    group.members[0].loop._enter = dies
    group.train(2)
    group.resize(1, lost=0)
    group.computed(1)
    results = group.train(3)
    assert group.digests() == {undisturbed(Normed("AdamW"), 3)}
    assert group.computed(1) == [0, 1, 2]  # 2 is the sibling of 3
    assert results[0][0].salvaged == 5

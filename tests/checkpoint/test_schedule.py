"""The schedule of checkpoints: which are due, missing, cancelled, and deleted."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raytrain_plus.checkpoint.retention import Kept, Retention
from raytrain_plus.checkpoint.schedule import Checkpoints

ALL = Retention()


def due(books, step, now):
    """Return whether a checkpoint is due after a step that is committed now."""
    at = books.next_step(step - 1, now)
    return at is not None and at <= step


def whole(books, step, *, workers=("a", "b"), metrics=None, now=0.0, generation=1):
    """Let an attempt succeed; returns the checkpoints that must be deleted."""
    attempt = books.begin_attempt(generation, step, workers)
    done = [books.returned(generation, step, worker, worker.upper()) for worker in workers]
    assert done[:-1] == [None] * (len(workers) - 1)
    assert done[-1].returned == tuple(worker.upper() for worker in workers)
    assert not due(books, step + 1000, now)  # while it is being committed
    return books.committed(attempt, f"c{step}", metrics or {})


def test_a_checkpoint_is_due_at_every_interval():
    books = Checkpoints(10, ALL)
    assert [step for step in range(31) if due(books, step, 0.0)] == list(range(10, 31))
    whole(books, 12)
    assert [step for step in range(31) if due(books, step, 0.0)] == list(range(20, 31))


def test_without_an_interval_a_checkpoint_is_due_on_request_only():
    books = Checkpoints(None, ALL)
    assert not due(books, 10**6, 0.0)
    books.request()
    assert due(books, 7, 0.0)
    whole(books, 7)
    assert not due(books, 8, 0.0)


def test_a_resumed_run_needs_no_checkpoint_at_its_start():
    books = Checkpoints(10, ALL, step=20)
    books.request()
    assert books.next_step(20, 0.0) == 21


def test_a_checkpoint_requested_during_an_attempt_comes_after_it():
    books = Checkpoints(None, ALL)
    books.request()
    attempt = books.begin_attempt(1, 5, ["a"])
    books.request()
    assert not due(books, 9, 0.0)
    books.returned(1, 5, "a", None)
    books.committed(attempt, "c5", {})
    assert due(books, 9, 0.0)


def test_a_checkpoint_due_during_an_attempt_is_skipped_and_the_newest_step_is_due_then():
    books = Checkpoints(10, ALL)
    attempt = books.begin_attempt(1, 10, ["a", "b"])
    assert not any(due(books, step, 0.0) for step in range(100))
    assert books.returned(1, 10, "a", 1) is None
    assert books.returned(1, 10, "a", 1) is None  # reported twice
    assert books.returned(1, 10, "b", 2).returned == (1, 2)
    books.committed(attempt, "c10", {})
    assert due(books, 37, 0.0)
    whole(books, 37)
    assert not due(books, 39, 0.0)
    assert due(books, 40, 0.0)


def test_a_worker_that_is_lost_before_its_share_cancels_the_attempt():
    books = Checkpoints(10, ALL, max_failures=1)
    first = books.begin_attempt(1, 10, ["a", "b"])
    assert not books.lost("c", 5.0)
    assert books.lost("b", 5.0)
    assert books.under_way is None
    assert due(books, 11, 5.0)  # at once, and not as a failure
    assert books.fatal is None
    books.begin_attempt(2, 11, ["a"])
    assert books.returned(1, 10, "b", "late") is None
    assert books.returned(1, 10, "a", "late") is None
    assert books.failed(first, "late", 6.0) is None
    assert books.returned(2, 11, "a", 1).returned == (1,)


def test_a_worker_that_is_lost_after_its_share_does_not_cancel_the_attempt():
    books = Checkpoints(10, ALL)
    attempt = books.begin_attempt(1, 10, ["a", "b"])
    books.returned(1, 10, "a", 1)
    assert not books.lost("a", 0.0)
    assert books.returned(1, 10, "b", 2).returned == (1, 2)
    assert not books.lost("b", 0.0)
    assert books.committed(attempt, "c10", {}) == []


def fail(books, step, reason, now, generation=1):
    attempt = books.begin_attempt(generation, step, ["a"])
    return books.failed(attempt, reason, now)


def test_after_a_failure_the_delay_doubles_up_to_a_minute_and_a_success_resets_it():
    books, now, delays = Checkpoints(10, ALL), 100.0, []
    for _ in range(80):
        assert due(books, 15, now)
        failure = fail(books, 15, "the store is gone", now, generation=1 + len(delays))
        assert (failure.step, failure.reason) == (15, "the store is gone")
        assert failure.in_a_row == len(delays) + 1
        assert not due(books, 15, now + failure.delay - 0.01)
        delays.append(failure.delay)
        now += failure.delay
    assert delays[:8] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert delays[-1] == 60.0
    assert books.fatal is None
    whole(books, 16, now=now, generation=81)
    assert fail(books, 20, "again", now, generation=82).delay == 1.0


def test_a_limit_makes_failures_in_a_row_fatal():
    books = Checkpoints(10, ALL, max_failures=2)
    fail(books, 10, "disk full", 0.0)
    whole(books, 11)
    fail(books, 20, "disk full", 0.0)
    assert books.fatal is None
    fail(books, 21, "no such bucket", 9.0)
    assert "2 times in a row" in books.fatal
    assert "no such bucket" in books.fatal
    assert not due(books, 99, 1000.0)


def test_a_checkpoint_is_deleted_until_its_removal_is_confirmed():
    there = [Kept("c5", 5, {"loss": 0.1}), Kept("c8", 8, {"loss": 0.9})]
    books = Checkpoints(10, Retention(2, "loss", "min"), there=there, step=8)
    assert whole(books, 10, metrics={"loss": 0.5}) == ["c8"]
    assert whole(books, 20, metrics={"loss": 0.4}) == ["c8", "c10"]
    books.removed("c8")
    books.removed("c10")
    assert [one.name for one in books.kept] == ["c20", "c5"]
    assert whole(books, 30, metrics={"loss": 0.9}) == ["c20"]


@pytest.mark.parametrize("numbers", [{"every": 0}, {"every": None, "max_failures": 0}])
def test_numbers_below_one_are_refused(numbers):
    with pytest.raises(ValueError, match="must be at least 1"):
        Checkpoints(**numbers, retention=ALL)


def test_an_attempt_that_was_given_up_does_not_begin_again():
    books = Checkpoints(10, ALL)
    books.begin_attempt(2, 10, ["a"])
    assert books.lost("a", 0.0)
    for generation, step in ((2, 10), (2, 9), (1, 11)):
        assert not books.may_begin(generation, step)
    for generation, step in ((2, 11), (3, 1)):
        assert books.may_begin(generation, step)


class AnyRun(RuleBasedStateMachine):
    """Steps, shares, late shares, losses, failures and requests in any order."""

    kind = Checkpoints

    def __init__(self):
        super().__init__()
        self.books = self.kind(3, Retention(2))
        self.generation, self.step, self.now, self.named = 1, 0, 0.0, 0
        self.workers = ["w0", "w1"]
        self.committed, self.ready, self.begun = [], None, []

    @property
    def attempt(self):
        return self.books.under_way

    def send(self, attempt, worker):
        """Let a worker's share arrive, which says of what it is."""
        found = self.books.returned(*attempt.name, worker, (attempt.name, worker))
        if found is None:
            return
        assert self.ready is None
        assert found.attempt is self.attempt
        assert found.returned == tuple((self.attempt.name, w) for w in self.attempt.workers)
        self.ready = found

    @rule(steps=st.integers(1, 4))
    def go_on(self, steps):
        self.step, self.now = self.step + steps, self.now + steps
        under_way = self.attempt
        if due(self.books, self.step, self.now):
            assert under_way is None
            assert self.step > max(self.committed, default=0)
            self.begun.append(
                self.books.begin_attempt(self.generation, self.step, tuple(self.workers))
            )
            self.ready = None

    @rule(back=st.booleans())
    def change_the_group(self, back):
        """Begin a generation, which may compute steps again that were not committed."""
        self.generation += 1
        if back:  # as all states after the last checkpoint are lost or wrong
            self.books.give_up()
            self.step, self.ready = max(self.committed, default=0), None

    @rule()
    def ask(self):
        self.books.request()

    @precondition(lambda self: self.attempt)
    @rule(place=st.integers(0, 1))
    def share(self, place):
        self.send(self.attempt, self.attempt.workers[place])

    @precondition(lambda self: self.begun)
    @rule(which=st.integers(0, 10**6), place=st.integers(0, 1))
    def late_share(self, which, place):
        attempt = self.begun[which % len(self.begun)]
        self.send(attempt, attempt.workers[place])

    @precondition(lambda self: self.attempt and not self.ready)
    @rule()
    def succeed(self):
        for worker in self.attempt.workers:
            self.send(self.attempt, worker)
        self.commit()

    @precondition(lambda self: self.attempt)
    @rule()
    def fail(self):
        attempt = self.attempt
        assert self.books.failed(attempt, "broken", self.now).step == attempt.step
        assert self.books.failed(attempt, "again", self.now) is None

    @rule(place=st.integers(0, 1))
    def lose(self, place):
        under_way, ready = self.attempt, self.ready
        if self.books.lost(self.workers[place], self.now):
            assert under_way is not None
            assert ready is None
        self.named += 1
        self.workers[place] = f"new{self.named}"

    @precondition(lambda self: self.attempt and self.ready)
    @rule()
    def commit(self):
        step = self.attempt.step
        for name in self.books.committed(self.attempt, f"c{step}", {}):
            self.books.removed(name)
        self.committed.append(step)
        self.ready = None

    @invariant()
    def the_two_newest_are_kept(self):
        assert [one.step for one in self.books.kept] == self.committed[:-3:-1]
        assert self.committed == sorted(set(self.committed))


TestAnyRun = AnyRun.TestCase


class Forgetful(Checkpoints):
    """Counts a share by its step alone, whatever its generation."""

    def returned(self, generation, step, worker, share):
        if self.under_way is not None and self.under_way.step == step:
            generation = self.under_way.generation
        return super().returned(generation, step, worker, share)


def test_the_property_finds_a_share_of_an_earlier_generation_that_is_counted():
    """The negative control of `AnyRun`."""

    def steps(run):
        run.go_on(3)
        run.change_the_group(back=True)
        run.go_on(3)  # the same step in another generation
        run.late_share(0, 0)
        run.share(1)

    class Wrong(AnyRun):
        kind = Forgetful

    steps(AnyRun())
    with pytest.raises(AssertionError):
        steps(Wrong())

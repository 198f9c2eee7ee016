"""A run's status says what each worker is doing, and never takes long."""

import threading
from types import SimpleNamespace

import pytest

from raytrain_plus.elastic.coordinator.status import RunStatus, phase_of
from raytrain_plus.elastic.coordinator.workers import WorkerActors
from raytrain_plus.elastic.policy.make_plan import Member
from raytrain_plus.elastic.protocol.messages import Assignment, WorkerStatus
from tests.elastic.scripted_pool import loss_of, make_ready, make_spec


def at(phase):
    return WorkerStatus(phase=phase, waiting=False, age=0.1)


def member(worker="w0", *, draining=False):
    return Member(worker, make_ready(worker), draining=draining)


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        (at("forward"), "computing"),
        (at("backward"), "computing"),
        (at("update"), "computing"),
        (at("evaluate"), "computing"),
        (at("fetch"), "fetching"),
        (at("exchange"), "exchange"),
        (at("finish"), "exchange"),
        (at("slice"), "exchange"),
        (at("heal"), "waiting"),
        (at("idle"), "waiting"),
        (None, "no answer"),
    ],
)
def test_a_members_phase_is_its_current_one(status, phase):
    assert phase_of(member(), status, is_member=True) == phase


def test_others_are_starting_spare_or_draining():
    assert phase_of(Member("w0"), None, is_member=False) == "starting"
    assert phase_of(member(), at("idle"), is_member=False) == "spare"
    assert phase_of(member(draining=True), at("forward"), is_member=True) == "draining"
    assert phase_of(member(draining=True), None, is_member=True) == "no answer"


def run_status(tmp_path, pool, *members):
    membership = SimpleNamespace(members={one.worker: one for one in members})
    return RunStatus(make_spec(tmp_path), None, None, membership, pool)


class Answers:
    """A pool whose workers answer as a test says."""

    def __init__(self, **answers):
        self.answers = answers

    def statuses(self, workers, timeout):
        assert timeout < 1
        return {worker: self.answers[worker] for worker in workers}


def test_a_member_has_its_ranks_its_node_and_its_pace(tmp_path):
    group = (Assignment("w0", 0, 6), Assignment("w1", 6, 8))
    pool = Answers(w0=at("backward"), w1=None)
    made = run_status(tmp_path, pool, member("w0"), member("w1"), Member("w2"))
    for slow in (0.6, 60.0, 0.6):  # one slow step is no speed
        made.add_step(group, (slow, 0.1))
    first, second, third = made._members(group)
    assert first == {
        "worker": "w0",
        "node": "127.0.0.1",
        "pid": 1000,
        "ranks": [0, 1, 2, 3, 4, 5],
        "seconds_per_rank": 0.1,
        "phase": "computing",
    }
    assert (second["ranks"], second["seconds_per_rank"]) == ([6, 7], 0.05)
    assert second["phase"] == "no answer"
    assert (third["phase"], third["node"], third["seconds_per_rank"]) == ("starting", None, None)


def test_an_earlier_speed_is_forgotten_with_the_worker(tmp_path):
    made = run_status(tmp_path, Answers(w0=at("idle"), w1=at("idle")), member("w0"), member("w1"))
    made.add_step((Assignment("w0", 0, 4), Assignment("w1", 4, 8)), (0.4, 0.8))
    made.add_step((Assignment("w0", 0, 8),), (0.8,))
    assert [one["seconds_per_rank"] for one in made._members(())] == [0.1, None]


def test_only_one_request_at_a_time_asks_the_workers_and_others_do_not_wait(tmp_path):
    asking, answered = threading.Event(), threading.Event()

    class Slow(Answers):
        def statuses(self, workers, timeout):
            asking.set()
            assert answered.wait(10)
            return super().statuses(workers, timeout)

    group = (Assignment("w0", 0, 8),)
    made = run_status(tmp_path, Slow(w0=at("forward")), member())
    first = []
    thread = threading.Thread(target=lambda: first.extend(made._members(group)))
    thread.start()
    assert asking.wait(10)
    assert made._members(group)[0]["phase"] == "no answer"  # not yet, but at once
    answered.set()
    thread.join(10)
    assert first[0]["phase"] == "computing"


def test_a_worker_that_has_left_meanwhile_does_not_answer(tmp_path):
    """The coordinator's thread may end a worker at any moment."""
    pool = WorkerActors(make_spec(tmp_path), None, "node")
    assert pool.statuses(["w0"], 0.1) == {"w0": None}


def test_the_coordinator_reports_the_status_while_a_worker_hangs(lead):
    seen = []

    def script(pool):
        pool.hang("w1")
        seen.append(pool.coordinator.status())

    outcome, _ = lead({4: script}, workers=(2, 2))
    (status,) = seen
    assert [one["phase"] for one in status["members"]] == ["exchange", "no answer"]
    assert [one["ranks"] for one in status["members"]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert status["members"][0]["seconds_per_rank"] == pytest.approx(0.1)
    assert status["loss"] == loss_of(3)
    assert status["generations"][0]["causes"] == [{"kind": "start"}]
    assert status["checkpoint"] is None
    assert outcome.state == "finished"

"""Which workers are requested, admitted, kept and released."""

import itertools

import pytest

from raytrain_plus.elastic.coordinator import membership
from raytrain_plus.elastic.coordinator.membership import Membership, RunError
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.workers import PrepareReturned, WorkerStarting
from raytrain_plus.elastic.protocol.messages import ElasticConfig, Report, WorkerProcess
from raytrain_plus.observe.causes import Cause
from raytrain_plus.observe.journal import Journal, read
from tests.elastic.scripted_pool import FakeTime, ScriptedPool, comes, make_ready, make_spec


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(membership, "time", fake)
    monkeypatch.setattr(
        membership, "missing_resources", lambda _, n, __: f"CPU: {n} needed, 0 free"
    )
    return fake


@pytest.fixture
def make(tmp_path, time):
    def membership(arrive=comes, **spec):
        pool = ScriptedPool(time, arrive)
        return Membership(make_spec(tmp_path, **spec), pool, RunLog(Journal(tmp_path))), pool

    return membership


def handler(membership):
    return lambda event: (
        membership.on_prepared(event) if isinstance(event, PrepareReturned) else None
    )


def gathered(membership, **members):
    """Let all workers arrive; then set each member's step, and whether it is warm or draining."""
    membership.await_first(handler(membership))
    for worker, state in members.items():
        for name, value in state.items():
            setattr(membership.members[worker], name, value)
    return membership


def names(members):
    return [member.worker for member in members]


def states_in(folder):
    return [(e["worker"], e["state"]) for e in read(folder) if e["event"] == "worker"]


def no_worker(_):
    return None


# -- coming


def test_the_wanted_number_of_workers_is_requested(make, tmp_path):
    membership, pool = make(workers=(2, 3))
    gathered(membership)
    assert pool.started == ["w0", "w1", "w2"]
    assert names(membership.await_members(handler(membership))) == ["w0", "w1", "w2"]
    assert states_in(tmp_path) == [("w0", "ready"), ("w1", "ready"), ("w2", "ready")]
    membership.recruit()
    assert len(pool.started) == 3  # none is missing


def test_a_run_starts_with_the_minimum_if_the_others_do_not_come(make, time):
    membership, pool = make(
        lambda worker: comes(worker) if worker != "w2" else None, workers=(2, 3)
    )
    began = time.now
    gathered(membership)
    assert len(pool.started) == 3
    assert 0 < time.now - began < 10  # it waited a moment for them
    assert names(membership.await_members(handler(membership))) == ["w0", "w1"]


def test_a_run_without_any_worker_says_what_is_missing(make, time):
    membership, _ = make(no_worker, workers=(2, 3), elastic=ElasticConfig(start_timeout=30.0))
    began = time.now
    message = r"0 of at least 2 workers came up within 30 s.*CPU: 2 needed, 0 free.*Ask for fewer"
    with pytest.raises(RunError, match=message):
        membership.await_first(handler(membership))
    assert 30 <= time.now - began < 31


def hanging(*workers):
    """Return how workers arrive if some hang once they have a process."""

    def arrive(worker):
        process = WorkerProcess(pid=7, node="node", host="h")
        return WorkerStarting(worker, process) if worker in workers else comes(worker)

    return arrive


def test_a_lone_newcomer_that_hangs_is_replaced_and_the_run_begins(make, time):
    membership, pool = make(
        hanging("w0"), workers=(1, 1), elastic=ElasticConfig(start_timeout=30.0)
    )
    pool.come, began = pool.events.append, time.now
    membership.await_first(lambda event: event and membership.handle(event, []))
    assert (pool.started, pool.hung) == (["w0", "w1"], ["w0"])
    assert list(membership.members) == ["w1"]
    assert 30 <= time.now - began < 40


def test_a_run_whose_newcomers_hang_one_after_the_other_ends(make, time):
    elastic = ElasticConfig(start_timeout=30.0)
    membership, pool = make(hanging("w0", "w1"), workers=(1, 1), elastic=elastic)
    pool.come, began = pool.events.append, time.now
    with pytest.raises(RunError, match=r"w1 on h, hangs: it did not come up within 30 s"):
        membership.await_first(lambda event: event and membership.handle(event, []))
    assert pool.hung == ["w0", "w1"]
    assert 60 <= time.now - began < 70


def test_a_task_that_fails_on_the_first_workers_ends_the_run(make):
    membership, _ = make(
        lambda worker: PrepareReturned(worker, None, failed="Traceback: no such file")
    )
    with pytest.raises(RunError, match="Traceback: no such file"):
        membership.await_first(handler(membership))


def test_a_task_that_fails_on_a_later_worker_does_not(make, tmp_path):
    membership, pool = make(workers=(1, 1))
    gathered(membership)
    membership.await_members(handler(membership))
    membership.set_target(2, "scaled to 2")
    pool.arrive = lambda worker: PrepareReturned(worker, None, failed="Traceback: disk full")
    membership.recruit()
    membership.on_prepared(pool.next_event(0))
    assert names(membership.await_members(handler(membership))) == ["w0"]
    assert states_in(tmp_path)[-1] == ("w1", "failed")


def test_a_worker_that_fails_to_start_is_requested_again_with_growing_delays(make, time):
    membership, pool = make(
        lambda worker: PrepareReturned(worker, None, died="no image"), workers=(1, 1)
    )
    asked = []
    while len(asked) < 9:
        membership.recruit()
        event = pool.next_event(0.125)
        if event is not None:
            asked.append(time.now)
            membership.on_prepared(event)
    waits = [b - a for a, b in itertools.pairwise(asked)]
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60], abs=0.2)
    assert pool.started == [f"w{i}" for i in range(9)]  # each with a new name
    assert pool.ended == pool.started


def test_a_worker_that_starts_resets_the_delay(make, time):
    membership, pool = make(
        lambda worker: PrepareReturned(worker, None, died="no image"), workers=(1, 2)
    )
    for _ in range(3):
        membership.recruit()
        while (event := pool.next_event(0)) is not None:
            membership.on_prepared(event)
        time.now += 100
    pool.arrive = comes
    gathered(membership)
    pool.arrive = lambda worker: PrepareReturned(worker, None, died="no image")
    membership.lost("w6", "gone")
    membership.recruit()
    membership.on_prepared(pool.next_event(0))
    before = len(pool.started)
    time.now += 1.01  # the first wait again
    membership.recruit()
    assert len(pool.started) == before + 1


# -- proving


def one_is_different(worker):
    return PrepareReturned(worker, make_ready(worker, **({"torch": "3"} if worker == "w1" else {})))


def test_a_worker_that_computes_other_bits_is_refused(make, tmp_path):
    membership, pool = make(one_is_different, workers=(1, 2))
    gathered(membership)
    assert names(membership.await_members(handler(membership))) == ["w0"]
    refused = [e for e in read(tmp_path) if e.get("state") == "refused"]
    assert refused[0]["worker"] == "w1"
    assert "torch is 3, the group's is 2" in refused[0]["reason"]
    assert pool.ended == ["w1"]
    assert membership.bitwise


def test_if_allowed_it_is_admitted_and_the_run_is_marked(make, tmp_path):
    membership, pool = make(one_is_different, workers=(1, 2), elastic=ElasticConfig(bitwise=False))
    gathered(membership)
    assert names(membership.await_members(handler(membership))) == ["w0", "w1"]
    assert not membership.bitwise
    assert not membership._run_log.bitwise  # which checkpoints record
    assert ("w1", "admitted") in states_in(tmp_path)
    assert pool.ended == []


def test_equal_workers_do_not_mark_the_run(make):
    membership, _ = make(workers=(1, 2), elastic=ElasticConfig(bitwise=False))
    assert gathered(membership).bitwise


BEFORE = {"torch": "1", "probe gradient": "same"}


def resumed_with(make, arrive=comes, **spec):
    return make(arrive, environment=BEFORE, **spec)


def test_a_resumed_run_refuses_workers_that_compute_differently_than_before(make, tmp_path):
    elastic = ElasticConfig(start_timeout=1e6)
    membership, pool = resumed_with(make, workers=(1, 1), elastic=elastic)
    with pytest.raises(RunError, match=r"torch is 2, before it was 1.*--allow-change"):
        membership.await_first(handler(membership))
    assert pool.ended == ["w0", "w1", "w2"]  # no fourth is tried
    assert not [e for e in read(tmp_path) if e["event"] == "environment"]


def test_a_resumed_run_goes_on_with_workers_that_compute_as_before(make, tmp_path):
    def one_is_the_same(worker):
        return PrepareReturned(
            worker, make_ready(worker, **({"torch": "1"} if worker == "w1" else {}))
        )

    membership, pool = resumed_with(make, one_is_the_same, workers=(1, 3))
    gathered(membership)
    assert names(membership.await_members(handler(membership))) == ["w1"]
    assert {"w0", "w2"} <= set(pool.ended)
    (noted,) = [e for e in read(tmp_path) if e["event"] == "environment"]
    assert noted["fingerprint"]["torch"] == "1"
    assert "changes" not in noted


@pytest.mark.parametrize(
    "allowing", [{"allow_change": True}, {"elastic": ElasticConfig(bitwise=False)}]
)
def test_another_environment_that_is_allowed_marks_the_run(make, tmp_path, allowing):
    membership, _ = resumed_with(make, workers=(1, 2), **allowing)
    gathered(membership)
    assert names(membership.await_members(handler(membership))) == ["w0", "w1"]
    events = read(tmp_path)
    (noted,) = [e for e in events if e["event"] == "environment"]
    assert noted["changes"] == ["environment: torch is 2, before it was 1"]
    (warned,) = [e for e in events if e["event"] == "warning"]
    assert "torch is 2, before it was 1" in warned["text"]


def test_a_password_in_the_address_of_the_data_is_no_difference(make, tmp_path):
    def from_store(worker):
        return PrepareReturned(worker, make_ready(worker, data="https://ann:secret@host/a.parquet"))

    gathered(make(from_store, workers=(1, 1))[0])
    assert "secret" not in (tmp_path / "journal.jsonl").read_text()
    again = RunLog(Journal(tmp_path), read(tmp_path))  # of a coordinator that comes back
    membership = Membership(make_spec(tmp_path), ScriptedPool(FakeTime()), again)
    membership.recruit()
    membership.on_prepared(from_store("w0"))
    assert membership.members["w0"].ready is not None
    membership.on_prepared(PrepareReturned("w1", make_ready("w1")))
    assert "w1" not in membership.members  # it reads other data


# -- leaving


def test_a_lost_worker_is_replaced_under_another_name(make, tmp_path):
    membership, pool = make(workers=(1, 2))
    gathered(membership)
    membership.lost("w0", "killed")
    membership.lost("w0", "killed")  # reported twice
    membership.recruit()
    assert pool.started == ["w0", "w1", "w2"]
    assert pool.ended == ["w0"]
    assert membership.pop_causes() == [Cause("lost", "w0")]
    assert membership.pop_causes() == []
    assert states_in(tmp_path)[-1] == ("w0", "lost")


def test_a_worker_that_hangs_is_ended_from_outside(make):
    membership, pool = make(workers=(1, 2))
    gathered(membership)
    membership.lost("w1", "no progress", hangs=True)
    assert pool.hung == ["w1"]
    assert membership.pop_causes() == [Cause("hung", "w1")]


def test_a_draining_worker_is_replaced_and_leaves_when_others_have_its_state(make):
    membership, pool = make(workers=(2, 2))
    gathered(membership, w0={"step": 5, "warm": True}, w1={"step": 5, "warm": True})
    membership.drain(["w1", "w1", "unknown"])
    assert membership.pop_causes() == [Cause("drained", "w1")]
    membership.recruit()
    assert pool.started == ["w0", "w1", "w2"]
    assert pool.ended == []
    membership.release_surplus()
    assert pool.ended == ["w1"]


def test_all_workers_of_a_draining_node_leave(make):
    membership, _ = make(
        lambda w: PrepareReturned(w, make_ready(w, node="a" if w == "w1" else "b"))
    )
    gathered(membership)
    membership.drain_nodes({"a", "elsewhere"})
    assert [w for w, member in membership.members.items() if member.draining] == ["w1"]


def test_the_last_worker_with_the_state_is_kept_while_it_drains(make):
    membership, pool = make(workers=(1, 2))
    gathered(membership, w0={"step": 5, "warm": True}, w1={"step": 0})
    membership.drain(["w0"])
    membership.release_surplus()
    assert pool.ended == []
    # It stays for one more generation, to heal the newcomer.
    assert names(membership.await_members(handler(membership))) == ["w0", "w1"]
    membership.members["w1"].step = 5
    membership.release_surplus()
    assert pool.ended == ["w0"]
    assert names(membership.await_members(handler(membership))) == ["w1"]


def test_when_all_workers_drain_one_with_the_state_goes_on_alone(make):
    membership, pool = make(no_worker, workers=(1, 3))
    membership.recruit()
    for worker in ("w0", "w1", "w2"):
        membership.on_prepared(comes(worker))
        membership.members[worker].step = 4 + (worker == "w1")
    membership.drain(["w0", "w1", "w2"])
    membership.release_surplus()
    assert pool.ended == []
    assert names(membership.await_members(handler(membership))) == ["w1"]


def test_the_only_worker_with_the_newest_state_is_kept_beyond_the_target(make):
    membership, _ = make(workers=(1, 3))
    gathered(membership, w0={"step": 4, "warm": True}, w1={"step": 4, "warm": True}, w2={"step": 5})
    membership.target = 2
    assert names(membership.await_members(handler(membership))) == ["w2", "w0", "w1"]


# -- the target


def test_a_lower_target_releases_the_least_useful_workers_first(make):
    membership, pool = make(lambda w: comes(w) if w != "w3" else None, workers=(1, 4))
    gathered(membership, w0={"warm": True}, w1={"warm": True})
    membership.set_target(3, "scaled to 3")
    assert pool.ended == ["w3"]  # has not arrived yet
    membership.set_target(2, "scaled to 2")
    assert [w for w, member in membership.members.items() if member.draining] == [
        "w2"
    ]  # has run no step yet
    assert membership.pop_causes() == [Cause("scaled", detail="3"), Cause("scaled", detail="2")]
    membership.recruit()
    assert len(pool.started) == 4


def test_a_higher_target_requests_more_workers(make):
    membership, pool = make(workers=(1, 3))
    membership.target = 1
    gathered(membership)
    assert pool.started == ["w0"]
    membership.set_target(3, "scaled to 3")
    membership.set_target(3, "again")  # no change, no cause
    membership.recruit()
    assert pool.started == ["w0", "w1", "w2"]
    assert membership.pop_causes() == [Cause("scaled", detail="3")]


@pytest.mark.parametrize(
    ("group", "draining", "target", "wants"),
    [
        (["w0", "w1", "w2"], [], 3, False),
        (["w0", "w1"], [], 3, True),  # a newcomer is ready
        (["w0", "w1"], [], 2, False),  # and not needed
        (["w0", "w1", "w2"], ["w1"], 3, True),  # one wants to leave
        (["w0"], ["w0"], 3, True),  # the only member wants to leave, and others are ready
        (
            ["w0", "w1", "w2"],
            ["w0", "w1", "w2"],
            3,
            False,
        ),  # all want to leave
    ],
)
def test_a_change_is_wanted_when_a_worker_can_join_or_leave(make, group, draining, target, wants):
    membership, _ = make()
    gathered(membership)
    membership.target = target
    membership.drain(draining)
    assert membership.wants_change(group) == wants


def test_all_workers_are_released_at_the_end(make):
    membership, pool = make()
    gathered(membership)
    assert membership.pids() == {"w0": 1000, "w1": 1001, "w2": 1002}
    membership.dismiss_all()
    assert sorted(pool.ended) == ["w0", "w1", "w2"]
    assert membership.members == {}
    membership.on_prepared(comes("w0"))  # a late report
    assert membership.members == {}


# -- spares, workers found again, and distrusted workers


def test_spares_are_kept_in_addition_to_the_group(make):
    membership, pool = make(workers=(1, 2), elastic=ElasticConfig(spares=2))
    gathered(membership)
    while (event := pool.next_event(0)) is not None:
        membership.on_prepared(event)
    membership.recruit()
    assert pool.started == ["w0", "w1", "w2", "w3"]
    assert names(membership.await_members(handler(membership))) == ["w0", "w1"]
    assert not membership.wants_change(["w0", "w1"])
    membership.lost("w0", "killed")
    assert names(membership.await_members(handler(membership))) == ["w1", "w2"]
    membership.recruit()
    assert pool.started[4:] == ["w4"]


def test_a_worker_that_is_found_again_keeps_its_place_and_its_number(make):
    membership, pool = make(workers=(1, 3))
    membership.readmit("w4", make_ready("w4"), 7)
    membership.readmit("w2", make_ready("w2"), 6)
    membership.avoid(["w1", "w5"])
    assert pool.held == ["w4", "w2"]
    assert {w: member.step for w, member in membership.members.items()} == {"w4": 7, "w2": 6}
    assert membership.bitwise
    membership.recruit()
    assert pool.started == ["w6"]


def test_newcomers_are_compared_with_a_worker_that_is_found_again(make):
    membership, pool = make(lambda w: PrepareReturned(w, make_ready(w, torch="3")), workers=(1, 2))
    membership.readmit("w0", make_ready("w0"), 7)
    membership.recruit()
    membership.on_prepared(pool.next_event(0))
    assert pool.ended == ["w1"]


def test_a_task_that_fails_on_a_newcomer_does_not_end_a_run_that_was_found_again(make):
    membership, pool = make(
        lambda w: PrepareReturned(w, None, failed="Traceback: disk full"), workers=(1, 2)
    )
    membership.readmit("w0", make_ready("w0"), 7)
    membership.recruit()
    membership.on_prepared(pool.next_event(0))
    assert names(membership.await_members(handler(membership))) == ["w0"]


def test_an_evicted_worker_is_ended_and_replaced(make, tmp_path):
    membership, pool = make(workers=(1, 2))
    ended = []
    membership.on_end = ended.append
    gathered(membership)
    membership.evict("w1", "its memory changed")
    membership.evict("w1", "its memory changed")  # reported twice
    membership.recruit()
    assert (pool.ended, ended, pool.started) == (["w1"], ["w1"], ["w0", "w1", "w2"])
    assert membership.pop_causes() == [Cause("corruption", "w1")]
    assert states_in(tmp_path)[-1] == ("w1", "evicted")


def test_a_distrusted_worker_is_trusted_after_it_has_joined_a_group(make):
    membership, _ = make(workers=(1, 3))
    gathered(membership, w0={"step": 9}, w1={"step": 4}, w2={"step": 0})
    membership.distrust_after(4)
    assert [member.step for member in membership.members.values()] == [-1, 4, 0]
    aborted = Report(ending="aborted", step=9, committed_at=1.0, formed=False)
    assert membership.reported("w0", aborted) == -1
    paused = Report(ending="paused", step=5, committed_at=1.0)
    assert membership.reported("w0", paused) == 5
    assert (
        membership.reported("w0", Report(ending="aborted", step=5, committed_at=1, formed=False))
        == 5
    )
    assert membership.members["w0"].warm


def test_a_cause_is_named_once(make):
    membership, _ = make()
    membership.because(Cause("rebalanced"))
    membership.because(Cause("rebalanced"))
    assert membership.pop_causes() == [Cause("rebalanced")]

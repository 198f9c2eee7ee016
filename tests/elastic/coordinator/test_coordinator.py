"""The coordinator leads a run while a script disturbs its workers."""

import contextlib
import os
import signal
from dataclasses import replace

import pytest

from raytrain_plus.clock import Clock
from raytrain_plus.elastic.coordinator.durable_journal import DurableJournal
from raytrain_plus.elastic.coordinator.workers import PrepareReturned, WorkerLost
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import ElasticConfig, WorkerStatus
from raytrain_plus.observe.causes import causes_of, sentence
from raytrain_plus.observe.journal import read
from raytrain_plus.storage.fencing import FencedError
from raytrain_plus.storage.ownership import Owner, Owners
from raytrain_plus.storage.store import Store
from raytrain_plus.user_code import CodeFile
from tests.elastic.outcomes import check_journal, groups_in
from tests.elastic.scripted_pool import comes, loss_of, make_ready


def said(generation):
    return sentence(causes_of(generation))


def test_a_run_taken_over_by_another_driver_ends_its_workers_and_writes_nothing_more(
    lead, tmp_path
):
    pools = []

    def take_over(_pool):
        thief = Owner.this("theirs", "id", "driver", "10.0.0.9:6379", tmp_path)
        Owners(Store(tmp_path)).follow(thief, 1)

    with pytest.raises(FencedError, match=r"taken over.*10\.0\.0\.9:6379"):
        lead({4: take_over}, workers=(3, 3), claim="mine", prepare=pools.append)
    assert [e["step"] for e in read(tmp_path) if e["event"] == "step"] == [1, 2, 3]
    assert not [e for e in read(tmp_path) if e["event"] in ("end", "checkpoint")]
    assert sorted(pools[0].ended) == ["w0", "w1", "w2"]
    assert pools[0].saved == []


CODE = {"task.py": CodeFile("/here/task.py", "1")}
CHANGED = {"task.py": CodeFile("/there/task.py", "2"), "new.py": CodeFile("/there/new.py", "3")}


def coming_with(code):
    """Return how workers arrive: some, by name, have imported other code."""
    return lambda worker: PrepareReturned(
        worker, replace(make_ready(worker), code=code.get(worker, CODE))
    )


def test_a_newcomer_with_other_code_is_refused_and_the_others_go_on(lead, tmp_path):
    arrive = coming_with({f"w{i}": CHANGED for i in range(2, 40)})
    script = {4: lambda pool: pool.die("w1")}
    outcome, _ = lead(script, arrive, workers=(1, 2), code=CODE)
    assert (outcome.state, outcome.bitwise) == ("finished", True)
    refused = [e for e in read(tmp_path) if e.get("state") == "refused"]
    assert refused
    assert all("task.py has changed (/there/task.py)" in e["reason"] for e in refused)
    assert not [e for e in read(tmp_path) if e["event"] in ("corruption", "withdrawn")]
    check_journal(tmp_path)


def test_a_run_that_has_lost_all_workers_ends_if_only_other_code_is_left(lead, tmp_path):
    arrive = coming_with({f"w{i}": CHANGED for i in range(1, 40)})
    elastic = ElasticConfig(start_timeout=1e6, bitwise=False)  # other code is no other hardware
    script = {4: lambda pool: pool.die("w0")}
    outcome, _ = lead(script, arrive, workers=(1, 1), code=CODE, elastic=elastic)
    assert outcome.state == "failed"
    assert "task.py has changed (/there/task.py)" in outcome.error
    assert "--accept-changed-code" in outcome.error
    assert sum(e.get("state") == "refused" for e in read(tmp_path)) == 3


def test_code_that_the_driver_has_not_seen_must_equal_the_first_workers(lead, tmp_path):
    theirs = {**CODE, "new.py": CodeFile("/a/new.py", "3")}
    other = {**CODE, "new.py": CodeFile("/b/new.py", "4")}
    arrive = coming_with({"w0": theirs, "w1": other})
    outcome, _ = lead({}, arrive, workers=(1, 2), code=CODE)
    assert outcome.state == "finished"
    (refused,) = [e for e in read(tmp_path) if e.get("state") == "refused"]
    assert "new.py has changed (/b/new.py)" in refused["reason"]


def test_an_undisturbed_run_is_one_generation(lead, tmp_path):
    outcome, pool = lead(workers=(3, 3))
    assert (outcome.state, outcome.steps, outcome.loss) == ("finished", 10, loss_of(10))
    assert outcome.digest == "state 10"
    assert groups_in(outcome) == [(1, 0, 3, "start")]
    assert outcome.device_seconds == 10.0
    assert outcome.checkpoint == str(tmp_path / "checkpoint_00000010")
    assert pool.saved == [("w0", 10)]
    assert sorted(pool.ended) == ["w0", "w1", "w2"]
    check_journal(tmp_path)


def test_a_lost_worker_costs_no_committed_step(lead, tmp_path):
    outcome, pool = lead({4: lambda pool: pool.die("w1")}, workers=(1, 3))
    assert outcome.state == "finished"
    assert groups_in(outcome)[:2] == [(1, 0, 3, "start"), (2, 3, 2, "w1 lost")]
    assert pool.plans[1].healed_by == {}  # the survivors have the state already
    assert groups_in(outcome)[2][2:] == (3, "w3 joined")
    assert pool.plans[2].step >= 3
    check_journal(tmp_path)


def test_the_journal_has_the_environment_and_the_usage_of_each_generation(lead, tmp_path):
    outcome, _ = lead({4: lambda pool: pool.die("w1")}, workers=(1, 3))
    events = read(tmp_path)
    (environment,) = [e for e in events if e["event"] == "environment"]
    assert environment["fingerprint"] == dict(make_ready("w0").fingerprint)
    accounts = [(e["generation"], e["workers"]) for e in events if e["event"] == "usage"]
    assert accounts[0] == (1, ["w0", "w2"])  # the lost worker could not report
    assert [number for number, _ in accounts] == [g["generation"] for g in outcome.generations]


def test_a_newcomer_is_healed_by_a_worker_with_the_state(lead):
    outcome, pool = lead({4: lambda pool: pool.die("w0")}, workers=(1, 2))
    joined = pool.plans[-1]
    places = [a.worker for a in joined.assignments]
    assert "w2" in places
    assert joined.healed_by == {places.index("w2"): places.index("w1")}
    assert outcome.state == "finished"


def test_a_survivor_that_is_a_step_behind_is_healed_by_one_ahead(lead, tmp_path):
    def script(pool):
        pool.commit(["w2"])  # only this one got all parts of step 4
        pool.die("w0")

    outcome, pool = lead({4: script}, workers=(1, 3))
    second = pool.plans[1]
    places = [a.worker for a in second.assignments]
    assert second.step == 4
    assert second.healed_by == {places.index("w1"): places.index("w2")}
    assert outcome.state == "finished"
    check_journal(tmp_path)  # step 4, which the lost worker had not reported, was fetched from w2


def test_steps_that_a_lost_worker_did_not_report_are_fetched_from_a_survivor(lead, tmp_path):
    def silent(pool):
        pool.told = False

    def script(pool):
        pool.die("w0")
        pool.told = True

    outcome, _ = lead({2: silent, 6: script}, workers=(1, 3))
    assert outcome.state == "finished"
    check_journal(tmp_path)


@pytest.mark.parametrize("busy", [None, WorkerStatus(phase="forward", waiting=False, age=1e6)])
def test_a_hanging_worker_is_ended_and_the_others_go_on(lead, tmp_path, busy):
    outcome, pool = lead({4: lambda pool: pool.hang("w1", busy)}, workers=(1, 3))
    assert outcome.state == "finished"
    assert groups_in(outcome)[1] == (2, 3, 2, "w1 hung")
    assert pool.hung == ["w1"]
    (hang,) = [e for e in check_journal(tmp_path) if e["event"] == "hang"]
    assert list(hang["culprits"]) == ["w1"]
    assert hang["statuses"]["w0"] == "exchange for 1000000.0 s, waiting for w1"
    assert "waiting for" not in hang["statuses"]["w1"]
    lost = next(e for e in read(tmp_path) if e.get("state") == "lost")
    assert "no progress for 5.0 s" in lost["reason"]


def test_a_hang_is_noticed_at_its_deadline(lead):
    times = []

    def script(pool):
        times.append(pool.time.now)
        pool.hang("w1")

    def note(pool):
        times.append(pool.time.now)

    elastic = ElasticConfig(hang_deadline=20.0)
    outcome, pool = lead({4: script, 5: note}, workers=(1, 2), elastic=elastic)
    assert pool.hung == ["w1"]
    assert outcome.state == "finished"
    seconds = times[1] - times[0] - 2.0  # two of which are those of steps 4 and 5
    assert 19.0 <= seconds <= 22.0


def test_if_all_workers_wait_for_each_other_the_same_group_meets_again(lead, tmp_path):
    def script(pool):
        pool.group.stuck = True

    outcome, pool = lead({4: script}, workers=(3, 3))
    assert groups_in(outcome) == [(1, 0, 3, "start"), (2, 3, 3, "regrouped")]
    assert pool.hung == []
    assert outcome.state == "finished"
    check_journal(tmp_path)


def test_a_newcomer_joins_at_a_step_boundary(lead, tmp_path):
    def script(pool):
        pool.come(comes("w1"))

    outcome, pool = lead(
        {4: script}, lambda worker: comes(worker) if worker == "w0" else None, workers=(1, 2)
    )
    assert groups_in(outcome)[0] == (1, 0, 1, "start")
    assert groups_in(outcome)[1][2:] == (2, "w1 joined")
    assert pool.plans[1].step in (4, 5)
    assert outcome.generations[1]["pause_seconds"] < 5
    check_journal(tmp_path)


def test_a_worker_may_die_after_its_report(lead, tmp_path):
    def script(pool):
        pool.group.stuck = True
        pool.report("w2", "aborted", reason="w1 was gone for a moment")
        pool.report("w1", "aborted", reason="the same")
        pool.steps.pop("w1")
        pool.events.append(WorkerLost("w1", "its connection was cut"))

    outcome, _ = lead({4: script}, workers=(3, 3))
    assert groups_in(outcome)[1] == (2, 3, 2, "w1 lost")
    assert outcome.state == "finished"
    check_journal(tmp_path)


def test_all_may_die_and_be_replaced(lead, tmp_path):
    def script(pool):
        for worker in sorted(pool.group.running):
            pool.die(worker)

    outcome, pool = lead({5: script}, workers=(2, 2))
    assert outcome.state == "finished"
    assert pool.plans[1].step == 0  # no worker was left with a later state
    assert [a.worker for a in pool.plans[-1].assignments] == ["w2", "w3"]
    check_journal(tmp_path)  # what was computed again is not written again


def test_a_step_that_gives_another_loss_the_second_time_ends_the_run(lead, tmp_path):
    def script(pool):
        for worker in sorted(pool.group.running):
            pool.die(worker)
        pool.loss_of = lambda step: loss_of(step) + (step == 3) * 1e-16

    outcome, _ = lead({5: script}, workers=(2, 2))
    assert outcome.state == "failed"
    assert "step 3 was computed again" in outcome.error
    assert "not reproducible" in outcome.error
    check_journal(tmp_path, total=4)


def test_replicas_that_end_differently_are_an_error(lead):
    def script(pool):
        pool.digest_of = lambda worker, step: f"state {step} of {worker}"

    outcome, _ = lead({9: script}, workers=(2, 2))
    assert outcome.state == "failed"
    assert "different states: ['state 10 of w0', 'state 10 of w1']" in outcome.error


def test_an_error_of_the_task_ends_the_run_with_its_text(lead, tmp_path):
    outcome, pool = lead({4: lambda pool: pool.fail("w1", "Traceback: mine")}, workers=(1, 3))
    assert (outcome.state, outcome.error, outcome.steps) == ("failed", "Traceback: mine", 3)
    assert outcome.checkpoint == str(tmp_path / "checkpoint_00000003")  # the last whole state
    assert sorted(pool.ended) == ["w0", "w1", "w2"]
    assert check_journal(tmp_path, total=3)[-1]["error"] == "Traceback: mine"


def test_a_task_that_fails_as_it_is_loaded_ends_the_run(lead):
    outcome, _ = lead(
        arrive=lambda worker: PrepareReturned(worker, None, failed="Traceback: no file")
    )
    assert (outcome.state, outcome.error, outcome.steps) == ("failed", "Traceback: no file", 0)
    assert outcome.checkpoint is None


def test_a_run_without_workers_ends(lead):
    outcome, _ = lead(arrive=lambda _: None, elastic=ElasticConfig(start_timeout=10.0))
    assert outcome.state == "failed"
    assert "CPU: 1 needed" in outcome.error


def test_a_run_whose_group_commits_no_step_ends(lead):
    def again(pool):
        pool.script[1] = again
        pool.die(min(pool.group.running))

    outcome, pool = lead({1: again}, workers=(2, 2))
    assert outcome.state == "failed"
    assert "20 groups in a row ended without a step" in outcome.error
    assert len(pool.plans) == 20


# -- changes that are asked for


@pytest.mark.parametrize(("target", "sizes"), [(1, [3, 1]), (2, [3, 2])])
def test_the_group_shrinks_at_a_step_boundary(lead, tmp_path, target, sizes):
    outcome, pool = lead({4: lambda pool: pool.coordinator.scale(target)}, workers=(1, 3))
    assert [g["workers"] for g in outcome.generations] == sizes
    assert said(outcome.generations[1]) == f"scaled to {target}"
    assert len(pool.started) == 3  # no replacement is requested
    check_journal(tmp_path)


def test_more_workers_are_asked_for_and_join(lead, tmp_path):
    script = {
        2: lambda pool: pool.coordinator.scale(1),
        6: lambda pool: pool.coordinator.scale(3),
    }
    outcome, _ = lead(script, workers=(1, 3))
    assert [g["workers"] for g in outcome.generations][:2] == [3, 1]
    assert outcome.generations[-1]["workers"] == 3
    assert "scaled to 3" in said(outcome.generations[2])
    check_journal(tmp_path)


@pytest.mark.parametrize("workers", [0, 4])
def test_a_number_of_workers_that_the_run_cannot_have_is_refused(lead, workers):
    refused = []

    def script(pool):
        with contextlib.suppress(ValueError):
            pool.coordinator.scale(workers)
            return
        refused.append(workers)

    outcome, _ = lead({4: script}, workers=(1, 3))
    assert refused == [workers]
    assert len(outcome.generations) == 1


def test_workers_of_a_draining_node_are_replaced(lead, tmp_path):
    def script(pool):
        pool.draining.add("leaving")

    def arrive(worker):
        return PrepareReturned(
            worker, make_ready(worker, node="leaving" if worker == "w1" else "staying")
        )

    outcome, pool = lead({3: script}, arrive, workers=(2, 2))
    assert outcome.state == "finished"
    assert "w1" not in [a.worker for a in pool.plans[-1].assignments]
    assert len(pool.plans[-1].assignments) == 2
    assert any("w1 drained" in said(g) for g in outcome.generations)
    assert pool.hung == []
    check_journal(tmp_path)


def test_a_run_stops_after_the_step_in_flight(lead, tmp_path):
    outcome, _ = lead({4: lambda pool: pool.coordinator.stop()}, workers=(2, 2))
    assert (outcome.state, outcome.digest) == ("stopped", f"state {outcome.steps}")
    assert outcome.steps in (4, 5)
    assert outcome.checkpoint == f"{tmp_path}/checkpoint_{outcome.steps:08d}"
    check_journal(tmp_path, total=outcome.steps)


def test_planned_changes_happen_after_their_step(lead, tmp_path):
    faults = [
        Fault(step=0, action="remove", workers=2),
        Fault(step=3, action="add"),
        Fault(step=6, action="drain", victim=0),
        Fault(step=7, action="kill"),
    ]
    outcome, pool = lead(workers=(1, 3), faults=faults)
    first = outcome.generations[0]
    assert (first["workers"], first["step"]) == (1, 0)
    assert pool.plans[0].pause_at == 3
    assert "scaled to" in said(outcome.generations[1])
    at_six = next(g for g in outcome.generations if g["step"] == 6)
    assert "drained" in said(at_six)
    assert all(plan.faults == faults[3:] for plan in pool.plans)
    assert outcome.faults_left == 1  # no worker of the script injected a fault into itself
    notes = [e for e in check_journal(tmp_path) if e["event"] == "fault"]
    assert [(e["step"], e["action"]) for e in notes] == [(0, "remove"), (3, "add"), (6, "drain")]


def test_a_newcomer_that_hangs_by_a_fault_is_replaced(lead, tmp_path):
    faults = [Fault(step=3, action="hang_newcomer")]
    script = {2: lambda pool: pool.die("w1"), 5: lambda pool: pool.die("w0")}
    clock = Clock(total_steps=200, steps_per_epoch=50, batch_size=8, evaluate_every=200)
    outcome, pool = lead(script, workers=(1, 3), faults=faults, clock=clock)
    assert outcome.state == "finished"
    assert outcome.faults_left == 0
    events = read(tmp_path)
    (fault,) = [e for e in events if e["event"] == "fault"]
    # The newcomer after the first loss was not hit: the fault waits for its step.
    assert (fault["action"], fault["hit"]) == ("hang_newcomer", ["w4"])
    assert [e["worker"] for e in events if e.get("state") == "failed"] == ["w4"]
    assert pool.started == ["w0", "w1", "w2", "w3", "w4", "w5"]
    assert "w4" in pool.ended
    assert outcome.generations[-1]["workers"] == 3
    check_journal(tmp_path, total=200)


def test_newcomers_with_an_edited_task_are_refused_until_the_edit_is_undone(lead, tmp_path):
    faults = [Fault(step=3, action="edit_task")] * 2
    clock = Clock(total_steps=200, steps_per_epoch=50, batch_size=8, evaluate_every=200)
    spec = {"workers": (1, 3), "faults": faults, "clock": clock, "code": CODE}

    def all_die(pool):
        for worker in sorted(pool.group.running):
            pool.die(worker)

    outcome, pool = lead({5: all_die}, coming_with({}), **spec)
    assert (outcome.state, outcome.faults_left, outcome.bitwise) == ("finished", 0, True)
    events = check_journal(tmp_path, total=200)
    hit = [e["hit"] for e in events if e["event"] == "fault"]
    refused = [e for e in events if e.get("state") == "refused"]
    assert hit == [[e["worker"]] for e in refused] == [["w3"], ["w4"]]
    assert all("task.py has changed" in e["reason"] for e in refused)
    assert outcome.generations[-1]["workers"] == 3
    assert set(pool.ended) >= {"w3", "w4"}


def test_a_task_without_user_code_is_not_edited(lead):
    faults = [Fault(step=3, action="edit_task")]
    outcome, _ = lead({5: lambda pool: pool.die("w1")}, workers=(1, 2), faults=faults, code={})
    assert (outcome.state, outcome.faults_left) == ("finished", 1)


def test_a_fault_stops_the_coordinator_once_and_is_noted_before(lead, tmp_path, monkeypatch):
    noted = []

    def stop(pid, number):
        assert (pid, number) == (os.getpid(), signal.SIGSTOP)
        noted.extend(e for e in read(tmp_path) if e["event"] == "fault")

    monkeypatch.setattr(os, "kill", stop)
    faults = [Fault(step=3, action="stop_coordinator")]
    outcome, _ = lead(workers=(1, 2), faults=faults)
    assert (outcome.state, outcome.faults_left) == ("finished", 0)
    assert [(e["step"], e["action"]) for e in noted] == [(3, "stop_coordinator")]


def test_the_status_shows_the_state_of_the_run(lead):
    seen = []
    outcome, pool = lead({4: lambda pool: seen.append(pool.coordinator.status())}, workers=(2, 2))
    (status,) = seen
    expected = {"state": "training", "step": 3, "total_steps": 10, "loss": loss_of(3), "target": 2}
    assert {key: status[key] for key in expected} == expected
    assert status["workers"] == ["w0", "w1"]
    assert status["pids"] == {"w0": 1000, "w1": 1001}
    assert outcome.state == "finished"
    assert pool.coordinator.status()["state"] == "finished"


# -- spares, and speeds


def test_a_spare_takes_over_at_once(lead, tmp_path):
    def script(pool):
        assert pool.started == ["w0", "w1", "w2"]  # one more than there should be
        pool.arrive = lambda _: None  # workers that are requested from now on never start
        pool.die("w1")

    outcome, pool = lead({4: script}, workers=(2, 2), elastic=ElasticConfig(spares=1))
    assert groups_in(outcome) == [(1, 0, 2, "start"), (2, 3, 2, "w1 lost, w2 joined")]
    places = [a.worker for a in pool.plans[1].assignments]
    assert pool.plans[1].healed_by == {places.index("w2"): places.index("w0")}
    assert pool.started == ["w0", "w1", "w2", "w3"]  # the next spare is asked for
    check_journal(tmp_path)


def test_a_slow_worker_gets_less_to_do(lead, tmp_path):
    def seconds(worker, ranks):
        return len(ranks) * (0.4 if worker == "w1" else 0.1)

    def prepare(pool):
        pool.seconds = seconds

    clock = Clock(total_steps=100, steps_per_epoch=50, batch_size=8, evaluate_every=50)
    outcome, pool = lead(workers=(2, 2), clock=clock, prepare=prepare)
    assert groups_in(outcome)[1][2:] == (2, "rebalanced")
    shares = [{a.worker: len(a.ranks) for a in plan.assignments} for plan in pool.plans]
    assert shares[0] == {"w0": 4, "w1": 4}
    assert shares[1]["w1"] < 3
    assert len(shares) == 2  # and no further change
    check_journal(tmp_path, total=100)


@pytest.mark.parametrize(
    ("exchange", "above", "shares"),
    [
        ((0.0, 0.0), 0.2, [[10, 10, 12], [10, 11, 11]]),
        ((2.0, 0.0), 0.2, [[10, 10, 12]]),  # bytes count
        ((0.0, 0.0), None, [[10, 10, 12]]),  # not wanted
    ],
)
def test_with_a_short_exchange_all_workers_get_equal_shares(
    lead, tmp_path, exchange, above, shares
):
    def prepare(pool):
        pool.exchange = exchange

    clock = Clock(total_steps=100, steps_per_epoch=50, batch_size=64, evaluate_every=50)
    elastic = ElasticConfig(rebalance_above=above)
    outcome, pool = lead(
        workers=(3, 3), logical_ranks=32, clock=clock, prepare=prepare, elastic=elastic
    )
    assert [cause for *_, cause in groups_in(outcome)] == ["start", "rebalanced"][: len(shares)]
    assert [sorted(len(a.ranks) for a in plan.assignments) for plan in pool.plans] == shares
    check_journal(tmp_path, total=100)


@pytest.mark.parametrize(
    ("slowness", "above"),
    [(0.4, None), (0.1, 0.2), (0.0, 0.2)],  # not wanted; no worker is slow; not known
)
def test_ranks_are_not_reassigned_without_need(lead, slowness, above):
    def prepare(pool):
        pool.seconds = lambda worker, ranks: len(ranks) * (slowness if worker == "w1" else 0.1)

    clock = Clock(total_steps=100, steps_per_epoch=50, batch_size=8, evaluate_every=50)
    elastic = ElasticConfig(rebalance_above=above)
    outcome, _ = lead(workers=(2, 2), clock=clock, prepare=prepare, elastic=elastic)
    assert len(outcome.generations) == 1


def test_a_driver_gets_an_unwritten_end_only_after_the_journal_had_time_to_take_it(
    lead, monkeypatch
):
    pools, while_it_settles = [], []
    end = {"event": "end", "time": 1.0}

    def settle(_journal, _seconds):
        while_it_settles.append(pools[0].coordinator.health().unwritten_end)

    monkeypatch.setattr(DurableJournal, "settle", settle)
    monkeypatch.setattr(DurableJournal, "waiting", lambda _: [end])
    _, pool = lead(prepare=pools.append)
    assert [list(events) for events in while_it_settles] == [[]]
    assert list(pool.coordinator.health().unwritten_end) == [end]

"""A restarted coordinator goes on with the workers that it finds, and notes nothing twice."""

import json
from dataclasses import asdict

import pytest

from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import Corruption, Report, WorkerState
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.observe.journal import Journal
from tests.elastic.outcomes import check_journal, groups_in, notes
from tests.elastic.scripted_pool import STEP_SECONDS, comes, loss_of, make_ready

PAIR = ("w0", "w1")
pytestmark = pytest.mark.usefixtures("journal")


@pytest.fixture
def journal(tmp_path):
    """Return the journal of the earlier coordinator, with four steps."""
    written = Journal(tmp_path)
    written.write("run", run="run")
    told_group(written, 1, 0, PAIR)
    for step in range(1, 5):
        told_step(written, step, 1)
    return written


def told_group(journal, generation, step, workers):
    journal.write(
        "generation", generation=generation, step=step, workers=len(workers), pause_seconds=0.0,
        causes=[{"kind": "start"}], members=list(workers),
    )  # fmt: skip


def told_step(journal, step, generation):
    journal.write("step", step=step, loss=loss_of(step), busy_seconds=1.0, generation=generation)


def found(worker, step, generation=1, **report):
    """Return a worker's state: it trains, or its generation has ended."""
    ended = Report(**{"step": step, "committed_at": 1.0, **report}) if report else None
    return WorkerState(ready=make_ready(worker), generation=generation, report=ended, step=step)


def training(step, workers=PAIR):
    return {worker: found(worker, step) for worker in workers}


def knowing(pool):
    """Give workers steps that they have not reported."""
    pool.known = [Record(step, 1, 1.0, loss_of(step), 1.0) for step in range(1, 7)]


def no_newcomer(_worker):
    return None


def test_steps_trained_meanwhile_are_noted_once_and_training_goes_on(lead, tmp_path):
    outcome, pool = lead(arrive=no_newcomer, left=training(6), prepare=knowing, workers=(2, 2))
    assert (outcome.state, outcome.steps) == ("finished", 10)
    (plan,) = pool.plans
    assert (plan.step, plan.generation, plan.healed_by) == (6, 2, {})
    assert pool.held == ["w0", "w1"]
    assert pool.started == []
    assert groups_in(outcome)[-1] == (2, 6, 2, "the coordinator was restarted")
    assert notes(tmp_path, "coordinator_restart")[0]["workers"] == ["w0", "w1"]
    check_journal(tmp_path)


def test_a_worker_that_is_a_step_behind_is_healed(lead, tmp_path):
    left = {"w0": found("w0", 5), "w1": found("w1", 6)}
    _, pool = lead(left=left, prepare=knowing, workers=(2, 2))
    places = [a.worker for a in pool.plans[0].assignments]
    assert pool.plans[0].step == 6
    assert pool.plans[0].healed_by == {places.index("w0"): places.index("w1")}
    check_journal(tmp_path)


def test_a_worker_that_does_not_leave_its_group_is_ended(lead, tmp_path):
    def prepare(pool):
        knowing(pool)
        pool.hung_at = pool.time.now
        pool.answers["w1"] = None  # does not react to the end of its group

    outcome, pool = lead(left=training(6), prepare=prepare, workers=(2, 2))
    assert "w1" in pool.ended
    assert pool.time.now - pool.hung_at < 60 + 10 * STEP_SECONDS
    lost = next(e for e in notes(tmp_path, "worker") if e["state"] == "lost")
    assert lost["worker"] == "w1"
    assert "did not leave its group" in lost["reason"]
    assert outcome.state == "finished"
    check_journal(tmp_path)


def test_a_worker_that_has_not_started_or_does_not_answer_is_ended_and_its_name_is_not_reused(
    lead, tmp_path
):
    unready = WorkerState(ready=None, generation=0, report=None, step=0)
    left = {"w0": found("w0", 6), "w5": unready}

    def prepare(pool):
        knowing(pool)
        pool.left["w6"] = None
        pool.steps["w6"] = 6

    ended = []
    outcome, pool = lead(
        {7: lambda pool: ended.extend(pool.ended)}, left=left, prepare=prepare, workers=(2, 2)
    )
    assert {"w5", "w6"} <= set(ended)  # before the others go on
    assert pool.started == ["w7"]
    assert outcome.state == "finished"
    check_journal(tmp_path)


def test_without_surviving_workers_the_run_goes_on_from_its_checkpoint(lead, tmp_path, journal):
    place = str(tmp_path / "checkpoint_00000003")
    journal.write("checkpoint", step=3, folder=place)
    outcome, pool = lead(left={}, workers=(2, 2))
    assert (pool.plans[0].step, pool.plans[0].checkpoint) == (3, place)
    assert pool.plans[0].generation == 2  # its number is not used again
    assert outcome.state == "finished"
    check_journal(tmp_path)


def test_a_run_that_has_ended_meanwhile_is_over(lead, tmp_path):
    left = {w: found(w, 10, ending="finished", digest="state 10") for w in PAIR}

    def prepare(pool):
        pool.known = [Record(step, 1, 1.0, loss_of(step), 1.0) for step in range(1, 11)]

    outcome, pool = lead(left=left, prepare=prepare, workers=(2, 2))
    assert (outcome.state, outcome.digest, pool.plans) == ("finished", "state 10", [])
    assert pool.saved == [("w0", 10)]
    check_journal(tmp_path)


def test_the_requested_number_of_workers_survives_the_restart(lead, journal):
    journal.write("target", workers=2)
    outcome, pool = lead(left=training(6), prepare=knowing, workers=(1, 3))
    assert pool.started == []
    assert outcome.state == "finished"


def test_the_number_requested_of_an_earlier_run_is_ignored(lead, journal):
    journal.write("target", workers=1)
    journal.write("run", run="run", resumed_step=4)
    _, pool = lead(workers=(1, 3))
    assert len(pool.started) == 3


def test_no_fault_happens_or_is_noted_twice(lead, tmp_path, journal):
    kill, stop = Fault(step=3, action="kill"), Fault(step=6, action="stop")
    change = Fault(step=4, action="kill_coordinator")
    journal.write("fault", step=3, action="kill", phase="backward", hit=["w9"])
    journal.write("fault", step=4, action="kill_coordinator", hit=[])
    lines = [json.dumps([worker, asdict(fault)]) for worker, fault in [("w9", kill), ("w8", stop)]]
    (tmp_path / "faults.jsonl").write_text("\n".join(lines) + "\n")
    outcome, pool = lead(
        left=training(6), prepare=knowing, workers=(2, 2), faults=[kill, stop, change]
    )
    assert all(plan.faults == [] for plan in pool.plans)
    told = [(e["step"], e["action"]) for e in notes(tmp_path, "fault")]
    assert told == [(3, "kill"), (4, "kill_coordinator"), (6, "stop")]
    assert outcome.faults_left == 0


def test_corruption_that_was_found_meanwhile_is_handled(lead, tmp_path):
    what = Corruption(6, ("w1",), (), False, "its memory changed")
    left = {w: found(w, 6, ending="corrupt", corruption=what) for w in PAIR}
    outcome, pool = lead(left=left, prepare=knowing, workers=(2, 2))
    assert pool.ended[0] == "w1"
    assert pool.plans[0].step == 6
    assert outcome.state == "finished"
    check_journal(tmp_path)


def test_the_restarted_coordinator_knows_which_workers_computed_earlier_steps(lead, tmp_path):
    def script(pool):
        pool.wrong.add("w1")
        pool.find_corruption(suspects=PAIR)

    lead({8: script}, left=training(6), prepare=knowing, workers=(2, 2))
    (note,) = notes(tmp_path, "corruption")
    assert (note["guilty"], note["trusted"]) == (["w1"], 0)  # and not only since step 6


@pytest.mark.parametrize(
    ("generation", "formed", "trusted"),
    [
        (1, True, False),  # what it has was withdrawn
        (2, False, False),  # it had not come to load the checkpoint
        (2, True, True),  # it has what was computed again
    ],
)
def test_withdrawn_steps_stay_withdrawn(lead, tmp_path, journal, generation, formed, trusted):
    place = str(tmp_path / "checkpoint_00000002")
    journal.write("checkpoint", step=2, folder=place)
    journal.write("withdrawn", step=2, reason="corruption", generation=1)
    ended = {"ending": "aborted", "formed": formed}
    left = {w: found(w, 4, generation, **ended) for w in PAIR}
    records = [Record(step, generation, 1.0, loss_of(step), 1.0) for step in (3, 4)]
    outcome, pool = lead(left=left, workers=(2, 2), prepare=lambda pool: pool.known.extend(records))
    assert (pool.plans[0].step, pool.plans[0].checkpoint) == ((4, None) if trusted else (2, place))
    assert outcome.state == "finished"
    steps = [e["step"] for e in notes(tmp_path, "step")]
    assert steps == [1, 2, 3, 4, *range(3, 11)]


def test_a_coordinator_of_a_new_run_ends_the_workers_that_it_finds(lead):
    """The negative control: no worker of an earlier run of this name is kept."""

    def prepare(pool):
        pool.steps = {"w0": 6, "w1": 6}

    outcome, pool = lead(prepare=prepare, arrive=comes, workers=(2, 2))
    assert pool.ended[:2] == ["w0", "w1"]
    assert pool.started == ["w2", "w3"]
    assert pool.plans[0].step == 0
    assert outcome.state == "finished"

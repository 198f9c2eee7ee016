"""Checkpoints are written while the group trains, and the run goes on from a complete one."""

import pytest

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.observe.journal import Journal
from raytrain_plus.storage.store import Store
from tests.elastic.outcomes import check_journal, groups_in, notes
from tests.elastic.scripted_pool import loss_of

CLOCK = Clock(total_steps=10, steps_per_epoch=5, batch_size=8, evaluate_every=5, checkpoint_every=3)


def place(folder, step):
    return str(folder / checkpointer.name_of(step))


def kept(folder):
    """Return the steps of the checkpoints in the journal, in order, without the last."""
    return [e["step"] for e in notes(folder, "checkpoint") if "error" not in e and "step" in e][:-1]


def all_die(pool):
    for worker in sorted(pool.group.running):
        pool.die(worker)


def test_checkpoints_are_written_at_their_steps_without_a_pause(lead, tmp_path):
    outcome, _ = lead(workers=(2, 2), clock=CLOCK)
    assert kept(tmp_path) == [3, 6, 9]
    assert len(outcome.generations) == 1
    assert sorted(checkpointer.names(Store(tmp_path))) == [
        checkpointer.name_of(s) for s in (3, 6, 9)
    ]
    check_journal(tmp_path)


def test_a_checkpoint_may_be_requested(lead, tmp_path):
    lead({5: lambda pool: pool.coordinator.checkpoint()}, workers=(2, 2))
    assert kept(tmp_path) in ([5], [6])


def test_a_lost_worker_cancels_a_checkpoint_and_the_next_is_due_at_once(lead, tmp_path):
    def begin_only(pool):
        pool.writes = False

    def die(pool):
        pool.writes = True
        pool.die("w1")

    outcome, _ = lead({3: begin_only, 5: die}, workers=(1, 2), clock=CLOCK)
    assert outcome.state == "finished"
    assert kept(tmp_path)[0] in (5, 6)
    assert not (tmp_path / checkpointer.name_of(3)).exists()
    check_journal(tmp_path)


def test_a_worker_that_hangs_after_its_snapshot_does_not_delay_the_others(lead, tmp_path):
    asked = []

    def snapshot_and_hang(pool):
        pool.told, pool.writes = False, False
        pool.commit(["w0", "w1"])
        pool.hang("w0")  # the first to report its snapshot
        pool.take_snapshots(3)

    def prepare(pool):
        ask = pool.records
        pool.records = lambda worker, *how: asked.append(worker) or ask(worker, *how)

    outcome, pool = lead({3: snapshot_and_hang}, workers=(1, 2), clock=CLOCK, prepare=prepare)
    assert outcome.state == "finished"
    assert pool.hung == ["w0"]
    assert set(asked) == {"w1"}
    check_journal(tmp_path)


def test_when_all_workers_die_new_ones_go_on_from_the_newest_checkpoint(lead, tmp_path):
    outcome, pool = lead({8: all_die}, workers=(2, 2), clock=CLOCK)
    again = pool.plans[1]
    assert (again.step, again.checkpoint) == (6, place(tmp_path, 6))
    assert again.healed_by == dict.fromkeys(range(1, len(again.assignments)), 0)
    assert outcome.state == "finished"
    check_journal(tmp_path)


def test_after_a_refused_checkpoint_the_previous_one_is_used(lead, tmp_path):
    def prepare(pool):
        pool.damaged.add(place(tmp_path, 6))

    outcome, pool = lead({8: all_die}, workers=(2, 2), clock=CLOCK, prepare=prepare)
    assert [plan.checkpoint for plan in pool.plans[1:3]] == [place(tmp_path, s) for s in (6, 3)]
    assert pool.plans[2].step == 3
    assert outcome.state == "finished"
    assert [e["refused"] for e in notes(tmp_path, "checkpoint") if "refused" in e] == [
        "it is damaged"
    ]
    check_journal(tmp_path)


def test_if_all_checkpoints_are_refused_the_run_starts_from_the_beginning(lead, tmp_path):
    def prepare(pool):
        pool.damaged |= {place(tmp_path, 6), place(tmp_path, 3)}

    outcome, pool = lead({8: all_die}, workers=(2, 2), clock=CLOCK, prepare=prepare)
    assert (pool.plans[3].step, pool.plans[3].checkpoint) == (0, None)
    assert pool.started == ["w0", "w1", "w2", "w3"]  # the workers that refused them can start
    assert outcome.state == "finished"
    check_journal(tmp_path)


def test_a_resumed_run_starts_from_its_checkpoint(lead, tmp_path):
    Journal(tmp_path).write("run", resumed_step=6)
    outcome, pool = lead(workers=(2, 2), resume_from=(place(tmp_path, 6), 6))
    assert (pool.plans[0].step, pool.plans[0].checkpoint) == (6, place(tmp_path, 6))
    assert [e["step"] for e in notes(tmp_path, "step")] == [7, 8, 9, 10]
    assert groups_in(outcome) == [(1, 6, 2, "start")]


def resumed_at_6(tmp_path, **told):
    """Write a journal with ten steps and a resume from the sixth."""
    written = Journal(tmp_path)
    for step in range(1, 11):
        written.write("step", step=step, loss=loss_of(step), loss_hex=loss_of(step).hex())
    written.write("evaluate", step=10, metrics={"accuracy": 1.0})
    written.write("checkpoint", step=6, folder=place(tmp_path, 6), metrics={})
    written.write("checkpoint", step=10, folder=place(tmp_path, 10), metrics={})
    written.write("run", resumed_from=place(tmp_path, 6), resumed_step=6, **told)
    written.close()
    return {"workers": (2, 2), "resume_from": (place(tmp_path, 6), 6)}


def test_a_run_that_is_resumed_to_a_shorter_duration_ends_there(lead, tmp_path):
    spec = resumed_at_6(tmp_path, changes=["total_steps: was 10, is 8"])
    clock = Clock(total_steps=8, steps_per_epoch=5, batch_size=8, evaluate_every=8)
    outcome, pool = lead(clock=clock, **spec)
    assert (pool.plans[0].step, pool.plans[0].checkpoint) == (6, place(tmp_path, 6))
    assert (outcome.state, outcome.steps, outcome.loss) == ("finished", 8, loss_of(8))
    assert outcome.metrics == {}  # the metrics of step 10 belong to another run
    assert not pool.plans[0].evaluated


def test_a_resumed_run_that_is_stopped_early_reports_its_state(lead, tmp_path):
    spec = resumed_at_6(tmp_path)
    outcome, _ = lead({7: lambda pool: pool.coordinator.stop()}, **spec)
    assert outcome.state == "stopped"
    assert outcome.steps in (7, 8)
    assert (outcome.loss, outcome.metrics) == (loss_of(outcome.steps), {})
    assert outcome.checkpoint == place(tmp_path, outcome.steps)
    # The control: the journal knows more steps, and they were compared.
    assert [e["step"] for e in notes(tmp_path, "step")] == list(range(1, 11))


@pytest.mark.parametrize("limit", [None, 2])
def test_failed_shares_end_the_run_only_if_configured(lead, tmp_path, limit):
    def prepare(pool):
        pool.share_error = "no space left"

    clock = Clock(
        total_steps=40, steps_per_epoch=5, batch_size=8, evaluate_every=5, checkpoint_every=3
    )
    elastic = ElasticConfig(max_checkpoint_failures=limit)
    outcome, _ = lead(workers=(2, 2), clock=clock, prepare=prepare, elastic=elastic)
    errors = [e["error"] for e in notes(tmp_path, "checkpoint") if "error" in e]
    assert set(errors) == {"w0: no space left"}
    if limit is None:
        assert outcome.state == "finished"
        assert len(errors) > 2
    else:
        assert outcome.state == "failed"
        assert "2 times in a row" in outcome.error
        assert outcome.steps < 40

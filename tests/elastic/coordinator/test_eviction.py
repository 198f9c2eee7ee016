"""A worker that computes wrong is evicted; steps that it may have affected are computed again."""

import pytest

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.observe.journal import Journal, read
from raytrain_plus.storage.store import Store
from tests.elastic.outcomes import check_journal, groups_in, notes

KEEPS = Clock(total_steps=10, steps_per_epoch=5, batch_size=8, evaluate_every=5, checkpoint_every=3)
SELDOM = ElasticConfig(check_every=4)


def wrong(step):
    return -1.0 * step


def finding(*accused, suspects=(), tie=False, wrong=()):
    """Return a script by which all find corruption; from then on all compute right."""

    def script(pool):
        pool.wrong |= set(wrong)
        pool.find_corruption(accused, suspects, tie=tie)
        pool.loss_of = lambda step: 1.0 / step

    return script


def computes_wrong(pool):
    pool.loss_of = wrong


def evicted(folder):
    return [e["worker"] for e in notes(folder, "worker") if e["state"] == "evicted"]


def losses(folder):
    """Return the losses that count, from the journal of a run that withdrew some."""
    return {e["step"]: e["loss"] for e in notes(folder, "step")}


def check_losses(folder):
    """All steps are right in the end, also for a reader that follows the journal."""
    assert losses(folder) == {step: 1.0 / step for step in range(1, 11)}
    known = RunLog(Journal(folder), read(folder))
    assert list(known._losses) == list(losses(folder).values())


def test_a_worker_with_wrong_memory_is_replaced_and_no_step_is_lost(lead, tmp_path):
    outcome, pool = lead({5: finding("w1")}, workers=(3, 3))
    assert outcome.state == "finished"
    assert groups_in(outcome)[1] == (2, 4, 2, "w1 evicted")
    assert evicted(tmp_path) == ["w1"]
    assert "w3" in [a.worker for a in pool.plans[-1].assignments]
    assert pool.tested == []  # there is no doubt here
    (note,) = notes(tmp_path, "corruption")
    assert (note["step"], note["accused"], note["guilty"], note["trusted"]) == (4, ["w1"], [], 4)
    check_journal(tmp_path)


def test_of_two_suspects_the_one_that_computes_wrong_goes(lead, tmp_path):
    script = {7: finding(suspects=["w0", "w2"], wrong=["w2"])}
    outcome, pool = lead(script, workers=(3, 3), elastic=ElasticConfig(audit_every=6))
    assert pool.tested == ["w0", "w2"]
    assert evicted(tmp_path)[0] == "w2"
    assert notes(tmp_path, "corruption")[0]["trusted"] == 0  # its first audit
    assert outcome.state == "finished"
    check_losses(tmp_path)


def test_suspects_that_compute_right_go_on(lead, tmp_path):
    outcome, pool = lead({7: finding(suspects=["w0", "w2"])}, workers=(3, 3))
    assert pool.tested == ["w0", "w2"]
    assert evicted(tmp_path) == []
    assert groups_in(outcome) == [(1, 0, 3, "start"), (2, 6, 3, "regrouped")]
    check_journal(tmp_path)


def test_a_suspect_that_has_left_meanwhile_may_be_the_guilty_one(lead, tmp_path):
    def script(pool):
        pool.die("w2")
        pool.find_corruption(suspects=["w0", "w2"])

    lead({7: script}, workers=(3, 3))
    assert notes(tmp_path, "corruption")[0]["guilty"] == ["w2"]


def test_steps_since_the_last_comparison_are_computed_again(lead, tmp_path):
    outcome, pool = lead({6: computes_wrong, 9: finding("w1")}, workers=(3, 3), elastic=SELDOM)
    assert outcome.state == "finished"
    (withdrawn,) = notes(tmp_path, "withdrawn")
    assert withdrawn["step"] == 4
    # No worker has a state of step 4 any more, and no checkpoint is there: new workers start.
    assert (pool.plans[1].step, pool.plans[1].checkpoint) == (0, None)
    assert evicted(tmp_path) == ["w1", "w0", "w2"]
    assert [e["step"] for e in notes(tmp_path, "step")] == [*range(1, 9), *range(5, 11)]
    check_losses(tmp_path)


def test_other_losses_of_steps_that_were_not_withdrawn_are_an_error(lead):
    """The negative control: steps that are computed again, to other losses."""

    def script(pool):
        pool.loss_of = lambda step: 1.0 / step
        for worker in sorted(pool.group.running):
            pool.die(worker)

    outcome, _ = lead({6: computes_wrong, 9: script}, workers=(3, 3), elastic=SELDOM)
    assert "step 6 was computed again" in outcome.error


def test_all_go_back_to_a_checkpoint_that_can_be_trusted(lead, tmp_path):
    script = {6: computes_wrong, 9: finding("w1")}
    outcome, pool = lead(script, workers=(3, 3), clock=KEEPS, elastic=SELDOM)
    again = pool.plans[1]
    assert (again.step, again.checkpoint) == (3, str(tmp_path / checkpointer.name_of(3)))
    assert again.healed_by == {1: 0}
    assert evicted(tmp_path) == ["w1"]
    check_losses(tmp_path)
    six = str(tmp_path / checkpointer.name_of(6))
    told = [e for e in notes(tmp_path, "checkpoint") if e["folder"] == six]
    assert ["refused" in e for e in told[:2]] == [False, True]  # it held what was wrong
    assert told[2]["removed"]
    assert len(checkpointer.names(Store(tmp_path))) > 1  # others were written since
    assert outcome.state == "finished"


def test_a_worker_that_has_not_loaded_the_checkpoint_is_trusted_no_more_than_before(lead, tmp_path):
    def prepare(pool):
        pool.forming[2] = lambda pool: pool.die(pool.group.plan.assignments[0].worker)

    script = {6: computes_wrong, 9: finding("w1")}
    outcome, pool = lead(script, workers=(3, 3), clock=KEEPS, elastic=SELDOM, prepare=prepare)
    assert [plan.step for plan in pool.plans[1:3]] == [3, 3]
    assert pool.plans[2].checkpoint is not None
    assert outcome.state == "finished"
    check_losses(tmp_path)


def test_a_state_that_is_not_trusted_is_not_saved_as_the_last(lead):
    def prepare(pool):
        pool.forming[2] = lambda pool: pool.fail("w0", "Traceback: mine")

    script = {6: computes_wrong, 9: finding("w1")}
    outcome, pool = lead(script, workers=(3, 3), clock=KEEPS, elastic=SELDOM, prepare=prepare)
    assert (outcome.state, outcome.error) == ("failed", "Traceback: mine")
    assert pool.saved == []
    assert outcome.checkpoint.endswith("checkpoint_00000003")  # the last that can be trusted


def test_if_the_checkpoint_is_refused_new_workers_start_from_the_beginning(lead, tmp_path):
    def prepare(pool):
        pool.damaged.add(str(tmp_path / checkpointer.name_of(3)))

    script = {6: computes_wrong, 9: finding("w1")}
    outcome, pool = lead(script, workers=(3, 3), clock=KEEPS, elastic=SELDOM, prepare=prepare)
    first = next(plan for plan in pool.plans[1:] if plan.checkpoint is None)
    assert first.step == 0
    assert outcome.state == "finished"
    check_losses(tmp_path)


def test_withdrawn_steps_are_not_fetched_from_survivors(lead, tmp_path):
    def script(pool):
        finding("w1")(pool)
        pool.told = False  # so that the next steps are fetched from a survivor when a group ends

    def die(pool):
        pool.told = True
        pool.die("w0")

    outcome, _ = lead(
        {6: computes_wrong, 9: script, 7: lambda _: None},
        workers=(3, 3),
        clock=KEEPS,
        elastic=SELDOM,
        prepare=lambda pool: pool.forming.update({2: lambda pool: pool.script.update({5: die})}),
    )
    assert outcome.state == "finished"
    check_losses(tmp_path)


@pytest.mark.parametrize(("wrong", "gone"), [((), []), (("w1",), ["w1"])])
def test_in_a_tie_only_members_of_the_group_test_themselves(lead, tmp_path, wrong, gone):
    elastic = ElasticConfig(spares=1, check_every=1)
    script = {5: finding(tie=True, wrong=[*wrong, "w2"])}  # the spare has done nothing yet
    outcome, pool = lead(script, workers=(2, 2), clock=KEEPS, elastic=elastic)
    assert pool.tested == ["w0", "w1"]
    assert evicted(tmp_path) == gone or not gone
    trusted = 0 if wrong else 3
    assert notes(tmp_path, "corruption")[0]["trusted"] == trusted
    assert outcome.state == "finished"
    check_losses(tmp_path)


def test_a_share_of_an_accused_worker_is_not_used(lead, tmp_path):
    outcome, pool = lead({7: finding("w0")}, workers=(3, 3), clock=KEEPS)
    assert outcome.state == "finished"
    refused = [e["folder"] for e in notes(tmp_path, "checkpoint") if "refused" in e]
    assert refused == [str(tmp_path / checkpointer.name_of(6))]
    assert pool.plans[1].step == 6  # but the others' state is right
    check_journal(tmp_path)

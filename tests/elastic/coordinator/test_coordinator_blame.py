"""The coordinator distinguishes errors of the task from errors of machines."""

import pytest

from raytrain_plus.elastic.coordinator.workers import WorkerStarting
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import ElasticConfig, WorkerProcess
from raytrain_plus.observe.journal import read
from tests.elastic.outcomes import check_journal, groups_in
from tests.elastic.scripted_pool import PrepareReturned, comes

PROCESS = WorkerProcess(pid=7, node="bad node", host="h")


def workers_in(folder, state):
    events = read(folder)
    return [e["worker"] for e in events if e["event"] == "worker" and e["state"] == state]


def test_an_error_that_a_machine_may_have_caused_is_retried_once_on_another_worker(lead, tmp_path):
    script = {4: lambda pool: pool.fail("w1", "EIO", transient=True)}
    outcome, pool = lead(script, workers=(1, 3))
    assert outcome.state == "finished"
    assert groups_in(outcome)[1] == (2, 3, 2, "w1 failed")
    assert workers_in(tmp_path, "failed") == ["w1"]
    assert pool.started == ["w0", "w1", "w2", "w3"]
    assert pool.avoided == {"w0": "", "w1": "", "w2": "", "w3": "node"}
    check_journal(tmp_path)


def test_an_error_that_repeats_in_the_same_step_is_the_tasks(lead, tmp_path):
    def again(pool):
        pool.fail(min(pool.group.running), "EIO", transient=True)

    def once(pool):
        pool.script[4] = again
        pool.fail("w1", "EIO", transient=True)

    outcome, _ = lead({4: once}, workers=(1, 3))
    assert (outcome.state, outcome.error, outcome.steps) == ("failed", "EIO", 3)
    assert outcome.failed_on["step"] == 4
    assert outcome.failed_on["worker"] == "w0"
    assert outcome.checkpoint == str(tmp_path / "checkpoint_00000003")


def test_an_error_that_repeats_in_a_later_step_is_retried(lead):
    script = {
        4: lambda pool: pool.fail("w1", "EIO", transient=True),
        6: lambda pool: pool.fail("w0", "EIO", transient=True),
    }
    outcome, _ = lead(script, workers=(1, 3))
    assert outcome.state == "finished"


def test_the_state_of_a_lone_worker_that_fails_is_kept_for_the_next(lead, tmp_path):
    outcome, pool = lead({4: lambda pool: pool.fail("w0", "EIO", transient=True)}, workers=(1, 1))
    assert outcome.state == "finished"
    assert pool.saved == [("w0", 3), ("w1", 10)]
    assert pool.plans[1].checkpoint == str(tmp_path / "checkpoint_00000003")
    check_journal(tmp_path)


def test_two_crashes_in_the_same_step_end_the_run(lead, tmp_path):
    def again(pool):
        pool.script[4] = again
        pool.crash(min(pool.group.running), tmp_path)

    outcome, pool = lead({4: again}, workers=(2, 2))
    assert outcome.state == "failed"
    assert "w0, w1 crashed one after the other in step 4" in outcome.error
    assert "the task is the likely cause" in outcome.error
    assert "Segmentation fault" in outcome.error
    assert len(pool.plans) == 2


def test_one_crash_is_survived_and_so_are_two_in_different_steps(lead, tmp_path):
    script = {
        4: lambda pool: pool.crash("w0", tmp_path),
        7: lambda pool: pool.crash("w1", tmp_path),
    }
    outcome, _ = lead(script, workers=(2, 2))
    assert outcome.state == "finished"
    lost = [e for e in read(tmp_path) if e.get("state") == "lost"]
    assert all("its process crashed" in event["reason"] for event in lost)


def test_a_lone_worker_that_is_lost_again_and_again_in_one_step_ends_the_run(lead):
    def again(pool):
        pool.script[1] = again
        pool.die(min(pool.group.running))

    outcome, pool = lead({1: again}, workers=(1, 1))
    assert outcome.state == "failed"
    assert "the task is the likely cause" in outcome.error
    assert len(pool.plans) == 5


def test_workers_evicted_again_and_again_in_one_step_do_not_end_the_run(lead, tmp_path):
    def again(pool):
        pool.script[5] = again
        pool.find_corruption([max(pool.group.running)])

    outcome, _ = lead({5: again}, workers=(3, 3))
    assert outcome.state == "failed"
    assert "were evicted for step 5: the task is the likely cause" in outcome.error
    assert len(workers_in(tmp_path, "evicted")) == 1


def test_a_worker_on_which_the_task_fails_first_does_not_end_a_run_that_another_can_begin(
    lead, tmp_path
):
    def arrive(worker):
        return (
            PrepareReturned(worker, None, failed="no einops", process=PROCESS, transient=True)
            if worker == "w0"
            else comes(worker)
        )

    outcome, pool = lead(arrive=arrive, workers=(1, 2))
    assert outcome.state == "finished"
    assert workers_in(tmp_path, "failed") == ["w0"]
    assert pool.avoided == {"w0": "", "w1": "", "w2": "bad node"}


@pytest.mark.parametrize(("transient", "tried"), [(True, 2), (False, 1)])
def test_a_task_that_fails_wherever_it_is_loaded_ends_the_run(lead, transient, tried):
    outcome, pool = lead(
        arrive=lambda worker: PrepareReturned(worker, None, failed="mine", transient=transient),
        workers=(1, 1),
    )
    assert (outcome.state, outcome.error) == ("failed", "mine")
    assert len(pool.started) == tried


def test_a_newcomer_that_hangs_while_it_starts_is_replaced(lead, tmp_path):
    def arrive(worker):
        if worker != "w1":
            return comes(worker)
        return WorkerStarting(worker, WorkerProcess(pid=7, node="node", host="h"))

    def come(pool):
        hangs = pool.arrive

        def start(worker, **_):
            pool.started.append(worker)
            came = hangs(worker)
            pool.events.append(came) if isinstance(came, WorkerStarting) else pool.come(came)

        pool.start = start

    def wait(pool):  # the others go on meanwhile, slowly
        pool.time.now += 30.0

    outcome, pool = lead(
        dict.fromkeys(range(2, 9), wait),
        arrive,
        workers=(1, 2),
        prepare=come,
        elastic=ElasticConfig(start_timeout=60.0, hang_deadline=1000.0, check_every=1),
    )
    assert outcome.state == "finished"
    assert workers_in(tmp_path, "failed") == ["w1"]
    assert pool.hung == ["w1"]
    assert [a.worker for a in pool.plans[-1].assignments] == ["w0", "w2"]


def test_injected_faults_are_not_blamed_on_the_task(lead, tmp_path):
    faults = [Fault(step=4, action="kill"), Fault(step=4, action="kill", phase="forward")]
    times = []

    def struck(pool):
        pool.script[4] = struck
        if times == [1, 1]:
            return
        times.append(1)
        pool.coordinator._faults._log.new = lambda: {faults[len(times) - 1]: ["w0"]}
        pool.crash(min(pool.group.running), tmp_path)

    outcome, _ = lead({4: struck}, workers=(2, 2), faults=faults)
    assert outcome.state == "finished"


def test_a_last_state_that_the_store_refuses_is_kept_on_a_node_and_named(lead, tmp_path):
    outcome, _ = lead(workers=(1, 1), prepare=lambda pool: setattr(pool, "store_error", "full"))
    assert (outcome.state, outcome.checkpoint) == ("finished", "/rescued/10")
    (warning,) = [e for e in read(tmp_path) if e["event"] == "warning"]
    assert "/rescued/10" in warning["text"]
    assert "full" in warning["text"]


def test_the_pause_after_the_loss_of_all_runs_from_the_last_committed_step(lead):
    def script(pool):
        pool.time.now += 30.0
        for worker in sorted(pool.group.running):
            pool.die(worker)

    outcome, _ = lead({4: script}, workers=(2, 2))
    assert 31.0 <= outcome.generations[1]["pause_seconds"] < 40.0


SHORT = "Ray's memory monitor ended its process, which used 7.0 GiB"


def short_of_memory(pool):
    worker = max(pool.group.running)
    pool.short[worker] = SHORT
    pool.die(worker)


def test_a_worker_ended_by_rays_memory_monitor_is_reported_as_out_of_memory(lead, tmp_path):
    script = {4: short_of_memory, 7: lambda pool: pool.die("w0")}
    outcome, _ = lead(script, workers=(1, 2))
    assert outcome.state == "finished"
    lost = [e for e in read(tmp_path) if e.get("state") == "lost"]
    assert [e["reason"] for e in lost] == [SHORT, "the actor died"]
    check_journal(tmp_path)


def test_a_worker_that_ends_itself_for_lack_of_memory_is_reported_as_out_of_memory(lead, tmp_path):
    def script(pool):
        pool.coordinator.report_memory_shortage("w1", "it used 7.0 GiB")
        pool.die("w1")

    outcome, _ = lead({4: script}, workers=(1, 2))
    assert outcome.state == "finished"
    lost = [e for e in read(tmp_path) if e.get("state") == "lost"]
    assert [(e["worker"], e["reason"]) for e in lost] == [("w1", "it used 7.0 GiB")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_step_that_needs_more_memory_than_there_is_ends_the_run(lead, tmp_path, workers):
    def again(pool):
        pool.script[4] = again
        short_of_memory(pool)

    outcome, _ = lead({4: again}, workers=(workers, workers))
    assert outcome.state == "failed"
    assert "ended for want of memory in step 4, in 3 groups in a row" in outcome.error
    assert outcome.error.endswith(f"The last one: {SHORT}")
    assert len(workers_in(tmp_path, "lost")) == 3


def test_losses_for_lack_of_memory_in_different_steps_do_not_end_the_run(lead):
    outcome, _ = lead(dict.fromkeys((2, 4, 6, 8), short_of_memory), workers=(2, 2))
    assert outcome.state == "finished"


def test_a_newcomer_ended_by_rays_memory_monitor_is_reported_as_out_of_memory(lead, tmp_path):
    outcome, _ = lead(
        arrive=lambda worker: PrepareReturned(worker, None, died="the actor died"),
        prepare=lambda pool: pool.short.update(dict.fromkeys(("w0", "w1", "w2"), SHORT)),
        workers=(1, 1),
        elastic=ElasticConfig(start_timeout=3.0),
    )
    assert outcome.state == "failed"
    assert SHORT in outcome.error
    failed = [e for e in read(tmp_path) if e.get("state") == "failed"]
    assert {e["reason"] for e in failed[:3]} == {SHORT}

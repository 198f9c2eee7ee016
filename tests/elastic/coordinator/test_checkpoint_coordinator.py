"""Which checkpoints of a run are kept, whatever happens to the workers that write them."""

import json
import sys
import threading
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.exceptions import RayError

from raytrain_plus.checkpoint import checkpointer, train_snapshot
from raytrain_plus.checkpoint.files import CheckpointFile, Limits, places_of
from raytrain_plus.checkpoint.retention import Retention
from raytrain_plus.checkpoint.snapshot import Snapshot, layout_of
from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.coordinator import checkpoint_coordinator as module
from raytrain_plus.elastic.coordinator.checkpoint_coordinator import CheckpointCoordinator
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.observe.journal import Journal, read
from raytrain_plus.storage.store import Store
from tests.elastic.scripted_pool import AtOnce, make_spec
from tests.elastic.small_replica import train, trained

PAIR = ("w0", "w1")
TINY = Limits(least_bytes=1)  # so that both write
CLOCK = Clock(
    total_steps=40, steps_per_epoch=10, batch_size=8, evaluate_every=10, checkpoint_every=5
)


class Run:
    """The checkpoints of a run, and workers that write their shares."""

    def __init__(self, folder, **spec):
        self.folder = folder
        described = {"clock": CLOCK, "retention": Retention(), **spec}
        self.spec = make_spec(folder, **described)
        self.told = deque()
        self.begin()

    def begin(self):
        """Start or restart a coordinator."""
        events = read(self.folder) if list(self.folder.glob("*.jsonl")) else []
        self.run_log = RunLog(Journal(self.folder), events)
        self.checkpoints = CheckpointCoordinator(self.spec, self.run_log, self.told.append, events)

    def share(self, step, place, generation=1, workers=PAIR):
        self.run_log.extend_to(step)  # no checkpoint may know more steps than the journal
        replica = trained(step, seed=generation)
        snapshot = Snapshot.of(replica)
        folder = self.folder / checkpointer.name_of(step)
        layout = layout_of(snapshot, len(workers), TINY)
        files = checkpointer.write_share(folder, snapshot, layout, place)
        state = checkpointer.describe_state(snapshot) if place == 0 else None
        return Share(generation, step, len(workers), files, state)

    def snapshot(self, step, generation=1, workers=PAIR, living=PAIR):
        self.checkpoints.start_generation(generation, workers, workers)
        share = Share(generation, step, len(workers))
        self.checkpoints.written(workers[0], share, living, now=0.0)

    def write(self, step, generation=1, workers=PAIR):
        """Write the shares of all workers."""
        for place, worker in enumerate(workers):
            share = self.share(step, place, generation, workers)
            self.checkpoints.written(worker, share, workers, now=0.0)

    def settle(self):
        while self.told:
            self.checkpoints.committed(self.told.popleft(), now=0.0)

    def keep(self, step, generation=1):
        self.snapshot(step, generation)
        self.write(step, generation)
        self.settle()

    def place(self, step):
        return str(self.folder / checkpointer.name_of(step))

    def whole(self):
        """Return the steps of the checkpoints that the store holds."""
        return sorted(one.step for one in checkpointer.kept(Store(self.folder)))

    def noted(self):
        return [e for e in read(self.folder) if e["event"] == "checkpoint"]


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "threading", SimpleNamespace(Thread=AtOnce, Lock=threading.Lock))
    return lambda **spec: Run(tmp_path, **spec)


def test_a_checkpoint_is_there_when_all_shares_are(make):
    run = make(identity={"seed": 17, "data": "s3://ann:secret@host/a"})
    run.run_log.computes_with({"torch": "2", "data": "s3://ann:secret@host/a"})
    run.snapshot(5)
    first, second = run.share(5, 0), run.share(5, 1)
    run.checkpoints.written("w0", first, PAIR, 0.0)
    assert (run.whole(), run.checkpoints.newest()) == ([], None)
    run.checkpoints.written("w1", second, PAIR, 0.0)
    run.settle()
    assert run.checkpoints.newest() == (run.place(5), 5)
    header = checkpointer.verify(run.place(5))
    assert (header.run, header.step) == ("run", 5)
    assert header.identity == {"seed": 17, "data": "s3://***@host/a"}
    assert header.environment == {"torch": "2", "data": "s3://***@host/a"}
    (note,) = run.noted()
    assert (note["step"], note["folder"]) == (5, run.place(5))


def test_steps_are_those_of_the_interval_but_not_the_last(make):
    run = make()
    assert run.checkpoints.next_step(0, 0.0) == 5
    run.checkpoints.request()
    assert run.checkpoints.next_step(2, 0.0) == 3
    run.snapshot(3)
    assert run.checkpoints.next_step(3, 0.0) is None  # one is being written
    run.write(3)
    run.settle()
    assert run.checkpoints.next_step(4, 0.0) == 5
    assert run.checkpoints.next_step(39, 0.0) is None  # the last is written in any case


def test_a_lost_worker_cancels_the_attempt_and_another_is_due_at_once(make):
    run = make()
    run.snapshot(5)
    late = run.share(5, 0)
    run.checkpoints.lost("w1", now=9.0)
    assert run.checkpoints.next_step(7, 9.0) == 8
    run.checkpoints.written("w0", late, ["w0"], 9.0)  # of the abandoned attempt
    run.checkpoints.written("w1", run.share(5, 1), ["w0"], 9.0)
    run.settle()
    assert run.whole() == []
    run.keep(8, generation=2)
    assert run.whole() == [8]


def test_a_worker_that_was_lost_before_its_snapshot_was_reported_cancels_the_attempt(make):
    run = make()
    run.snapshot(5, living=["w0"])
    assert run.checkpoints.next_step(7, 9.0) == 8


def test_a_worker_that_is_lost_after_its_share_cancels_nothing(make):
    run = make()
    run.snapshot(5)
    run.checkpoints.written("w1", run.share(5, 1), PAIR, 0.0)
    run.checkpoints.lost("w1", now=9.0)
    run.checkpoints.written("w0", run.share(5, 0), ["w0"], 9.0)
    run.settle()
    assert run.whole() == [5]


def test_a_run_that_goes_back_keeps_checkpoints_before_the_lost_attempt(make):
    run = make()
    run.keep(5)
    run.snapshot(10)
    for worker in PAIR:  # all of them: the run goes on from step 5
        run.checkpoints.lost(worker, now=0.0)
    assert run.checkpoints.next_step(5, 0.0) == 6
    run.keep(6, generation=2)
    assert run.whole() == [5, 6]


def test_a_share_that_fails_is_told_and_tried_again_later(make):
    run = make()
    run.snapshot(5)
    error = Share(1, 5, 2, error="no space left")
    run.checkpoints.written("w1", error, PAIR, 100.0)
    (note,) = run.noted()
    assert (note["error"], note["failures"], note["retry_seconds"]) == (
        "w1: no space left",
        1,
        1.0,
    )
    assert run.checkpoints.next_step(6, 100.5) is None
    assert run.checkpoints.next_step(6, 101.0) == 7
    assert run.checkpoints.fatal is None


def test_too_many_failures_in_a_row_end_the_run(make):
    run = make(elastic=ElasticConfig(max_checkpoint_failures=2))
    for step in (5, 6):
        assert run.checkpoints.fatal is None
        run.snapshot(step)
        error = Share(1, step, 2, error="no space left")
        run.checkpoints.written("w0", error, PAIR, 0.0)
    assert "2 times in a row" in run.checkpoints.fatal


def test_a_checkpoint_that_another_run_has_written_there_meanwhile_is_a_failure(make):
    run = make()
    run.snapshot(5)
    shares = {worker: run.share(5, place) for place, worker in enumerate(PAIR)}
    checkpointer.save(run.place(5), trained(5, seed=99), "another run")
    for worker, share in shares.items():
        run.checkpoints.written(worker, share, PAIR, 0.0)
    run.settle()
    assert run.checkpoints.newest() is None
    assert "committed by another writer" in run.noted()[0]["error"]


def test_checkpoints_beyond_the_limit_are_deleted_and_noted(make):
    run = make(retention=Retention(num_to_keep=2))
    for step in (5, 10, 15):
        run.keep(step)
    assert run.whole() == [10, 15]
    assert [e["folder"] for e in run.noted() if e.get("removed")] == [run.place(5)]


def test_a_restarted_coordinator_knows_the_checkpoints(make):
    run = make(retention=Retention(num_to_keep=2))
    for step in (5, 10, 15):
        run.keep(step)
    run.begin()
    assert run.checkpoints.newest() == (run.place(15), 15)
    run.checkpoints.refuse(run.place(15), "damaged")
    run.begin()
    assert run.checkpoints.newest() == (run.place(10), 10)
    run.checkpoints.refuse(run.place(10), "damaged")
    run.begin()
    assert run.checkpoints.newest() is None  # the first was deleted
    run.keep(16)
    assert run.checkpoints.newest() == (run.place(16), 16)


def test_a_resumed_run_forgets_checkpoints_after_the_one_from_which_it_goes_on(make):
    run = make()
    for step in (5, 10, 15):
        run.keep(step)
    checkpointer.remove(Store(run.folder).inside(checkpointer.name_of(15)), run.spec.run_id)
    Journal(run.folder).write("run", resumed_step=10, resumed_from=run.place(10))
    run.begin()
    assert run.checkpoints.newest() == (run.place(10), 10)
    assert run.checkpoints.next_step(10, now=0.0) == 15  # which is due again
    run.keep(15)
    run.begin()
    assert run.checkpoints.newest() == (run.place(15), 15)


def test_a_checkpoint_that_the_journal_has_lost_is_known_by_the_resume_from_it(make):
    run = make()
    run.keep(5)
    Journal(run.folder).write("run", resumed_step=10, resumed_from=run.place(10))
    run.begin()
    assert run.checkpoints.newest() == (run.place(10), 10)


def test_a_checkpoint_records_the_metrics_known_at_its_step(make):
    run = make()
    run.run_log.add([Record(n, 1, 1.0, 1.0 / n, 0.0) for n in range(1, 9)], 2)
    evaluations = [(2, 0.25), (8, 0.75)]
    for at, accuracy in evaluations:
        record = Record(at, 1, 1.0, 0.0, 0.0, metrics={"accuracy": accuracy})
        run.run_log.add([record], 2)
    run.keep(5)
    (noted,) = (e for e in run.noted() if "metrics" in e)
    assert noted["metrics"] == {"loss": 1.0 / 5, "accuracy": 0.25}
    manifest = checkpointer.read_header(Store(run.folder).inside(checkpointer.name_of(5)))
    assert manifest.metrics == noted["metrics"]


def test_the_best_checkpoint_is_that_of_its_own_evaluation_which_may_end_later(make):
    run = make(retention=Retention(num_to_keep=1, score_attribute="accuracy"))
    for step, accuracy in ((5, 0.9), (10, 0.5), (15, 0.6)):
        steps = [Record(n, 1, 1.0, 1.0 / n, 0.0) for n in range(step - 4, step + 1)]
        run.run_log.add(steps, 2)
        run.keep(step)  # before its evaluation has ended
        evaluation = Record(step, 1, 1.0, 0.0, 0.0, metrics={"accuracy": accuracy})
        run.run_log.add([evaluation], 2)
    second = next(event for event in run.noted() if event.get("step") == 10)
    assert second["metrics"] == {"loss": 1.0 / 10}  # and not the accuracy of step 5
    kept = {one.name for one in run.checkpoints._books.kept}
    assert checkpointer.name_of(5) in kept  # the best
    assert run.checkpoints.newest() == (run.place(15), 15)


def test_the_list_for_ray_train_never_names_a_checkpoint_that_is_deleted(make, monkeypatch):
    run = make(retention=Retention(num_to_keep=1))
    removed = []

    def remove(place, _):
        listed = json.loads((run.folder / train_snapshot.FILE_NAME).read_text())
        names = [one["checkpoint_dir_name"] for one in listed["checkpoint_results"]]
        removed.append((place.local_path.name, names))

    monkeypatch.setattr(checkpointer, "remove", remove)
    for step in (5, 10):
        run.keep(step)
    five, ten = map(checkpointer.name_of, (5, 10))
    assert removed == [(five, [ten])]


def test_a_checkpoint_records_that_a_worker_may_compute_other_bits(make):
    run = make()
    run.keep(5)
    run.run_log.bitwise = False
    run.keep(10)
    names = [checkpointer.name_of(step) for step in (5, 10)]
    written = [checkpointer.read_header(Store(run.folder).inside(name)) for name in names]
    assert [manifest.bitwise for manifest in written] == [True, False]


# -- many workers


def calls_of(action):
    """Return how many calls of Python and of C an action makes in this thread."""
    count = 0

    def counted(_, event, __):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_the_work_for_a_checkpoint_follows_its_writers_and_not_the_group(make):
    run, state = make(), {"digest": "0" * 64, "scalars": {"step": 5}, "algorithms": []}
    counts = {}
    for generation, workers in enumerate((100, 1_000, 10_000), 1):
        names = [f"w{place}" for place in range(workers)]
        run.checkpoints.start_generation(generation, names, [str(p // 8) for p in range(workers)])
        run.run_log.extend_to(5 * generation)
        living = set(names)

        def write(generation=generation, living=living):
            for place in places_of(100, run.checkpoints._nodes):
                file = CheckpointFile(f"rest-{place:05d}", 0, "0" * 64)
                told = Share(generation, 5 * generation, 100, [file], state)
                run.checkpoints.written(f"w{place}", told, living, 0.0)
            for worker in living:  # a third of which are never writers
                run.checkpoints.lost(worker, 0.0)

        counts[workers] = calls_of(write) / workers
        (returned,) = run.told
        run.told.clear()
        assert returned.error == ""
        run.checkpoints._books.give_up()
    assert counts[10_000] < counts[1_000] < counts[100]
    assert counts[10_000] < 20  # to spread the writers, and to look up each worker that ends


def test_a_share_of_another_number_of_writers_is_a_failure(make):
    run = make()
    run.snapshot(5)
    run.checkpoints.written("w1", Share(1, 5, 3, []), PAIR, 0.0)
    assert "counts 3 writers, and others 2" in run.noted()[0]["error"]
    assert run.whole() == []


def test_a_share_of_an_earlier_generation_begins_no_checkpoint_and_counts_for_none(make):
    run = make()
    run.checkpoints.start_generation(2, PAIR, PAIR)
    run.checkpoints.written("w0", run.share(5, 0), PAIR, 0.0)
    assert run.checkpoints.next_step(4, 0.0) == 5  # none is under way
    run.snapshot(5, generation=2)
    run.checkpoints.written("w0", run.share(5, 0), PAIR, 0.0)
    run.checkpoints.written("w1", run.share(5, 1, generation=2), PAIR, 0.0)
    run.settle()
    assert run.whole() == []
    run.checkpoints.written("w0", run.share(5, 0, generation=2), PAIR, 0.0)
    run.settle()
    assert run.whole() == [5]
    assert checkpointer.read_header(run.place(5)).digest == trained(5, seed=2).digest()


def test_a_checkpoint_whose_state_is_not_described_is_a_failure(make):
    run = make()
    run.snapshot(5)
    for place, worker in enumerate(PAIR):
        share = replace(run.share(5, place), state=None)
        run.checkpoints.written(worker, share, PAIR, 0.0)
    run.settle()
    assert run.noted()[0]["error"] == "w0 has not described the state"


# -- after corruption


def test_a_corrupt_checkpoint_is_not_used(make):
    run = make()
    for step in (5, 10, 15):
        run.keep(step)
    run.checkpoints.distrust_after(10, generation=1)
    assert run.checkpoints.newest() == (run.place(10), 10)
    assert run.whole() == [5, 10]  # nor by a resumed run
    run.begin()
    assert run.checkpoints.newest() == (run.place(10), 10)
    run.keep(15, generation=2)  # the same step, with another state
    assert run.whole() == [5, 10, 15]
    assert checkpointer.read_header(run.place(15)).digest == trained(15, seed=2).digest()


def test_an_abandoned_attempt_stays_abandoned_when_late_messages_arrive(make):
    run = make()
    run.keep(5)
    run.snapshot(10)
    run.checkpoints.written("w0", run.share(10, 0), PAIR, 0.0)
    run.checkpoints.distrust_after(8, generation=1)
    run.checkpoints.written("w1", run.share(10, 1), PAIR, 0.0)
    run.snapshot(9)  # a late report of its start
    run.write(9)
    run.settle()
    assert run.whole() == [5]
    assert run.checkpoints.next_step(8, 0.0) == 10
    run.keep(10, generation=2)
    assert run.whole() == [5, 10]


def test_an_attempt_that_was_not_reported_before_the_corruption_does_not_start(make):
    run = make()
    run.keep(5)
    run.checkpoints.distrust_after(8, generation=1)
    run.snapshot(10)
    run.write(10)
    run.settle()
    assert run.whole() == [5]


def test_a_commit_that_ends_late_is_undone(make):
    run = make()
    run.snapshot(10)
    run.write(10)
    assert run.whole() == [10]
    run.checkpoints.distrust_after(8, generation=1)
    run.settle()
    assert (run.whole(), run.checkpoints.newest()) == ([], None)


# -- the last


def test_the_last_state_is_saved_by_the_first_that_can(make):
    run = make()

    def save(worker, step):
        if worker == "w0":
            raise RayError("it has died")
        replica = trained(0)
        train(replica, step)
        return checkpointer.save(run.place(step), replica, "run")

    assert run.checkpoints.save_last({"w0": 7, "w1": 7}, save) == (
        run.place(7),
        trained(7).digest(),
    )
    assert [("error" in note, note["step"]) for note in run.noted()] == [(True, 7), (False, 7)]
    assert run.checkpoints.newest() == (run.place(7), 7)


def test_a_commit_that_ends_while_the_last_state_is_saved_counts_for_retention(make):
    run = make(retention=Retention(num_to_keep=1))
    run.keep(5)
    run.snapshot(10)
    run.write(10)  # it is committed, and the coordinator does not know it yet

    def save(_, step):
        return checkpointer.save(run.place(step), trained(step), "run")

    assert run.checkpoints.save_last({"w0": 12}, save)[0] == run.place(12)
    assert run.whole() == [12]  # although the run may end before it knows of the commit
    run.settle()
    assert run.whole() == [12]
    # The control: if all are kept, nothing is deleted.
    other = make(retention=Retention())
    other.snapshot(15)
    other.write(15)
    other.checkpoints.save_last({"w0": 17}, lambda *_: "digest")
    other.settle()
    assert 15 in other.whole()


def test_without_a_worker_that_can_save_there_is_no_last_checkpoint(make):
    run = make()

    def save(_worker, _step):
        raise RayError("it has died")

    assert run.checkpoints.save_last({"w0": 7}, save) == (None, "")
    assert run.checkpoints.save_last({}, save) == (None, "")

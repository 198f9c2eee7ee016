"""A worker's share has the step of its snapshot, or is not reported."""

import queue
import threading

import pytest

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint import upload as module
from raytrain_plus.checkpoint.files import Limits
from raytrain_plus.checkpoint.snapshot import CheckpointError, Snapshot
from raytrain_plus.checkpoint.upload import Share, Uploads
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.store import Store
from tests.elastic.scripted_pool import make_spec
from tests.elastic.small_replica import train, trained

PATIENCE = 60.0
PAIR = ("node a", "node b")
TINY = Limits(least_bytes=1)


class Gate(Store):
    """A store that answers only when the gate is open."""

    def __init__(self, folder):
        super().__init__(folder)
        self.reached, self.opened, self.error = threading.Event(), threading.Event(), None

    def inside(self, folder):
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return Store(self.local_path).inside(folder)


class Writer(Uploads):
    """Uploads whose reports can be waited for."""

    def __init__(self, store, header=None, limits=None):
        self.told = queue.Queue()
        super().__init__(store, (), self.told.put, header=header, limits=limits)

    def next(self):
        return self.told.get(timeout=PATIENCE)

    def ended(self):
        """Wait until nothing is being written."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def gate(tmp_path):
    store = Gate(tmp_path)
    yield store
    store.opened.set()


def test_all_shares_together_are_a_checkpoint(tmp_path):
    replica, shares = trained(3), []
    for place in range(2):
        writer = Writer(Store(tmp_path), limits=TINY)
        writer.start(replica, place, PAIR, generation=5)
        if place == 0:  # which reports at once that it has begun
            assert writer.next() == Share(5, 3, 2)
        shares.append(writer.next())
    assert [(one.generation, one.step, one.writers, one.error) for one in shares] == [
        (5, 3, 2, "")
    ] * 2
    assert shares[1].state is None  # one is enough
    files = [entry for one in shares for entry in one.files]
    assert len({entry.file for entry in files}) == len(files)
    place = tmp_path / "checkpoint_00000003"
    checkpointer.commit(place, {"run": "run", **shares[0].state}, files)
    other = trained(0, seed=1)
    checkpointer.load(place, other)
    assert other.digest() == replica.digest()


def test_workers_that_do_not_write_copy_and_report_nothing(tmp_path, monkeypatch):
    nodes = ["a", "a", "b", "b", "c"]
    taken = []

    class Watched(Snapshot):
        @classmethod
        def of(cls, replica, *which):
            taken.append(Snapshot.of(replica, *which))
            return taken[-1]

    monkeypatch.setattr(module, "Snapshot", Watched)
    replica, told = trained(3), {}
    for place in range(len(nodes)):
        writer = Writer(Store(tmp_path), limits=Limits(least_bytes=1, writers=3))
        writer.start(replica, place, nodes, generation=1)
        if writer._thread is not None:
            writer.ended()
        told[place] = [writer.told.get_nowait() for _ in range(writer.told.qsize())]
    assert {place: len(shares) for place, shares in told.items()} == {0: 2, 1: 0, 2: 1, 3: 0, 4: 1}
    held = [sum(tensor.nbytes for tensor in one.tensors.values()) for one in taken]
    assert len(held) == 3
    assert max(held[1:]) < held[0]  # the first has the whole state, for the digest


def test_the_written_state_is_that_of_the_step_while_training_goes_on(gate):
    replica, writer = trained(3), Writer(gate)
    digest = replica.digest()
    writer.start(replica, 0, ["w0"], 1)
    assert gate.reached.wait(PATIENCE)
    train(replica, 2)
    gate.opened.set()
    writer.next()
    written = writer.next()
    place = gate.local_path / "checkpoint_00000003"
    checkpointer.commit(place, {"run": "run", **written.state}, written.files)
    other = trained(0)
    checkpointer.load(place, other)
    assert (other.step, other.digest()) == (3, digest)
    assert replica.digest() != digest


def test_a_request_for_another_checkpoint_cancels_the_previous_one(gate):
    replica, writer = trained(3), Writer(gate)
    writer.start(replica, 0, ["w0"], 1)
    assert gate.reached.wait(PATIENCE)
    first = writer._thread
    train(replica, 1)
    writer.start(replica, 0, ["w0"], 2)
    gate.opened.set()
    first.join(PATIENCE)
    writer.ended()
    told = [writer.told.get_nowait() for _ in range(writer.told.qsize())]
    assert [(one.step, one.files is not None) for one in told] == [
        (3, False),
        (4, False),
        (4, True),
    ]
    assert told[-1].state["digest"] == replica.digest()


def test_a_snapshot_reuses_the_memory_of_the_last_one_unless_that_is_being_written(
    gate, monkeypatch
):
    taken = []

    class Watched(Snapshot):
        @classmethod
        def of(cls, replica, reuse=None, *which):
            snapshot = Snapshot.of(replica, reuse, *which)
            taken.append((snapshot, reuse))
            return snapshot

    monkeypatch.setattr(module, "Snapshot", Watched)
    replica, writer = trained(1), Writer(gate)
    gate.opened.set()
    writer.start(replica, 0, ["w0"], 1)
    writer.ended()
    gate.opened.clear()
    writer.start(replica, 0, ["w0"], 1)
    writer.start(replica, 0, ["w0"], 1)
    assert [reuse for _, reuse in taken] == [None, taken[0][0], None]


def test_a_failing_store_is_reported_and_does_not_disturb_training(gate):
    replica, writer = trained(3), Writer(gate)
    gate.error = StoreError("no bucket of that name")
    gate.opened.set()
    writer.start(replica, 0, ["w0"], 1)
    assert [writer.next().error, writer.next().error] == ["", "no bucket of that name"]
    gate.error = None
    train(replica, 1)
    writer.start(replica, 0, ["w0"], 1)
    writer.next()
    assert (written := writer.next()).error == ""
    assert written.state["digest"] == replica.digest()


def test_a_partly_updated_state_is_not_written(tmp_path):
    replica, writer = trained(3), Writer(Store(tmp_path))
    replica.torn = True
    with pytest.raises(CheckpointError, match="failed before its end"):
        writer.start(replica, 0, ["w0"], 1)
    with pytest.raises(CheckpointError, match="failed before its end"):
        writer.write_alone(replica)
    assert writer.told.empty()
    assert list(tmp_path.iterdir()) == []


def test_one_worker_can_write_alone_and_a_running_attempt_is_cancelled(gate):
    replica = trained(3)
    spec = make_spec(gate.local_path, identity={"seed": 17})
    writer = Writer(gate, spec.manifest_header({}))
    writer.start(replica, 0, PAIR, 1)
    assert gate.reached.wait(PATIENCE)
    gate.opened.set()
    train(replica, 1)
    assert writer.write_alone(replica) == replica.digest()
    header = checkpointer.verify(gate.local_path / "checkpoint_00000004")
    assert (header.run, header.step, header.identity) == ("run", 4, {"seed": 17})
    other = trained(0)
    checkpointer.load(gate.local_path / "checkpoint_00000004", other)
    assert other.digest() == replica.digest()

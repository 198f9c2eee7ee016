"""A process that is killed anywhere in a commit leaves the old checkpoint whole, or the new one."""

import contextlib
import os
import threading
from collections import deque
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.files import Limits
from raytrain_plus.checkpoint.retention import Retention
from raytrain_plus.checkpoint.snapshot import Snapshot, layout_of
from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.coordinator import checkpoint_coordinator
from raytrain_plus.elastic.coordinator.checkpoint_coordinator import CheckpointCoordinator
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.observe.journal import Journal, read
from tests.elastic.scripted_pool import AtOnce, make_spec
from tests.elastic.small_replica import trained

CLOCK = Clock(
    total_steps=40, steps_per_epoch=10, batch_size=8, evaluate_every=10, checkpoint_every=5
)
WORKERS = [f"w{place}" for place in range(3)]
SMALL = Limits(model_bytes=64, least_bytes=1)  # several files of the model, several writers
STATES = {step: trained(step) for step in (5, 10, 15)}
LOCAL = ("fsync", "link", "replace", "unlink", "remove", "rmdir", "mkdir")
IN_MEMORY = ("pipe_file", "rm_file")


class KilledError(BaseException):
    """The process has ended: nothing of it runs any more, no handler and no `finally` either."""


class Operations:
    """The operations that change a store, which can be made to fail like a killed process.

    Args:
        monkeypatch: of the test.
        is_local: whether the store is a folder.
    """

    def __init__(self, monkeypatch, *, is_local):
        self.kill_before(None)
        where, names = (os, LOCAL) if is_local else (MemoryFileSystem, IN_MEMORY)
        for name in names:
            # A killed process loses nothing that it has written, so nothing waits for the disk.
            operation = (lambda *_: None) if name == "fsync" else getattr(where, name)
            monkeypatch.setattr(where, name, self._counted(name, operation))

    def kill_before(self, number):
        """Be killed before an operation, counted from here, which is after the one before it."""
        self.done, self.fatal, self.dead = [], number, False

    def _counted(self, name, operation):
        def run(*args, **options):
            self.dead = self.dead or len(self.done) == self.fatal
            if self.dead:
                raise KilledError
            self.done.append(name)
            return operation(*args, **options)

        return run


class Run:
    """A run that keeps its newest checkpoint, in a store of its own."""

    def __init__(self, folder, storage):
        folder.mkdir(parents=True)
        self.spec = make_spec(
            folder,
            clock=CLOCK,
            retention=Retention(num_to_keep=1),
            elastic=ElasticConfig(checkpoint_storage=storage),
        )
        self.store = self.spec.checkpoint_store

    def keep(self, step, generation):
        """Let a new coordinator and its workers make one checkpoint."""
        told, folder = deque(), self.spec.folder
        events = read(folder) if (folder / "journal.jsonl").exists() else []
        run_log = RunLog(Journal(folder), events)
        run_log.extend_to(step)
        checkpoints = CheckpointCoordinator(self.spec, run_log, told.append, events)
        checkpoints.start_generation(generation, WORKERS, WORKERS)
        snapshot = Snapshot.of(STATES[step])
        layout = layout_of(snapshot, len(WORKERS), SMALL)
        assert layout.index is not None
        place = self.store.inside(checkpointer.name_of(step))
        count = len(layout.shares)
        for writer in range(count):
            files = checkpointer.write_share(place, snapshot, layout, writer)
            state = checkpointer.describe_state(snapshot) if writer == 0 else None
            share = Share(generation, step, count, files, state)
            checkpoints.written(WORKERS[writer], share, WORKERS, 0.0)
        checkpoints.committed(told.popleft(), 0.0)

    def newest(self):
        """Return the step of the newest whole checkpoint, after loading it."""
        name, _ = checkpointer.newest_whole(self.store, self.spec.name, self.spec.run_id)
        replica = trained(0, seed=99)
        checkpointer.load(self.store.inside(name), replica, self.spec.run_id)
        assert replica.digest() == STATES[replica.step].digest()
        return replica.step

    def filled(self):
        """Return the folders of checkpoints that are not empty."""
        return [n for n in checkpointer.names(self.store) if self.store.inside(n).sizes()]


@pytest.mark.parametrize("storage", ["local", "memory"])
def test_a_kill_at_any_operation_leaves_one_checkpoint_whole(storage, tmp_path, monkeypatch):
    threads = SimpleNamespace(Thread=AtOnce, Lock=threading.Lock)
    monkeypatch.setattr(checkpoint_coordinator, "threading", threads)
    operations = Operations(monkeypatch, is_local=storage == "local")

    def killed(number):
        """Return what is left if the second checkpoint is killed, and all operations of it."""
        root = tmp_path / f"{number}" if storage == "local" else f"memory://{tmp_path}/{number}"
        operations.kill_before(None)
        run = Run(tmp_path / f"{number}" / "journal", str(root))
        run.keep(5, generation=1)
        operations.kill_before(number)
        with contextlib.suppress(KilledError):
            run.keep(10, generation=1)
        done = operations.done
        operations.kill_before(None)
        left = run.newest()
        run.keep(15, generation=2)  # by a coordinator that was started again
        assert run.newest() == 15
        assert run.filled() == [checkpointer.name_of(15)], (number, done)
        return left, done

    undisturbed, every = killed(None)
    assert undisturbed == 10
    left = [killed(number)[0] for number in range(len(every))]
    commit = left.index(10) - 1  # the commit is one operation, before which it is the old one
    assert left == [5] * (commit + 1) + [10] * (len(every) - commit - 1)
    assert every[commit] == ("link" if storage == "local" else "pipe_file")
    assert every[commit + 1 :].count("unlink" if storage == "local" else "rm_file") > 4


def test_the_control_if_the_old_one_is_removed_first_a_kill_leaves_none(tmp_path, monkeypatch):
    operations = Operations(monkeypatch, is_local=True)
    run = Run(tmp_path / "journal", str(tmp_path))
    checkpointer.save(run.store.inside(checkpointer.name_of(5)), STATES[5], run.spec.name)
    operations.kill_before(4)
    checkpointer.remove(run.store.inside(checkpointer.name_of(5)))
    with pytest.raises(KilledError):
        checkpointer.save(run.store.inside(checkpointer.name_of(10)), STATES[10], "run")
    operations.kill_before(None)
    assert checkpointer.newest_whole(run.store)[0] is None

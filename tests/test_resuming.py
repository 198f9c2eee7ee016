"""A run goes on from its newest whole checkpoint, as the same run or as one that has changed."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from raytrain_plus import resuming
from raytrain_plus.configure import ConfigError
from raytrain_plus.observe.journal import Journal
from raytrain_plus.streams.store import Store
from raytrain_plus.task import Task, load_task
from raytrain_plus.training import checkpoint
from raytrain_plus.training.state import Replica
from tests.test_configure import says

IDENTITY = {"seed": 17, "logical_ranks": 8}


class Line(Task):
    def model(self):
        return nn.Linear(2, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)


def described(folder, *, checkpoints=(), **more):
    folder.mkdir(exist_ok=True)
    journal = Journal(folder)
    journal.write("run", identity=IDENTITY)
    journal.write("run", identity={"seed": 5}, **more)
    journal.write("checkpoint", step=1, folder="gone", metrics={})
    journal.close()
    write(Store(folder), folder.name, checkpoints)


def write(store, run, steps):
    for step in steps:
        replica = Replica.build(Line(), step, torch.device("cpu"))
        replica.step = step
        checkpoint.save(store.inside(checkpoint.name_of(step)), replica, run)


def test_the_newest_whole_checkpoint_is_resumed(tmp_path):
    described(tmp_path, checkpoints=[9, 100])
    (tmp_path / "checkpoint_00000200").mkdir()
    found = resuming.last_checkpoint(tmp_path, IDENTITY)
    assert found == resuming.Resumption(tmp_path / "checkpoint_00000100", 100, [], {})

    (tmp_path / "checkpoint_00000100" / "model.safetensors").write_bytes(b"")
    found = resuming.last_checkpoint(tmp_path, IDENTITY)
    assert (found.place, found.step) == (tmp_path / "checkpoint_00000009", 9)
    assert "model.safetensors has 0 of" in found.refused["checkpoint_00000100"]


def test_checkpoints_may_be_kept_elsewhere(tmp_path, server):
    described(tmp_path / "run")
    store = Store(f"s3://{server.fresh_bucket()}/kept", server.options())
    write(store, "run", [9])
    found = resuming.last_checkpoint(tmp_path / "run", IDENTITY, store=store)
    assert found.place == f"{store.url}/checkpoint_00000009"
    with says(ConfigError, f"no checkpoint in {tmp_path / 'run'}"):
        resuming.last_checkpoint(tmp_path / "run", IDENTITY)


def test_a_run_cannot_be_resumed_differently_unless_that_is_allowed(tmp_path):
    described(tmp_path, checkpoints=[9])
    with says(
        ConfigError,
        "cannot be resumed differently",
        "seed: was 17, is 18",
        "same as before",
        "--allow-change",
    ):
        resuming.last_checkpoint(tmp_path, {**IDENTITY, "seed": 18})
    with says(ConfigError, "batch_size: was None, is 64"):
        resuming.last_checkpoint(tmp_path, {**IDENTITY, "batch_size": 64})
    with says(ConfigError, "logical_ranks: was 8, is None"):
        resuming.last_checkpoint(tmp_path, {"seed": 17})

    changed = {"seed": 18, "logical_ranks": 4}
    found = resuming.last_checkpoint(tmp_path, changed, allow_change=True)
    assert found.changes == ["seed: was 17, is 18", "logical_ranks: was 8, is 4"]
    assert found.step == 9
    assert resuming.last_checkpoint(tmp_path, IDENTITY, allow_change=True).changes == []


def test_a_change_that_was_allowed_is_what_the_run_is_from_then_on(tmp_path):
    described(tmp_path, checkpoints=[9], changes=["seed: was 17, is 5"])
    assert resuming.last_checkpoint(tmp_path, {"seed": 5}).changes == []
    with says(ConfigError, "seed: was 5, is 17"):
        resuming.last_checkpoint(tmp_path, IDENTITY)


def test_an_identity_is_compared_as_the_journal_holds_it(tmp_path):
    journal = Journal(tmp_path)
    journal.write("run", identity={"betas": (1, 2)})
    journal.close()
    write(Store(tmp_path), tmp_path.name, [9])
    assert resuming.last_checkpoint(tmp_path, {"betas": (1, 2)}).changes == []


def test_a_run_that_was_lost_before_its_first_checkpoint_begins_anew(tmp_path):
    journal = Journal(tmp_path)
    journal.write("run", identity=IDENTITY)
    journal.close()
    found = resuming.last_checkpoint(tmp_path, IDENTITY)
    assert (found.place, found.step, found.refused) == (None, 0, {})


def test_what_is_not_there_cannot_be_resumed(tmp_path):
    with says(ConfigError, "there is no run to resume in", str(tmp_path)):
        resuming.last_checkpoint(tmp_path, IDENTITY)
    described(tmp_path)
    with says(ConfigError, f"no checkpoint in {tmp_path}", "start a new run"):
        resuming.last_checkpoint(tmp_path, IDENTITY)
    write(Store(tmp_path), "another", [9])
    with says(ConfigError, "checkpoint_00000009 is refused: it is of the run 'another'"):
        resuming.last_checkpoint(tmp_path, IDENTITY)


TASK = """
from raytrain_plus import Task
from torch import nn

class Net(nn.Linear):
    pass

class Base(Task):
    pass

class Mine(Base):
    size = 3
"""


def code_of(path, attribute="Mine"):
    """Return the hash that a new process finds."""
    program = "import sys; from raytrain_plus import resuming, task; "
    program += "print(resuming.task_code(task.load_task(sys.argv[1])))"
    command = [sys.executable, "-c", program, f"{path}:{attribute}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_code_of_a_task_is_known_again_and_every_change_of_it_shows(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(TASK)
    before = code_of(file)
    assert len(before) == 64
    assert code_of(file) == before
    file.write_text(TASK.replace("pass", "bias = 0", 1))  # the model beside the task
    assert code_of(file) != before


def test_a_base_in_another_file_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "base.py").write_text(TASK)
    file = tmp_path / "mine.py"
    file.write_text("from base import Base\nclass Mine(Base):\n    pass\n")
    before = code_of(file)
    (tmp_path / "base.py").write_text(TASK + "# changed\n")
    assert code_of(file) != before


def test_a_class_without_a_source_has_a_hash_too():
    space = {"Task": Task, "__name__": "nowhere"}
    exec(textwrap.dedent("class Mine(Task):\n    pass"), space)
    assert len(resuming.task_code(space["Mine"]())) == 64
    assert resuming.task_code(load_task(Line())) != resuming.task_code(space["Mine"]())


def test_a_store_that_cannot_be_reached_is_no_missing_checkpoint(tmp_path, server):
    described(tmp_path)
    options = server.options("http://127.0.0.1:9")
    store = Store("s3://bucket/run", options, deadline=1.0, stall=0.5)
    with pytest.raises(ValueError, match="could not be reached"):
        resuming.last_checkpoint(tmp_path, IDENTITY, store=store)

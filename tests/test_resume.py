"""A run goes on from its newest complete checkpoint, as the same run or as a changed one."""

import contextlib
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from ray.train import RunConfig
from torch import nn

from raytrain_plus import ElasticTrainer, resume
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.snapshot import layout_of
from raytrain_plus.clock import Clock
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.worker.worker import Worker
from raytrain_plus.observe.journal import Journal, read
from raytrain_plus.storage.store import Store
from raytrain_plus.task import Task
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


def write(store, run, steps, **header):
    for step in steps:
        replica = Replica.build(Line(), step, torch.device("cpu"))
        replica.step = step
        place = store.inside(checkpointer.name_of(step))
        snapshot = checkpointer.Snapshot.of(replica)
        pieces = checkpointer.write_share(place, snapshot, layout_of(snapshot, 1))
        described = {"run": run, **checkpointer.describe_state(snapshot), **header}
        checkpointer.commit(place, described, pieces)


def test_the_newest_complete_checkpoint_is_resumed(tmp_path):
    described(tmp_path, checkpoints=[9, 100])
    (tmp_path / "checkpoint_00000200").mkdir()
    found = resume.last_checkpoint(tmp_path, IDENTITY)
    assert found == resume.Resumption(tmp_path / "checkpoint_00000100", 100, [], {})

    (tmp_path / "checkpoint_00000100" / "model.safetensors").write_bytes(b"")
    found = resume.last_checkpoint(tmp_path, IDENTITY)
    assert (found.place, found.step) == (tmp_path / "checkpoint_00000009", 9)
    assert "model.safetensors has 0 of" in found.refused["checkpoint_00000100"]


def test_checkpoints_may_be_in_another_folder(tmp_path, server):
    described(tmp_path / "run")
    store = Store(f"s3://{server.fresh_bucket()}/kept", server.options())
    write(store, "run", [9])
    found = resume.last_checkpoint(tmp_path / "run", IDENTITY, store=store)
    assert found.place == f"{store.url}/checkpoint_00000009"
    with says(ConfigError, f"no checkpoint in {tmp_path / 'run'}"):
        resume.last_checkpoint(tmp_path / "run", IDENTITY)


def test_a_run_cannot_be_resumed_differently_unless_that_is_allowed(tmp_path):
    described(tmp_path, checkpoints=[9])
    with says(
        ConfigError,
        "cannot be resumed with other settings",
        "seed: was 17, is 18",
        "same as before",
        "--allow-change",
    ):
        resume.last_checkpoint(tmp_path, {**IDENTITY, "seed": 18})
    with says(ConfigError, "batch_size: was None, is 64"):
        resume.last_checkpoint(tmp_path, {**IDENTITY, "batch_size": 64})
    with says(ConfigError, "logical_ranks: was 8, is None"):
        resume.last_checkpoint(tmp_path, {"seed": 17})

    changed = {"seed": 18, "logical_ranks": 4}
    found = resume.last_checkpoint(tmp_path, changed, allow_change=True)
    assert found.changes == ["seed: was 17, is 18", "logical_ranks: was 8, is 4"]
    assert found.step == 9
    assert resume.last_checkpoint(tmp_path, IDENTITY, allow_change=True).changes == []


def test_an_allowed_change_is_the_runs_new_identity(tmp_path):
    described(tmp_path, checkpoints=[9], changes=["seed: was 17, is 5"])
    assert resume.last_checkpoint(tmp_path, {"seed": 5}).changes == []
    with says(ConfigError, "seed: was 5, is 17"):
        resume.last_checkpoint(tmp_path, IDENTITY)


def test_identities_are_compared_in_the_form_of_the_journal(tmp_path):
    journal = Journal(tmp_path)
    journal.write("run", identity={"betas": (1, 2)})
    journal.close()
    write(Store(tmp_path), tmp_path.name, [9])
    assert resume.last_checkpoint(tmp_path, {"betas": (1, 2)}).changes == []


def test_a_run_lost_before_its_first_checkpoint_starts_from_the_beginning(tmp_path):
    journal = Journal(tmp_path)
    journal.write("run", identity=IDENTITY)
    journal.close()
    found = resume.last_checkpoint(tmp_path, IDENTITY)
    assert (found.place, found.step, found.refused) == (None, 0, {})


def test_a_missing_run_or_checkpoint_cannot_be_resumed(tmp_path):
    with says(ConfigError, "there is no run to resume in", str(tmp_path)):
        resume.last_checkpoint(tmp_path, IDENTITY)
    described(tmp_path)
    with says(ConfigError, f"no checkpoint in {tmp_path}", "start a new run"):
        resume.last_checkpoint(tmp_path, IDENTITY)
    write(Store(tmp_path), "another", [9])
    with says(ConfigError, "checkpoint_00000009 is refused: it is of the run 'another'"):
        resume.last_checkpoint(tmp_path, IDENTITY)


def test_a_run_whose_folder_is_lost_goes_on_from_its_checkpoints(tmp_path):
    lost, store = tmp_path / "mine", Store(tmp_path / "kept").inside("mine")
    write(store, "mine", [20, 40], run_id="first", identity=IDENTITY)
    found = resume.last_checkpoint(lost, IDENTITY, store=store)
    assert (found.step, found.run_id) == (40, "first")
    # So that they are kept or deleted as before.
    assert [one.step for one in found.found] == [40, 20]
    with says(ConfigError, f"in {store.local_path} cannot be resumed", "seed: was 17, is 5"):
        resume.last_checkpoint(lost, {**IDENTITY, "seed": 5}, store=store)
    with says(ConfigError, f"no run to resume in {lost}"):
        resume.last_checkpoint(lost, IDENTITY, store=Store(lost))
    with says(ConfigError, f"no run to resume in {tmp_path / 'yours'}", "of the run 'mine'"):
        resume.last_checkpoint(tmp_path / "yours", IDENTITY, store=store)


def test_checkpoints_of_another_run_of_the_same_name_are_never_loaded_nor_deleted(tmp_path):
    folder, store = tmp_path / "mine", Store(tmp_path / "kept").inside("mine")
    described(folder, run_id="first")
    write(store, "mine", [60], run_id="first", identity=IDENTITY)
    write(store, "mine", [100], run_id="second", identity={"seed": 5})
    found = resume.last_checkpoint(folder, IDENTITY, store=store)
    assert found.step == 60
    assert "another run of the same name" in found.refused["checkpoint_00000100"]
    theirs = store.inside("checkpoint_00000100")
    replica = Replica.build(Line(), 1, torch.device("cpu"))
    with says(checkpointer.CheckpointError, "another run of the same name"):
        checkpointer.load(theirs, replica, "first")
    checkpointer.load(theirs, replica, "second")
    checkpointer.remove(theirs, "first")
    assert checkpointer.verify(theirs).run_id == "second"
    checkpointer.remove(theirs, "second")
    assert [one.step for one in checkpointer.kept(store)] == [60]


def test_a_new_run_does_not_keep_its_checkpoints_among_those_of_another(tmp_path):
    store = Store(tmp_path).inside("mine")
    resume.check_unused(store, "mine")
    (tmp_path / "mine" / "checkpoint_00000009").mkdir(parents=True)  # an attempt failed
    resume.check_unused(store, "mine")
    write(store, "mine", [60])
    with says(ConfigError, "another run 'mine'", "step 60", "--name", "--resume"):
        resume.check_unused(store, "mine")


class Fitted(Line):
    columns = ("x", "y")
    target = "y"

    def loss(self, outputs, batch):
        return (outputs[:, 0] - batch["y"]).square()


def resumed_to(storage, duration, **more):
    x = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 16, pa.float32()), 2)
    return ElasticTrainer(
        task=Fitted(),
        data=pa.table({"x": x, "y": pa.array([1.0] * 8, pa.float32())}),
        batch_size=8,
        duration=duration,
        run_config=RunConfig(name="run", storage_path=str(storage)),
        resume=True,
        allow_change=True,
        **more,
    )


def test_a_run_beyond_its_last_step_is_refused(tmp_path):
    described(tmp_path / "run", checkpoints=[60])
    with says(ConfigError, "stands at step 60", "after step 40", "Give a longer duration"):
        resumed_to(tmp_path, "40ba")
    for duration in ("60ba", "61ba"):  # at its last step it only ends
        place, step = resumed_to(tmp_path, duration).spec.resume_from
        assert (place, step) == (str(tmp_path / "run" / "checkpoint_00000060"), 60)


@pytest.mark.parametrize(("step", "ending"), [(60, "finished"), (61, "finished"), (59, "paused")])
def test_at_or_beyond_the_last_step_no_step_is_taken(step, ending, monkeypatch):
    taken = []

    def load(*_, **__):
        taken.append(step + 1)
        raise StepTakenError

    clock = Clock(total_steps=60, steps_per_epoch=100, batch_size=8, evaluate_every=100)
    worker = SimpleNamespace(
        _spec=SimpleNamespace(clock=clock, part_rows=1, stop=()),
        _loop=SimpleNamespace(replica=SimpleNamespace(step=step)),
        _source=None,
        _order=None,
        _evaluate=lambda *_: None,
        _stops=lambda *_: False,
    )
    monkeypatch.setattr("raytrain_plus.elastic.worker.worker.Loader", load)
    plan = SimpleNamespace(ranges=[()], evaluated=False, evaluations=(), values={})
    with pytest.raises(StepTakenError) if ending == "paused" else contextlib.nullcontext():
        assert Worker._run(worker, plan, SimpleNamespace(index=0)) == ending
    assert taken == ([60] if ending == "paused" else [])


class StepTakenError(Exception):
    pass


WORKERS = {"torch": "2", "threads": "1", "data": "a.parquet", "probe gradient": "9"}


@pytest.mark.parametrize("is_lost", [False, True], ids=["folder", "folder is lost"])
def test_a_resumed_run_knows_how_its_workers_computed_the_last_time(tmp_path, is_lost):
    folder, store = tmp_path / "run", Store(tmp_path / "kept").inside("run")
    write(store, "run", [9], identity=IDENTITY, environment=WORKERS)
    if not is_lost:
        described(folder)
        journal = Journal(folder)
        journal.write("environment", fingerprint={"torch": "1"})
        journal.write("environment", fingerprint=WORKERS)
        journal.close()
    found = resume.last_checkpoint(folder, IDENTITY, store=store)
    assert found.environment == {"torch": "2", "threads": "1", "probe gradient": "9"}
    other = {**IDENTITY, "seed": 18}
    found = resume.last_checkpoint(folder, other, store=store, allow_change=True)
    assert found.environment == {"torch": "2", "threads": "1"}


@pytest.mark.parametrize("bitwise", [True, False])
def test_a_resume_without_the_runs_folder_knows_whether_its_bits_are_those_of_no_other_run(
    tmp_path, bitwise
):
    store = Store(tmp_path / "kept").inside("run")
    write(store, "run", [9], identity=IDENTITY, bitwise=bitwise)
    folder = tmp_path / "run"
    found = resume.last_checkpoint(folder, IDENTITY, store=store)
    folder.mkdir()
    journal = Journal(folder)
    journal.write("run", **found.journal_fields())
    journal.close()
    assert RunLog(Journal(folder), read(folder)).bitwise is bitwise


def test_a_run_that_starts_again_must_compute_the_same_steps(tmp_path):
    journal = Journal(tmp_path)
    journal.write("run", identity=IDENTITY)
    journal.write("environment", fingerprint=WORKERS)
    journal.close()
    assert resume.last_checkpoint(tmp_path, IDENTITY).environment["threads"] == "1"


SECRET = {"data": "https://ann:pass:w@rd@host/a.parquet?sig=abc", "token": "t0ken"}


def test_another_secret_is_not_a_change(tmp_path):
    described(tmp_path / "run", checkpoints=[9])
    for folder in (tmp_path / "run", tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        journal = Journal(folder)
        journal.write("run", identity=SECRET, changes=["data: was a, is b"])
        journal.close()
        assert "w@rd" not in journal.path.read_text()
    assert resume.last_checkpoint(tmp_path / "run", SECRET).changes == []
    with says(ConfigError, "data: was 'https://***@host/a.parquet?sig=***', is 'https://***@else"):
        moved = {**SECRET, "data": SECRET["data"].replace("host", "elsewhere")}
        resume.last_checkpoint(tmp_path / "run", moved)


CODE = {"task.py": "1", "rates.py": "2"}


def test_a_run_is_resumed_with_other_code_only_if_that_is_accepted(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    journal = Journal(folder)
    journal.write("run", identity={"seed": 17, "code": CODE})
    journal.close()
    for code, told in (
        ({**CODE, "rates.py": "3"}, "rates.py has changed"),
        ({**CODE, "more.py": "3"}, "more.py is new"),
        ({"task.py": "1"}, "rates.py is not imported any more"),
    ):
        now = {"seed": 17, "code": code}
        with says(ConfigError, f"code: {told}", "--accept-changed-code"):
            resume.last_checkpoint(folder, now)
        accepted = resume.last_checkpoint(folder, now, accept_changed_code=True)
        assert accepted.changes == [f"code: {told}"]
        with says(ConfigError, "seed: was 17, is 18", "--allow-change"):
            resume.last_checkpoint(folder, {**now, "seed": 18}, accept_changed_code=True)
        assert (
            len(resume.last_checkpoint(folder, now | {"seed": 18}, allow_change=True).changes) == 2
        )
    assert resume.last_checkpoint(folder, {"seed": 17, "code": CODE}).changes == []


def test_unrecorded_code_counts_as_changed(tmp_path):
    described(tmp_path)
    with says(ConfigError, "code: was recorded by another version"):
        resume.last_checkpoint(tmp_path, {**IDENTITY, "code": CODE})


def test_an_unreachable_store_is_not_a_missing_checkpoint(tmp_path, server):
    described(tmp_path)
    options = server.options("http://127.0.0.1:9")
    store = Store("s3://bucket/run", options, deadline=1.0, stall=0.5)
    with pytest.raises(ValueError, match="could not be reached"):
        resume.last_checkpoint(tmp_path, IDENTITY, store=store)


def test_later_states_that_a_worker_kept_on_this_node_are_named(tmp_path):
    for number, (run_id, step) in enumerate([("a", 5), ("a", 9), ("b", 12), ("", 20)]):
        folder = tmp_path / f"{checkpointer.RESCUED}{number}"
        write(Store(folder), "run", [step], run_id=run_id)
    damaged = tmp_path / f"{checkpointer.RESCUED}9" / checkpointer.name_of(30)
    damaged.mkdir(parents=True)
    write(Store(tmp_path / "other"), "run", [40], run_id="a")
    kept = str(tmp_path / f"{checkpointer.RESCUED}1" / checkpointer.name_of(9))
    assert resume.rescued_states("a", 5, tmp_path) == [kept]
    # The controls: no earlier state, and none of a run that has no id.
    assert resume.rescued_states("a", 9, tmp_path) == []
    assert resume.rescued_states("", 0, tmp_path) == []

"""A checkpoint is complete or refused, and a run continues from it with the same bits."""

import gc
import json
import os
import shutil
import tracemalloc

import pytest
import safetensors.torch
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.checkpointer import (
    CheckpointError,
    Snapshot,
    commit,
    load,
    save,
    step_of,
)
from raytrain_plus.checkpoint.snapshot import layout_of
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.store import Store
from raytrain_plus.training.state import Replica
from tests.training.small_tasks import (
    FEATURES,
    OPTIMIZERS,
    Noisy,
    Normed,
    Plain,
    Tied,
    loop_alone,
    run,
)

REST = "rest-00001-of-00001.safetensors"
FILES = ["manifest.json", "model.safetensors", REST]


def trained(task, steps=3):
    loop = loop_alone(task)
    run(loop, steps)
    return loop


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Write one good checkpoint, which tests copy and break."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoint_00000003"
    save(folder, trained(Normed("AdamW")).replica, "run")
    return folder


@pytest.fixture
def broken(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


class TiedWithATable(Tied):
    """Tied weights have two names in a state_dict; a buffer that is not persistent has none."""

    def model(self):
        model = super().model()
        model.register_buffer("table", torch.arange(3.0), persistent=False)
        return model


def test_tied_weights_and_buffers_that_are_not_persistent_load_into_the_plain_model(tmp_path):
    loop, other = trained(TiedWithATable()), loop_alone(TiedWithATable())
    with torch.no_grad():
        loop.replica.model.table.add_(1.0)
    save(tmp_path / "checkpoint", loop.replica, "run")
    weights = safetensors.torch.load_file(tmp_path / "checkpoint" / "model.safetensors")
    TiedWithATable().model().load_state_dict(weights, strict=True)
    load(tmp_path / "checkpoint", other.replica)
    assert other.replica.digest() == loop.replica.digest()
    assert other.replica.model.table.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_next_steps_have_the_same_bits_with_and_without_a_checkpoint(optimizer, tmp_path):
    ours, other = trained(Noisy(optimizer)), loop_alone(Noisy(optimizer))
    assert other.replica.digest() != ours.replica.digest()
    digest = save(tmp_path / "checkpoint", ours.replica, "run")
    assert digest == ours.replica.digest()
    assert step_of(tmp_path / "checkpoint") == 3

    load(tmp_path / "checkpoint", other.replica)
    assert other.replica.digest() == digest
    assert other.replica.scalars() == ours.replica.scalars()
    assert [r.loss for r in run(other, 2)] == [r.loss for r in run(ours, 2)]
    assert other.replica.digest() == ours.replica.digest() != digest


def test_the_weights_load_into_the_plain_model(tmp_path):
    replica = trained(Normed()).replica
    save(tmp_path / "checkpoint", replica, "run")
    weights = safetensors.torch.load_file(tmp_path / "checkpoint" / "model.safetensors")
    plain = Normed().model()
    plain.load_state_dict(weights)
    expected = replica.model.state_dict()
    assert plain.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in plain.state_dict().items())


def test_it_consists_of_plain_files_that_name_their_content(whole):
    assert sorted(path.name for path in whole.iterdir()) == FILES
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["run"] == "run"
    assert manifest["scalars"]["step"] == 3
    assert set(manifest["files"]) == set(FILES[1:])


@pytest.mark.parametrize("file", FILES)
@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 10**6))
def test_one_flipped_bit_is_refused(whole, tmp_path_factory, file, place):
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("flipped") / "copy")
    content = bytearray((folder / file).read_bytes())
    place %= 8 * len(content)
    content[place // 8] ^= 1 << place % 8
    assume(b"1E-" not in content)  # the one flip that does not change the meaning
    (folder / file).write_bytes(content)
    replica = loop_alone(Normed("AdamW")).replica
    before = replica.digest()
    with pytest.raises(CheckpointError, match=r"damaged|incomplete"):
        load(folder, replica)
    assert replica.digest() == before


def test_the_unbroken_copy_is_accepted(broken):
    """The control for all tests that expect a refusal."""
    replica = loop_alone(Normed("AdamW")).replica
    load(broken, replica)
    assert replica.step == 3


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kept", [0, 1, -1])
def test_a_truncated_file_is_refused(broken, file, kept):
    content = (broken / file).read_bytes()
    (broken / file).write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=r"damaged|incomplete"):
        load(broken, loop_alone(Normed("AdamW")).replica)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_refused_by_name(broken, file):
    (broken / file).unlink()
    with pytest.raises(CheckpointError, match=rf"incomplete.*{file}"):
        load(broken, loop_alone(Normed("AdamW")).replica)


def test_a_damaged_file_is_named(broken):
    file = broken / REST
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=rf"{REST} is damaged|incomplete.*{REST}"):
        load(broken, loop_alone(Normed("AdamW")).replica)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"scalars": {"step": 3}}', b"\xff\xfe"])
def test_a_file_that_is_not_a_manifest_has_no_step(broken, content):
    assert step_of(broken) == 3
    (broken / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"incomplete|damaged"):
        step_of(broken)


def test_a_changed_setting_in_the_manifest_is_refused(broken):
    """The damage is in no tensor: only the hash over the manifest shows it."""
    file = broken / "manifest.json"
    assert file.read_text().count("0.01,") >= 1
    file.write_text(file.read_text().replace("0.01,", "0.03,"))
    for read in (step_of, lambda folder: load(folder, loop_alone(Normed("AdamW")).replica)):
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            read(broken)


def test_the_checkpoint_of_another_model_is_refused(whole):
    with pytest.raises(CheckpointError, match=r"does not fit.*model/1"):
        load(whole, loop_alone(Plain("AdamW")).replica)


def test_a_half_written_checkpoint_is_invisible(tmp_path, monkeypatch):
    replica = trained(Normed()).replica
    store = Store(tmp_path)
    visible = []

    def sync(_):
        visible.append(checkpointer.kept(store))
        if len(visible) == 5:  # each file is synced, and its folder
            raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(StoreError, match=r"manifest\.json cannot be written: no space left"):
        save(tmp_path / "checkpoint_00000003", replica, "run")
    assert visible == [[]] * 5
    assert checkpointer.names(store) == ["checkpoint_00000003"]
    assert checkpointer.newest_whole(store)[0] is None

    monkeypatch.undo()  # leftovers do not prevent a new checkpoint
    save(tmp_path / "checkpoint_00000003", replica, "run")
    assert [one.step for one in checkpointer.kept(store)] == [3]
    assert sorted(path.name for path in (tmp_path / "checkpoint_00000003").iterdir()) == FILES


def test_files_are_on_disk_before_the_checkpoint_is_visible(tmp_path, monkeypatch):
    events = []
    sync, link = os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("sync"), sync(file)))
    monkeypatch.setattr(os, "link", lambda *path: (events.append("visible"), link(*path)))
    save(tmp_path / "checkpoint", trained(Normed()).replica, "run")
    assert events == ["sync"] * 5 + ["visible", "sync"]


def test_saving_twice_replaces(tmp_path):
    loop = trained(Normed())
    save(tmp_path / "checkpoint", loop.replica, "run")
    run(loop, 1)
    save(tmp_path / "checkpoint", loop.replica, "run")
    assert step_of(tmp_path / "checkpoint") == 4
    load(tmp_path / "checkpoint", loop_alone(Normed()).replica)


def test_a_forgotten_part_of_the_state_is_noticed(tmp_path):
    """An optimizer without its momentum would continue, with other bits."""
    replica = trained(Plain()).replica
    snapshot = Snapshot.of(replica)
    header = {"run": "run", **checkpointer.describe_state(snapshot)}
    files = checkpointer.write_share(tmp_path, snapshot, layout_of(snapshot, 1))
    commit(tmp_path, header, files[:1])
    with pytest.raises(CheckpointError, match="do not hold the state that its manifest describes"):
        load(tmp_path, loop_alone(Plain()).replica)


def test_a_partly_updated_replica_is_not_saved(tmp_path):
    replica = trained(Normed()).replica
    replica.torn = True
    with pytest.raises(CheckpointError, match="failed before its end"):
        save(tmp_path / "checkpoint", replica, "run")
    assert not list(tmp_path.iterdir())


# -- memory


class Large(Plain):
    """A model of 28 MB."""

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(FEATURES, 1 << 20), torch.nn.Flatten())


class Sink:
    """A file that keeps nothing."""

    def write(self, part):
        return len(part)

    def close(self):
        pass


def peak_of(action):
    """Return the most bytes that Python has allocated during an action."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def large():
    return Replica.build(Large(), 17, torch.device("cpu"))


def test_a_writer_holds_no_second_copy_of_the_model(large, tmp_path, monkeypatch):
    snapshot = Snapshot.of(large)
    layout = layout_of(snapshot, 1)
    size = sum(tensor.nbytes for tensor in snapshot.model.values())
    assert size == 28 << 20
    place = tmp_path / "checkpoint_00000000"
    assert peak_of(lambda: checkpointer.write_share(place, snapshot, layout)) < 1 << 20
    remote = Store(f"memory://{tmp_path}", part=1 << 20)
    monkeypatch.setattr(remote._fs, "open", lambda *_, **__: Sink())
    monkeypatch.setattr(remote._fs, "pipe_file", lambda *_: None)
    assert peak_of(lambda: checkpointer.write_share(remote, snapshot, layout)) < 1 << 20
    remote.part = 2 * size  # the control: one part is one copy
    assert peak_of(lambda: checkpointer.write_share(remote, snapshot, layout)) > size


def test_a_check_holds_parts_and_a_load_one_copy_which_is_free_at_its_end(large, tmp_path):
    save(tmp_path / "c", large, "run")
    size = (tmp_path / "c" / "model.safetensors").stat().st_size
    part = 16 << 20
    assert peak_of(lambda: checkpointer.verify(tmp_path / "c")) < 2 * part
    assert size < peak_of(lambda: load(tmp_path / "c", large)) < size + 3 * part
    gc.collect()
    gc.disable()
    try:
        tracemalloc.start()
        load(tmp_path / "c", large)
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert left < 1 << 20  # not only when the garbage is collected

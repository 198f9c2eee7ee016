"""A checkpoint is exported as the plain model, without the changes of aspects."""

import json
import re

import pytest
import safetensors.torch
import torch

from raytrain_plus.algorithms import EMA, AspectError, BlurPool, Factorize, GatedLinearUnits
from raytrain_plus.checkpoint import checkpointer, manifest
from raytrain_plus.checkpoint.checkpointer import CheckpointError
from raytrain_plus.checkpoint.export import export, write
from raytrain_plus.checkpoint.manifest import MANIFEST
from raytrain_plus.inference.trained_model import find_model
from raytrain_plus.storage.store import Store
from raytrain_plus.task import TaskError, import_code
from raytrain_plus.training.building import build_model
from raytrain_plus.training.initial_weights import hash_of
from tests.algorithms.tiny import TinyImages, TinyTokens, trained


def saved(tmp_path, task, aspects):
    loop, _ = trained(task, aspects, steps=4)
    checkpointer.save(tmp_path / "checkpoint", loop.replica, "run", aspects)
    return loop.replica, tmp_path / "checkpoint"


def test_an_average_replaces_the_weights(tmp_path):
    replica, folder = saved(tmp_path, TinyImages(), [BlurPool(), EMA(half_life="2ba")])
    model = export(TinyImages(), folder)
    state = replica.training.states["EMA"]
    live = dict(replica.model.named_parameters())
    for name, value in model.named_parameters():
        assert torch.equal(value, state[f"average.{name}"])
        assert not torch.equal(value, live[name])
    assert {type(m) for m in model.modules()} == {type(m) for m in TinyImages().model().modules()}
    assert not model.training


def test_the_file_loads_into_the_plain_model(tmp_path):
    task = TinyTokens()
    _, folder = saved(tmp_path, task, [GatedLinearUnits(), Factorize(rank=2, min_features=8)])
    model = export(task, folder)
    write(model, tmp_path / "plain.safetensors")
    plain = task.model()
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "plain.safetensors"))
    batch = {"tokens": torch.ones(2, 9, dtype=torch.uint8)}
    with torch.no_grad():
        assert torch.equal(task.forward(plain.eval(), batch), task.forward(model, batch))
    assert not list(tmp_path.glob(".*"))


def starting_from(place):
    task = TinyTokens()
    task.initial_weights = str(place)
    return build_model(task).state_dict()


def test_a_large_model_is_exported_in_several_files_which_are_read_like_one(tmp_path):
    model, place = TinyTokens().model(), tmp_path / "model.safetensors"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    weights = model.state_dict()
    assert write(model, place) == [place]
    files = write(model, place, limit=400)
    assert files[-1].name == "model.safetensors.index.json"
    assert [file.name for file in files[:2]] == [
        f"model-{number:05d}-of-{len(files) - 1:05d}.safetensors" for number in (1, 2)
    ]
    assert not place.exists()  # the two forms are never mixed
    for read in (tmp_path, place, files[-1]):
        found = starting_from(read)
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert find_model(str(place), storage=str(tmp_path)).digest == hash_of(str(tmp_path))
    write(model, place)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path not in files) == [
        ".safetensors"
    ]
    assert not files[-1].exists()


def test_a_damaged_index_of_an_export_is_named(tmp_path):
    *_, index = write(TinyTokens().model(), tmp_path / "w.safetensors", limit=400)
    right = json.loads(index.read_text())
    starting_from(tmp_path / "w.safetensors")  # the control
    name, file = next(iter(right["weight_map"].items()))
    other = next(one for one in right["weight_map"].values() if one != file)
    for wrong, said in (
        ("[]", "w.safetensors.index.json is no index of weights"),
        ({"weight_map": {name: "../else.safetensors"}}, "is no file next to it"),
        ({"weight_map": {name: "gone.safetensors"}}, f"{name} is in 'gone.safetensors'"),
        ({"weight_map": {**right["weight_map"], name: other}}, f"{other} has no {name}"),
    ):
        index.write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
        with pytest.raises(TaskError, match=re.escape(said)):
            starting_from(tmp_path / "w.safetensors")


def test_a_checkpoint_in_any_store_can_be_exported(tmp_path):
    replica, folder = saved(tmp_path, TinyImages(), [BlurPool()])
    for place in (Store(folder), str(folder), f"file://{folder}"):
        weights = export(TinyImages(), place).state_dict()
        assert all(torch.equal(weights[n], t) for n, t in replica.undo_fit().state_dict().items())


def test_a_checkpoint_does_not_fit_without_the_aspects_of_its_training(tmp_path):
    """The negative control: the checkpoint itself names the aspects."""
    _, folder = saved(tmp_path, TinyTokens(), [GatedLinearUnits()])
    with pytest.raises(CheckpointError, match=r"another model.*gate"):
        export(TinyTokens(), folder, algorithms=[])


def test_code_that_a_manifest_names_is_never_run(tmp_path, monkeypatch):
    """No file next to the weights is imported: a manifest may come from anywhere."""
    _, folder = saved(tmp_path, TinyImages(), [])
    (folder / "weights_helper.py").write_text("import pathlib\npathlib.Path('was-run').touch()\n")
    monkeypatch.chdir(tmp_path)
    for kind in ("weights_helper:X", "checkpoint/weights_helper.py:X", "os:system", "Path:x"):
        content = json.loads((folder / MANIFEST).read_text())
        del content["sha256"]
        content["algorithms"] = [[kind, {}]]
        content["sha256"] = manifest._hash(content)
        (folder / MANIFEST).write_text(json.dumps(content))
        # An intact manifest.
        assert checkpointer.algorithms_of(folder)[0].kind == kind
        with pytest.raises(AspectError):
            export(TinyImages(), folder)
    assert not (tmp_path / "was-run").exists()
    import_code("checkpoint/weights_helper.py")  # the control: a user names it
    assert (tmp_path / "was-run").exists()

"""A model starts from given weights; what does not fit is named."""

import pytest
import safetensors.torch
import torch
from torch import nn

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.configure import ConfigError, check_task, describe_task
from raytrain_plus.task import TaskError, TaskWarning
from raytrain_plus.training.building import build_model
from tests.training.small_tasks import CLASSES, FEATURES, Plain, Tied, loop_alone, run


def starting(place, *, partial=False, task=Plain):
    made = task()
    made.initial_weights, made.partial_weights = str(place), partial
    return made


def same(model, weights):
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.fixture
def trained(tmp_path):
    """The weights of a trained model, and its checkpoint."""
    loop = loop_alone(Plain())
    run(loop, 2)
    checkpointer.save(tmp_path / "checkpoint", loop.replica, "run")
    return loop.replica.model.state_dict(), tmp_path / "checkpoint"


def test_weights_come_from_a_checkpoint_a_file_or_shards(trained, tmp_path):
    weights, checkpoint = trained
    assert same(build_model(starting(checkpoint)), weights)
    assert same(build_model(starting(checkpoint / "model.safetensors")), weights)
    (tmp_path / "shards").mkdir()
    names = sorted(weights)
    for number, name in enumerate(names):
        safetensors.torch.save_file({name: weights[name]}, tmp_path / "shards" / f"{number}.st")
    index = ", ".join(f'"{name}": "{number}.st"' for number, name in enumerate(names))
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(
        '{"weight_map": {' + index + "}}"
    )
    assert same(build_model(starting(tmp_path / "shards")), weights)
    assert not same(build_model(Plain()), weights)  # the control


def test_tied_weights_need_one_name_only(tmp_path):
    model = Tied().model()
    weights = {n: t for n, t in model.state_dict().items() if n != "second.weight"}
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    assert same(build_model(starting(tmp_path / "w.safetensors", task=Tied)), model.state_dict())


def test_what_does_not_fit_is_refused_or_told_by_name(tmp_path):
    weights = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).state_dict()
    weights["head.weight"] = weights.pop("2.weight")
    weights["2.bias"] = torch.zeros(CLASSES + 1)
    place = tmp_path / "w.safetensors"
    safetensors.torch.save_file(weights, place)
    said = (
        r"2.weight missing; head.weight unexpected; "
        rf"2.bias \({CLASSES + 1},\) for \({CLASSES},\) of another shape"
    )
    with pytest.raises(TaskError, match=rf"do not fit the model: {said}.*--partial-weights"):
        build_model(starting(place))
    with pytest.warns(TaskWarning, match=rf"fit in 2 tensors only: {said}"):
        model = build_model(starting(place, partial=True))
    assert torch.equal(model[0].weight, weights["0.weight"])
    safetensors.torch.save_file({"other": torch.ones(1)}, place)
    with pytest.raises(TaskError, match="do not fit"):
        build_model(starting(place, partial=True))


def test_they_are_part_of_the_identity_and_must_exist(trained, tmp_path):
    _, checkpoint = trained
    task = Plain()
    check_task(task, checkpoint)
    described = describe_task(task, None, {}, (), _Scaling())
    assert len(described["initial weights"]) == 64
    assert "initial weights" not in describe_task(Plain(), None, {}, (), _Scaling())
    (tmp_path / "text").write_text("no weights")
    for place, words in (("nowhere", "no such file"), ("text", "cannot be read")):
        with pytest.raises(TaskError, match=words):
            build_model(starting(tmp_path / place))
    with pytest.raises(ConfigError, match="partial_weights is set without initial_weights"):
        check_task(Plain(), partial=True)


class _Scaling:
    accelerator_type = None

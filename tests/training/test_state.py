"""Each bit of a replica's state changes its digest, and another replica can load all bits."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.task import TaskError
from raytrain_plus.training.state import Replica, tensor_bytes
from tests.training.small_tasks import OPTIMIZERS, Noisy, Normed, Plain, loop_alone, run

CPU = torch.device("cpu")


def trained(task, steps=2):
    loop = loop_alone(task)
    run(loop, steps)
    return loop


def flip(tensor, place):
    """Flip one bit of a tensor; a second flip restores it."""
    place %= tensor.numel() * tensor.element_size() * 8
    raw = tensor.view(-1).view(torch.uint8) if tensor.ndim else tensor.view(1).view(torch.uint8)
    raw[place // 8] ^= 1 << place % 8


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_bit_of_the_state_changes_the_digest(data):
    replica = REPLICA
    before = replica.digest()
    name = data.draw(st.sampled_from(sorted(replica.tensors())))
    place = data.draw(st.integers(0, 10**6))
    with torch.no_grad():
        flip(replica.tensors()[name], place)
        changed = replica.digest()
        flip(replica.tensors()[name], place)
    assert changed != before
    assert replica.digest() == before


REPLICA = trained(Normed("AdamW")).replica


def test_the_state_is_parameters_buffers_and_what_the_optimizer_keeps():
    names = set(REPLICA.tensors())
    assert {"model/0.weight", "model/1.num_batches_tracked", "model/1.running_var"} <= names
    assert {"optimizer/0.weight/exp_avg", "optimizer/2.bias/step"} <= names
    assert list(REPLICA.tensors()) == sorted(names)


def test_numbers_that_the_optimizer_keeps_change_the_digest():
    replica = trained(Plain()).replica
    before = replica.digest()
    first = next(iter(replica.parameters.values()))
    replica.optimizer.state[first]["calls"] = 3
    assert replica.digest() != before


def test_nothing_but_the_state_changes_the_digest():
    replica = trained(Normed("AdamW")).replica
    before = replica.digest()
    replica.model.eval()
    replica.set_learning_rate(0.5)
    replica.step += 1
    for parameter in replica.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    weight = replica.model[0].weight
    weight.data = weight.data.t().contiguous().t()  # the same values in another layout
    assert not weight.is_contiguous()
    torch.manual_seed(5)
    optimizer = replica.optimizer
    optimizer.state = dict(reversed(optimizer.state.items()))
    assert replica.digest() == before


def received(scalars):
    """Return scalars as they arrive: through JSON."""
    return json.loads(json.dumps(scalars))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_loaded_into_another_replica_continues_with_the_same_bits(optimizer):
    ours = trained(Noisy(optimizer), 3)
    other = trained(Noisy(optimizer), 1)
    assert other.replica.digest() != ours.replica.digest()  # so that loading has an effect

    tensors = {name: t.clone() for name, t in ours.replica.tensors().items()}
    other.replica.load(tensors, received(ours.replica.scalars()))
    assert other.replica.digest() == ours.replica.digest()
    assert other.replica.scalars() == ours.replica.scalars()
    assert run(other, 3)[-1].loss == run(ours, 3)[-1].loss
    assert other.replica.digest() == ours.replica.digest()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_without_the_optimizer_continues_with_other_bits(optimizer):
    """The negative control: the test above notices a missing momentum."""
    ours, other = trained(Noisy(optimizer), 3), loop_alone(Noisy(optimizer))
    tensors = {
        n: t if n.startswith("model/") else torch.zeros_like(t)
        for n, t in ours.replica.tensors().items()
    }
    other.replica.load(tensors, received(ours.replica.scalars()))
    run(ours, 1)
    run(other, 1)
    assert other.replica.digest() != ours.replica.digest()


def test_a_loaded_state_is_a_copy():
    ours, other = trained(Plain("AdamW")), loop_alone(Plain("AdamW"))
    other.replica.load(ours.replica.tensors(), received(ours.replica.scalars()))
    before = ours.replica.digest()
    run(other, 1)
    assert ours.replica.digest() == before
    assert other.replica.digest() != before


def test_settings_keep_their_types_through_json():
    ours, other = trained(Plain("AdamW")), loop_alone(Plain("AdamW"))
    ours.replica.optimizer.param_groups[0]["betas"] = (0.5, 0.75)
    other.replica.load(ours.replica.tensors(), received(ours.replica.scalars()))
    assert other.replica.optimizer.param_groups[0]["betas"] == (0.5, 0.75)


class Wider(Plain):
    def model(self):
        return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


class Double(Plain):
    def model(self):
        return super().model().double()


@pytest.mark.parametrize(
    ("task", "named"),
    [(Wider(), "model/0.bias"), (Normed(), "model/1.bias"), (Double(), "model/0.bias")],
)
def test_the_state_of_another_model_is_refused_by_name(task, named):
    ours, theirs = trained(Plain()).replica, Replica.build(task, 1, CPU)
    before = ours.digest()
    with pytest.raises(ValueError, match=named):
        ours.load(theirs.tensors(), received(theirs.scalars()))
    assert ours.digest() == before
    same = Replica.build(Plain(), 1, CPU)
    # The control.
    ours.load(same.tensors(), received(same.scalars()))
    assert ours.digest() == same.digest()


def test_a_model_is_built_from_the_seed_alone():
    torch.manual_seed(1)
    first = Replica.build(Noisy(), 17, CPU).digest()
    torch.manual_seed(2)
    random.random()
    np.random.random()  # noqa: NPY002 - what a user's code may do
    assert Replica.build(Noisy(), 17, CPU).digest() == first
    assert Replica.build(Noisy(), 18, CPU).digest() != first


def test_the_learning_rate_is_a_factor_of_the_first_one():
    replica = Replica.build(Plain("SGD"), 17, CPU)
    for factor in (0.5, 0.5, 0.0, 2.0):
        replica.set_learning_rate(factor)
        assert replica.optimizer.param_groups[0]["lr"] == 0.1 * factor


class NoModel(Plain):
    def model(self):
        return "resnet"


class Frozen(Plain):
    def model(self):
        return super().model().requires_grad_(False)


class Foreign(Plain):
    def optimizer(self, model):
        return torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(2))], lr=0.1)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (NoModel(), "returned a str, not an nn.Module"),
        (Frozen(), "no parameter that requires a gradient"),
        (Foreign(), "no parameter of the model"),
    ],
)
def test_state_that_cannot_be_kept_equal_is_refused(task, message):
    with pytest.raises(TaskError, match=message):
        Replica.build(task, 17, CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int8, torch.complex64])
def test_the_bytes_are_those_of_the_elements_in_order(dtype):
    tensor = torch.tensor([[0, 1, 0], [2, 3, 4]]).to(dtype)
    size = tensor.element_size()
    assert len(tensor_bytes(tensor)) == 6 * size
    by_element = [tensor_bytes(tensor[i, j]) for i in range(2) for j in range(3)]
    assert tensor_bytes(tensor) == b"".join(by_element)
    transposed = tensor.t()
    assert tensor_bytes(transposed) == tensor_bytes(transposed.contiguous())
    assert tensor_bytes(transposed) != tensor_bytes(tensor)
    assert tensor_bytes(tensor[:0]) == b""

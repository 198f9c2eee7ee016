"""Surgery changes what modules compute; they stay the same objects."""

import copy

import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import AspectError, AspectWarning, Surgery


class Doubled:
    def forward(self, x):
        return self.factor * super().forward(x)


class Shifted:
    def forward(self, x):
        return super().forward(x) + 1


def make_model():
    shared = nn.Linear(3, 3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", dtype=torch.float64),
        shared,
        nn.ReLU(),
        shared,
    )


def double_linears(model, optimizer=None):
    surgery = Surgery(model, optimizer)
    for name, module in surgery.candidates(nn.Linear, Doubled):
        surgery.mix_in(name, module, Doubled, factor=2.0)
    return surgery


def test_a_changed_module_stays_the_same_object_and_keeps_its_parts():
    model = make_model()
    linear = model[1]
    linear.weight.requires_grad_(False)
    linear.eval()
    calls = []
    linear.register_forward_hook(lambda *_: calls.append(1))
    before = {name: id(p) for name, p in model.named_parameters()}
    x = torch.randn(4, 3)
    plain = linear(x)
    surgery = double_linears(model)
    assert model[1] is model[3] is linear
    assert list(surgery.changed.values()) == [linear]
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert not linear.weight.requires_grad
    assert not linear.training
    assert torch.equal(linear(x), 2 * plain)
    assert len(calls) == 2
    assert isinstance(linear, nn.Linear)
    assert type(model[0]) is nn.Conv2d
    assert model[0].padding_mode == "reflect"
    surgery.undo()
    assert type(linear) is nn.Linear
    assert torch.equal(linear(x), plain)
    assert not hasattr(linear, "factor")


def test_it_is_idempotent_and_several_methods_change_one_module():
    model = nn.Sequential(nn.Linear(3, 3))
    x = torch.randn(4, 3)
    plain = model(x)
    first = double_linears(model)
    again = double_linears(model)
    assert not again.changed
    outer = Surgery(model)
    outer.mix_in("0", model[0], Shifted)
    assert torch.equal(model(x), 2 * plain + 1)
    outer.undo()
    first.undo()
    assert torch.equal(model(x), plain)


def test_the_same_change_gives_the_same_class_and_copies_keep_it():
    one, other = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3))
    double_linears(one)
    double_linears(other)
    assert type(one[0]) is type(other[0])
    copied = copy.deepcopy(one)
    x = torch.randn(2, 3)
    assert torch.equal(copied(x), one(x))


def test_a_method_that_finds_nothing_warns():
    surgery = double_linears(nn.Sequential(nn.ReLU()))
    with pytest.warns(AspectWarning, match="Doubling changed nothing in Sequential.*nn.Linear"):
        surgery.warn_if_unchanged("Doubling", "nn.Linear")


def test_an_attribute_of_the_module_is_not_overwritten():
    with pytest.raises(AspectError, match="'0' has an attribute 'bias' of its own"):
        Surgery(nn.Sequential(nn.Linear(1, 1))).mix_in("0", nn.Linear(1, 1), Doubled, bias=1)


def optimizer_of(model):
    first, *others = model.parameters()
    return torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others}], lr=0.1)


def test_new_parameters_are_trained_in_the_group_of_similar_ones():
    model = nn.Sequential(nn.Linear(3, 3, dtype=torch.float64)).eval()
    optimizer = optimizer_of(model)
    before = [list(group["params"]) for group in optimizer.param_groups]
    surgery = Surgery(model, optimizer)
    gate = nn.Linear(3, 1)
    surgery.add_module(model[0], "gate", gate, like=model[0].weight)
    assert (gate.weight.dtype, gate.training) == (torch.float64, False)
    assert optimizer.param_groups[0]["params"] == [model[0].weight, gate.weight, gate.bias]
    surgery.undo()
    assert [list(group["params"]) for group in optimizer.param_groups] == before
    assert not hasattr(model[0], "gate")


def test_new_parameters_next_to_an_untrained_one_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(AspectError, match="give it all parameters"):
        Surgery(model, optimizer).add_module(model[1], "gate", nn.ReLU(), like=model[1].weight)


def test_a_replaced_parameter_leaves_the_optimizer_and_comes_back():
    model = nn.Sequential(nn.Linear(3, 3))
    weight = model[0].weight
    optimizer = optimizer_of(model)
    optimizer.state[weight]["momentum_buffer"] = torch.ones(3, 3)
    surgery = Surgery(model, optimizer)
    new = {"left": nn.Parameter(torch.ones(3, 1)), "right": nn.Parameter(torch.ones(1, 3))}
    surgery.replace_parameter(model[0], "weight", new, like=weight)
    assert optimizer.param_groups[0]["params"] == list(new.values())
    assert weight not in optimizer.state
    assert {name for name, _ in model.named_parameters()} == {"0.bias", "0.left", "0.right"}
    surgery.undo()
    assert model[0].weight is weight
    assert optimizer.param_groups[0]["params"] == [weight]

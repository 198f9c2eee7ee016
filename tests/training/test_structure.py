"""The optimizer's state is encoded when its structure changes; the check notices each change."""

import collections
import copy
import math

import pytest
import torch
from torch import nn

from raytrain_plus.training.optimizer_state import OptimizerState
from raytrain_plus.training.structure import Look, UnknownKindError


def trained(kind=torch.optim.AdamW, **settings):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = kind(model.parameters(), lr=0.1, **settings)
    state = OptimizerState(optimizer, model)
    update(model, optimizer)
    return model, optimizer, state


def update(model, optimizer):
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()


def found(reading):
    tensors, groups, rest = reading
    return {name: t.tolist() for name, t in tensors.items()}, repr(groups), repr(rest)


def uncached(state):
    other = copy.copy(state)
    other._reading = None
    vars(other).pop("_encode", None)
    return other.read()


def counted(state, monkeypatch):
    """Return a list that grows with each encoding."""
    calls, encode = [], state._encode
    monkeypatch.setattr(state, "_encode", lambda encoder: calls.append(1) or encode(encoder))
    return calls


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Rprop])
def test_an_unchanged_structure_is_encoded_once_and_read_with_current_values(kind, monkeypatch):
    model, optimizer, state = trained(kind)
    calls = counted(state, monkeypatch)
    readings = []
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        update(model, optimizer)
        readings.append(found(state.read()))
        assert readings[-1] == found(uncached(state))
    assert len(calls) == 1
    assert len({repr(reading) for reading in readings}) == 4


def _new_key(_, optimizer):
    next(iter(optimizer.state.values()))["more"] = torch.ones(2)


def _other_tensor(_, optimizer):
    next(iter(optimizer.state.values()))["exp_avg"] = torch.ones(7)


def _other_memory(_, optimizer):
    next(iter(optimizer.state.values()))["exp_avg"].data = torch.ones(4, 3, dtype=torch.float64)


def _taken_away(model, optimizer):
    del optimizer.state[model[0].weight]


def _number(_, optimizer):
    next(iter(optimizer.state.values()))["count"] = 3


def _attribute(_, optimizer):
    optimizer.counter = [1, 2.5]


def _setting(_, optimizer):
    optimizer.param_groups[0]["weight_decay"] = -0.0


def _group(_, optimizer):
    optimizer.param_groups[0]["more"] = (1, [2.0])


def _shared(model, optimizer):
    optimizer.state[model[0].weight]["exp_avg"] = optimizer.state[model[1].weight]["exp_avg"]


CHANGES = [
    _new_key,
    _other_tensor,
    _other_memory,
    _taken_away,
    _number,
    _attribute,
    _setting,
    _group,
    _shared,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_structure_is_noticed(change):
    model, optimizer, state = trained()
    before = found(state.read())
    change(model, optimizer)
    after = found(state.read())
    assert after == found(uncached(state))
    assert after != before


def test_a_counter_of_the_optimizer_is_read_each_time():
    _, optimizer, state = trained()
    for count in range(3):
        optimizer.count = count
        assert state.read()[2]["attributes"]["count"] == count


def facts(value):
    look = Look()
    look.at(value)
    return look.facts


@pytest.mark.parametrize(
    ("left", "right"),
    [(0.0, -0.0), (1, 1.0), (1, True), (None, 0), ("1", 1), (math.inf, -math.inf)],
)
def test_values_that_python_calls_equal_have_other_facts(left, right):
    held = [left]
    before = facts(held)
    assert facts(held) == before
    held[0] = right
    assert facts(held) != before


def test_nan_is_equal_to_itself():
    held = {"x": math.nan}
    assert facts(held) == facts(held)


@pytest.mark.parametrize("value", [{1, 2}, collections.deque([1]), object(), torch.Generator()])
def test_values_that_the_check_cannot_see_are_refused(value):
    with pytest.raises(UnknownKindError):
        Look().at([value])

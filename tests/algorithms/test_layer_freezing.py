"""Layer freezing: frozen parameters do not change; the rest trains as if they were constants."""

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.layer_freezing import LayerFreezing, freeze_layers, layers
from raytrain_plus.models.gpt import GPT
from raytrain_plus.training.reduction import Reduction
from raytrain_plus.training.weights import Weights
from tests.algorithms.tiny import RANKS, TinyImages, TinyTokens, alone, build, trained

LAYERS = 15  # of the tiny network, normalisations included


def begun(task, *aspects):
    loop, weave = build(task, aspects)
    loop.begin_generation([range(RANKS)], alone())
    return loop, weave


def run_step(loop, task):
    """Run a step; return the names of the parameters that changed."""
    before = {n: p.detach().clone() for n, p in loop.replica.model.named_parameters()}
    loop.run_step([task.part(loop.replica.step, r) for r in range(RANKS)])
    now = dict(loop.replica.model.named_parameters())
    return {n for n, p in before.items() if not torch.equal(now[n], p)}


def first(model, n):
    """Return the names of the parameters of the first n modules that have some."""
    owners = []
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        if owner not in owners:
            owners.append(owner)
    return {n_ for n_, _ in model.named_parameters() if n_.rpartition(".")[0] in owners[:n]}


def test_layers_freeze_one_after_the_other_from_the_front():
    task = TinyImages()
    loop, weave = begun(task, LayerFreezing(fraction=0.7, start="2ba", finish="8ba"))
    every = {n for n, _ in loop.replica.model.named_parameters()}
    for step in range(12):
        share = 0.7 * min(max(step - 2, 0) / 6, 1)
        frozen = int(share * LAYERS)
        moved = run_step(loop, task)
        assert moved == every - first(loop.replica.model, frozen), step
        cost = weave.spent()["LayerFreezing"]
        assert (cost["acted"], cost["idle"]) == ((1, 0) if frozen else (0, 1))
        assert all(p.requires_grad for p in loop.replica.model.parameters())
    assert frozen == 10


def test_a_frozen_layer_would_move_by_momentum_if_its_gradient_were_zero(monkeypatch):
    """The negative control."""
    task = TinyImages()
    for moves in (False, True):
        if moves:
            whole = Reduction.send

            def send(self, b, partials, present, whole=whole):
                whole(self, b, partials, [True] * len(present))

            monkeypatch.setattr(Reduction, "send", send)
        loop, _ = begun(task, LayerFreezing(fraction=0.5, start="1ba", finish="2ba"))
        for _ in range(2):
            run_step(loop, task)
        assert ("stem.weight" in run_step(loop, task)) == moves


def test_the_other_layers_train_as_usual():
    task = TinyImages()
    frozen, losses = trained(task, [LayerFreezing(fraction=0.5, start="0ba", finish="1ba")], 2)
    plain, _ = trained(task, steps=2)
    constant, _ = begun(task)
    run_step(constant, task)
    freeze_layers(constant.replica.model, 0.5)
    weights = constant.weights = Weights(constant.replica.model)  # frozen for good: else refused
    constant._backward.weights = constant.parts._weights = weights
    parts = [task.part(1, r) for r in range(RANKS)]
    assert constant.run_step(parts).loss == losses[1]
    head = "head.weight"
    ours, theirs, moved = (
        dict(loop.replica.model.named_parameters()) for loop in (frozen, constant, plain)
    )
    assert torch.equal(ours[head], theirs[head])
    assert torch.equal(ours[head], moved[head])  # one update after the same first step
    assert not torch.equal(ours["stem.weight"], moved["stem.weight"])


def test_no_gradient_is_computed_for_frozen_layers():
    seen = []

    class Watch(Aspect):
        def backward(self, step):
            yield
            seen.append({n for n, p in step.model.named_parameters() if p.grad is not None})

    trained(TinyImages(), [LayerFreezing(fraction=0.5, start="0ba", finish="1ba"), Watch()], 2)
    assert {"stem.weight", "head.weight"} <= seen[0]
    assert "head.weight" in seen[-1]
    assert "stem.weight" not in seen[-1]


def test_a_step_that_fails_leaves_nothing_frozen():
    class Fragile(Aspect):
        def backward(self, step):
            if step.number == 1:
                raise RuntimeError("lost")
            yield

    task = TinyImages()
    loop, _ = begun(task, LayerFreezing(start="0ba", finish="1ba"), Fragile())
    run_step(loop, task)
    before = loop.replica.digest()
    with pytest.raises(RuntimeError, match="lost"):
        run_step(loop, task)
    assert all(p.requires_grad for p in loop.replica.model.parameters())
    assert loop.replica.digest() == before


def test_a_fraction_of_zero_freezes_nothing():
    for task in (TinyImages(), TinyTokens()):
        plain, _ = trained(task)
        none, _ = trained(task, [LayerFreezing(fraction=0, start="0ba", finish="1ba")])
        assert none.replica.digest() == plain.replica.digest()


def test_a_shared_parameter_is_frozen_with_the_last_of_its_layers():
    model = GPT(vocabulary=16, context=8, layers=1, width=8, heads=2)
    found = layers(model)
    assert found[0] == [model.positions.weight]
    assert found[-1] == [model.words.weight]
    freeze_layers(model, 1.0)
    assert model.words.weight.requires_grad


@given(st.integers(1, 6), st.floats(0, 1))
def test_the_last_layer_always_trains(n, fraction):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(n)))
    frozen = freeze_layers(model, fraction)
    assert [p for p in model.parameters() if not p.requires_grad] == frozen
    assert len(frozen) == 2 * min(int(fraction * n), n - 1)


def test_parameters_that_were_frozen_before_are_not_counted_and_stay_frozen():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    model[0].requires_grad_(requires_grad=False)
    frozen = freeze_layers(model, 0.67)
    assert frozen == [*model[1].parameters(), *model[2].parameters()]


@pytest.mark.parametrize(
    "wrong", [{"fraction": 1}, {"start": "0.9dur", "finish": "0.5dur"}, {"start": "early"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        LayerFreezing(**wrong)

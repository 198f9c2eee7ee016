"""Factorisation: two thin layers that approximate the thick one as well as their rank allows."""

import copy
import warnings

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import AspectError, AspectWarning
from raytrain_plus.algorithms.factorize import Factorize, apply_factorization, factors
from tests.algorithms.tiny import TinyImages, TinyTokens, build, trained


def apply(model, rank, **more):
    return apply_factorization(model, rank=rank, min_features=4, **more)


def low_rank(rank, *shape):
    flat = torch.randn(shape[0], rank) @ torch.randn(rank, int(np.prod(shape[1:])))
    return flat.reshape(shape)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_the_product_is_the_nearest_matrix_of_its_rank(after, before, rank, seed):
    rank = min(rank, after, before)
    weight = torch.randn(after, before, generator=torch.Generator().manual_seed(seed))
    inner, outer = factors(weight, rank)
    assert (inner.shape, outer.shape) == ((rank, before), (after, rank))
    # Eckart and Young: the distance is the norm of the singular values that were cut off.
    values = np.linalg.svd(weight.numpy().astype(float), compute_uv=False)
    distance = torch.linalg.norm(weight - outer @ inner).item()
    assert distance == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), abs=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 8, 3, dilation=2, padding=2, padding_mode="circular", bias=False),
        nn.Conv2d(6, 8, (1, 3), padding="same", padding_mode="reflect"),
        nn.Linear(8, 8),
        nn.Linear(8, 8, bias=False),
    ],
    ids=str,
)
def test_a_layer_of_low_rank_computes_the_same_as_before(layer):
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(low_rank(2, *layer.weight.shape))
    x = torch.randn(3, 6, 8, 8) if isinstance(layer, nn.Conv2d) else torch.randn(3, 5, 8)
    before, weight = layer(x), layer.weight.detach().clone()
    surgery = apply(layer, 2)
    assert sorted(dict(layer.named_parameters())) == sorted(
        ["weight_in", "weight_out", *(["bias"] if layer.bias is not None else [])]
    )
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight, weight, rtol=1e-4, atol=1e-4)
    # The control: one rank less is not enough.
    surgery.undo()
    apply(layer, 1)
    assert (layer(x) - before).abs().max() > 0.1


def test_the_plain_layer_computes_the_same_as_the_trained_factors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 8))
    weights = [model[0].weight, model[2].weight]
    optimizer = torch.optim.SGD(
        [{"params": [model[0].weight], "lr": 0.1}, {"params": [*model[2].parameters()]}], lr=0.05
    )
    surgery = apply(model, 2, optimizer=optimizer)
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert groups[0] == [id(model[0].weight_in), id(model[0].weight_out)]
    assert groups[1] == [id(model[2].bias), id(model[2].weight_in), id(model[2].weight_out)]
    x = torch.randn(5, 4, 4, 4)
    first = model(x)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    last = model(x)
    assert (last - first).abs().max() > 0.01
    surgery.undo()
    assert [model[0].weight, model[2].weight] == weights
    assert [type(m) for m in model] == [nn.Conv2d, nn.Flatten, nn.Linear]
    torch.testing.assert_close(model(x), last, rtol=1e-4, atol=1e-5)
    trained_now = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(w) for w in weights} <= trained_now


def linear(before, after, **changes):
    layer = nn.Linear(before, after)
    for key, value in changes.items():
        setattr(layer, key, value)
    return layer


class OwnLinear(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight.abs(), self.bias)


def tied():
    words, head = nn.Embedding(16, 16), nn.Linear(16, 16, bias=False)
    head.weight = words.weight
    return nn.Sequential(words, head)


LEFT_ALONE = {
    "few features": lambda: nn.Linear(3, 64),
    "more work": lambda: nn.Linear(4, 4),
    "grouped": lambda: nn.Conv2d(16, 16, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, groups=16),
    "frozen": lambda: nn.Linear(16, 16).requires_grad_(False),
    "subclass": lambda: OwnLinear(16, 16),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
    "tied": tied,
    "output of attention": lambda: nn.MultiheadAttention(16, 2),
    "transposed": lambda: nn.ConvTranspose2d(16, 16, 3),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_unsuitable_layers_are_left_unchanged(name):
    model = LEFT_ALONE[name]()
    names = list(model.state_dict())
    assert not apply(model, 2).changed
    assert list(model.state_dict()) == names


def test_the_rank_is_a_fraction_or_a_number():
    for rank, expected in ((0.25, 4), (4, 4), (0.001, 1), (3.0, 3)):
        layer = nn.Linear(16, 24)
        apply(layer, rank)
        assert layer.weight_in.shape == (expected, 16)
    for wrong in (0, -1, 1.5):
        with pytest.raises(pydantic.ValidationError):
            Factorize(rank=wrong)
        with pytest.raises(AspectError, match=f"rank {wrong} is neither a fraction"):
            apply(nn.Linear(8, 8), wrong)


def test_dtype_mode_and_hooks_stay_and_a_second_time_changes_nothing():
    layer = nn.Linear(16, 16).to(torch.bfloat16).eval()
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    assert apply(layer, 2).changed == {"": layer}
    assert not apply(layer, 2).changed
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert not layer.training
    layer(torch.zeros(2, 16, dtype=torch.bfloat16))
    assert seen == [1]


@pytest.mark.parametrize("task", [TinyImages, TinyTokens])
def test_the_aspect_does_what_the_function_does_and_trains(task):
    aspect = Factorize(rank=2, min_features=8)
    ours = build(task(), [aspect])[0].replica
    plain = build(task())[0].replica
    surgery = apply_factorization(plain.model, rank=2, min_features=8, optimizer=plain.optimizer)
    assert surgery.changed
    assert list(ours.model.state_dict()) == list(plain.model.state_dict())
    assert all(map(torch.equal, ours.model.parameters(), plain.model.parameters()))
    loop, _ = trained(task(), [aspect])
    changed = trained(task(), [aspect], steps=1)[0]
    assert loop.replica.digest() != changed.replica.digest()
    names = set(build(task())[0].replica.undo_fit().state_dict())
    assert set(loop.replica.undo_fit().state_dict()) == names


def test_a_model_without_large_layers_gets_a_warning():
    with pytest.warns(AspectWarning, match="Factorize changed nothing in TinyNetwork"):
        build(TinyImages(), [Factorize()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(TinyImages(), [Factorize(rank=2, min_features=8)])

"""Gradient clipping: by norm, over fixed blocks, as in PyTorch; by value; adaptively."""

import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.algorithms import GradientClipping, Step, Training, Weave
from raytrain_plus.algorithms.gradient_clipping import (
    clip_adaptively,
    clip_by_global_norm,
    clip_by_value,
)
from raytrain_plus.algorithms.naming import describe, make
from raytrain_plus.clock import Clock

CLOCK = Clock(total_steps=10, steps_per_epoch=5, batch_size=8, evaluate_every=5)
SHAPES = [(3, 5), (), (70_001,), (0,), (2, 1, 7)]


def draw(shapes, seed=0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) * scale for shape in shapes]


def by_torch(gradients, norm):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    total = nn.utils.clip_grad_norm_(parameters, norm)
    return [p.grad for p in parameters], total


SIZES = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=5)


@settings(deadline=None)
@given(SIZES, st.floats(0.01, 100), st.floats(0.01, 10), st.integers(0, 2**32))
def test_gradients_are_scaled_as_pytorch_scales_them(shapes, norm, scale, seed):
    gradients = draw(shapes, seed, scale)
    expected, expected_total = by_torch(gradients, norm)
    total = clip_by_global_norm(gradients, norm)
    torch.testing.assert_close(total, expected_total)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("norm", [0.5, 20.0, 1e6])
def test_large_empty_and_single_tensors_count_alike(norm):
    gradients = draw(SHAPES)
    before = [g.clone() for g in gradients]
    expected, expected_total = by_torch(gradients, norm)
    total = clip_by_global_norm(gradients, norm)
    torch.testing.assert_close(total, expected_total)
    torch.testing.assert_close(gradients, expected)
    unchanged = all(torch.equal(a, b) for a, b in zip(gradients, before, strict=True))
    assert unchanged == (norm > total)


def test_the_norm_is_at_most_the_given_one():
    gradients = draw(SHAPES, scale=30)
    assert clip_by_global_norm(gradients, 2.0) > 2.0
    assert torch.cat([g.flatten() for g in gradients]).norm() == pytest.approx(2.0, rel=1e-4)


def test_the_norm_of_a_tensor_cut_on_the_grid_has_the_same_bits():
    (whole,) = draw([(200_000,)])
    on_grid = list(whole.clone().split(1 << 16))
    cut_elsewhere = [list(whole.clone().split(size)) for size in (7, 101, 997, 30_000)]
    expected = clip_by_global_norm([whole], 1.0)
    assert clip_by_global_norm(on_grid, 1.0) == expected
    assert torch.equal(torch.cat(on_grid), whole)
    # The control: pieces cut elsewhere give another sum, so the fixed blocks are needed.
    assert {clip_by_global_norm(pieces, 1.0).item() for pieces in cut_elsewhere} != {
        expected.item()
    }


def test_the_aspect_clips_before_the_optimizer_sees_the_gradients():
    model = nn.Linear(3, 2)
    frozen = nn.Linear(2, 2)
    both = nn.Sequential(model, frozen)
    gradients = draw([(2, 3), (2,)], scale=10)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    expected, _ = by_torch(gradients, 0.5)
    step = Step(
        Training(
            model=both, optimizer=torch.optim.SGD(both.parameters(), 0.1), clock=CLOCK, seed=17
        ),
        0,
    )
    with Weave([GradientClipping(norm=0.5)]).around("update", step):
        seen = [p.grad.clone() for p in model.parameters()]
    torch.testing.assert_close(seen, expected)
    assert not torch.allclose(seen[0], gradients[0])
    assert all(p.grad is None for p in frozen.parameters())


def clipped_in_update(model, aspect, gradients):
    """Return what the optimizer sees."""
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = Step(Training(model=model, optimizer=optimizer, clock=CLOCK, seed=17), 0)
    with Weave([aspect]).around("update", step):
        return [p.grad.clone() for p in model.parameters()]


def naive_adaptive(weights, gradient, ratio, floor=1e-3):
    """Clip as the paper's equation 3 says, one unit after the other."""
    if weights.ndim > 1:
        pairs = zip(weights, gradient, strict=True)
        return torch.stack([naive_adaptive(w.flatten(), g, ratio, floor) for w, g in pairs])
    limit = ratio * max(weights.norm().item(), floor)
    norm = gradient.norm().item()
    return gradient * (limit / norm) if norm > limit else gradient


UNITS = [(), (5,), (4, 3), (3, 2, 5), (4, 2, 3, 3)]


@given(st.sampled_from(UNITS), st.floats(1e-3, 10), st.floats(1e-3, 10), st.integers(0, 2**32))
def test_each_unit_is_clipped_by_the_norm_of_its_weights(shape, ratio, scale, seed):
    weights, gradient = draw([shape, shape], seed)
    gradient *= scale
    expected = naive_adaptive(weights, gradient, ratio)
    clip_adaptively([weights], [gradient], ratio)
    torch.testing.assert_close(gradient, expected)


def test_weights_of_zero_can_change_and_gradients_of_zero_stay():
    weights, gradient = torch.zeros(2, 3), torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    clip_adaptively([weights], [gradient], 0.1)
    torch.testing.assert_close(gradient, torch.tensor([[6e-5, 0.0, 8e-5], [0.0, 0.0, 0.0]]))


def test_one_large_unit_does_not_change_the_others():
    weights, gradient = torch.ones(2, 4), torch.ones(2, 4) * 1e-3
    gradient[0] = 50.0
    before = gradient.clone()
    clip_adaptively([weights], [gradient], 0.01)
    assert torch.equal(gradient[1], before[1])
    assert gradient[0].norm() == pytest.approx(0.02)
    clip_by_global_norm([before], 0.02)  # the control: the global norm scales all
    assert before[1, 0] < 1e-3


@pytest.mark.parametrize("value", [0.1, 1.0, 1e6])
def test_clipping_by_value_equals_pytorchs(value):
    gradients = draw(SHAPES, scale=3)
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    nn.utils.clip_grad_value_(parameters, value)
    before = [g.clone() for g in gradients]
    clip_by_value(gradients, value)
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, parameters, strict=True))
    unchanged = all(torch.equal(a, b) for a, b in zip(gradients, before, strict=True))
    assert unchanged == (value == 1e6)


def test_the_aspect_of_each_kind_is_its_function():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    gradients = draw([p.shape for p in model.parameters()], scale=5)
    by_value = [g.clone() for g in gradients]
    clip_by_value(by_value, 0.3)
    adaptive = [g.clone() for g in gradients]
    clip_adaptively(list(model.parameters()), adaptive, 0.2)
    for aspect, expected in [
        (GradientClipping(kind="value", value=0.3), by_value),
        (GradientClipping(kind="adaptive", ratio=0.2), adaptive),
    ]:
        seen = clipped_in_update(model, aspect, gradients)
        assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
        assert not torch.equal(seen[0], gradients[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "adaptive", "norm": 0.5}, "norm=0.5 has no effect with kind='adaptive'"),
        ({"value": 0.5}, "set norm, or kind='value'"),
        ({"kind": "percentile"}, "'norm', 'value' or 'adaptive'"),
        ({"kind": "adaptive", "ratio": 0}, "greater than 0"),
    ],
)
def test_settings_without_effect_and_wrong_ones_are_refused(settings, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        GradientClipping(**settings)


def test_every_kind_can_be_described_and_made_again():
    for aspect in [GradientClipping(norm=2), GradientClipping(kind="adaptive", ratio=0.3)]:
        assert make(describe(aspect)) == aspect

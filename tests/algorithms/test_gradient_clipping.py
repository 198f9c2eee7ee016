"""Gradient clipping: as PyTorch does it, on a grid that cuts cannot move."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.algorithms import GradientClipping, Step, Training, Weave
from raytrain_plus.algorithms.gradient_clipping import clip_by_global_norm
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


def test_the_norm_is_at_most_what_is_asked():
    gradients = draw(SHAPES, scale=30)
    assert clip_by_global_norm(gradients, 2.0) > 2.0
    assert torch.cat([g.flatten() for g in gradients]).norm() == pytest.approx(2.0, rel=1e-4)


def test_the_norm_of_a_tensor_cut_on_the_grid_has_the_same_bits():
    (whole,) = draw([(200_000,)])
    on_grid = list(whole.clone().split(1 << 16))
    beside_it = [list(whole.clone().split(size)) for size in (7, 101, 997, 30_000)]
    expected = clip_by_global_norm([whole], 1.0)
    assert clip_by_global_norm(on_grid, 1.0) == expected
    assert torch.equal(torch.cat(on_grid), whole)
    # The control: a norm of pieces cut elsewhere is another sum, so the grid is what decides.
    assert {clip_by_global_norm(pieces, 1.0).item() for pieces in beside_it} != {expected.item()}


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

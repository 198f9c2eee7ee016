"""Ghost batch normalisation: each ghost batch alone, and running statistics as in the paper."""

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.algorithms import AspectWarning
from raytrain_plus.algorithms.ghost_batch_norm import (
    GhostBatchNorm,
    apply_ghost_batch_norm,
    ghost_batches,
)
from tests.algorithms.tiny import TinyImages, TinyTokens, trained


@given(st.integers(1, 50), st.integers(1, 20))
def test_ghost_batches_are_as_many_as_fit_and_nearly_equal(n, size):
    batch = torch.arange(n)
    ghosts = ghost_batches(batch, size)
    sizes = [len(ghost) for ghost in ghosts]
    assert torch.equal(torch.cat(ghosts), batch)
    assert len(ghosts) == max(1, n // size)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(n, size)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, ()),
        (nn.BatchNorm1d, (5,)),
        (nn.BatchNorm2d, (4, 3)),
        (nn.BatchNorm3d, (2, 3, 2)),
    ],
)
def test_each_ghost_batch_is_normalised_alone(kind, shape):
    layer = kind(3, momentum=0.2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
    apply_ghost_batch_norm(layer, size=4)
    x = torch.randn(12, 3, *shape) * 3 + torch.arange(12.0).reshape(12, *[1] * (len(shape) + 1))
    y = layer(x)
    mean, variance = torch.zeros(3), torch.ones(3)
    for i in range(3):
        ghost = x[4 * i : 4 * i + 4]
        rows = ghost.transpose(0, 1).flatten(1)
        m, v = rows.mean(1), rows.var(1, correction=0)
        mean = 0.8 * mean + 0.2 * m
        variance = 0.8 * variance + 0.2 * rows.var(1)
        column = (1, 3, *[1] * len(shape))
        normal = (ghost - m.reshape(column)) / (v.reshape(column) + layer.eps).sqrt()
        torch.testing.assert_close(
            y[4 * i : 4 * i + 4], normal * layer.weight.reshape(column), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, variance)
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("n", [3, 4, 7])
def test_below_two_ghost_batches_the_bits_are_those_of_plain_normalisation(n):
    x = torch.randn(n, 3, 5, 5)
    plain, ghost = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    apply_ghost_batch_norm(ghost, size=4)
    assert torch.equal(ghost(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(ghost.buffers(), plain.buffers(), strict=True))
    more = torch.randn(8, 3, 5, 5)
    assert not torch.allclose(ghost(more), plain(more))


def test_it_is_plain_in_evaluation_and_after_undo():
    layer = nn.BatchNorm1d(3)
    surgery = apply_ghost_batch_norm(layer, size=2)
    assert not apply_ghost_batch_norm(layer, size=2).changed
    x = torch.randn(8, 3)
    layer(x)
    plain = nn.BatchNorm1d(3)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    surgery.undo()
    assert type(layer) is nn.BatchNorm1d
    assert not hasattr(layer, "ghost_size")
    assert torch.equal(layer.train()(x), plain.train()(x))


def test_a_layer_without_running_statistics_is_plain_in_evaluation():
    plain, ghost = (nn.BatchNorm1d(3, track_running_stats=False).eval() for _ in range(2))
    apply_ghost_batch_norm(ghost, size=2)
    x = torch.randn(8, 3)
    assert torch.equal(ghost(x), plain(x))
    assert not torch.allclose(ghost.train()(x), plain.train()(x))


def test_the_aspect_trains_as_the_function_would():
    class Ghosts(TinyImages):
        def model(self):
            model = super().model()
            apply_ghost_batch_norm(model, size=2)
            return model

    loop, losses = trained(TinyImages(), [GhostBatchNorm(size=2)])
    by_hand, same = trained(Ghosts())
    assert losses == same
    assert loop.replica.digest() == by_hand.replica.digest()
    assert losses != trained(TinyImages())[1]


def test_a_model_without_batch_normalisation_gets_a_warning_and_wrong_sizes_are_refused():
    with pytest.warns(AspectWarning, match="GhostBatchNorm changed nothing in GPT"):
        trained(TinyTokens(), [GhostBatchNorm()], steps=1)
    with pytest.raises(pydantic.ValidationError):
        GhostBatchNorm(size=0)

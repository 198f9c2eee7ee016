"""Squared ReLU: the paper's formula, on all supported models, and undo."""

import pytest
import torch

from raytrain_plus.algorithms import AspectError, AspectWarning, Weave
from raytrain_plus.algorithms.gated_linear_units import GatedLinearUnits
from raytrain_plus.algorithms.squared_relu import SquaredReLU, apply_squared_relu, squared_relu
from raytrain_plus.models.gpt import FeedForward
from tests.algorithms.tiny import CONTEXT, WORDS, TinyImages, TinyTokens, build


def tokens():
    return torch.randint(0, WORDS, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


def test_it_is_zero_below_zero_and_the_square_above():
    x = torch.tensor([-2.0, -0.0, 0.5, 3.0], requires_grad=True)
    squared_relu(x).sum().backward()
    assert squared_relu(x).tolist() == [0.0, 0.0, 0.25, 9.0]
    assert x.grad.tolist() == [0.0, 0.0, 1.0, 6.0]


def test_a_feed_forward_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    layer, x = FeedForward(6, 10), torch.randn(2, 4, 6)
    plain = layer(x)
    apply_squared_relu(layer)
    hidden = (x @ layer.up.weight.T + layer.up.bias).clamp(min=0) ** 2
    torch.testing.assert_close(layer(x), hidden @ layer.down.weight.T + layer.down.bias)
    assert not torch.allclose(layer(x), plain, atol=1e-3)


def test_applying_it_twice_has_the_effect_of_once_and_undoing_restores_the_model():
    model = TinyTokens().model()
    plain, names = model(tokens()), list(model.state_dict())
    surgery = apply_squared_relu(model)
    assert len(surgery.changed) == 2
    assert not apply_squared_relu(model).changed
    assert list(model.state_dict()) == names
    assert not torch.equal(model(tokens()), plain)
    surgery.undo()
    assert type(model.blocks[0].feed_forward) is FeedForward
    assert torch.equal(model(tokens()), plain)


def test_the_aspect_changes_the_model_as_the_function_does():
    loop, _ = build(TinyTokens(), [SquaredReLU()])
    by_hand = TinyTokens().model()
    apply_squared_relu(by_hand)
    by_hand.load_state_dict(loop.replica.model.state_dict())
    assert torch.equal(loop.replica.model(tokens()), by_hand(tokens()))


def test_gates_keep_their_own_activation():
    with pytest.raises(AspectError, match="GatedLinearUnits"):
        Weave([SquaredReLU(), GatedLinearUnits()])


def test_a_model_without_known_feed_forwards_gets_a_warning():
    with pytest.warns(AspectWarning, match="FeedForward"):
        build(TinyImages(), [SquaredReLU()])

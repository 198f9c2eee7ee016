"""Gated linear units: the paper's formula, new gates that are trained, and undo."""

import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import AspectError, AspectWarning
from raytrain_plus.algorithms.gated_linear_units import GatedLinearUnits, apply_gated_linear_units
from raytrain_plus.models.gpt import FeedForward
from raytrain_plus.seeds import seed_for
from tests.algorithms.tiny import CONTEXT, SEED, WORDS, TinyImages, TinyTokens, build, trained


def tokens():
    return torch.randint(0, WORDS, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def test_a_feed_forward_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    layer, x = FeedForward(6, 10), torch.randn(2, 4, 6)
    plain = layer(x)
    apply_gated_linear_units(layer, std=0.5)
    up, gate, down = layer.up, layer.gate, layer.down
    hidden = gelu(x @ up.weight.T + up.bias) * (x @ gate.weight.T + gate.bias)
    torch.testing.assert_close(layer(x), hidden @ down.weight.T + down.bias)
    assert not torch.allclose(layer(x), plain, atol=1e-3)


def test_with_std_0_the_model_starts_as_the_plain_one():
    model = TinyTokens().model()
    plain = model(tokens())
    apply_gated_linear_units(model, std=0.0)
    assert torch.equal(model(tokens()), plain)
    with torch.no_grad():
        model.blocks[0].feed_forward.gate.bias.add_(0.5)
    assert not torch.equal(model(tokens()), plain)


def test_the_gates_are_drawn_from_the_generator_only():
    def weights(seed, disturbance):
        torch.manual_seed(disturbance)
        model = TinyTokens().model()
        before = torch.get_rng_state()
        apply_gated_linear_units(model, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), before)
        return [block.feed_forward.gate.weight for block in model.blocks]

    first, again, other = weights(1, 2), weights(1, 3), weights(2, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_the_gates_have_the_given_standard_deviation():
    layer = FeedForward(200, 300)
    apply_gated_linear_units(layer, std=0.1, generator=torch.Generator().manual_seed(1))
    assert layer.gate.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(layer.gate.bias, torch.ones(300))


def test_the_optimizer_trains_the_gates_in_the_group_of_their_layer():
    model = TinyTokens().model()
    up = [p for n, p in model.named_parameters() if ".up." in n]
    rest = [p for n, p in model.named_parameters() if ".up." not in n]
    optimizer = torch.optim.SGD([{"params": rest}, {"params": up, "lr": 0.5}], lr=0.1)
    apply_gated_linear_units(model, optimizer=optimizer)
    gates = {id(p) for n, p in model.named_parameters() if ".gate." in n}
    assert len(gates) == 4
    assert gates <= {id(p) for p in optimizer.param_groups[1]["params"]}
    assert not gates & {id(p) for p in optimizer.param_groups[0]["params"]}


def test_an_optimizer_without_the_layer_is_an_error():
    model = TinyTokens().model()
    with pytest.raises(AspectError, match="does not train"):
        apply_gated_linear_units(model, optimizer=torch.optim.SGD([model.norm.weight], lr=0.1))


def test_applying_it_twice_has_the_effect_of_once():
    model = TinyTokens().model()
    assert len(apply_gated_linear_units(model).changed) == 2
    names = [n for n, _ in model.named_parameters()]
    assert not apply_gated_linear_units(model).changed
    assert [n for n, _ in model.named_parameters()] == names


def test_the_gates_have_the_dtype_and_mode_of_their_layer():
    model = TinyTokens().model().to(torch.bfloat16).eval()
    apply_gated_linear_units(model)
    gate = model.blocks[0].feed_forward.gate
    assert (gate.weight.dtype, gate.bias.dtype, gate.training) == (torch.bfloat16,) * 2 + (False,)
    assert model(tokens()).dtype == torch.bfloat16


def test_undoing_removes_the_gates():
    model = TinyTokens().model()
    plain, names = model(tokens()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    surgery = apply_gated_linear_units(model, optimizer=optimizer)
    assert list(model.state_dict()) != names
    surgery.undo()
    assert list(model.state_dict()) == names
    assert type(model.blocks[0].feed_forward) is FeedForward
    assert torch.equal(model(tokens()), plain)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_the_aspect_changes_the_model_as_the_function_does_and_trains_the_gates():
    aspect = GatedLinearUnits(std=0.3)
    loop, _ = build(TinyTokens(), [aspect])
    begun = loop.replica.model
    by_hand = TinyTokens().model()
    apply_gated_linear_units(by_hand, std=0.3)
    by_hand.load_state_dict(begun.state_dict())
    assert torch.equal(begun(tokens()), by_hand(tokens()))
    ended = trained(TinyTokens(), [aspect], steps=3)[0].replica.model
    for a, b in zip(begun.blocks, ended.blocks, strict=True):
        assert not torch.equal(a.feed_forward.gate.weight, b.feed_forward.gate.weight)
        assert not torch.equal(a.feed_forward.gate.bias, b.feed_forward.gate.bias)


def test_the_aspect_draws_the_gates_from_its_own_generator():
    loop, _ = build(TinyTokens(), [GatedLinearUnits()])
    by_hand = TinyTokens().model()
    seed = seed_for(SEED, "GatedLinearUnits", 0, -1)
    apply_gated_linear_units(by_hand, generator=torch.Generator().manual_seed(seed))
    for a, b in zip(loop.replica.model.blocks, by_hand.blocks, strict=True):
        assert torch.equal(a.feed_forward.gate.weight, b.feed_forward.gate.weight)


def test_a_model_without_known_feed_forwards_gets_a_warning():
    with pytest.warns(AspectWarning, match="FeedForward"):
        build(TinyImages(), [GatedLinearUnits()])


@pytest.mark.parametrize("std", [-0.1, 1.5])
def test_a_std_out_of_bounds_is_an_error(std):
    with pytest.raises(ValueError, match="std"):
        GatedLinearUnits(std=std)


def test_a_transposed_linear_layer_gets_a_gate_of_the_right_shape():
    class Conv1D(nn.Module):
        def __init__(self, into, out):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(into, out))

        def forward(self, x):
            return x @ self.weight

    layer, x = FeedForward(6, 10), torch.randn(2, 6)
    layer.up = Conv1D(6, 10)
    apply_gated_linear_units(layer)
    assert layer(x).shape == (2, 6)

"""Squeeze-and-excitation: one gate per channel and image, trained with the rest."""

import math

import pydantic
import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import AspectWarning, Step
from raytrain_plus.algorithms.squeeze_excite import Gate, SqueezeExcite, apply_squeeze_excite
from tests.algorithms.tiny import TinyImages, TinyTokens, build, trained

SETTINGS = {"min_channels": 4, "reduction": 2}


def naive_gate(gate, x):
    """Compute the paper's equations 2 to 4 with plain numbers."""
    out = x.clone()
    for i, image in enumerate(x):
        z = [channel.sum().item() / channel.numel() for channel in image]
        hidden = [
            max(0.0, sum(w * v for w, v in zip(row, z, strict=True)) + b)
            for row, b in zip(gate.squeeze.weight.tolist(), gate.squeeze.bias.tolist(), strict=True)
        ]
        for c, (row, b) in enumerate(
            zip(gate.excite.weight.tolist(), gate.excite.bias.tolist(), strict=True)
        ):
            s = sum(w * v for w, v in zip(row, hidden, strict=True)) + b
            out[i, c] = image[c] / (1 + math.exp(-s))
    return out


def test_a_gate_follows_the_formula_of_the_paper():
    gate = Gate(6, 3).double()
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64) * 5
    torch.testing.assert_close(gate(x), naive_gate(gate, x).detach())
    assert gate.squeeze.out_features == 2
    assert Gate(6, 16).squeeze.out_features == 1


def test_gates_start_near_one_half():
    x = torch.randn(8, 64, 4, 4)
    scale = (Gate(64, 16)(x) / x).detach()
    assert 0.2 < scale.min() < scale.max() < 0.8


def test_weights_have_pytorchs_distribution_and_are_drawn_from_the_generator_only():
    before = torch.random.get_rng_state()
    one, same = (Gate(64, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    other = Gate(64, 4, torch.Generator().manual_seed(4))
    assert not torch.equal(one.excite.weight, other.excite.weight)
    plain = nn.Linear(64, 16)
    assert one.squeeze.weight.std().item() == pytest.approx(plain.weight.std().item(), rel=0.1)
    assert one.squeeze.weight.abs().max() <= 64**-0.5


def test_convolutions_with_enough_channels_are_gated():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 3)
    )
    model[3].requires_grad_(requires_grad=False)
    surgery = apply_squeeze_excite(model, min_channels=8, reduction=4)
    assert list(surgery.changed) == ["2"]
    assert not apply_squeeze_excite(model, min_channels=8).changed
    x = torch.randn(2, 8, 7, 7)
    gated = model[2](x)
    gate = model[2].gate
    surgery.undo()
    assert type(model[2]) is nn.Conv2d
    torch.testing.assert_close(gated, gate(model[2](x)))
    assert not torch.allclose(gated, model[2](x))
    assert "2.gate.squeeze.weight" not in model.state_dict()


def test_gates_get_the_dtype_mode_and_parameter_group_of_the_convolution():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)).double().eval()
    optimizer = torch.optim.SGD(
        [{"params": m.parameters(), "lr": i + 1.0} for i, m in enumerate(model)]
    )
    surgery = apply_squeeze_excite(model, min_channels=8, optimizer=optimizer)
    for module, group in zip(model, optimizer.param_groups, strict=True):
        assert {id(p) for p in module.parameters()} == {id(p) for p in group["params"]}
        assert not module.gate.training
        assert module.gate.excite.weight.dtype == torch.float64
    surgery.undo()
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_the_aspect_is_the_function_with_its_own_generator():
    aspect = SqueezeExcite(**SETTINGS)
    replica = build(TinyImages(), [aspect])[0].replica
    by_hand = build(TinyImages())[0].replica.model
    generator = Step(replica.training, 0).generator(aspect)
    apply_squeeze_excite(by_hand, generator=generator, **SETTINGS)
    state = by_hand.state_dict()
    assert state.keys() == replica.model.state_dict().keys()
    assert any("gate" in name for name in state)
    assert all(torch.equal(state[n], t) for n, t in replica.model.state_dict().items())
    x = torch.rand(2, 2, 12, 12)
    assert torch.equal(replica.model.eval()(x), by_hand.eval()(x))


def test_gates_are_trained():
    start = build(TinyImages(), [SqueezeExcite(**SETTINGS)])[0].replica.tensors()
    loop, losses = trained(TinyImages(), [SqueezeExcite(**SETTINGS)])
    moved = [
        n
        for n, t in loop.replica.tensors().items()
        if "gate" in n and n in start and not torch.equal(t, start[n])
    ]
    assert any(name.endswith("excite.bias") for name in moved)
    assert losses != trained(TinyImages())[1]


def test_a_model_without_such_convolutions_gets_a_warning_and_wrong_settings_are_refused():
    with pytest.warns(AspectWarning, match="SqueezeExcite changed nothing in GPT"):
        build(TinyTokens(), [SqueezeExcite()])
    with pytest.warns(AspectWarning, match="at least 128"):
        build(TinyImages(), [SqueezeExcite()])
    for wrong in ({"min_channels": 0}, {"reduction": 0}):
        with pytest.raises(pydantic.ValidationError):
            SqueezeExcite(**wrong)

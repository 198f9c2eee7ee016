"""Low-precision group normalisation: the formula within bfloat16's precision; dtypes are kept."""

import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import AspectWarning
from raytrain_plus.algorithms.low_precision_group_norm import (
    LowPrecisionGroupNorm,
    apply_low_precision_group_norm,
)
from tests.algorithms.tiny import TinyImages, build, trained

ROUNDING = {"rtol": 2**-7, "atol": 2**-7}  # a few units in the last place of bfloat16


def norm():
    torch.manual_seed(0)
    module = nn.GroupNorm(2, 8)
    nn.init.normal_(module.weight, 1, 0.3)
    nn.init.normal_(module.bias, 0, 0.3)
    return module


def inputs():
    return torch.randn((3, 8, 2, 5), generator=torch.Generator().manual_seed(1)) * 3 + 1


def formula(module, x):
    groups = []
    for group in x.double().split(4, dim=1):
        mean = group.mean((1, 2, 3), keepdim=True)
        variance = (group - mean).square().mean((1, 2, 3), keepdim=True)
        groups.append((group - mean) / (variance + 1e-5).sqrt())
    weight, bias = module.weight[:, None, None], module.bias[:, None, None]
    return (torch.cat(groups, dim=1) * weight + bias).float()


def test_the_result_is_the_formula_within_the_precision():
    module, x = norm(), inputs()
    plain = module(x)
    apply_low_precision_group_norm(module)
    low = module(x)
    torch.testing.assert_close(low, formula(module, x), **ROUNDING)
    torch.testing.assert_close(plain, formula(module, x))
    assert not torch.equal(low, plain)


def test_epsilon_is_that_of_the_module():
    module, x = norm(), inputs() * 1e-3
    before = module(x)
    module.eps = 1e-4
    plain = module(x)
    apply_low_precision_group_norm(module)
    torch.testing.assert_close(module(x), plain, rtol=2**-6, atol=2**-6)
    assert not torch.allclose(before, plain, atol=0.1)


def test_every_value_is_a_bfloat16_value():
    module, x = norm(), inputs()
    assert not torch.equal(module(x).bfloat16().float(), module(x))
    apply_low_precision_group_norm(module)
    assert torch.equal(module(x).bfloat16().float(), module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_the_input(dtype):
    module = norm().to(dtype)
    apply_low_precision_group_norm(module)
    assert module(inputs().to(dtype)).dtype == dtype
    assert module.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_result_has_autocasts_dtype(dtype):
    module = norm()
    apply_low_precision_group_norm(module)
    with torch.autocast("cpu", dtype):
        low = module(inputs())
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), module(inputs()), **ROUNDING)


def test_gradients_are_near_the_plain_ones_and_have_the_dtype_of_the_weights():
    def gradients(change):
        module, x = norm(), inputs().requires_grad_()
        if change:
            apply_low_precision_group_norm(module)
        module(x).square().sum().backward()
        return [x.grad, module.weight.grad, module.bias.grad]

    for low, plain in zip(gradients(change=True), gradients(change=False), strict=True):
        assert low.dtype == torch.float32
        assert (low - plain).norm() < 0.02 * plain.norm()
        assert not torch.equal(low, plain)


def test_a_normalisation_without_weights_works():
    module = nn.GroupNorm(2, 8, affine=False)
    plain = module(inputs())
    apply_low_precision_group_norm(module)
    torch.testing.assert_close(module(inputs()), plain, **ROUNDING)


def test_normalisations_with_their_own_forward_are_left_unchanged():
    class Own(type(norm())):
        def forward(self, x):
            return super().forward(x) * 2

    class Named(type(norm())):
        pass

    own, named = Own(*norm_arguments()), Named(*norm_arguments())
    model = nn.ModuleDict({"own": own, "named": named, "other": nn.LayerNorm(8)})
    assert set(apply_low_precision_group_norm(model).changed) == {"named"}
    assert type(own) is Own


def norm_arguments():
    return (2, 8)


def test_undoing_restores_the_plain_layer():
    module, x = norm(), inputs()
    plain, kind = module(x), type(module)
    surgery = apply_low_precision_group_norm(module)
    assert not apply_low_precision_group_norm(module).changed
    surgery.undo()
    assert torch.equal(module(x), plain)
    assert type(module) is kind


def test_the_aspect_changes_the_model_as_the_function_does():
    loop, _ = build(TinyImages(), [LowPrecisionGroupNorm()])
    by_hand = TinyImages().model()
    by_hand.load_state_dict(loop.replica.model.state_dict())
    apply_low_precision_group_norm(by_hand)
    x = inputs()

    def find(model):
        return model.group

    assert torch.equal(find(loop.replica.model)(x), find(by_hand)(x))
    assert type(find(loop.replica.model)) is type(find(by_hand))


def test_training_learns_with_other_bits():
    _, low = trained(TinyImages(), [LowPrecisionGroupNorm()], steps=3)
    _, plain = trained(TinyImages(), steps=3)
    assert low != plain
    assert low == pytest.approx(plain, rel=0.02)


def test_a_model_without_such_layers_gets_a_warning():
    class Without(TinyImages):
        def model(self):
            return nn.Linear(2, 2)

    with pytest.warns(AspectWarning, match="GroupNorm"):
        build(Without(), [LowPrecisionGroupNorm()])

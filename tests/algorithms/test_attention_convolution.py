"""Convolutions before attention: the formula, no look ahead, an identity at the start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from raytrain_plus.algorithms import AspectError, AspectWarning
from raytrain_plus.algorithms.attention_convolution import (
    AttentionConvolution,
    Taps,
    apply_attention_convolution,
)
from raytrain_plus.models.gpt import Attention
from tests.algorithms.tiny import CONTEXT, WORDS, TinyImages, TinyTokens, build, trained


def tokens():
    return torch.randint(0, WORDS, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


def drawn(taps):
    torch.nn.init.normal_(taps.weight, generator=torch.Generator().manual_seed(2))
    return taps


@given(st.integers(2, 6), st.integers(0, 3), st.integers(1, 9))
def test_it_is_the_depthwise_convolution_of_torch(width, ahead, length):
    """If it is causal, it looks back only; otherwise it looks to both sides."""
    ahead = min(ahead, width - 1)
    taps = drawn(Taps(width, 5, first=-ahead))
    x = torch.randn(2, length, 5, generator=torch.Generator().manual_seed(3))
    padded = functional.pad(x.transpose(1, 2), (width - 1 - ahead, ahead))
    kernel = taps.weight.flip(0).T[:, None]
    expected = functional.conv1d(padded, kernel, groups=5).transpose(1, 2)
    torch.testing.assert_close(taps(x), expected)


@pytest.mark.parametrize(("width", "first", "length"), [(3, 0, 6), (4, -2, 5), (3, -1, 1)])
def test_its_gradient_is_the_true_one(width, first, length):
    taps = drawn(Taps(width, 3, first)).double()
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(taps, {"weight": weight}, x),
        (x, taps.weight),
    )


def test_it_starts_as_the_plain_model_and_then_changes():
    model = TinyTokens().model()
    plain = model(tokens())
    surgery = apply_attention_convolution(model)
    assert torch.equal(model(tokens()), plain)
    drawn(model.blocks[0].attention.qkv.taps)
    assert not torch.allclose(model(tokens()), plain, atol=1e-3)
    surgery.undo()
    assert torch.equal(model(tokens()), plain)


def test_no_token_sees_later_tokens():
    model = TinyTokens().model()
    apply_attention_convolution(model)
    for block in model.blocks:
        drawn(block.attention.qkv.taps)
    other = tokens()
    other[:, 4:] = (other[:, 4:] + 1) % WORDS
    assert torch.equal(model(tokens())[:, :4], model(other)[:, :4])
    assert not torch.allclose(model(tokens())[:, 4:], model(other)[:, 4:])


def test_a_convolution_that_looks_ahead_is_found():
    """The negative control."""
    model = TinyTokens().model()
    apply_attention_convolution(model)
    for block in model.blocks:
        drawn(block.attention.qkv.taps).first = -1
    other = tokens()
    other[:, 4:] = (other[:, 4:] + 1) % WORDS
    assert not torch.allclose(model(tokens())[:, :4], model(other)[:, :4])


def test_the_optimizer_trains_the_taps_in_the_group_of_the_bias():
    model = TinyTokens().model()
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    others = [p for n, p in model.named_parameters() if not n.endswith("bias")]
    optimizer = torch.optim.SGD([{"params": others}, {"params": biases}], lr=0.1)
    apply_attention_convolution(model, optimizer=optimizer)
    taps = {id(block.attention.qkv.taps.weight) for block in model.blocks}
    assert taps <= {id(p) for p in optimizer.param_groups[1]["params"]}
    with pytest.raises(AspectError, match="does not train"):
        apply_attention_convolution(
            TinyTokens().model(), optimizer=torch.optim.SGD([model.norm.weight], lr=0.1)
        )


def test_applying_it_twice_has_the_effect_of_once():
    model = TinyTokens().model()
    assert len(apply_attention_convolution(model).changed) == 4  # attention and its projection
    names = [n for n, _ in model.named_parameters()]
    assert not apply_attention_convolution(model).changed
    assert [n for n, _ in model.named_parameters()] == names


def test_undoing_removes_the_taps():
    model = TinyTokens().model()
    names = list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    surgery = apply_attention_convolution(model, optimizer=optimizer)
    assert list(model.state_dict()) != names
    surgery.undo()
    assert list(model.state_dict()) == names
    assert type(model.blocks[0].attention) is Attention
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_the_taps_have_the_dtype_of_their_projection():
    model = TinyTokens().model().to(torch.bfloat16)
    apply_attention_convolution(model)
    assert model.blocks[0].attention.qkv.taps.weight.dtype == torch.bfloat16
    assert model(tokens()).dtype == torch.bfloat16


def test_the_aspect_trains_the_taps():
    begun = build(TinyTokens(), [AttentionConvolution(width=4)])[0].replica.model
    ended = trained(TinyTokens(), [AttentionConvolution(width=4)], steps=3)[0].replica.model
    for a, b in zip(begun.blocks, ended.blocks, strict=True):
        assert a.attention.qkv.taps.weight.shape[0] == 4
        assert not torch.equal(a.attention.qkv.taps.weight, b.attention.qkv.taps.weight)


def test_a_model_without_known_attention_gets_a_warning():
    with pytest.warns(AspectWarning, match="Attention"):
        build(TinyImages(), [AttentionConvolution()])


@pytest.mark.parametrize("width", [1, 33])
def test_a_width_out_of_bounds_is_an_error(width):
    with pytest.raises(ValueError, match="width"):
        AttentionConvolution(width=width)

"""ALiBi: attention is the paper's formula, without position embeddings; longer sequences work."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.algorithms import AspectError
from raytrain_plus.algorithms.alibi import ALiBi, apply_alibi, distance_bias, slopes
from raytrain_plus.models.gpt import GPT, Attention
from tests.algorithms.tiny import CONTEXT, WORDS, TinyImages, TinyTokens, build, trained


def gpt(heads=2, layers=2):
    torch.manual_seed(0)
    model = GPT(vocabulary=WORDS, context=CONTEXT, layers=layers, width=12, heads=heads).eval()
    for parameter in model.parameters():  # the initial weights are so small that attention is flat
        nn.init.normal_(parameter, std=0.5)
    return model


def tokens(length, n=3):
    return torch.randint(0, WORDS, (n, length), generator=torch.Generator().manual_seed(1))


def attention_of_the_paper(layer, x, each):
    """Attention of one token at a time over earlier tokens, with the given slopes."""
    n, t, d = x.shape
    size = d // layer.heads
    q, k, v = layer.qkv(x).split(d, dim=2)
    out = torch.zeros_like(x)
    for b in range(n):
        for h in range(layer.heads):
            part = slice(h * size, (h + 1) * size)
            for i in range(t):
                scores = torch.stack(
                    [
                        q[b, i, part] @ k[b, j, part] / math.sqrt(size) - each[h] * (i - j)
                        for j in range(i + 1)
                    ]
                )
                out[b, i, part] = scores.softmax(0) @ v[b, : i + 1, part]
    return layer.out(out)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (3, [2**-4, 2**-8, 2**-2]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (8, [2**-k for k in range(1, 9)]),
    ],
)
def test_slopes_are_those_of_the_paper(heads, expected):
    assert slopes(heads) == expected


@given(st.integers(1, 100))
def test_any_number_of_heads_has_different_slopes_between_0_and_1(heads):
    found = slopes(heads)
    assert len(set(found)) == len(found) == heads
    assert all(0 < slope < 1 for slope in found)


def test_no_heads_are_an_error():
    with pytest.raises(AspectError, match="at least 1"):
        slopes(0)


@pytest.mark.parametrize("heads", [2, 3])
def test_attention_is_the_formula_of_the_paper(heads):
    torch.manual_seed(0)
    layer = Attention(12, heads)
    x = torch.randn(2, 5, 12)
    plain = layer(x)
    apply_alibi(layer)
    torch.testing.assert_close(layer(x), attention_of_the_paper(layer, x, slopes(heads)))
    torch.testing.assert_close(plain, attention_of_the_paper(layer, x, [0.0] * heads))
    assert not torch.allclose(layer(x), plain, atol=1e-4)


def test_position_embeddings_have_no_effect():
    model = gpt()
    apply_alibi(model)
    before = model(tokens(CONTEXT))
    with torch.no_grad():
        model.positions.weight.normal_()
    assert torch.equal(model(tokens(CONTEXT)), before)


def test_a_token_does_not_see_later_ones():
    model = gpt()
    apply_alibi(model)
    first = tokens(CONTEXT)
    second = first.clone()
    second[:, 5] = (second[:, 5] + 1) % WORDS
    a, b = model(first), model(second)
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.equal(a[:, 5:], b[:, 5:])


def test_sequences_may_be_longer_than_the_context():
    model = gpt()
    long = tokens(5 * CONTEXT)
    with pytest.raises(IndexError):
        model(long)
    apply_alibi(model)
    logits = model(long)
    assert logits.shape == (3, 5 * CONTEXT, WORDS)
    torch.testing.assert_close(logits[:, :CONTEXT], model(long[:, :CONTEXT]))


def test_undoing_restores_the_position_embeddings():
    model = gpt()
    plain, kinds = model(tokens(CONTEXT)), [type(m) for m in model.modules()]
    surgery = apply_alibi(model)
    assert not torch.equal(model(tokens(CONTEXT)), plain)
    assert not model.positions.weight.requires_grad
    surgery.undo()
    assert torch.equal(model(tokens(CONTEXT)), plain)
    assert [type(m) for m in model.modules()] == kinds
    assert model.positions.weight.requires_grad


def test_applying_it_twice_has_the_effect_of_once():
    model = gpt()
    first = apply_alibi(model)
    assert set(first.changed) == {"blocks.0.attention", "blocks.1.attention", "positions"}
    once = model(tokens(CONTEXT))
    assert not apply_alibi(model).changed
    assert torch.equal(model(tokens(CONTEXT)), once)


def test_a_model_without_known_attention_is_an_error_that_says_what_was_looked_for():
    with pytest.raises(AspectError, match=r"raytrain_plus\.models\.gpt\.Attention"):
        apply_alibi(TinyImages().model())


def test_a_bias_made_in_inference_mode_can_be_used_in_training():
    with torch.inference_mode():
        bias = distance_bias(2, 3, 3, dtype=torch.float64)
    assert not bias.is_inference()
    assert distance_bias(2, 3, 3, dtype=torch.float64) is bias


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_keeps_its_dtype(dtype):
    model = gpt().to(dtype)
    apply_alibi(model)
    assert model(tokens(CONTEXT)).dtype == dtype


def test_autocast_computes_about_the_same():
    model = gpt(layers=1)
    apply_alibi(model)
    exact = model(tokens(CONTEXT)).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(tokens(CONTEXT)).float()
    assert (low - exact).norm() < 0.03 * exact.norm()


def test_the_aspect_changes_the_model_as_the_function_does():
    loop, _ = build(TinyTokens(), [ALiBi()])
    by_hand = TinyTokens().model()
    by_hand.load_state_dict(loop.replica.model.state_dict())
    apply_alibi(by_hand)
    assert torch.equal(loop.replica.model(tokens(CONTEXT)), by_hand(tokens(CONTEXT)))


def test_training_leaves_position_embeddings_unchanged_and_undoing_restores_them():
    begun, _ = build(TinyTokens())
    loop, losses = trained(TinyTokens(), [ALiBi()], steps=4)
    _, plain = trained(TinyTokens(), steps=4)
    assert losses != plain
    loop.end_generation()
    model = loop.replica.undo_fit()
    assert torch.equal(model.positions.weight, begun.replica.model.positions.weight)
    assert not torch.equal(model.words.weight, begun.replica.model.words.weight)
    assert type(model.positions) is nn.Embedding

"""Methods on GPT-2 and BERT of `transformers`, built from a configuration."""

import math

import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import AspectError
from raytrain_plus.algorithms.alibi import apply_alibi, slopes
from raytrain_plus.algorithms.attention_convolution import Taps, apply_attention_convolution
from raytrain_plus.algorithms.gated_linear_units import apply_gated_linear_units
from raytrain_plus.algorithms.low_precision_layer_norm import apply_low_precision_layer_norm
from raytrain_plus.algorithms.n_gram_embeddings import apply_n_gram_embeddings, n_gram_buckets
from raytrain_plus.algorithms.squared_relu import apply_squared_relu
from tests.algorithms.side import import_transformers

transformers = import_transformers()

WORDS, CONTEXT, WIDTH, HEADS = 16, 8, 12, 3
IMPLEMENTATIONS = ["sdpa", "eager"]
NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def rough(model):
    """Give a model large weights, so that attention is not flat; turn dropout off."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval()


def gpt2(implementation="sdpa", **settings):
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        attn_implementation=implementation,
        **NO_SPECIAL,
        **settings,
    )
    return rough(transformers.GPT2LMHeadModel(config))


def bert(implementation="sdpa"):
    config = transformers.BertConfig(
        vocab_size=WORDS,
        max_position_embeddings=CONTEXT,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=20,
        attn_implementation=implementation,
        **NO_SPECIAL,
    )
    return rough(transformers.BertForMaskedLM(config))


BUILDERS = [gpt2, bert]


def tokens(length=CONTEXT, n=2):
    return torch.randint(0, WORDS, (n, length), generator=torch.Generator().manual_seed(1))


def first_attention(model):
    if hasattr(model, "transformer"):
        return model.transformer.h[0].attn
    return model.bert.encoder.layer[0].attention.self


def projections(layer, x):
    if hasattr(layer, "c_attn"):
        return (x @ layer.c_attn.weight + layer.c_attn.bias).split(WIDTH, dim=2)
    return layer.query(x), layer.key(x), layer.value(x)


def attention_of_the_paper(layer, x, seen, each):
    """Attention by the formula; `seen[b, i, j]`: whether token i of sequence b attends to j."""
    n, t, d = x.shape
    q, k, v = (p.view(n, t, HEADS, d // HEADS) for p in projections(layer, x))
    out = torch.zeros(n, t, HEADS, d // HEADS)
    for h in range(HEADS):
        distance = torch.tensor([[abs(i - j) for j in range(t)] for i in range(t)])
        scores = q[:, :, h] @ k[:, :, h].transpose(1, 2) / math.sqrt(d // HEADS)
        scores = scores - each[h] * distance
        out[:, :, h] = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v[:, :, h]
    out = out.reshape(n, t, d)
    return out @ layer.c_proj.weight + layer.c_proj.bias if hasattr(layer, "c_proj") else out


def in_and_out(model, **given):
    """Return the input and the output of the first attention."""
    seen = []
    handle = first_attention(model).register_forward_hook(
        lambda _, given, out: seen.append((given[0], out[0]))
    )
    model(**given)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("padding", ["none", "right"])
def test_attention_is_the_formula_of_the_paper(build, implementation, padding):
    model, mask = build(implementation), torch.ones(2, CONTEXT, dtype=torch.long)
    given = {"input_ids": tokens()}
    if padding == "right":
        mask[0, 5:] = 0
        given["attention_mask"] = mask
    seen = mask.bool()[:, None, :].expand(2, CONTEXT, CONTEXT)
    if build is gpt2:
        seen = seen & torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()
    x, plain = in_and_out(model, **given)
    expected = attention_of_the_paper(first_attention(model), x, seen, [0.0] * HEADS)
    torch.testing.assert_close(plain, expected)
    apply_alibi(model)
    x, out = in_and_out(model, **given)
    expected = attention_of_the_paper(first_attention(model), x, seen, slopes(HEADS))
    torch.testing.assert_close(out, expected)
    assert not torch.allclose(out, plain, atol=1e-3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_on_the_left_changes_nothing_for_the_other_tokens(implementation):
    model = gpt2(implementation)
    apply_alibi(model)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens(5)], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]] * 2)
    logits = model(padded, attention_mask=mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, 3:], model(tokens(5)).logits)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("pieces", [[1] * 7, [4, 1, 2], [3, 4]])
def test_generating_with_a_cache_equals_the_whole_sequence(implementation, pieces):
    model = gpt2(implementation)
    apply_alibi(model)
    whole = model(tokens(7)).logits
    cache = transformers.DynamicCache(config=model.config)
    found = [model(p, cache=cache, use_cache=True).logits for p in tokens(7).split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), whole)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gpt2_reads_sequences_longer_than_its_context(implementation):
    model = gpt2(implementation)
    with pytest.raises(IndexError):
        model(tokens(3 * CONTEXT))
    apply_alibi(model)
    logits = model(tokens(3 * CONTEXT)).logits
    torch.testing.assert_close(logits[:, :CONTEXT], model(tokens(3 * CONTEXT)[:, :CONTEXT]).logits)


def test_bert_reads_longer_sequences_with_given_positions_and_types():
    model = bert()
    apply_alibi(model)
    given = {"position_ids": torch.arange(20)[None], "token_type_ids": torch.zeros(2, 20).long()}
    assert model(tokens(20), **given).logits.shape == (2, 20, WORDS)
    with pytest.raises((IndexError, RuntimeError)):
        model(tokens(20))


@pytest.mark.parametrize("build", BUILDERS)
def test_position_embeddings_have_no_effect_until_undone(build):
    model = build()
    name = "transformer.wpe" if build is gpt2 else "bert.embeddings.position_embeddings"
    positions, plain = model.get_submodule(name), model(tokens()).logits
    kinds = [type(m) for m in model.modules()]
    surgery = apply_alibi(model)
    assert len(surgery.changed) == 3
    assert not apply_alibi(model).changed
    biased = model(tokens()).logits
    assert not torch.allclose(biased, plain, atol=1e-3)
    with torch.no_grad():
        positions.weight.neg_()
    assert torch.equal(model(tokens()).logits, biased)
    with torch.no_grad():
        positions.weight.neg_()
    surgery.undo()
    assert torch.equal(model(tokens()).logits, plain)
    assert [type(m) for m in model.modules()] == kinds
    assert positions.weight.requires_grad


@pytest.mark.parametrize("build", BUILDERS)
def test_eager_and_sdpa_agree_and_train(build):
    gradients = []
    for implementation in IMPLEMENTATIONS:
        model = build(implementation)
        apply_alibi(model)
        model(tokens()).logits.logsumexp(-1).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("build", BUILDERS)
def test_autocast_computes_about_the_same(build):
    for implementation in IMPLEMENTATIONS:
        model = build(implementation)
        apply_alibi(model)
        exact = model(tokens()).logits
        with torch.autocast("cpu", torch.bfloat16):
            low = model(tokens()).logits.float()
        assert (low - exact).norm() < 0.1 * exact.norm()


def test_attention_that_adds_no_mask_is_refused_by_name():
    model = gpt2()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(AspectError, match=r"transformer\.h\.0\.attn.*flex_attention.*sdpa"):
        apply_alibi(model)


def test_attention_to_another_sequence_is_left_unchanged():
    model = gpt2(add_cross_attention=True)
    cross = model.transformer.h[0].crossattention
    kind = type(cross)
    assert "transformer.h.0.crossattention" not in apply_alibi(model).changed
    assert type(cross) is kind


def test_the_feed_forward_of_gpt2_is_the_formula_of_the_paper():
    model = gpt2()
    mlp, x = model.transformer.h[0].mlp, torch.randn(2, 4, WIDTH)
    apply_gated_linear_units(model, std=0.5)
    up, gate = x @ mlp.c_fc.weight + mlp.c_fc.bias, x @ mlp.gate.weight.T + mlp.gate.bias
    hidden = nn.functional.gelu(up, approximate="tanh") * gate
    torch.testing.assert_close(mlp(x), hidden @ mlp.c_proj.weight + mlp.c_proj.bias)


def test_the_feed_forward_of_bert_is_the_formula_of_the_paper():
    model = bert()
    layer, x = model.bert.encoder.layer[0].intermediate, torch.randn(2, 4, WIDTH)
    apply_gated_linear_units(model, std=0.5)
    up, gate = layer.dense, layer.gate
    hidden = nn.functional.gelu(x @ up.weight.T + up.bias) * (x @ gate.weight.T + gate.bias)
    torch.testing.assert_close(layer(x), hidden)


@pytest.mark.parametrize("build", BUILDERS)
def test_gates_with_std_0_have_no_effect_and_can_be_removed(build):
    model = build()
    plain, names = model(tokens()).logits, list(model.state_dict())
    surgery = apply_gated_linear_units(model, std=0.0)
    assert len(surgery.changed) == 2
    assert not apply_gated_linear_units(model).changed
    assert torch.equal(model(tokens()).logits, plain)
    surgery.undo()
    apply_gated_linear_units(model, std=0.5).undo()
    assert torch.equal(model(tokens()).logits, plain)
    assert list(model.state_dict()) == names


def test_squared_relu_in_gpt2_and_bert_is_the_formula_of_the_paper():
    x = torch.randn(2, 4, WIDTH)
    model = gpt2()
    apply_squared_relu(model)
    mlp = model.transformer.h[0].mlp
    hidden = (x @ mlp.c_fc.weight + mlp.c_fc.bias).clamp(min=0) ** 2
    torch.testing.assert_close(mlp(x), hidden @ mlp.c_proj.weight + mlp.c_proj.bias)
    model = bert()
    apply_squared_relu(model)
    layer = model.bert.encoder.layer[0].intermediate
    torch.testing.assert_close(layer(x), layer.dense(x).clamp(min=0) ** 2)


def convolved(build):
    """Return a model with convolutions that are not the identity."""
    model = build()
    apply_attention_convolution(model)
    for module in model.modules():
        if isinstance(module, Taps):
            nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize(("build", "looks_ahead"), [(gpt2, False), (bert, True)])
def test_convolutions_start_without_effect_and_see_what_attention_sees(build, looks_ahead):
    plain = build()(tokens()).logits
    begun = build()
    surgery = apply_attention_convolution(begun)
    assert len(surgery.changed) == (8 if looks_ahead else 4)
    assert not apply_attention_convolution(begun).changed
    assert torch.equal(begun(tokens()).logits, plain)
    surgery.undo()
    assert list(begun.state_dict()) == list(build().state_dict())
    model = convolved(build)
    assert not torch.allclose(model(tokens()).logits, plain, atol=1e-3)
    x = torch.randn(1, 6, WIDTH)
    other = x.clone()
    other[:, 4:] += 1
    attention = first_attention(model)
    projection = attention.query if looks_ahead else attention.c_attn
    before, after = projection(x)[0], projection(other)[0]
    assert torch.equal(before[:3], after[:3])
    assert torch.equal(before[3], after[3]) is not looks_ahead


def test_convolutions_and_a_cache_that_holds_tokens_are_an_error():
    model = convolved(gpt2)
    begun = model(tokens(4), use_cache=True)
    with pytest.raises(AspectError, match="use_cache=False"):
        model(tokens(1), past_key_values=begun.past_key_values)


def test_attention_to_another_sequence_is_not_convolved():
    changed = apply_attention_convolution(gpt2(add_cross_attention=True)).changed
    assert not [name for name in changed if "crossattention" in name]


def words_of(model):
    return (
        model.transformer.wte
        if hasattr(model, "transformer")
        else model.bert.embeddings.word_embeddings
    )


@pytest.mark.parametrize("build", BUILDERS)
def test_n_grams_start_without_effect_and_are_added_to_the_tokens(build):
    plain = build()(tokens()).logits
    model = build()
    surgery = apply_n_gram_embeddings(model, longest=2, buckets=32)
    assert torch.equal(model(tokens()).logits, plain)
    words = words_of(model)
    embedded = words(tokens())
    nn.init.normal_(words.n_grams[0].weight, generator=torch.Generator().manual_seed(2))
    added = words.n_grams[0].weight[n_gram_buckets(tokens(), 2, 32)]
    torch.testing.assert_close(words(tokens()), embedded + added)
    assert not torch.allclose(model(tokens()).logits, plain, atol=1e-3)
    surgery.undo()
    assert torch.equal(model(tokens()).logits, plain)
    assert list(model.state_dict()) == list(build().state_dict())


def test_n_grams_and_a_cache_that_holds_tokens_are_an_error():
    model = gpt2()
    apply_n_gram_embeddings(model)
    begun = model(tokens(4), use_cache=True)
    with pytest.raises(AspectError, match="use_cache=False"):
        model(tokens(1), past_key_values=begun.past_key_values)


@pytest.mark.parametrize("build", BUILDERS)
def test_all_methods_can_be_combined_in_any_order(build):
    methods = [
        apply_alibi,
        apply_attention_convolution,
        apply_gated_linear_units,
        apply_low_precision_layer_norm,
        apply_n_gram_embeddings,
    ]
    plain = build()(tokens()).logits
    found = []
    for order in (methods, methods[::-1]):
        model = build()
        torch.manual_seed(3)
        surgeries = [method(model) for method in order]
        found.append(model(tokens()).logits)
        for surgery in reversed(surgeries):
            surgery.undo()
        assert torch.equal(model(tokens()).logits, plain)
    assert torch.equal(*found)
    assert not torch.allclose(found[0], plain, atol=1e-3)

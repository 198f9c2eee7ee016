"""Stochastic depth: branches are dropped at their rates, and their expectation stays."""

import pydantic
import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import AspectError
from raytrain_plus.algorithms.residual_branches import residual_branches
from raytrain_plus.algorithms.stochastic_depth import (
    StochasticDepth,
    apply_stochastic_depth,
    drop_rates,
    drop_samples,
)
from raytrain_plus.models.gpt import GPT
from raytrain_plus.models.resnet import ResidualBlock, ResNet
from tests.algorithms.side import import_transformers
from tests.algorithms.tiny import TinyImages, TinyTokens, trained


def test_rates_rise_in_equal_steps_to_the_last():
    assert drop_rates(4, 0.8, "linear") == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert drop_rates(3, 0.8, "uniform") == [0.8] * 3
    assert drop_rates(1, 0.5, "linear") == [0.5]


def test_branches_are_found_from_input_to_output():
    names = [b.name for b in residual_branches(ResNet(widths=(4, 8, 8), depth=1))]
    assert names == ["blocks.0.residual", "blocks.1.residual"]
    assert [b.name for b in residual_branches(GPT(layers=2, width=8, heads=2))] == [
        f"blocks.{i}.{key}" for i in range(2) for key in ("attention", "feed_forward")
    ]
    assert [b.name for b in residual_branches(ResidualBlock(2, 2))] == ["residual"]


def dropping(rate=0.4, mode="batch", block=None):
    block = block or ResidualBlock(2, 4, 2)
    surgery = apply_stochastic_depth(block, drop_rate=rate, mode=mode)
    return block, surgery


def test_a_branch_is_dropped_or_scaled_up():
    block = ResidualBlock(2, 4, 2)
    for norm in (block.residual[1], block.residual[4], block.shortcut[1]):
        norm.eval()
    x = torch.randn(3, 2, 6, 6)
    shortcut, residual = block.shortcut(x), block.residual(x)
    dropping(0.4, block=block)
    block.residual.training = True
    kept = torch.relu(shortcut + residual / 0.6)
    counts = {"kept": 0, "dropped": 0}
    torch.manual_seed(0)
    for _ in range(400):
        y = block(x)
        if torch.equal(y, torch.relu(shortcut)):
            counts["dropped"] += 1
        else:
            torch.testing.assert_close(y, kept)
            counts["kept"] += 1
    assert counts["dropped"] / 400 == pytest.approx(0.4, abs=0.08)


def test_a_dropped_branch_is_not_computed():
    block, _ = dropping(0.5)
    calls = []
    block.residual[0].register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    for _ in range(100):
        block(torch.randn(2, 2, 4, 4))
    assert 30 < len(calls) < 70


def test_samples_are_dropped_independently():
    torch.manual_seed(1)
    branch = torch.randn(4000, 2, 3)
    dropped = drop_samples(branch, 0.3)
    zero = (dropped == 0).flatten(1)
    assert torch.equal(zero.all(1), zero.any(1))
    assert zero.any(1).float().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(dropped[~zero.any(1)], branch[~zero.any(1)] / 0.7)


def test_samples_of_a_block_are_dropped_independently():
    block, _ = dropping(0.5, "sample")
    block.eval()
    block.residual.training = True
    x = torch.randn(64, 2, 4, 4)
    shortcut = block.shortcut(x)
    same = (block(x) == torch.relu(shortcut)).flatten(1).all(1)
    assert 15 < same.sum() < 49


@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_evaluation_and_the_exported_model_are_plain(mode):
    model = GPT(vocabulary=7, context=4, layers=2, width=8, heads=2)
    tokens = torch.randint(0, 7, (2, 4))
    plain = model(tokens)
    surgery = apply_stochastic_depth(model, drop_rate=0.9, mode=mode)
    assert not apply_stochastic_depth(model, drop_rate=0.9).changed
    assert torch.equal(model.eval()(tokens), plain)
    torch.manual_seed(0)
    assert not torch.allclose(model.train()(tokens), plain)
    surgery.undo()
    assert torch.equal(model(tokens), plain)
    assert not hasattr(model.blocks[0].attention, "branch_drop_rate")


def test_it_draws_the_same_when_compiled():
    block, _ = dropping(0.5)
    block.residual.training = True
    x = torch.randn(2, 2, 4, 4)
    outputs = []
    for forward in (block, torch.compile(block, backend="eager")):
        torch.manual_seed(0)
        outputs.append([forward(x) for _ in range(10)])
    for eager, compiled in zip(*outputs, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_all_parameters_of_kept_branches_get_gradients():
    block, _ = dropping(0.5)
    seen = set()
    torch.manual_seed(0)
    for _ in range(20):
        block.zero_grad()
        block(torch.randn(2, 2, 4, 4)).sum().backward()
        seen.add(block.residual[0].weight.grad is None)
        assert block.shortcut[0].weight.grad is not None
    assert seen == {True, False}


@pytest.mark.parametrize("mode", ["batch", "sample"])
@pytest.mark.parametrize("task", [TinyImages, TinyTokens])
def test_the_aspect_trains_as_the_function_would(task, mode):
    settings = {"drop_rate": 0.5, "decay": "uniform", "mode": mode}

    class Dropping(task):
        def model(self):
            model = super().model()
            apply_stochastic_depth(model, **settings)
            return model

    losses = trained(task(), [StochasticDepth(**settings)])[1]
    assert losses == trained(Dropping())[1]
    assert losses != trained(task())[1]


def test_wrong_use_is_explained():
    with pytest.raises(AspectError, match=r"no known residual branch.*models\.gpt\.Block"):
        apply_stochastic_depth(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(AspectError, match=r"drop_rate=1 is not in \[0, 1\)"):
        apply_stochastic_depth(ResNet(), drop_rate=1)
    for wrong in ({"drop_rate": 1}, {"drop_rate": -0.1}, {"decay": "cubic"}, {"mode": "row"}):
        with pytest.raises(pydantic.ValidationError):
            StochasticDepth(**wrong)


def transformer(kind):
    transformers = import_transformers()
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=11,
            n_positions=8,
            n_embd=8,
            n_layer=3,
            n_head=2,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.BertConfig(
        vocab_size=11,
        max_position_embeddings=8,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    return transformers.BertForMaskedLM(config)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_whole_blocks_of_transformers_are_dropped(kind, mode):
    model = transformer(kind).train()
    tokens = torch.randint(0, 11, (6, 5))
    branches = residual_branches(model)
    assert [b.whole for b in branches] == [True] * 3
    plain = model(tokens).logits
    surgery = apply_stochastic_depth(model, drop_rate=0.75, mode=mode)
    assert torch.equal(model.eval()(tokens).logits, plain)
    model.train()

    block = branches[2].module
    x = torch.randn(40, 5, 8)
    surgery.undo()
    y = block(x)
    apply_stochastic_depth(model, drop_rate=0.75, decay="uniform", mode=mode)
    torch.manual_seed(0)
    outputs = [block(x) for _ in range(1 if mode == "sample" else 40)]
    kept = 0
    for output in outputs:
        for got, start, end in zip(output, x, y, strict=True):
            if not torch.equal(got, start):
                kept += 1
                torch.testing.assert_close(got, start + (end - start) / 0.25, rtol=1e-4, atol=1e-4)
    assert 0.05 < kept / (40 * len(outputs)) < 0.5
    model(tokens).logits.sum().backward()

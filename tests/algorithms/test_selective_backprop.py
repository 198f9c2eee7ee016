"""Selective backpropagation: which samples are kept, no other changes, and an exact mean."""

import copy
import itertools

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.selective_backprop import (
    SelectiveBackprop,
    evaluating,
    rows_of,
    scaled,
    select_by_loss,
)
from raytrain_plus.seeds import seed_for, seed_global_generators
from tests.algorithms.tiny import RANKS, SEED, TinyImages, TinyTokens, alone, build, trained

ALWAYS = {"start": "0dur", "finish": "1dur", "interval": 1}


class PlainImages(TinyImages):
    """A task without dropout and batch statistics."""

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(288, 8), nn.ReLU(), nn.Linear(8, 3))


def uneven(step):
    """Return parts of one to four rows."""
    parts = [TinyImages.part(step, r) for r in range(RANKS)]
    return [rows_of(part, torch.arange(1 + r % 4)) for r, part in enumerate(parts)]


def begun(task, *aspects):
    loop, weave = build(task, aspects)
    loop.begin_generation([range(RANKS)], alone())
    return loop, weave


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 30), st.floats(0.01, 1), st.floats(0, 3), st.integers(0, 2**32))
def test_the_given_fraction_is_kept_without_repetition_and_in_order(n, keep, beta, seed):
    losses = torch.randn(n, generator=seeded(seed))
    kept = select_by_loss(losses, keep, seeded(seed), beta)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == max(1, round(keep * n))
    assert set(kept.tolist()) <= set(range(n))
    assert torch.equal(kept, select_by_loss(losses * 3 + 1, keep, seeded(seed), beta))


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_probabilities_are_those_of_drawing_one_after_the_other(beta):
    """Two of four samples: the oracle sums over all orders in which they can be drawn."""
    losses = torch.tensor([0.3, 9.0, 0.1, 2.0])
    weights = [(rank / 4) ** beta for rank in (2, 4, 1, 3)]
    expected = torch.zeros(4)
    for a, b in itertools.permutations(range(4), 2):
        chance = weights[a] / sum(weights) * weights[b] / (sum(weights) - weights[a])
        expected[a] += chance
        expected[b] += chance
    generator, counts, draws = seeded(5), torch.zeros(4), 4000
    for _ in range(draws):
        counts[select_by_loss(losses, 0.5, generator, beta)] += 1
    torch.testing.assert_close(counts / draws, expected, atol=0.03, rtol=0)
    if beta:  # the control
        assert counts[1] > 1.2 * counts[2]


def test_equal_losses_are_ranked_by_position():
    equal = select_by_loss(torch.ones(9), 0.4, seeded(3))
    assert torch.equal(equal, select_by_loss(torch.arange(9.0), 0.4, seeded(3)))


def by_hand(task, parts, keep):
    """Compute the mean gradient over kept samples, one part after the other."""
    loop, _ = begun(task)
    model = loop.replica.model.train()
    sums, count, reported = [torch.zeros_like(p) for p in model.parameters()], 0, 0.0
    for rank, part in enumerate(parts):
        with torch.no_grad(), evaluating(model):
            scores = task.loss(task.forward(model, part), part)
        generator = seeded(seed_for(SEED, "SelectiveBackprop", 0, rank))
        part = rows_of(part, select_by_loss(scores, keep, generator))  # noqa: PLW2901
        own = copy.deepcopy(model)
        seed_global_generators(seed_for(SEED, "step", 0, rank))
        loss = functional.cross_entropy(own(part["image"]), part["label"], reduction="sum")
        gradients = torch.autograd.grad(loss, list(own.parameters()))
        sums = [s + g for s, g in zip(sums, gradients, strict=True)]
        count, reported = count + len(part["label"]), reported + loss.item()
    for parameter, total in zip(model.parameters(), sums, strict=True):
        parameter.grad = total / count
    task.optimizer(model).step()
    return list(model.parameters()), reported / count, count


@pytest.mark.parametrize(
    ("task", "how"), [(TinyImages(), "score"), (PlainImages(), "score"), (PlainImages(), "reuse")]
)
def test_the_gradient_is_the_mean_over_kept_samples_of_uneven_parts(task, how):
    loop, _ = begun(task, SelectiveBackprop(keep=0.5, how=how, **ALWAYS))
    result = loop.run_step(uneven(0))
    expected, loss, count = by_hand(task, uneven(0), 0.5)
    assert loop.replica.samples == count < sum(len(p["label"]) for p in uneven(0))
    assert result.loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(list(loop.replica.model.parameters()), expected)
    other, *_ = by_hand(task, uneven(0), 0.9)  # the control
    ours = next(loop.replica.model.parameters())
    assert not torch.allclose(ours, other[0], rtol=1e-4, atol=1e-6)


def test_scoring_has_no_side_effects():
    """A `keep` of 0.9 keeps all of four rows: they are scored, and the bits do not change."""
    for task in (TinyImages(), TinyTokens()):
        plain, _ = trained(task)
        aspect = SelectiveBackprop(keep=0.9, how="score", **ALWAYS)
        scored, _ = trained(task, [aspect])
        assert scored.replica.digest() == plain.replica.digest()
        fewer, _ = trained(task, [SelectiveBackprop(keep=0.5, how="score", **ALWAYS)])
        assert fewer.replica.digest() != plain.replica.digest()


def test_keeping_all_samples_has_no_effect():
    loop, weave = begun(TinyImages(), SelectiveBackprop(keep=1, **ALWAYS))
    loop.run_step([TinyImages.part(0, r) for r in range(RANKS)])
    assert weave.costs["SelectiveBackprop"].acted == 0
    assert loop.replica.digest() == trained(TinyImages(), steps=1)[0].replica.digest()


@pytest.mark.parametrize("how", ["score", "reuse"])
def test_it_selects_in_the_configured_steps_only(how):
    settings = {"start": "3ba", "finish": "0.75dur", "interval": 2, "how": how}
    loop, weave = begun(PlainImages(), SelectiveBackprop(**settings))
    kept = []
    for step in range(12):
        before = loop.replica.samples
        loop.run_step([TinyImages.part(step, r) for r in range(RANKS)])
        kept.append(loop.replica.samples - before)
        assert weave.spent()["SelectiveBackprop"]["acted"] == (RANKS if kept[-1] == 12 else 0)
    assert kept == [24, 24, 24, 12, 24, 12, 24, 12, 24, 24, 24, 24]


@pytest.mark.parametrize(
    ("settings", "reuses"),
    [
        ({"keep": 0.5}, False),
        ({"keep": 0.6}, False),
        ({"keep": 0.7}, True),
        ({"keep": 0.7, "scale": 0.5}, False),
        ({"keep": 0.95, "scale": 0.5}, True),
        ({"keep": 0.5, "how": "reuse"}, True),
        ({"keep": 0.9, "how": "score"}, False),
    ],
)
def test_auto_chooses_the_way_that_computes_less(settings, reuses):
    assert SelectiveBackprop(**settings).reuses == reuses


def test_images_are_scored_at_a_lower_resolution_and_trained_at_their_own():
    sizes = []

    class Watch(Aspect):
        def fit(self, step):
            step.model.stem.register_forward_pre_hook(
                lambda module, given: sizes.append((module.training, *given[0].shape))
            )
            yield

    trained(TinyImages(), [SelectiveBackprop(scale=0.5, **ALWAYS), Watch()], steps=1)
    assert sizes == [(False, 4, 2, 6, 6), (True, 2, 2, 12, 12)] * RANKS


def test_uint8_images_stay_uint8_when_they_are_scaled():
    images = torch.arange(2 * 16, dtype=torch.uint8).reshape(1, 2, 4, 4)
    small = scaled(images, 0.5)
    assert (small.dtype, small.shape) == (torch.uint8, (1, 2, 2, 2))
    expected = functional.avg_pool2d(images.float(), 2).round()
    torch.testing.assert_close(small.float(), expected, atol=1, rtol=0)
    floats = torch.rand((2, 1, 4, 6))
    torch.testing.assert_close(scaled(floats, 0.5), functional.avg_pool2d(floats, 2))


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_scoring_in_chunks_selects_the_same(chunk):
    seen = []

    class Watch(Aspect):
        def forward(self, step):
            if step.model.training:
                seen.append(step.batch["label"].clone())
            yield

    for aspect in (
        SelectiveBackprop(how="score", **ALWAYS),
        SelectiveBackprop(how="score", chunk=chunk, **ALWAYS),
    ):
        trained(TinyImages(), [aspect, Watch()], steps=1)
    assert all(torch.equal(a, b) for a, b in zip(seen[:RANKS], seen[RANKS:], strict=True))


def test_weights_that_another_method_has_given_are_kept():
    class Weigh(Aspect):
        def loss(self, step):
            yield
            step.weights = torch.arange(1.0, 5.0)

    seen = []

    class Watch(Aspect):
        def backward(self, step):
            seen.append(step.weights.clone())
            yield

    trained(PlainImages(), [SelectiveBackprop(how="reuse", **ALWAYS), Weigh(), Watch()], steps=1)
    for weights in seen:
        kept = weights.nonzero().flatten()
        assert len(kept) == 2
        assert torch.equal(weights[kept], kept + 1.0)


def test_all_columns_are_cut_including_lists():
    batch = {"image": torch.rand(5, 2), "text": list("abcde"), "label": torch.arange(5)}
    cut = rows_of(batch, torch.tensor([1, 4]))
    assert torch.equal(cut["image"], batch["image"][[1, 4]])
    assert (cut["text"], cut["label"].tolist()) == (["b", "e"], [1, 4])
    assert len(batch["text"]) == 5


def test_a_module_in_evaluation_mode_stays_in_it():
    model = TinyImages().model().train()
    model.norm.eval()
    before = [m.training for m in model.modules()]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before
    assert True in before
    assert False in before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0}, "greater than 0"),
        ({"interval": 0}, "greater than or equal to 1"),
        ({"scale": 1.5}, "less than or equal to 1"),
        ({"start": "0.9dur", "finish": "0.5dur"}, "is not before finish"),
        ({"how": "reuse", "scale": 0.5}, "scale=0.5"),
        ({"how": "reuse", "chunk": 8}, "chunk=8"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        SelectiveBackprop(**settings)

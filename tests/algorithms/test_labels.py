"""Labels as probabilities: hard ones become soft, soft ones stay, and mixing is linear."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.algorithms import AspectError
from raytrain_plus.algorithms.dirichlet import dirichlet
from raytrain_plus.algorithms.label_smoothing import smooth_labels
from raytrain_plus.algorithms.labels import Mixing, mix_labels, soft_labels

LOGITS = torch.zeros((4, 3))
HARD = torch.tensor([2, 0, 1, 1])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_hard_labels_become_rows_of_the_identity(kind):
    soft = soft_labels(HARD.to(kind), LOGITS.bfloat16())
    assert soft.dtype == torch.bfloat16
    assert torch.equal(soft.float(), torch.eye(3)[HARD])


def test_soft_labels_get_the_dtype_of_the_logits():
    soft = torch.tensor([[0.2, 0.3, 0.5]]).expand(4, 3).double()
    assert torch.equal(soft_labels(soft, LOGITS), soft.float())
    assert torch.equal(soft_labels(soft_labels(HARD, LOGITS), LOGITS), soft_labels(HARD, LOGITS))


@pytest.mark.parametrize(
    ("labels", "logits", "says"),
    [
        (torch.zeros(4), LOGITS, "must be class indices, integers of shape"),
        (torch.zeros((4, 3), dtype=torch.int64), LOGITS, "shape \\(4, 3\\) and type torch.int64"),
        (torch.zeros((4, 2)), LOGITS, "\\(4, 2\\)"),
        (torch.zeros(3, dtype=torch.int64), LOGITS, "\\(3,\\)"),
        (HARD + 1, LOGITS, "label 3 is not a class: the outputs are of 3 classes.*0 to 2, or -100"),
        (HARD - 1, LOGITS, "label -1 is not a class"),
        (HARD, torch.zeros((4, 3, 5)), "outputs of shape \\(n, classes\\).*\\(4, 3, 5\\)"),
        (HARD, {"logits": LOGITS}, "are a dict"),
    ],
)
def test_labels_that_cannot_be_made_soft_are_refused(labels, logits, says):
    with pytest.raises(AspectError, match=says):
        soft_labels(labels, logits)


@given(st.integers(1, 9), st.integers(2, 6), st.integers(0, 2**32))
def test_mixed_labels_are_the_weighted_means_of_pairs(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    mixing = Mixing(torch.randperm(n, generator=generator), torch.rand(n, generator=generator))
    expected = torch.zeros((n, classes))
    for i in range(n):
        expected[i, labels[i]] += mixing.own[i]
        expected[i, labels[mixing.partners[i]]] += 1 - mixing.own[i]
    torch.testing.assert_close(mix_labels(labels, mixing, torch.zeros((n, classes))), expected)


def test_smoothing_before_and_after_mixing_are_the_same():
    mixing = Mixing(torch.tensor([1, 2, 3, 0]), torch.tensor([0.9, 0.5, 0.7, 1.0]))
    before = mix_labels(smooth_labels(HARD, LOGITS, 0.2), mixing, LOGITS)
    after = smooth_labels(mix_labels(HARD, mixing, LOGITS), LOGITS, 0.2)
    torch.testing.assert_close(before, after)
    assert not torch.allclose(after, mix_labels(HARD, mixing, LOGITS))


def test_labels_of_samples_that_were_dropped_after_mixing_are_refused():
    mixing = Mixing(torch.arange(6), torch.ones(6))
    with pytest.raises(AspectError, match="6 samples were mixed and the loss is given 4 labels"):
        mix_labels(HARD, mixing, LOGITS)


@pytest.mark.parametrize(("alpha", "shares"), [(0.01, 2), (0.2, 2), (1.0, 3), (8.0, 4)])
def test_shares_have_the_moments_of_the_dirichlet_distribution(alpha, shares):
    drawn = dirichlet(alpha, 20_000, shares, torch.Generator().manual_seed(3)).double()
    torch.testing.assert_close(drawn.sum(1), torch.ones(20_000).double())
    mean = 1 / shares
    variance = mean * (1 - mean) / (shares * alpha + 1)
    assert (drawn.mean(0) - mean).abs().max() < 5 * (variance / 20_000) ** 0.5
    assert (drawn.var(0) / variance - 1).abs().max() < 0.1

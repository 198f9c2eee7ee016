"""Weight standardisation: used filters have mean 0 and variance 1."""

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import AspectWarning
from raytrain_plus.algorithms.weight_standardization import (
    WeightStandardization,
    apply_weight_standardization,
    standardize_weight,
)
from tests.algorithms.tiny import TinyImages, TinyNetwork, TinyTokens, build, trained


def naive(weight, eps):
    """Compute the paper's formula per filter, with plain numbers."""
    rows = []
    for row in weight.flatten(1).tolist():
        mean = sum(row) / len(row)
        variance = sum(w * w for w in row) / len(row) - mean**2
        rows.append([(w - mean) / (variance + eps) ** 0.5 for w in row])
    return torch.tensor(rows, dtype=weight.dtype).reshape(weight.shape)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1e-5, 1e-2]))
def test_the_result_follows_the_formula_of_the_paper(filters, channels, size, eps):
    weight = torch.randn(filters, channels, size, size + 1, dtype=torch.float64) + 3
    torch.testing.assert_close(standardize_weight(weight, eps), naive(weight, eps))


def test_filters_have_mean_0_and_variance_1_whatever_their_scale():
    weight = torch.randn(5, 4, 3, 3) * torch.tensor([0.1, 1, 10, 100, 3])[:, None, None, None] + 1
    standard = standardize_weight(weight).flatten(1)
    torch.testing.assert_close(standard.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.var(1, correction=0), torch.ones(5), atol=2e-3, rtol=0)
    assert weight.flatten(1).var(1).max() > 1000


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_use_standardised_weights_and_train_their_own(kind):
    conv = kind(4, 6, 3, 2, padding=1, groups=2, padding_mode="circular")
    parameters = dict(conv.named_parameters())
    x = torch.randn(2, 4, *[7] * (conv.weight.ndim - 2))
    plain = kind(4, 6, 3, 2, padding=1, groups=2, padding_mode="circular")
    plain.load_state_dict(conv.state_dict() | {"weight": standardize_weight(conv.weight.detach())})
    before = conv(x)
    surgery = apply_weight_standardization(conv)
    torch.testing.assert_close(conv(x), plain(x))
    assert not torch.allclose(conv(x), before)
    assert dict(conv.named_parameters()) == parameters
    conv(x).square().sum().backward()
    # A standardised filter does not change when a number is added to all of its weights.
    assert conv.weight.grad.flatten(1).sum(1).abs().max() < 1e-3 * conv.weight.grad.abs().max()
    trained_function = conv(x)
    surgery.undo()
    assert type(conv) is kind
    torch.testing.assert_close(conv(x), trained_function, rtol=1e-4, atol=1e-4)


def test_a_weight_that_two_layers_share_is_standardised_once_when_undone():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model[1].weight = model[0].weight
    expected = standardize_weight(model[0].weight.detach(), 1.0)
    apply_weight_standardization(model, eps=1.0).undo()
    assert torch.equal(model[0].weight, expected)


def test_the_last_layers_and_filters_of_one_weight_are_left_unchanged():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Conv2d(6, 6, 1, groups=6),
        nn.ConvTranspose2d(6, 6, 3),
        nn.Linear(6, 6),
        nn.Conv2d(6, 6, 1),
    )
    assert list(apply_weight_standardization(model, ignore_last=9).changed) == []
    assert list(apply_weight_standardization(model, ignore_last=1).changed) == ["0"]
    assert list(apply_weight_standardization(model).changed) == ["4"]
    assert not apply_weight_standardization(model).changed


def test_the_aspect_is_the_function():
    settings = {"eps": 0.01, "ignore_last": 2}
    model = build(TinyImages(), [WeightStandardization(**settings)])[0].replica.model.eval()
    plain = TinyNetwork().eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 2, 12, 12)
    assert not torch.allclose(model(x), plain(x))
    apply_weight_standardization(plain, **settings)
    assert torch.equal(model(x), plain(x))
    assert trained(TinyImages(), [WeightStandardization()])[1] != trained(TinyImages())[1]


def test_a_model_without_convolutions_gets_a_warning_and_wrong_settings_are_refused():
    with pytest.warns(AspectWarning, match="WeightStandardization changed nothing in GPT"):
        build(TinyTokens(), [WeightStandardization()])
    for wrong in ({"eps": 0}, {"ignore_last": -1}):
        with pytest.raises(pydantic.ValidationError):
            WeightStandardization(**wrong)


def test_it_is_batch_normalisation_of_the_filters():
    """PyTorch's batch normalisation of one sample whose channels are the filters."""
    weight = torch.randn(6, 4, 3, 3)
    theirs = functional.batch_norm(weight.flatten(1)[None], None, None, training=True, eps=1e-5)
    torch.testing.assert_close(standardize_weight(weight), theirs.reshape(weight.shape))

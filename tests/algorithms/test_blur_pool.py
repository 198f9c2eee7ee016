"""BlurPool: strided layers compute what the paper says, and keep their shapes."""

import itertools

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import AspectWarning
from raytrain_plus.algorithms.blur_pool import BlurPool, apply_blur_pool, blur
from raytrain_plus.algorithms.weight_standardization import (
    apply_weight_standardization,
    standardize_weight,
)
from tests.algorithms.tiny import TinyImages, TinyNetwork, TinyTokens, build, trained


def naive_blur(x, stride=1):
    """Sum nine shifted, weighted copies, and skip pixels."""
    n, c, h, w = x.shape
    padded = x.new_zeros(n, c, h + 2, w + 2)
    padded[:, :, 1:-1, 1:-1] = x
    out = torch.zeros_like(x)
    for i, j in itertools.product(range(3), range(3)):
        weight = (1, 2, 1)[i] * (1, 2, 1)[j] / 16
        out = out + weight * padded[:, :, i : i + h, j : j + w]
    rows, columns = (stride, stride) if isinstance(stride, int) else stride
    return out[:, :, ::rows, ::columns]


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, (2, 1)]),
)
def test_the_blur_is_the_sum_of_nine_weighted_neighbours(n, channels, height, width, stride):
    x = torch.randn(n, channels, height, width, dtype=torch.float64)
    torch.testing.assert_close(blur(x, stride), naive_blur(x, stride))


def test_a_constant_stays_and_alternating_pixels_vanish():
    constant = blur(torch.ones(1, 2, 8, 8), 2)
    assert torch.equal(constant[:, :, 1:, 1:], torch.ones(1, 2, 3, 3))
    alternating = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert not blur(alternating)[:, :, 1:-1, 1:-1].any()


KERNELS = [(3, 1, 1), (3, 0, 1), (1, 0, 1), (5, 2, 1), (3, 2, 2), (1, 1, 1), ((3, 1), (1, 0), 1)]


@pytest.mark.parametrize("blur_first", [True, False])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), KERNELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [2, 3])
def test_a_strided_convolution_is_blurred_before_or_after(
    blur_first, kernel, padding, dilation, bias, stride
):
    settings = {"padding": padding, "dilation": dilation, "groups": 2, "bias": bias}
    conv = nn.Conv2d(4, 6, kernel, stride, padding_mode="circular", **settings).double()
    x = torch.randn(2, 4, 11, 12, dtype=torch.float64, requires_grad=True)
    plain = conv(x)
    if blur_first:
        expected = conv(naive_blur(x))
    else:
        conv.stride = (1, 1)
        expected = naive_blur(conv(x), stride)
        conv.stride = (stride, stride)
    surgery = apply_blur_pool(conv, blur_first=blur_first, min_channels=4)
    blurred = conv(x)
    torch.testing.assert_close(blurred, expected)
    assert blurred.shape == plain.shape
    assert not torch.allclose(blurred, plain)
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), [x, conv.weight]) for y in (blurred, expected)
    )
    torch.testing.assert_close(ours, theirs)
    surgery.undo()
    assert torch.equal(conv(x), plain)
    assert type(conv) is nn.Conv2d
    assert conv.stride == (stride, stride)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(2, 2, 0, 1), (3, 2, 1, 1), (2, None, 0, 1), (3, (2, 3), (1, 0), 1), (3, 2, 1, 2)],
)
def test_a_pooling_takes_the_maximum_at_every_pixel_and_then_blurs(
    kernel, stride, padding, dilation
):
    pool = nn.MaxPool2d(kernel, stride, padding, dilation)
    before = pool.stride
    x = torch.randn(2, 3, 11, 12)
    plain = pool(x)
    everywhere = functional.max_pool2d(x, kernel, 1, padding, dilation)
    surgery = apply_blur_pool(pool)
    torch.testing.assert_close(pool(x), naive_blur(everywhere, before))
    assert pool(x).shape == plain.shape
    surgery.undo()
    assert torch.equal(pool(x), plain)
    assert pool.stride == before


def test_only_layers_that_skip_pixels_are_changed():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(7, 8, 3, 2),
        nn.Conv2d(8, 7, 3, (1, 2)),
        nn.MaxPool2d(3, 1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(8, 8, 3, 2),
        nn.AvgPool2d(2),
    )
    assert list(apply_blur_pool(model, replace_maxpools=False).changed) == ["2"]
    assert list(apply_blur_pool(model, replace_convs=False).changed) == ["6"]
    assert not apply_blur_pool(model).changed
    assert list(apply_blur_pool(model, min_channels=7).changed) == ["1"]


def test_pointwise_shortcuts_are_not_computed_at_skipped_pixels():
    conv = nn.Conv2d(8, 8, 1, 2, bias=False)
    apply_blur_pool(conv, blur_first=False)
    seen = []
    convolve = functional.conv2d

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is convolve:
                seen.append(tuple(args[0].shape[2:]))
            return function(*args, **kwargs or {})

    with Watched():
        conv(torch.randn(1, 8, 10, 10))
    assert seen == [(10, 10), (5, 5)]


@pytest.mark.parametrize("blur_first", [True, False])
def test_standardised_weights_and_the_blur_can_be_combined_in_either_order(blur_first):
    x = torch.randn(2, 8, 9, 9)
    outputs = []
    for order in (0, 1):
        torch.manual_seed(0)
        conv = nn.Conv2d(8, 4, 3, 2, padding=1)
        methods = [
            lambda m: apply_blur_pool(m, blur_first=blur_first),
            apply_weight_standardization,
        ]
        for method in methods[::-1] if order else methods:
            method(conv)
        outputs.append(conv(x))
        plain = nn.Conv2d(8, 4, 3, 2, padding=1)
        plain.load_state_dict(conv.state_dict())
        plain.weight.data = standardize_weight(plain.weight.data)
        apply_blur_pool(plain, blur_first=blur_first)
        torch.testing.assert_close(outputs[-1], plain(x))
    assert torch.equal(*outputs)


def test_a_first_use_in_inference_mode_does_not_prevent_training():
    with torch.inference_mode():
        blur(torch.ones(1, 77, 4, 4))
    x = torch.ones(1, 77, 4, 4, requires_grad=True)
    blur(x).sum().backward()
    assert x.grad is not None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_compiles_to_one_graph():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1, 2))
    apply_blur_pool(model, blur_first=False)
    x = torch.randn(1, 8, 17, 17)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_memory_format_and_dtype_stay(dtype):
    x = torch.randn(2, 8, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    y = blur(x, 2)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_aspect_is_the_function():
    settings = {"replace_maxpools": False, "blur_first": False, "min_channels": 4}
    model = build(TinyImages(), [BlurPool(**settings)])[0].replica.model.eval()
    plain = TinyNetwork().eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 2, 12, 12)
    assert not torch.allclose(model(x), plain(x))
    apply_blur_pool(plain, **settings)
    assert torch.equal(model(x), plain(x))
    assert trained(TinyImages(), [BlurPool(**settings)])[1] != trained(TinyImages())[1]


def test_a_model_without_strided_layers_gets_a_warning_and_wrong_settings_are_refused():
    with pytest.warns(AspectWarning, match="BlurPool changed nothing in GPT"):
        build(TinyTokens(), [BlurPool()])
    with pytest.raises(pydantic.ValidationError):
        BlurPool(min_channels=0)

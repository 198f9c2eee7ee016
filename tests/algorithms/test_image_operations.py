"""Operations on images, each against its definition, written pixel by pixel."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.algorithms import AspectError
from raytrain_plus.algorithms.image_operations import (
    OPERATIONS,
    apply_operations,
    from_unit,
    to_unit,
)
from tests.algorithms.pictures import draw, generator

WITHOUT_STRENGTH = ("identity", "autocontrast", "equalize")
WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def apply(name, images, strength):
    """Apply one operation to all images."""
    n = len(images)
    strengths = torch.full((n,), float(strength))
    return apply_operations(images, torch.zeros(n, dtype=torch.int64), strengths, [name])


def grey(image):
    """Return the luminance of (3, h, w), or the mean of other channels."""
    if len(image) == 3:
        return 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    return image.mean(0)


def smooth(image):
    out = image.clone()
    for y in range(1, image.shape[1] - 1):
        for x in range(1, image.shape[2] - 1):
            window = image[:, y - 1 : y + 2, x - 1 : x + 2]
            out[:, y, x] = (window.sum((1, 2)) + 4 * image[:, y, x]) / 13
    return out


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.7, 1.0])
@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_blending_extrapolates_from_the_image_without_the_quality(name, strength, channels):
    images = draw((3, channels, 6, 5))
    lacks = {
        "brightness": torch.zeros_like,
        "color": lambda image: grey(image).expand_as(image),
        "contrast": lambda image: grey(image).mean().expand_as(image),
        "sharpness": smooth,
    }[name]
    factor = 1 + 0.9 * strength
    expected = torch.stack([lacks(i) + factor * (i - lacks(i)) for i in images]).clamp(0, 1)
    torch.testing.assert_close(apply(name, images, strength), expected)


def test_solarize_inverts_bright_pixels():
    images = torch.tensor([0.0, 0.4, 0.6, 1.0]).view(1, 1, 2, 2)
    expected = torch.tensor([0.0, 0.4, 0.4, 0.0]).view(1, 1, 2, 2)
    for strength in (0.5, -0.5):
        torch.testing.assert_close(apply("solarize", images, strength), expected)


@pytest.mark.parametrize(("strength", "bits"), [(0.25, 7), (-0.5, 6), (1.0, 4)])
def test_posterize_keeps_the_highest_bits(strength, bits):
    levels = torch.arange(256).view(1, 1, 16, 16)
    mask = 256 - (1 << (8 - bits))
    assert torch.equal(
        (apply("posterize", levels / 255, strength) * 255).round().long(), levels & mask
    )


def test_autocontrast_stretches_each_channel_except_flat_ones():
    images = torch.tensor([0.2, 0.3, 0.4, 0.7, 0.5, 0.5, 0.5, 0.5]).view(1, 2, 2, 2)
    expected = torch.tensor([0.0, 0.2, 0.4, 1.0, 0.5, 0.5, 0.5, 0.5]).view(1, 2, 2, 2)
    torch.testing.assert_close(apply("autocontrast", images, 1), expected)


def equalized(levels):
    """Equalize one channel of integer levels, with the table of the Python Imaging Library."""
    counts = torch.bincount(levels.flatten(), minlength=256).tolist()
    present = [count for count in counts if count]
    step = (sum(present) - present[-1]) // 255
    if len(present) <= 1 or not step:
        return levels
    table, total = [], step // 2
    for count in counts:
        table.append(min(total // step, 255))
        total += count
    return torch.tensor(table)[levels]


@given(st.integers(1, 256), st.integers(0, 2**32))
def test_equalize_makes_each_histogram_flat(most, seed):
    # Dark images of more than 255 pixels: smaller images stay unchanged.
    levels = torch.randint(0, most, (2, 2, 32, 24), generator=generator(seed))
    levels[1, 0] = most - 1
    expected = torch.stack([equalized(c) for c in levels.flatten(0, 1)]).view(levels.shape)
    assert torch.equal((apply("equalize", levels / 255, 1) * 255).round().long(), expected)
    if 8 < most < 200:
        assert not torch.equal(expected, levels)


def sampled(image, y, x):
    """Return the bilinear value at a position in pixels; black outside of the image."""
    height, width = image.shape[1:]
    total = torch.zeros(len(image))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                total += weight * image[:, row, column]
    return total


def source_of(name, s, y, x, size):
    """Return where a pixel comes from, relative to the centre."""
    angle = s * math.radians(30)
    return {
        "rotate": (
            math.cos(angle) * y - math.sin(angle) * x,
            math.sin(angle) * y + math.cos(angle) * x,
        ),
        "shear_x": (y, x + 0.3 * s * y),
        "shear_y": (y + 0.3 * s * x, x),
        "translate_x": (y, x + s * size[1] / 3),
        "translate_y": (y + s * size[0] / 3, x),
    }[name]


@pytest.mark.parametrize("strength", [-1.0, 0.3, 0.9])
@pytest.mark.parametrize("name", WARPS)
def test_warps_sample_where_the_pixel_comes_from(name, strength):
    """Rotations and shears are in pixels, also if the image is not square."""
    size = (6, 9)
    images = draw((2, 2, *size))
    expected = torch.zeros_like(images)
    for image, out in zip(images, expected, strict=True):
        for row in range(size[0]):
            for column in range(size[1]):
                y, x = row - (size[0] - 1) / 2, column - (size[1] - 1) / 2
                y, x = source_of(name, strength, y, x, size)
                out[:, row, column] = sampled(image, y + (size[0] - 1) / 2, x + (size[1] - 1) / 2)
    torch.testing.assert_close(apply(name, images, strength), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_strength_zero_changes_nothing_and_strength_one_does(name):
    images = draw((4, 3, 20, 18)) * 0.7
    same = apply(name, images, 0)
    if name not in ("autocontrast", "equalize"):
        torch.testing.assert_close(same, images, atol=1e-5, rtol=1e-5)
    assert torch.allclose(apply(name, images, 1), images) == (name == "identity")


@given(st.integers(1, 8), st.integers(0, 2**32))
def test_each_image_gets_its_own_operation_and_strength(n, seed):
    images = draw((n, 3, 7, 6), seed=seed)
    before = images.clone()
    chosen = torch.randint(-1, len(OPERATIONS), (n,), generator=generator(seed))
    strength = torch.rand(n, generator=generator(seed)) * 2 - 1
    changed = apply_operations(images, chosen, strength, OPERATIONS)
    assert torch.equal(images, before)
    assert changed.dtype == images.dtype
    assert 0 <= changed.min() <= changed.max() <= 1
    for i in range(n):
        alone = images[i : i + 1]
        if chosen[i] >= 0:
            alone = apply(OPERATIONS[chosen[i]], alone, strength[i])
        torch.testing.assert_close(changed[i : i + 1], alone)


def test_bytes_survive_the_conversion_to_the_unit_interval_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(from_unit(to_unit(images), torch.uint8), images)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        images = draw((2, 3, 4, 4), dtype)
        assert torch.equal(from_unit(to_unit(images), dtype), images)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.tensor([0.0, 255.0]), "torch.float32 in \\[0, 255\\].*floating in \\[0, 1\\]"),
        (torch.tensor([-1.0, 1.0]), "in \\[-1, 1\\]"),
        (torch.tensor([0, 1]), "torch.int64 in \\[0, 1\\]"),
    ],
)
def test_images_of_another_range_are_refused(images, says):
    with pytest.raises(AspectError, match=says):
        to_unit(images)

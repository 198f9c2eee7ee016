"""Progressive resizing: small images first, then growing linearly, then unchanged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from raytrain_plus.algorithms import AspectError, Weave
from raytrain_plus.algorithms.progressive_resizing import (
    ProgressiveResizing,
    resize_images,
    scale_at,
)
from raytrain_plus.algorithms.rand_augment import RandAugment
from tests.algorithms.pictures import draw, generator, part_of
from tests.algorithms.tiny import CLOCK, TinyImages, trained


def sides(aspect, shape=(2, 3, 40, 24), dtype=torch.float32):
    """Return height and width at each step, and how often the aspect acted."""
    weave, found = Weave([aspect]), []
    for number in range(CLOCK.total_steps):
        step = part_of(draw(shape, dtype), number)
        with weave.around("batch", step):
            assert step.batch["image"].dtype == dtype
            found.append(tuple(step.batch["image"].shape[2:]))
    return found, weave.costs[aspect.name].acted


@pytest.mark.parametrize("mode", ["scale", "crop"])
def test_images_grow_from_start_to_finish(mode):
    aspect = ProgressiveResizing(start="2ba", finish="0.5dur", mode=mode)
    grown = [(20, 12), (20, 12), (20, 12), (24, 12), (28, 16), (32, 20)]  # 1/2, 5/8, 3/4, 7/8
    assert sides(aspect, dtype=torch.uint8) == (grown + [(40, 24)] * 6, 6)


def test_equal_start_and_finish_are_a_jump():
    aspect = ProgressiveResizing(start="3ba", finish="3ba", initial=0.25)
    assert sides(aspect) == ([(8, 4)] * 3 + [(40, 24)] * 9, 3)


def test_at_the_full_size_it_is_idle():
    assert sides(ProgressiveResizing(initial=1)) == ([(40, 24)] * 12, 0)
    assert sides(ProgressiveResizing(multiple=100)) == ([(40, 24)] * 12, 0)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.floats(0.01, 1))
def test_the_scale_grows_linearly(step, start, length, initial):
    finish = start + length
    if step >= finish:
        expected = 1.0
    elif step <= start:
        expected = initial
    else:
        expected = ((finish - step) * initial + (step - start)) / length
    assert scale_at(step, start, finish, initial) == pytest.approx(expected)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 0.99), st.integers(1, 8))
def test_sides_are_rounded_down_to_multiples(height, width, scale, multiple):
    small = resize_images(
        torch.zeros((1, 1, height, width)), scale, generator(), mode="crop", multiple=multiple
    )
    for full, side in zip((height, width), small.shape[2:], strict=True):
        if scale * full >= multiple:
            assert side % multiple == 0
            assert scale * full - multiple < side + 1e-6 <= scale * full + 1e-3
        else:
            assert side == min(full, multiple)


def test_scaling_averages_the_pixels_that_become_one():
    """Half the size: weights 1 3 3 1 along both sides, away from the border."""
    images = draw((2, 3, 16, 16))
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (line[:, None] * line).expand(3, 1, 4, 4)
    expected = functional.conv2d(images, kernel, stride=2, padding=1, groups=3)
    small = resize_images(images, 0.5, generator())
    torch.testing.assert_close(small[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    whole = (images * 255).round()
    as_bytes = resize_images(whole.to(torch.uint8), 0.5, generator())
    assert torch.equal(as_bytes, resize_images(whole, 0.5, generator()).round().to(torch.uint8))


@given(st.sampled_from([torch.uint8, torch.float16]), st.integers(0, 2**32))
def test_a_crop_is_a_window_of_each_image(dtype, seed):
    images = torch.arange(63).view(1, 1, 9, 7).expand(3, 2, 9, 7).to(dtype)
    small = resize_images(images, 0.6, generator(seed), mode="crop", multiple=1)
    assert (small.dtype, small.shape) == (dtype, (3, 2, 5, 4))
    for before, after in zip(images, small, strict=True):
        top, left = divmod(int(after[0, 0, 0]), 7)
        assert torch.equal(after, before[:, top : top + 5, left : left + 4])


def test_windows_are_spread_over_the_image():
    images = torch.arange(4.0).view(1, 1, 4, 1).expand(600, 1, 4, 1)
    small = resize_images(images, 0.5, generator(), mode="crop", multiple=1)
    counts = torch.bincount(small[:, 0, 0, 0].long()) / 600
    torch.testing.assert_close(counts, torch.full((3,), 1 / 3), atol=0.08, rtol=0)


@pytest.mark.parametrize("mode", ["scale", "crop"])
def test_the_aspect_is_the_function(mode):
    aspect = ProgressiveResizing(initial=0.7, multiple=3, mode=mode)
    step = part_of(draw((2, 3, 12, 15)), number=1, rank=4)
    with Weave([aspect]).around("batch", step):
        expected = resize_images(
            draw((2, 3, 12, 15)), 0.7, step.generator(aspect), mode=mode, multiple=3
        )
        assert torch.equal(step.batch["image"], expected)
        assert expected.shape == (2, 3, 6, 9)


def test_other_augmentations_get_the_small_images():
    weave = Weave([RandAugment(), ProgressiveResizing()])
    assert [aspect.name for aspect in weave.aspects] == ["ProgressiveResizing", "RandAugment"]


def test_training_is_plain_once_it_has_finished():
    _, plain = trained(TinyImages())
    _, small = trained(TinyImages(), [ProgressiveResizing(multiple=2)])
    assert small != plain
    assert small == trained(TinyImages(), [ProgressiveResizing(multiple=2)])[1]
    assert trained(TinyImages(), [ProgressiveResizing(start="0ba", finish="0ba")])[1] == plain


def test_wrong_times_are_refused():
    for wrong in ({"start": "2hours"}, {"finish": "1.5dur"}, {"initial": 0}, {"mode": "zoom"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            ProgressiveResizing(**wrong)
    with pytest.raises(AspectError, match=r"start at step 10 \(2ep\) and finish at step 6"):
        trained(TinyImages(), [ProgressiveResizing(start="2ep", finish="0.5dur")], steps=1)

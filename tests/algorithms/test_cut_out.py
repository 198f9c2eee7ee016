"""CutOut: squares are painted over, and nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain_plus.algorithms import Weave
from raytrain_plus.algorithms.cut_out import CutOut, cut_out
from raytrain_plus.algorithms.image_regions import random_boxes
from tests.algorithms.pictures import draw, generator, part_of
from tests.algorithms.tiny import TinyImages, trained


@given(
    st.integers(1, 5),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.floats(0.01, 1),
    st.integers(0, 2**32),
)
def test_one_hole_is_a_square_cut_at_the_borders(n, size, length, seed):
    images = torch.ones((n, 2, *size))
    hidden = cut_out(images, generator(seed), length=length) == 0
    side = max(1, round(length * min(size)))
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    for mask in hidden[:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        for seen in (rows, columns):
            places = seen.nonzero()
            covered = int(places.max() - places.min()) + 1
            assert covered == int(seen.sum()) <= side
            # Its centre is inside, so at least about half of a side is inside; less than all only
            # at a border.
            assert covered >= (side + 1) // 2 or covered == len(seen)
            assert covered == side or seen[0] or seen[-1]


def test_centres_are_uniform_over_the_pixels():
    """Pixel p of 5 is covered by a span of 3 unless its centre is further away than 1."""
    ones = torch.ones(20_000, dtype=torch.int64)
    covered = random_boxes(3 * ones, ones, (5, 1), generator())[:, :, 0].float().mean(0)
    torch.testing.assert_close(
        covered, torch.tensor([2, 3, 3, 3, 2]) / 5, atol=0.02, rtol=0, check_dtype=False
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
def test_pixels_outside_the_squares_stay_unchanged(dtype, fill):
    images = draw((8, 3, 9, 7), dtype)
    before = images.clone()
    painted = cut_out(images, generator(), holes=2, length=0.4, fill=fill)
    value = {0.0: 0, 0.5: 128, 1.0: 255}[fill] if dtype == torch.uint8 else fill
    assert (painted.dtype, painted.shape) == (dtype, images.shape)
    assert torch.equal(images, before)
    changed = painted != images
    assert (painted[changed] == value).all()
    assert 0.1 < changed.float().mean() < 0.5


def test_more_holes_hide_more_and_each_image_has_its_own():
    images = torch.ones((64, 1, 16, 16))
    hidden = [(cut_out(images, generator(), holes=h, length=0.25) == 0).float() for h in (1, 4)]
    assert hidden[1].mean() > 2 * hidden[0].mean()
    assert len({tuple(mask.flatten().tolist()) for mask in hidden[0]}) > 50


def test_the_aspect_is_the_function():
    images, aspect = draw((4, 3, 8, 8)), CutOut(holes=2, length=0.3, fill=0.7)
    step = part_of(images, number=5, rank=1)
    with Weave([aspect]).around("batch", step):
        expected = cut_out(images, step.generator(aspect), holes=2, length=0.3, fill=0.7)
        assert torch.equal(step.batch["image"], expected)
        assert not torch.equal(step.batch["image"], images)


def test_a_length_of_zero_is_idle():
    weave = Weave([CutOut(length=0)])
    step = part_of(draw((4, 3, 8, 8)))
    images = step.batch["image"]
    with weave.around("batch", step):
        assert step.batch["image"] is images
    assert (weave.costs["CutOut"].acted, weave.costs["CutOut"].idle) == (0, 1)


def test_training_with_it_differs_and_is_reproducible():
    _, plain = trained(TinyImages())
    _, cut = trained(TinyImages(), [CutOut()])
    assert cut == trained(TinyImages(), [CutOut()])[1]
    assert cut != plain


@pytest.mark.parametrize("wrong", [{"holes": 0}, {"length": 1.5}, {"fill": -1}, {"size": 3}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CutOut(**wrong)

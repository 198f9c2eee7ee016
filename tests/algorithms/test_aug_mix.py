"""AugMix: between the image and a mixture of chains of operations on it."""

import pytest
import torch
from pydantic import ValidationError

from raytrain_plus.algorithms import Weave
from raytrain_plus.algorithms.aug_mix import ORIGINAL, AugMix, aug_mix
from raytrain_plus.algorithms.image_operations import OPERATIONS
from tests.algorithms.pictures import draw, generator, part_of
from tests.algorithms.tiny import TinyImages, trained


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_keep_type_shape_and_range(dtype, channels):
    images = draw((20, channels, 17, 12), dtype)
    before = images.clone()
    changed = aug_mix(images, generator(), severity=10)
    assert (changed.dtype, changed.shape) == (dtype, images.shape)
    assert torch.equal(images, before)
    assert 0 <= changed.min() <= changed.max() <= (255 if dtype == torch.uint8 else 1)
    assert (changed != images).flatten(1).any(1).float().mean() > 0.9


def shares_of_inverted(**settings):
    """Return m for a chain of one operation, which always inverts a white image."""
    images = torch.ones((3000, 1, 2, 2))
    return 1 - aug_mix(
        images, generator(), operations=["solarize"], severity=10, depth=1, **settings
    ).mean((1, 2, 3))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_the_share_of_the_mixture_follows_the_beta_distribution(width, alpha):
    """All chains give the same image, so their own shares, which sum to one, do not matter."""
    m = shares_of_inverted(width=width, alpha=alpha)
    assert abs(m.mean() - 0.5) < 0.03
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(m.var() / variance - 1) < 0.1


def test_the_number_of_operations_is_uniform_from_one_to_depth():
    """There are two operations. A white image stays white if all operations are the identity."""
    images = torch.ones((3000, 1, 2, 2))
    settings = {"operations": ["solarize", "identity"], "severity": 10, "width": 1}
    for depth, unchanged in ((1, 1 / 2), (2, 3 / 8), (3, 7 / 24)):
        changed = aug_mix(images, generator(), depth=depth, **settings)
        white = (changed.mean((1, 2, 3)) > 1 - 1e-6).float().mean()
        assert abs(white - unchanged) < 0.04


def test_each_chain_has_its_own_share():
    """One of two chains inverts the image, the other does not: values between show the mixture."""
    images = torch.ones((3000, 1, 2, 2))
    settings = {"operations": ["solarize", "identity"], "severity": 10, "depth": 1, "alpha": 50}
    one, two = (
        1 - aug_mix(images, generator(), width=width, **settings).mean((1, 2, 3))
        for width in (1, 2)
    )
    # m is near 1/2, and so is each of the two shares.
    assert not ((one > 0.1) & (one < 0.3)).any()
    assert abs(((two > 0.1) & (two < 0.37)).float().mean() - 0.5) < 0.05


def test_severity_is_drawn_uniformly_up_to_its_bound():
    """Brightness adds at most 0.9 times a tenth of the severity, and half of that on average."""
    images = torch.full((3000, 1, 2, 2), 0.4)
    settings = {"operations": ["brightness"], "severity": 5, "depth": 1, "width": 1, "alpha": 2000}
    change = (aug_mix(images, generator(), **settings) / 0.4 - 1).mean((1, 2, 3)) / 0.5
    assert 0.43 < change.abs().max() < 0.48
    assert abs(change.abs().mean() - 0.225) < 0.01
    assert abs(change.mean()) < 0.02


def test_operations_like_the_papers_corruptions_are_left_out():
    assert set(OPERATIONS) - set(ORIGINAL) == {
        "identity",
        "brightness",
        "color",
        "contrast",
        "sharpness",
    }


def test_the_aspect_is_the_function():
    settings = {
        "width": 2,
        "depth": 4,
        "severity": 6.0,
        "alpha": 0.5,
        "operations": ("rotate", "color"),
    }
    images, aspect = draw((4, 3, 10, 8), torch.uint8), AugMix(**settings)
    step = part_of(images, number=5, rank=1)
    with Weave([aspect]).around("batch", step):
        expected = aug_mix(images, step.generator(aspect), **settings)
        assert torch.equal(step.batch["image"], expected)
        assert not torch.equal(expected, images)


def test_a_depth_of_zero_is_idle():
    weave = Weave([AugMix(depth=0)])
    step = part_of(draw((4, 3, 8, 8)))
    images = step.batch["image"]
    with weave.around("batch", step):
        assert step.batch["image"] is images
    assert (weave.costs["AugMix"].acted, weave.costs["AugMix"].idle) == (0, 1)


def test_training_with_it_differs_and_is_reproducible():
    _, plain = trained(TinyImages())
    _, mixed = trained(TinyImages(), [AugMix()])
    assert mixed == trained(TinyImages(), [AugMix()])[1]
    assert mixed != plain


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"alpha": 0}, {"severity": -1}, {"operations": ("zoom",)}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AugMix(**wrong)

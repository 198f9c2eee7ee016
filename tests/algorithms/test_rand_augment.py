"""RandAugment: the given number of operations, one after another, drawn for each image."""

import pytest
import torch
from pydantic import ValidationError

from raytrain_plus.algorithms import AspectError, Weave
from raytrain_plus.algorithms.image_operations import OPERATIONS
from raytrain_plus.algorithms.rand_augment import RandAugment, rand_augment
from tests.algorithms.pictures import draw, generator, part_of
from tests.algorithms.tiny import TinyImages, trained


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_keep_type_shape_and_range(dtype, channels):
    images = draw((30, channels, 17, 12), dtype)
    before = images.clone()
    changed = rand_augment(images, generator(), depth=3, severity=10)
    assert (changed.dtype, changed.shape) == (dtype, images.shape)
    assert torch.equal(images, before)
    assert 0 <= changed.min() <= changed.max() <= (255 if dtype == torch.uint8 else 1)
    different = (changed != images).flatten(1).any(1)
    assert different.float().mean() > 0.7


def test_depth_times_brightness_is_its_power():
    """Brightness at severity 5 is a factor of 1 +- 0.45; the sign is drawn each time."""
    images = torch.full((400, 1, 2, 2), 0.2)
    for depth in (1, 2):
        changed = rand_augment(
            images, generator(), depth=depth, severity=5, operations=["brightness"]
        )
        factors = (changed[:, 0, 0, 0] / 0.2).tolist()
        expected = [0.55**k * 1.45 ** (depth - k) for k in range(depth + 1)]
        nearest = [min(range(depth + 1), key=lambda k: abs(expected[k] - f)) for f in factors]
        assert all(abs(expected[k] - f) < 1e-5 for k, f in zip(nearest, factors, strict=True))
        assert abs(nearest.count(0) / 400 - 0.5**depth) < 0.1


def test_operations_are_drawn_uniformly():
    """The two operations can be told apart: half as bright, or inverted."""
    images = torch.full((2000, 1, 2, 2), 0.9)
    changed = rand_augment(
        images, generator(), depth=1, severity=10, operations=["solarize", "identity"]
    )[:, 0, 0, 0]
    assert set(changed.tolist()) == {images[0, 0, 0, 0].item(), (1 - images[0, 0, 0, 0]).item()}
    assert abs((changed < 0.5).float().mean() - 0.5) < 0.05


def test_higher_severity_changes_more():
    images = draw((100, 3, 16, 16))
    operations = [name for name in OPERATIONS if name not in ("autocontrast", "equalize")]
    changes = [
        (rand_augment(images, generator(), severity=s, operations=operations) - images).abs().mean()
        for s in (0, 3, 9)
    ]
    assert changes[0] < 1e-5 < changes[1] < changes[2]


def test_the_aspect_is_the_function():
    settings = {"depth": 3, "severity": 4.0, "operations": ("rotate", "color")}
    images, aspect = draw((4, 3, 10, 8), torch.uint8), RandAugment(**settings)
    step = part_of(images, number=5, rank=1)
    with Weave([aspect]).around("batch", step):
        expected = rand_augment(images, step.generator(aspect), **settings)
        assert torch.equal(step.batch["image"], expected)
        assert not torch.equal(expected, images)


def test_a_depth_of_zero_is_idle():
    weave = Weave([RandAugment(depth=0)])
    step = part_of(draw((4, 3, 8, 8)))
    images = step.batch["image"]
    with weave.around("batch", step):
        assert step.batch["image"] is images
    assert (weave.costs["RandAugment"].acted, weave.costs["RandAugment"].idle) == (0, 1)


def test_training_with_it_differs_and_is_reproducible():
    _, plain = trained(TinyImages())
    _, augmented = trained(TinyImages(), [RandAugment()])
    assert augmented == trained(TinyImages(), [RandAugment()])[1]
    assert augmented != plain


def test_wrong_use_is_refused():
    for wrong in ({"depth": -1}, {"severity": 11}, {"operations": ()}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            RandAugment(**wrong)
    with pytest.raises(ValidationError, match="are zoom; there are identity, autocontrast"):
        RandAugment(operations=("zoom", "rotate"))
    step = part_of(draw((4, 3, 8, 8)) * 255)
    with (
        pytest.raises(AspectError, match="normalise them in the task's forward"),
        Weave([RandAugment()]).around("batch", step),
    ):
        pass

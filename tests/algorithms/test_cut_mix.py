"""CutMix: one box per image comes from a partner, and labels are mixed by its area."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain_plus.algorithms import AspectError, Weave
from raytrain_plus.algorithms.cut_mix import CutMix, cut_mix
from raytrain_plus.algorithms.labels import mix_labels
from tests.algorithms.pictures import draw, generator, part_of
from tests.algorithms.tiny import TinyImages, TinyTokens, trained

SHAPE = (6, 2, 9, 7)


def is_box(mask):
    """Return whether the true places of a mask fill the smallest box around them."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return True
    return bool(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all())


@given(
    st.integers(1, 6),
    st.floats(0.05, 5),
    st.sampled_from([torch.uint8, torch.float16, torch.float32]),
    st.integers(0, 2**32),
)
def test_a_box_shows_the_partner_and_its_area_is_the_partners_share(n, alpha, dtype, seed):
    # Each pixel of each image names its image.
    images = torch.arange(n)[:, None, None, None].expand(n, 2, 9, 7).to(dtype)
    mixed, (partners, own) = cut_mix(images, alpha, generator(seed))
    assert (mixed.dtype, mixed.shape) == (dtype, images.shape)
    assert sorted(partners.tolist()) == list(range(n))
    for i, j in enumerate(partners.tolist()):
        foreign = mixed[i, 0] == j
        assert torch.equal(mixed[i, 0], mixed[i, 1])
        assert torch.equal(mixed[i, 0], torch.where(foreign, j, i).to(dtype))
        if i != j:
            assert is_box(foreign)
            torch.testing.assert_close(1 - own[i], foreign.float().mean())


def test_pasted_pixels_keep_their_position():
    images = draw(SHAPE)
    mixed, (partners, _) = cut_mix(images, 1.0, generator(1))
    assert ((mixed == images) | (mixed == images[partners])).all()
    assert not torch.equal(mixed, images)


def test_boxes_have_the_images_proportions_and_the_drawn_area():
    """With a large alpha, almost half of the area is pasted: sides of sqrt(1/2), cut at borders."""
    own = cut_mix(draw((3000, 1, 40, 20)), 500.0, generator())[1].own
    assert 0.48 < own.min() < 0.56
    # A side of length s around a uniform centre in [0, 1] covers s - s^2 / 4 of it on average.
    side = 0.5**0.5
    assert abs((1 - own).mean() - (side - side**2 / 4) ** 2) < 0.02


def test_the_aspect_pastes_and_mixes_labels_for_the_loss_only():
    images, aspect = draw(SHAPE), CutMix(alpha=0.7)
    step = part_of(images, number=3, rank=2)
    labels = step.batch["label"]
    weave = Weave([aspect])
    mixed, mixing = cut_mix(images, 0.7, step.generator(aspect))
    with weave.around("batch", step):
        assert torch.equal(step.batch["image"], mixed)
        with weave.around("loss", step):
            assert torch.equal(step.batch["label"], mix_labels(labels, mixing, step.outputs))
        assert step.batch["label"] is labels
    assert weave.costs["CutMix"].acted == 2


def test_it_is_idle_without_alpha_and_in_a_loss_without_mixed_images():
    step = part_of(draw(SHAPE))
    before = dict(step.batch)
    for weave, point in (
        (Weave([CutMix(alpha=0)]), "batch"),
        (Weave([CutMix(alpha=0)]), "loss"),
        (Weave([CutMix()]), "loss"),
    ):
        with weave.around(point, step):
            assert all(step.batch[name] is value for name, value in before.items())
        assert (weave.costs["CutMix"].acted, weave.costs["CutMix"].idle) == (0, 1)


def test_training_with_it_differs_and_is_reproducible():
    _, plain = trained(TinyImages())
    _, mixed = trained(TinyImages(), [CutMix()])
    assert mixed == trained(TinyImages(), [CutMix()])[1]
    assert mixed != plain
    assert trained(TinyImages(), [CutMix(alpha=0)])[1] == plain


def test_wrong_use_is_refused():
    with pytest.raises(ValidationError, match="alpha"):
        CutMix(alpha=-0.1)
    with pytest.raises(AspectError, match="no column of images"):
        trained(TinyTokens(), [CutMix()], steps=1)

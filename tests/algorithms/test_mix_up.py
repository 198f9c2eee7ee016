"""MixUp: images and labels are means of the same pairs with the same shares."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from raytrain_plus.algorithms import LabelSmoothing, Weave
from raytrain_plus.algorithms.cut_mix import CutMix
from raytrain_plus.algorithms.cut_out import CutOut
from raytrain_plus.algorithms.mix_up import MixUp, mix_up
from tests.algorithms.pictures import draw, generator, part_of
from tests.algorithms.tiny import TinyImages, trained

SHAPE = (6, 2, 5, 4)


@given(
    st.integers(1, 7),
    st.floats(0.05, 5),
    st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    st.integers(0, 2**32),
)
def test_images_are_means_of_pairs(n, alpha, dtype, seed):
    images = draw((n, 2, 3, 4), dtype, seed)
    before = images.clone()
    mixed, (partners, own) = mix_up(images, alpha, generator(seed))
    assert mixed.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert torch.equal(images, before)
    assert sorted(partners.tolist()) == list(range(n))
    assert ((own >= 0.5) & (own <= 1)).all()
    for i in range(n):
        expected = own[i] * images[i] + (1 - own[i]) * images[partners[i]]
        torch.testing.assert_close(mixed[i], expected.to(mixed.dtype))


def test_shares_follow_alpha():
    """The mean of max(b, 1 - b) for b from Beta(a, a) is 3/4 at a = 1 and near 1 for small a."""
    shares = {a: mix_up(draw((4000, 1, 1, 1)), a, generator())[1].own for a in (0.05, 1.0, 50.0)}
    assert abs(shares[1.0].mean() - 0.75) < 0.01
    assert shares[0.05].mean() > 0.95
    assert shares[50.0].mean() < 0.55


def test_the_aspect_mixes_images_and_labels_for_the_loss_only():
    images, aspect = draw(SHAPE), MixUp(alpha=0.7)
    step = part_of(images, number=3, rank=2)
    labels = step.batch["label"]
    weave = Weave([aspect])
    mixed, (partners, own) = mix_up(images, 0.7, step.generator(aspect))
    assert not torch.equal(mixed, images)
    with weave.around("batch", step):
        assert torch.equal(step.batch["image"], mixed)
        assert step.batch["label"] is labels
        with weave.around("loss", step):
            hot = functional.one_hot(labels, 5).float()
            expected = own[:, None] * hot + (1 - own[:, None]) * hot[partners]
            assert torch.equal(step.batch["label"], expected)
        assert step.batch["label"] is labels


def test_it_is_idle_without_alpha_and_in_a_loss_without_mixed_images():
    step = part_of(draw(SHAPE))
    before = dict(step.batch)
    for alpha, points in ((0.0, ("batch", "loss")), (0.5, ("loss",))):
        weave = Weave([MixUp(alpha=alpha)])
        for point in points:
            with weave.around(point, step):
                assert all(step.batch[name] is value for name, value in before.items())
        assert weave.costs["MixUp"].acted == 0
        assert weave.costs["MixUp"].idle == len(points)


@pytest.mark.parametrize("place", [(3, 1), (4, 2)])
def test_each_step_and_logical_rank_draws_different_shares(place):
    def own(number, rank):
        step = part_of(draw(SHAPE), number, rank)
        with Weave([MixUp(alpha=1.0)]).around("batch", step):
            return step.notes["MixUp"].own

    assert torch.equal(own(3, 2), own(3, 2))
    assert not torch.equal(own(3, 2), own(*place))


def test_mixing_twice_mixes_the_labels_as_the_images():
    """Images that are one-hot show what their labels must be."""
    labels = torch.arange(6)
    hot = functional.one_hot(labels, 6).float()
    images = hot[:, :, None, None].expand(6, 6, 8, 8).contiguous()
    step = part_of(images, labels=labels, classes=6)
    weave = Weave([MixUp(alpha=5.0), CutMix(alpha=5.0)])
    with weave.around("batch", step), weave.around("loss", step):
        torch.testing.assert_close(step.batch["label"], step.batch["image"].mean((2, 3)))
        assert (step.batch["label"] > 0).sum(1).max() > 2


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_labels_are_mixed_and_smoothed(kind):
    step = part_of(draw(SHAPE))
    aspect = kind(alpha=2.0)
    with Weave([aspect]).around("batch", step), Weave([aspect]).around("loss", step):
        mixed = step.batch["label"]
    both = Weave([aspect, LabelSmoothing(smoothing=0.2)])  # CutMix outside of it, MixUp inside
    fresh = part_of(draw(SHAPE))
    with both.around("batch", fresh), both.around("loss", fresh):
        torch.testing.assert_close(fresh.batch["label"], 0.8 * mixed + 0.2 / 5)
        assert (mixed == 0).any()


def test_images_are_mixed_after_they_are_augmented():
    order = [a.name for a in Weave([MixUp(), CutOut(), CutMix()]).aspects]
    assert order.index("CutOut") < min(order.index("MixUp"), order.index("CutMix"))


def test_training_with_it_differs_and_is_reproducible():
    _, plain = trained(TinyImages())
    _, mixed = trained(TinyImages(), [MixUp(alpha=1.0)])
    assert mixed == trained(TinyImages(), [MixUp(alpha=1.0)])[1]
    assert mixed != plain
    assert trained(TinyImages(), [MixUp(alpha=0.0)])[1] == plain


def test_a_negative_alpha_is_refused():
    with pytest.raises(ValidationError, match="alpha"):
        MixUp(alpha=-1)

"""ColOut: rows and columns disappear, and the others stay in their order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain_plus.algorithms import Weave
from raytrain_plus.algorithms.col_out import ColOut, col_out
from tests.algorithms.pictures import draw, generator, part_of
from tests.algorithms.tiny import TinyImages, trained

SHARES = st.integers(0, 99).map(lambda percent: percent / 100)


@given(
    st.integers(1, 4),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    SHARES,
    SHARES,
    st.sampled_from([torch.int32, torch.float64]),
    st.integers(0, 2**32),
)
def test_the_result_is_the_image_without_some_rows_and_columns(n, size, a, b, dtype, seed):
    height, width = size
    # Every pixel says where it comes from.
    places = 100 * torch.arange(height)[:, None] + torch.arange(width)
    images = (places + 10_000 * torch.arange(n)[:, None, None, None]).expand(n, 2, -1, -1).to(dtype)
    left = col_out(images, generator(seed), rows=a, columns=b)
    percent = round(100 * a), round(100 * b)
    kept = [side - side * p // 100 for side, p in zip(size, percent, strict=True)]
    assert (left.dtype, left.shape) == (dtype, (n, 2, *kept))
    for image, original in zip(left, images, strict=True):
        rows, columns = (image[0, :, 0] % 10_000 // 100).long(), (image[0, 0] % 100).long()
        assert (rows.diff() > 0).all()
        assert (columns.diff() > 0).all()
        assert torch.equal(image, original[:, rows][:, :, columns])


def test_all_rows_are_dropped_equally_often_and_each_image_loses_its_own():
    images = torch.arange(8.0)[:, None].expand(4000, 1, 8, 1)
    left = col_out(images, generator(), rows=0.25, columns=0)[:, 0, :, 0]
    counts = torch.bincount(left.long().flatten(), minlength=8) / 4000
    torch.testing.assert_close(counts, torch.full((8,), 0.75), atol=0.04, rtol=0)
    assert len({tuple(row.tolist()) for row in left}) == 28  # 8 choose 2


def test_the_aspect_is_the_function():
    images, aspect = draw((4, 3, 10, 8), torch.uint8), ColOut(rows=0.3, columns=0.2)
    step = part_of(images, number=5, rank=1)
    with Weave([aspect]).around("batch", step):
        expected = col_out(images, step.generator(aspect), rows=0.3, columns=0.2)
        assert torch.equal(step.batch["image"], expected)
        assert expected.shape == (4, 3, 7, 7)


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0.09, 0.12)])
def test_it_is_idle_if_nothing_is_dropped(rows, columns):
    weave = Weave([ColOut(rows=rows, columns=columns)])
    step = part_of(draw((4, 3, 10, 8)))
    images = step.batch["image"]
    with weave.around("batch", step):
        assert step.batch["image"] is images
    assert (weave.costs["ColOut"].acted, weave.costs["ColOut"].idle) == (0, 1)


def test_training_with_it_differs_and_is_reproducible():
    _, plain = trained(TinyImages())
    _, smaller = trained(TinyImages(), [ColOut()])
    assert smaller == trained(TinyImages(), [ColOut()])[1]
    assert smaller != plain


@pytest.mark.parametrize("wrong", [{"rows": 1.0}, {"columns": -0.1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ColOut(**wrong)

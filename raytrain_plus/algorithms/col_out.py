"""ColOut: dropping random rows and columns (MosaicML's Composer, 2021)."""

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.image_regions import select


class ColOut(Aspect):
    """Drop random rows and columns of each image, which makes it smaller.

    The model must take images of any size.

    Attributes:
        rows: the fraction of rows that is dropped, in [0, 1). Default 0.15.
        columns: the fraction of columns that is dropped, in [0, 1). Default 0.15.
        column: the batch's column of images; None for the only one there is. Default None.
    """

    rows: float = Field(default=0.15, ge=0, lt=1)
    columns: float = Field(default=0.15, ge=0, lt=1)
    column: str | None = None

    def batch(self, step: Step) -> Advice:
        """Drop rows and columns, at least one of them."""
        column = image_column(step, self.column)
        before = step.batch[column]
        after = col_out(before, step.generator(self), rows=self.rows, columns=self.columns)
        if after is before:
            return
        step.batch[column] = after
        yield


def col_out(
    images: Tensor, generator: torch.Generator, *, rows: float = 0.15, columns: float = 0.15
) -> Tensor:
    """Drop rows and columns, chosen for each image; the others stay in their order.

    Args:
        images: shape (n, channels, height, width), of any dtype.
        generator: of the CPU.
        rows: the fraction of rows that is dropped, in [0, 1), rounded down to whole rows.
        columns: likewise.

    Returns:
        Images of shape (n, channels, kept rows, kept columns); the same tensor if all are kept.
    """
    n, _, height, width = images.shape
    kept = [side - int(share * side + 1e-9) for side, share in ((height, rows), (width, columns))]
    if kept == [height, width]:
        return images
    chosen = [
        torch.rand((n, side), generator=generator).argsort(1)[:, :keep].sort(1).values
        for side, keep in zip((height, width), kept, strict=True)
    ]
    return select(images, *chosen)

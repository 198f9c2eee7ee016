"""CutOut (DeVries and Taylor 2017, arXiv 1708.04552)."""

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.image_regions import random_boxes


class CutOut(Aspect):
    """Paint over squares of each image.

    Attributes:
        holes: number of squares per image, at least 1. Default 1.
        length: the squares' side as a fraction of the image's shorter side, in [0, 1]; 0 paints
            nothing. Default 0.5.
        fill: brightness of the squares, from 0 (black) to 1 (white). Default 0.
        column: the column of images; None for the only one there is. Default None.
    """

    runs_after = ("AugMix", "ColOut", "ProgressiveResizing", "RandAugment")

    holes: int = Field(default=1, ge=1)
    length: float = Field(default=0.5, ge=0, le=1)
    fill: float = Field(default=0.0, ge=0, le=1)
    column: str | None = None

    def batch(self, step: Step) -> Advice:
        """Paint over the images."""
        if not self.length:
            return
        column = image_column(step, self.column)
        step.batch[column] = cut_out(
            step.batch[column],
            step.generator(self),
            holes=self.holes,
            length=self.length,
            fill=self.fill,
        )
        yield


def cut_out(
    images: Tensor,
    generator: torch.Generator,
    *,
    holes: int = 1,
    length: float = 0.5,
    fill: float = 0.0,
) -> Tensor:
    """Paint over squares of each image, their centres at uniformly random pixels.

    As in the paper, squares are cut at the borders, so that one may cover less than its area.

    Args:
        images: shape (n, channels, height, width), integers in [0, 255] or floating in [0, 1].
        generator: of the CPU.
        holes: number of squares per image.
        length: the squares' side as a fraction of the image's shorter side; at least one pixel.
        fill: brightness of the squares, from 0 (black) to 1 (white).

    Returns:
        Images of the same shape and dtype.
    """
    n, _, height, width = images.shape
    sides = torch.full((n * holes,), max(1, round(length * min(height, width))))
    boxes = random_boxes(sides, sides, (height, width), generator)
    hidden = boxes.view(n, holes, 1, height, width).any(1).to(images.device)
    return images.masked_fill(hidden, fill if images.is_floating_point() else round(255 * fill))

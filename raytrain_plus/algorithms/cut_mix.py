"""CutMix (Yun et al. 2019, arXiv 1905.04899)."""

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.dirichlet import dirichlet
from raytrain_plus.algorithms.image_regions import random_boxes
from raytrain_plus.algorithms.labels import Mixing, loss_of_mixed


class CutMix(Aspect):
    """Paste a box of another image into each image, and mix the labels by area.

    Partners come from the same logical rank's part. The task's loss must accept class
    probabilities, as `torch.nn.functional.cross_entropy` does.

    Attributes:
        alpha: parameter of the Beta distribution of the shares, at least 0. The smaller it is, the
            closer each box is to nothing or to the whole image; 0 pastes nothing. Default 1.0.
        column: the column of images; None for the only one there is. Default None.
    """

    runs_after = ("AugMix", "ColOut", "CutOut", "ProgressiveResizing", "RandAugment")

    alpha: float = Field(default=1.0, ge=0)
    column: str | None = None

    def batch(self, step: Step) -> Advice:
        """Paste the boxes."""
        if not self.alpha:
            return
        column = image_column(step, self.column)
        images, mixing = cut_mix(step.batch[column], self.alpha, step.generator(self))
        step.batch[column], step.notes[self.name] = images, mixing
        yield

    def loss(self, step: Step) -> Advice:
        """Mix the labels, for the loss only."""
        return loss_of_mixed(step, step.notes.get(self.name))


def cut_mix(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Mixing]:
    """Paste a box of a random partner into each image, at the same place.

    The share that is kept is drawn per sample from Beta(alpha, alpha). The box has the image's
    proportions and a uniformly random centre, and is cut at the borders.

    Args:
        images: shape (n, channels, height, width), of any dtype.
        alpha: parameter of the Beta distribution, above 0.
        generator: of the CPU.

    Returns:
        The images, of the same dtype; and the mixing, whose shares are the true areas, for
        `raytrain_plus.algorithms.labels.mix_labels`.
    """
    n, _, height, width = images.shape
    partners = torch.randperm(n, generator=generator).to(images.device)
    sides = dirichlet(alpha, n, 2, generator)[:, 1].sqrt()
    heights, widths = ((sides * side).to(torch.int64) for side in (height, width))
    boxes = random_boxes(heights, widths, (height, width), generator).to(images.device)
    own = 1 - boxes.sum(dim=(1, 2)) / (height * width)
    return torch.where(boxes[:, None], images[partners], images), Mixing(partners, own)

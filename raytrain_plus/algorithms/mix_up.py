"""MixUp (Zhang et al. 2017, arXiv 1710.09412)."""

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.dirichlet import dirichlet
from raytrain_plus.algorithms.labels import Mixing, loss_of_mixed


class MixUp(Aspect):
    """Train on weighted means of two images, towards the same mean of their labels.

    Partners come from the same logical rank's part. The task's loss must accept class
    probabilities, as `torch.nn.functional.cross_entropy` does.

    Attributes:
        alpha: parameter of the Beta distribution of the shares, at least 0. The smaller it is, the
            less is mixed; 0 mixes nothing. Default 0.2.
        column: the column of images; None for the only one there is. Default None.
    """

    runs_after = ("AugMix", "ColOut", "CutOut", "ProgressiveResizing", "RandAugment")

    alpha: float = Field(default=0.2, ge=0)
    column: str | None = None

    def batch(self, step: Step) -> Advice:
        """Mix the images."""
        if not self.alpha:
            return
        column = image_column(step, self.column)
        images, mixing = mix_up(step.batch[column], self.alpha, step.generator(self))
        step.batch[column], step.notes[self.name] = images, mixing
        yield

    def loss(self, step: Step) -> Advice:
        """Mix the labels, for the loss only."""
        return loss_of_mixed(step, step.notes.get(self.name))


def mix_up(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Mixing]:
    """Mix each image with the image of a random partner.

    A share is drawn per sample from Beta(alpha, alpha). The larger of it and its complement is the
    sample's own, which does not change the distribution of the pairs.

    Args:
        images: shape (n, channels, height, width).
        alpha: parameter of the Beta distribution, above 0.
        generator: of the CPU.

    Returns:
        The mixed images, in the same range, float32 if they were integers; and the mixing, for
        `raytrain_plus.algorithms.labels.mix_labels`.
    """
    partners = torch.randperm(len(images), generator=generator).to(images.device)
    own = dirichlet(alpha, len(images), 2, generator).amax(1).to(images.device)
    pixels = images if images.is_floating_point() else images.float()
    share = own.to(pixels.dtype)[:, None, None, None]
    return share * pixels + (1 - share) * pixels[partners], Mixing(partners, own)

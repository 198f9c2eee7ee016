"""AugMix (Hendrycks et al. 2019, arXiv 1912.02781), without its consistency loss."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.dirichlet import dirichlet
from raytrain_plus.algorithms.image_operations import (
    Operations,
    apply_operations,
    from_unit,
    to_unit,
)

ORIGINAL = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""The paper's operations: none of them resembles the corruptions that the paper measures on."""


class AugMix(Aspect):
    """Mix each image with a mixture of copies, each changed by a chain of random operations.

    Attributes:
        width: number of chains that are mixed, at least 1. Default 3.
        depth: the most operations in a chain. Each chain draws its length from 1 to `depth`; 0
            changes nothing. Default 3.
        severity: the largest severity of an operation, in [0, 10]. Default 3.
        alpha: concentration of the distributions of all shares, above 0; 1 is uniform. Default 1.0.
        operations: names of the operations to draw from. Default: the paper's nine.
        column: the column of images; None for the only one there is. Default None.
    """

    width: int = Field(default=3, ge=1)
    depth: int = Field(default=3, ge=0)
    severity: float = Field(default=3.0, ge=0, le=10)
    alpha: float = Field(default=1.0, gt=0)
    operations: Operations = ORIGINAL
    column: str | None = None

    def batch(self, step: Step) -> Advice:
        """Change the images."""
        if not self.depth:
            return
        column = image_column(step, self.column)
        step.batch[column] = aug_mix(
            step.batch[column],
            step.generator(self),
            width=self.width,
            depth=self.depth,
            severity=self.severity,
            alpha=self.alpha,
            operations=self.operations,
        )
        yield


def aug_mix(
    images: Tensor,
    generator: torch.Generator,
    *,
    width: int = 3,
    depth: int = 3,
    severity: float = 3.0,
    alpha: float = 1.0,
    operations: Sequence[str] = ORIGINAL,
) -> Tensor:
    """Return `(1 - m) image + m (w_1 chain_1(image) + w_2 chain_2(image) + ...)`.

    The shares w are drawn from Dirichlet(alpha), m from Beta(alpha, alpha), per sample; an
    operation's severity is uniform from 0 to `severity`, and its direction random.

    Args:
        images: shape (n, channels, height, width), uint8 in [0, 255] or floating in [0, 1].
        generator: of the CPU.
        width: number of chains.
        depth: the most operations in a chain, at least 1; each draws its own length.
        severity: the largest severity of an operation, in [0, 10].
        alpha: concentration of the distributions, above 0.
        operations: names from `raytrain_plus.algorithms.image_operations.OPERATIONS`.

    Returns:
        Images of the same shape and dtype.

    Raises:
        AspectError: the images have another dtype, or values outside [0, 1].
    """
    n = len(images)
    plain = to_unit(images)
    chains = plain.repeat(width, 1, 1, 1)
    lengths = torch.randint(1, depth + 1, (width * n,), generator=generator)
    for place in range(depth):
        drawn = torch.randint(len(operations), (width * n,), generator=generator)
        strength = (torch.rand(width * n, generator=generator) * 2 - 1) * severity / 10
        chosen = torch.where(place < lengths, drawn, -1)
        chains = apply_operations(chains, chosen, strength, operations)
    shares = dirichlet(alpha, n, width, generator).to(plain)
    mixed = (chains.view(width, *plain.shape) * shares.T[..., None, None, None]).sum(0)
    m = dirichlet(alpha, n, 2, generator)[:, :1, None, None].to(plain)
    return from_unit(((1 - m) * plain + m * mixed).clamp(0, 1), images.dtype)

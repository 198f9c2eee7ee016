"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719)."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.image_operations import (
    OPERATIONS,
    Operations,
    apply_operations,
    from_unit,
    to_unit,
)


class RandAugment(Aspect):
    """Apply random operations of one severity to each image.

    Attributes:
        depth: number of operations, one after another; 0 for none. Default 2.
        severity: severity of all operations, in [0, 10]. Default 9.
        operations: names of the operations to draw from. Default: the paper's fourteen.
        column: the column of images; None for the only one there is. Default None.
    """

    depth: int = Field(default=2, ge=0)
    severity: float = Field(default=9.0, ge=0, le=10)
    operations: Operations = OPERATIONS
    column: str | None = None

    def batch(self, step: Step) -> Advice:
        """Change the images."""
        if not self.depth:
            return
        column = image_column(step, self.column)
        step.batch[column] = rand_augment(
            step.batch[column],
            step.generator(self),
            depth=self.depth,
            severity=self.severity,
            operations=self.operations,
        )
        yield


def rand_augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    depth: int = 2,
    severity: float = 9.0,
    operations: Sequence[str] = OPERATIONS,
) -> Tensor:
    """Apply `depth` operations to each image, drawn uniformly and with a random direction.

    Args:
        images: shape (n, channels, height, width), uint8 in [0, 255] or floating in [0, 1].
        generator: of the CPU.
        depth: number of operations.
        severity: severity of all operations, in [0, 10].
        operations: names from `raytrain_plus.algorithms.image_operations.OPERATIONS`.

    Returns:
        Images of the same shape and dtype.

    Raises:
        AspectError: the images have another dtype, or values outside [0, 1].
    """
    n = len(images)
    changed = to_unit(images)
    for _ in range(depth):
        chosen = torch.randint(len(operations), (n,), generator=generator)
        direction = torch.randint(2, (n,), generator=generator) * 2.0 - 1.0
        changed = apply_operations(changed, chosen, direction * severity / 10, operations)
    return from_unit(changed, images.dtype)

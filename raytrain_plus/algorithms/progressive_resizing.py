"""Progressive resizing (fast.ai 2018, DAWNBench; Touvron et al. 2019, arXiv 1906.06423)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.columns import image_column
from raytrain_plus.algorithms.image_regions import select
from raytrain_plus.algorithms.times import Time


class ProgressiveResizing(Aspect):
    """Start with small images, and grow them to their full size.

    The model must take images of any size.

    Attributes:
        initial: the images' sides until `start`, as a fraction of the full ones, in (0, 1]. Default
            0.5.
        start: when the sides start to grow, linearly with the steps. Default "0.5dur".
        finish: when the images have their full size. Default "0.8dur".
        mode: "scale" to scale the images, "crop" to cut a random window out of each. Default
            "scale".
        multiple: sides are rounded down to a multiple of this many pixels. Default 4.
        column: the column of images; None for the only one there is. Default None.
    """

    # All other work on images costs less on small ones.
    runs_before = ("AugMix", "ColOut", "CutMix", "CutOut", "MixUp", "RandAugment")

    initial: float = Field(default=0.5, gt=0, le=1)
    start: Time = "0.5dur"
    finish: Time = "0.8dur"
    mode: Literal["scale", "crop"] = "scale"
    multiple: int = Field(default=4, ge=1)
    column: str | None = None

    def batch(self, step: Step) -> Advice:
        """Make the images as small as this step needs."""
        start, finish = step.clock.step_of(self.start), step.clock.step_of(self.finish)
        if start > finish:
            raise AspectError(
                f"ProgressiveResizing would start at step {start} ({self.start}) and finish at "
                f"step {finish} ({self.finish}): start must not be later than finish"
            )
        scale = scale_at(step.number, start, finish, self.initial)
        if scale == 1:
            return
        column = image_column(step, self.column)
        before = step.batch[column]
        after = resize_images(
            before, scale, step.generator(self), mode=self.mode, multiple=self.multiple
        )
        if after is before:
            return
        step.batch[column] = after
        yield


def scale_at(step: int, start: int, finish: int, initial: float = 0.5) -> float:
    """Return the scale of images at a step: `initial` until `start`, 1 from `finish` on."""
    if step >= finish:
        return 1.0
    grown = max(0.0, (step - start) / (finish - start)) if finish > start else 0.0
    return initial + (1 - initial) * grown


def resize_images(
    images: Tensor,
    scale: float,
    generator: torch.Generator,
    *,
    mode: Literal["scale", "crop"] = "scale",
    multiple: int = 4,
) -> Tensor:
    """Make images smaller.

    Args:
        images: shape (n, channels, height, width), of any dtype.
        scale: of both sides, in (0, 1].
        generator: of the CPU; used for windows only.
        mode: "scale" for bilinear interpolation with antialiasing, "crop" for a random window of
            each image.
        multiple: sides are rounded down to a multiple of this, and are at least this.

    Returns:
        Images of the same dtype; the same tensor if they keep their size.
    """
    full = tuple(images.shape[2:])
    height, width = (_side(side, scale, multiple) for side in full)
    if (height, width) == full:
        return images
    if mode == "crop":
        rows, columns = (
            torch.randint(whole - part + 1, (len(images), 1), generator=generator)
            + torch.arange(part)
            for whole, part in zip(full, (height, width), strict=True)
        )
        return select(images, rows, columns)
    pixels = images.to(torch.promote_types(images.dtype, torch.float32))
    small = functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return (small if images.is_floating_point() else small.round()).to(images.dtype)


def _side(full: int, scale: float, multiple: int) -> int:
    if scale >= 1:
        return full
    return min(full, max(multiple, int(scale * full / multiple + 1e-9) * multiple))

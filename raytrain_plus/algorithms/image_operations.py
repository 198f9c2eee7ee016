"""Operations on images for RandAugment and AugMix, each with a strength of its own per sample.

They work on tensors of shape (k, channels, height, width) in [0, 1]. A strength is in [-1, 1]: its
size is the amount, its sign the direction. At 0 an operation changes nothing, except autocontrast
and equalize, which have no strength. At 1 or -1 an operation has the largest level of AutoAugment
(Cubuk et al. 2018, arXiv 1805.09501), and shifts have that of AugMix.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor
from torch.nn import functional

from raytrain_plus.algorithms.aspect import AspectError

_MOST_DEGREES = 30
_MOST_SHEAR = 0.3
_MOST_SHIFT = 1 / 3  # as a fraction of the side
_MOST_BLENDING = 0.9
_MOST_BITS_DROPPED = 4
_LEVELS = 256
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def to_unit(images: Tensor) -> Tensor:
    """Return images as floating point in [0, 1].

    Args:
        images: uint8 in [0, 255], or floating in [0, 1], of any shape.

    Raises:
        AspectError: they have another dtype, or values outside [0, 1].
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    low, high = (float(bound) for bound in images.aminmax()) if images.numel() else (0.0, 1.0)
    if not images.is_floating_point() or low < -1e-3 or high > 1 + 1e-3:
        raise AspectError(
            f"images are {images.dtype} in [{low:g}, {high:g}]: they must be uint8 in [0, 255] or "
            "floating in [0, 1]; normalise them in the task's forward, not in the data"
        )
    return images.to(torch.promote_types(images.dtype, torch.float32)).clamp(0, 1)


def from_unit(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images in [0, 1] in the dtype that `to_unit` got."""
    return (images * 255).round().to(dtype) if dtype == torch.uint8 else images.to(dtype)


def apply_operations(
    images: Tensor, chosen: Tensor, strength: Tensor, operations: Sequence[str]
) -> Tensor:
    """Apply to each image the operation that is chosen for it.

    Args:
        images: shape (n, channels, height, width), floating in [0, 1].
        chosen: for each image an index into `operations`, shape (n,), on the CPU; -1 leaves the
            image unchanged.
        strength: in [-1, 1], shape (n,), on the CPU.
        operations: names from `OPERATIONS`.

    Returns:
        Images of the same shape and dtype, in [0, 1].
    """
    changed = images.clone()
    warped, matrices = [], []
    for place, name in enumerate(operations):
        which = (chosen == place).nonzero().squeeze(1)
        if not len(which):
            continue
        if name in _WARPS:
            warped.append(which)
            matrices.append(_WARPS[name](strength[which], images.shape[2] / images.shape[3]))
            continue
        much = strength[which].to(images)[:, None, None, None]
        which = which.to(images.device)
        changed[which] = _OF_PIXELS[name](images[which], much).clamp(0, 1)
    if warped:
        which = torch.cat(warped).to(images.device)
        changed[which] = warp(images[which], torch.cat(matrices).to(images))
    return changed


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Move pixels by affine maps, with bilinear interpolation; pixels from outside are black.

    Args:
        images: shape (k, channels, height, width).
        matrices: map positions in the result to positions in the image, both in [-1, 1] as (x, y,
            1); shape (k, 2, 3).
    """
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


# -- geometric


def _matrix(strength: Tensor, *entries: Tensor | float) -> Tensor:
    rows = [torch.as_tensor(entry, dtype=torch.float32).expand_as(strength) for entry in entries]
    return torch.stack(rows, 1).view(-1, 2, 3)


def _rotate(strength: Tensor, ratio: float) -> Tensor:
    angle = strength * math.radians(_MOST_DEGREES)
    cos, sin = angle.cos(), angle.sin()
    return _matrix(strength, cos, sin * ratio, 0.0, -sin / ratio, cos, 0.0)


def _shear_x(strength: Tensor, ratio: float) -> Tensor:
    return _matrix(strength, 1.0, strength * _MOST_SHEAR * ratio, 0.0, 0.0, 1.0, 0.0)


def _shear_y(strength: Tensor, ratio: float) -> Tensor:
    return _matrix(strength, 1.0, 0.0, 0.0, strength * _MOST_SHEAR / ratio, 1.0, 0.0)


def _translate_x(strength: Tensor, _: float) -> Tensor:
    return _matrix(strength, 1.0, 0.0, 2 * _MOST_SHIFT * strength, 0.0, 1.0, 0.0)


def _translate_y(strength: Tensor, _: float) -> Tensor:
    return _matrix(strength, 1.0, 0.0, 0.0, 0.0, 1.0, 2 * _MOST_SHIFT * strength)


# -- of pixel values


def _identity(images: Tensor, _: Tensor) -> Tensor:
    return images


def _away_from(other: Tensor | float, images: Tensor, strength: Tensor) -> Tensor:
    return images + _MOST_BLENDING * strength * (images - other)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    luma = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return (images * luma[:, None, None]).sum(1, keepdim=True)


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _away_from(0.0, images, strength)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return _away_from(_grey(images), images, strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    return _away_from(_grey(images).mean((2, 3), keepdim=True), images, strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Interpolate to or extrapolate from the image smoothed by 3x3 ones with a 5 in the middle."""
    if min(images.shape[2:]) < 3:
        return images
    inner = (..., slice(1, -1), slice(1, -1))
    smooth = images.clone()
    smooth[inner] = (functional.avg_pool2d(images, 3, 1) * 9 + 4 * images[inner]) / 13
    return _away_from(smooth, images, strength)


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images > 1 - strength.abs(), 1 - images, images)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    dropped = (strength.abs() * _MOST_BITS_DROPPED).round().int()
    levels = (images * 255).round().int()
    return torch.where(dropped > 0, ((levels >> dropped) << dropped).to(images) / 255, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low), images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Make each channel's histogram flat, as the Python Imaging Library does."""
    levels = (images * 255).round().long().flatten(0, 1).flatten(1)
    k = len(levels)
    offsets = torch.arange(k, device=images.device)[:, None] * _LEVELS
    counts = torch.bincount((levels + offsets).flatten(), minlength=k * _LEVELS).view(k, _LEVELS)
    brightest = counts.gather(1, levels.amax(1, keepdim=True))
    step = (levels.shape[1] - brightest) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    flat = table.gather(1, levels).view(images.shape).to(images) / 255
    return torch.where((step > 0).view(*images.shape[:2], 1, 1), flat, images)


_WARPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}

_OF_PIXELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
}

OPERATIONS: tuple[str, ...] = (*_OF_PIXELS, *_WARPS)
"""The names of all operations."""


def _known(operations: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown or not operations:
        raise ValueError(
            f"no operations on images are {', '.join(unknown) or 'given'}; there are "
            f"{', '.join(OPERATIONS)}"
        )
    return operations


Operations = Annotated[tuple[str, ...], AfterValidator(_known)]
"""The setting of an aspect that names the operations it draws from."""

"""BlurPool: low-pass filters before subsampling (Zhang 2019, arXiv 1904.11486)."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.surgery import Surgery

_TAPS = (0.25, 0.5, 0.25)


class BlurPool(Aspect):
    """Blur before strided convolutions and poolings skip pixels, against aliasing.

    Attributes:
        replace_convs: change `Conv2d` layers with a stride above 1. Default True.
        replace_maxpools: change `MaxPool2d` layers with a stride above 1. Default True.
        blur_first: blur the input of a strided convolution, whose own cost stays the same. False
            for the paper's order: the convolution is computed at every pixel and its result is
            blurred, which is several times as much work. Default True.
        min_channels: convolutions with fewer input channels are left unchanged; the default
            excludes the one that reads the image. Default 8.
    """

    replace_convs: bool = True
    replace_maxpools: bool = True
    blur_first: bool = True
    min_channels: int = Field(default=8, ge=1)

    def fit(self, step: Step) -> Advice:
        """Change how strided layers compute."""
        surgery = apply_blur_pool(
            step.model,
            replace_convs=self.replace_convs,
            replace_maxpools=self.replace_maxpools,
            blur_first=self.blur_first,
            min_channels=self.min_channels,
            optimizer=step.optimizer,
        )
        surgery.warn_if_unchanged(
            self.name,
            f"Conv2d layers with a stride above 1 and at least {self.min_channels} input channels, "
            "and MaxPool2d layers with a stride above 1, as far as its settings allow them",
        )
        yield
        surgery.undo()


def apply_blur_pool(
    model: nn.Module,
    *,
    replace_convs: bool = True,
    replace_maxpools: bool = True,
    blur_first: bool = True,
    min_channels: int = 8,
    optimizer: Optimizer | None = None,
) -> Surgery:
    """Make strided `Conv2d` and `MaxPool2d` layers of a model blur, in place.

    Output shapes stay the same. Poolings with `ceil_mode` or `return_indices` are left unchanged.
    Layers that compute at every pixel, and whose blur has the stride, show a `stride` of 1 until
    `undo`.

    Args:
        model: the model.
        replace_convs: change convolutions.
        replace_maxpools: change poolings: the maximum at every pixel, then the blur.
        blur_first: blur before a strided convolution, not after one without a stride.
        min_channels: convolutions with fewer input channels are left unchanged.
        optimizer: may be left out; no parameter is added.
    """
    surgery = Surgery(model, optimizer)
    if replace_convs:
        for name, conv in surgery.candidates(nn.Conv2d, _Blurred):
            if max(conv.stride) > 1 and conv.in_channels >= min_channels:
                _blur_conv(surgery, name, conv, blur_first=blur_first)
    if replace_maxpools:
        for name, pool in surgery.candidates(nn.MaxPool2d, _Blurred):
            if max(_pair(pool.stride)) > 1 and not (pool.ceil_mode or pool.return_indices):
                _stride_by_blur(surgery, name, pool, _BlurAfterMaxPool)
    return surgery


def blur(images: Tensor, stride: int | Sequence[int] = 1) -> Tensor:
    """Filter each channel with the 3x3 binomial filter, and keep every `stride`-th pixel.

    Pixels beyond the edge count as zero.

    Args:
        images: shape (n, channels, height, width), floating.
        stride: of rows and columns, or one for both.

    Returns:
        Shape (n, channels, ceil(height / stride), ceil(width / stride)).
    """
    channels = images.shape[1]
    weight = _filter(channels, images.dtype, images.device)
    return functional.conv2d(images, weight, None, _pair(stride), 1, 1, channels)


@functools.lru_cache(maxsize=256)
def _filter(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or training could not use it later
        taps = torch.tensor(_TAPS, dtype=dtype, device=device)
        return (taps[:, None] * taps).expand(channels, 1, 3, 3).contiguous()


class _Blurred:
    """A layer that blurs."""

    blur_stride: tuple[int, int]


class _BlurBeforeConv(_Blurred):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        blurred = blur(x, self.blur_stride)
        convolved: Tensor = super()._conv_forward(blurred, weight, bias)  # type: ignore[misc]
        return convolved


class _BlurAfterConv(_Blurred):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolved: Tensor = super()._conv_forward(x, weight, bias)  # type: ignore[misc]
        return blur(convolved, self.blur_stride)


class _BlurAfterMaxPool(_Blurred):
    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = super().forward(x)  # type: ignore[misc]
        return blur(pooled, self.blur_stride)


def _blur_conv(surgery: Surgery, name: str, conv: nn.Conv2d, *, blur_first: bool) -> None:
    pointwise = conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "valid")
    # The blur and a 1x1 convolution commute, so the blur comes first and skipped pixels are not
    # convolved. A bias does not commute: the blur would weaken it at the edge.
    if pointwise and (blur_first or conv.bias is None):
        _stride_by_blur(surgery, name, conv, _BlurBeforeConv)
    elif blur_first:
        surgery.mix_in(name, conv, _BlurBeforeConv, blur_stride=(1, 1))
    else:
        _stride_by_blur(surgery, name, conv, _BlurAfterConv)


def _stride_by_blur(
    surgery: Surgery, name: str, layer: nn.Conv2d | nn.MaxPool2d, mixin: type[_Blurred]
) -> None:
    stride: Any = layer.stride
    surgery.mix_in(name, layer, mixin, blur_stride=_pair(stride))
    layer.stride = (1, 1)
    surgery.on_undo(lambda: setattr(layer, "stride", stride))

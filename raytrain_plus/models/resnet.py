"""A small residual network for small images (He et al. 2015, arXiv 1512.03385)."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `relu(shortcut(x) + residual(x))`.

    Args:
        before, after: channels of the input and of the output.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, h, w) to (n, after, h / stride, w / stride)."""
        return functional.relu(self.shortcut(x) + self.residual(x))


class ResNet(nn.Module):
    """Stages of residual blocks, each at half the resolution of the one before.

    Args:
        channels: of the images.
        classes: how many there are.
        widths: channels of each stage; the first stage has no block, only a strided convolution.
        depth: blocks per stage.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            blocks.append(ResidualBlock(before, after, 2))
            blocks += [ResidualBlock(after, after) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, height, width) of any size to logits (n, classes)."""
        features = self.blocks(self.stem(images))
        logits: Tensor = self.head(torch.mean(features, dim=(2, 3)))
        return logits

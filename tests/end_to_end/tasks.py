"""Small tasks with everything in them that could make bits drift, and tasks that misbehave.

A task that misbehaves in one process only, or only once, creates a marker file in a folder of the
test; the process that creates the marker misbehaves.
"""

import itertools
import os
import random
import signal
import time
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from raytrain_plus import Task
from raytrain_plus.algorithms import Aspect
from tests.end_to_end.accuracy import Accuracy

ROWS, HELD_OUT = 1003, 317  # division by zero
SIDE, CLASSES = 8, 5


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.second_norm = nn.BatchNorm2d(16, momentum=None)  # a mean that divides by its counter
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16 * (SIDE // 2) ** 2, CLASSES)

    def forward(self, images):
        hidden = functional.relu(self.norm(self.first(images)))
        hidden = functional.relu(self.second_norm(self.second(hidden)))
        return self.head(self.dropout(hidden.flatten(1)))

    @property
    def steps(self):
        """Return the number of committed steps; to be called in the forward of the next step."""
        return int(self.norm.num_batches_tracked)


class Momentum(Task):
    """BatchNorm, Dropout, augmentation from all three global generators, SGD with a schedule."""

    columns = {"image": (1, SIDE, SIDE), "label": ()}  # noqa: RUF012 - a constant of the class

    def model(self):
        return Convolutions()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)

    def schedule(self, progress):
        return min(1.0, 5 * progress + 0.1) * (1.0 - progress)

    def forward(self, model, batch):
        images = batch["image"]
        return model(augmented(images) if model.training else images)

    def loss(self, outputs, batch):
        return functional.cross_entropy(outputs, batch["label"], reduction="none")

    def metrics(self):
        return {"accuracy": Accuracy()}

    def data(self):
        return pictures().slice(0, ROWS)

    def evaluation_data(self):
        return pictures().slice(ROWS)


class AdamW(Momentum):
    """The same with AdamW, whose state has its own counters."""

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=3e-3)


class Plain(Momentum):
    """Without evaluation: its workers start a second earlier."""

    def metrics(self):
        return {}

    def evaluation_data(self):
        return None


class Streamed(Momentum):
    """A task with given data."""

    def __init__(self, data, evaluation_data):
        self._data, self._evaluation_data = data, evaluation_data

    def data(self):
        return self._data

    def evaluation_data(self):
        return self._evaluation_data


class Wide(Plain):
    """A model large enough for an exchange in several slices, with few operations."""

    def model(self):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE * SIDE, 10500), nn.ReLU(), nn.Linear(10500, CLASSES)
        )

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def augmented(images):
    turned = images.rot90(random.randrange(4), (2, 3))
    flips = torch.from_numpy(np.random.rand(len(images)) < 0.5)  # noqa: NPY002 - as users do
    turned = torch.where(flips[:, None, None, None], turned.flip(3), turned)
    return turned + 0.1 * torch.randn_like(turned)


@cache
def pictures():
    draw = np.random.default_rng(20261124)
    labels = draw.integers(0, CLASSES, ROWS + HELD_OUT)
    ideals = draw.normal(size=(CLASSES, 1, SIDE, SIDE))
    noise = draw.normal(size=(len(labels), 1, SIDE, SIDE))
    images = (ideals[labels] + 1.5 * noise).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), SIDE * SIDE)
    kind = pa.fixed_shape_tensor(pa.float32(), (1, SIDE, SIDE))
    return pa.table({"image": pa.ExtensionArray.from_storage(kind, flat), "label": labels})


def is_first(marker: Path) -> bool:
    """Return whether this is the first call, over all processes."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@cache
def place_in_line(folder: Path) -> int:
    """Return 0 to the first process that calls this, 1 to the second; the same again to each."""
    return next(n for n in itertools.count() if is_first(folder / f"process-{n}"))


# -- tasks that misbehave


class Stuck(Plain):
    """One worker waits for ever and answers requests; another spins and holds its GIL.

    They do so in the steps after the committed steps `waits` and `spins`.
    """

    def __init__(self, folder, waits, spins):
        self.folder, self.waits, self.spins = folder, waits, spins

    def forward(self, model, batch):
        steps = model.steps if model.training else None
        if steps == self.waits and is_first(self.folder / "waits"):
            while True:
                time.sleep(0.1)
        if steps == self.spins and is_first(self.folder / "spins"):
            sum(itertools.repeat(0))
        return super().forward(model, batch)


class StuckBackward(Plain):
    """One worker waits for ever in its last backward, when most gradients have been sent.

    The model is large enough for gradients to be exchanged during the backward.
    """

    def __init__(self, folder, steps):
        self.folder, self.steps = folder, steps

    def model(self):
        wide = 16_500
        return nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(SIDE * SIDE),
            nn.Linear(SIDE * SIDE, SIDE * SIDE),
            Gate(),
            nn.Linear(SIDE * SIDE, wide),
            nn.Linear(wide, SIDE * SIDE),
            nn.Linear(SIDE * SIDE, wide),
            nn.Linear(wide, CLASSES),
        )

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=1e-3)

    def forward(self, model, batch):
        due = model.training and int(model[1].num_batches_tracked) == self.steps
        model[3].marker = self.folder / "stuck" if due else None
        return super().forward(model, batch)


class Gate(nn.Module):
    """While there is a marker, stops the first worker that comes here a second time."""

    marker: Path | None = None
    passed = 0

    def forward(self, values):
        if values.requires_grad and self.marker is not None:
            values.register_hook(self.back)
        return values

    def back(self, _gradient):
        self.passed += 1
        if self.passed == 2 and is_first(self.marker):
            while True:
                time.sleep(0.1)


class ShapeMismatch(Momentum):
    """A user's mistake that appears after some steps."""

    def __init__(self, steps):
        self.steps = steps

    def forward(self, model, batch):
        if model.training and model.steps == self.steps:
            return functional.linear(batch["image"].flatten(1), torch.ones(CLASSES, 3))
        return super().forward(model, batch)


class NotANumber(Momentum):
    """A loss that becomes NaN after some steps, for one sample of the batch."""

    def __init__(self, steps):
        self.steps = steps
        self.explodes = False

    def forward(self, model, batch):
        self.explodes = model.training and model.steps == self.steps
        return super().forward(model, batch)

    def loss(self, outputs, batch):
        losses = super().loss(outputs, batch)
        if self.explodes:
            losses = losses + torch.where(torch.arange(len(losses)) == 1, torch.nan, 0.0)
        return losses


class Unrepeatable(Plain):
    """Draws from a source of random numbers that cannot be seeded, after its first step."""

    def forward(self, model, batch):
        outputs = super().forward(model, batch)
        return outputs * random.SystemRandom().uniform(0.9, 1.1) if model.steps > 1 else outputs


class Clocked(Plain):
    """Reads the time, after its first step."""

    def forward(self, model, batch):
        outputs = super().forward(model, batch)
        return outputs * (1 + time.time() % 1) if model.steps > 1 else outputs


class Odd(Plain):
    """Makes the first, second, third worker and so on misbehave in the given ways.

    Args:
        folder: the folder for markers.
        ways: how each worker misbehaves; `""` for a normal worker.
    """

    def __init__(self, folder, *ways):
        self.folder, self.ways = folder, ways

    def model(self):
        place = place_in_line(self.folder)
        way = self.ways[place] if place < len(self.ways) else ""
        if way == "threads":
            torch.set_num_threads(2)
        elif way == "kernels":  # all named settings are equal, but the bits are not
            torch.backends.mkldnn.enabled = False
        elif way == "error":
            raise RuntimeError("this worker has no luck")
        elif way == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().model()


# -- aspects that disturb or steer a run


class Nudge(Aspect):
    """Change one weight by the smallest possible amount, or double it, after one step.

    Attributes:
        step_number: the step, from 1.
        marker: a file that only one worker can create; only that worker is changed. Default: all
            are changed.
        doubles: double the weight, so that the loss of the next step differs on every kernel.
    """

    step_number: int
    marker: Path | None = None
    doubles: bool = False

    @torch.no_grad()
    def update(self, step):
        yield
        due = step.number == self.step_number - 1
        if due and (self.marker is None or is_first(self.marker)):
            weight = next(step.model.parameters()).view(-1)[:1]
            weight.copy_(2 * weight if self.doubles else weight.nextafter(weight + 1))


class Hold(Aspect):
    """Wait in the forward of a step until a file exists.

    Attributes:
        step_number: the step, from 1.
        file: the file.
    """

    step_number: int
    file: Path

    def forward(self, step):
        while step.number + 1 == self.step_number and not self.file.exists():
            time.sleep(0.02)
        yield


class LogsHalves(Aspect):
    """Logs, in each part, half of its logical rank."""

    def loss(self, step):
        yield
        step.log("half", step.logical_rank / 2)


class Occupant:
    """An actor that occupies resources of a cluster."""

    def is_there(self):
        return True

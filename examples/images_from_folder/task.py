"""Classify images that are stored as files: they are decoded and varied while the model trains."""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torchmetrics
from PIL import Image
from torch import nn

from raytrain_plus import Task
from raytrain_plus.schedules import cosine, with_warmup

SIZE = 28


def decoded(sample):
    """Return the pixels of an encoded image, (1, SIZE, SIZE) bytes."""
    with Image.open(io.BytesIO(sample["image"])) as image:
        pixels = np.asarray(image.convert("L").resize((SIZE, SIZE)))
    return torch.from_numpy(pixels.copy())[None]


def to_evaluate(sample, _generator):  # `transform` of evaluation_data in run.yaml
    return {"image": decoded(sample), "label": sample["label"]}


def to_train(sample, generator):  # `transform` of data; it draws from its own generator only
    down, right = torch.randint(-3, 4, (2,), generator=generator).tolist()
    return {"image": decoded(sample).roll((down, right), (1, 2)), "label": sample["label"]}


@dataclass
class Digits(Task):
    lr: float = 0.1
    classes: int = 10

    columns = {"image": (1, SIZE, SIZE), "label": ()}

    def model(self):
        layers, channels = [], 1
        for width in (16, 32, 64):
            layers += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.classes)
        )

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)

    def schedule(self, progress):
        return with_warmup(progress, 0.1, cosine)

    def forward(self, model, batch):
        return model(batch["image"].float() / 127.5 - 1)

    def loss(self, outputs, batch):
        label = batch["label"]
        if not label.is_floating_point():  # LabelSmoothing makes it so
            label = label.long()
        return nn.functional.cross_entropy(outputs, label, reduction="none")

    def metrics(self):
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(self.classes)}

"""Classify images of 32x32 pixels. Change the model, or how an image is varied."""

from dataclasses import dataclass

import torch
import torchmetrics
from torch import nn

from raytrain_plus import Task
from raytrain_plus.schedules import cosine, with_warmup

SIZE = 32  # pixels; prepare_data.py scales every image to this size


@dataclass
class Images(Task):
    """The fields are settings: `task_settings` in run.yaml, or `--setting lr=0.1`."""

    lr: float = 0.05
    classes: int = 3  # prepare_data.py prints how many there are

    columns = {"image": (3, SIZE, SIZE), "label": ()}  # checked before any worker starts

    def model(self):
        layers, channels = [], 3
        for width in (32, 64, 128):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.classes)
        )

    def optimizer(self, model):
        return torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

    def schedule(self, progress):  # a factor on the learning rate; progress goes from 0 to 1
        return with_warmup(progress, 0.1, cosine)

    def forward(self, model, batch):
        images = batch["image"].float() / 127.5 - 1
        return model(varied(images) if model.training else images)

    def loss(self, outputs, batch):  # one loss per image, not averaged
        label = batch["label"]
        if not label.is_floating_point():  # algorithms that smooth or mix labels make them so
            label = label.long()
        return nn.functional.cross_entropy(outputs, label, reduction="none")

    def metrics(self):
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(self.classes)}


def varied(images):
    """Mirror and shift each image at random; torch's generator is seeded for each part."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    down, right = torch.randint(-3, 4, (2,)).tolist()
    return images.roll((down, right), (-2, -1))

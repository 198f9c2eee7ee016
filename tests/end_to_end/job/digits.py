"""A user's task, in a folder that is submitted with a job."""

import time
from dataclasses import dataclass

import torch
import torchmetrics
from torch import nn

from raytrain_plus import Task


@dataclass(frozen=True)
class Digits(Task):
    """8x8 handwritten digits.

    Attributes:
        pace: seconds that each part of a batch takes longer, so that there is time to disturb it.
    """

    pace: float = 0.0

    def model(self):
        layers = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1)]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=3e-3)

    def forward(self, model, batch):
        time.sleep(self.pace)
        return model(batch["image"])

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")

    def metrics(self):
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(10)}

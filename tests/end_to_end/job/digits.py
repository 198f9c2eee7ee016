"""A user's task, in a folder that is submitted with a job."""

import time
from dataclasses import dataclass

import fsspec
import torch
import torchmetrics
from torch import nn

from raytrain_plus import Task


def is_there(url):
    files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return files.exists(path)


@dataclass(frozen=True)
class Digits(Task):
    """8x8 handwritten digits.

    Attributes:
        pace: extra seconds for each part of a batch, so that there is time to disturb the run.
        hurry: URL of an object that ends the extra time as soon as it exists.
    """

    pace: float = 0.0
    hurry: str = ""

    def model(self):
        layers = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1)]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=3e-3)

    def forward(self, model, batch):
        if self.pace and not is_there(self.hurry):
            time.sleep(self.pace)
        return model(batch["image"])

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")

    def metrics(self):
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(10)}

"""Classify the rows of a table: numbers and categories. Change the model here."""

from dataclasses import dataclass

import torch
import torchmetrics
from torch import nn

from raytrain_plus import Task
from raytrain_plus.schedules import cosine


class Network(nn.Module):
    """An embedding for each category, next to the numbers, and two hidden layers."""

    def __init__(self, numbers, categories, classes, width):
        super().__init__()
        sizes = [min(16, 1 + size // 2) for size in categories]
        self.embeddings = nn.ModuleList(map(nn.Embedding, categories, sizes))
        self.layers = nn.Sequential(
            nn.Linear(numbers + sum(sizes), width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )

    def forward(self, batch):
        parts = [batch["numbers"]] if "numbers" in batch else []
        for i, embed in enumerate(self.embeddings):
            parts.append(embed(batch["categories"][:, i].long()))
        return self.layers(torch.cat(parts, dim=1))


@dataclass
class Table(Task):
    """The fields are settings: `task_settings` in run.yaml, or `--setting lr=0.01`."""

    lr: float = 3e-3
    width: int = 64
    numbers: int = 3  # prepare_data.py prints these three
    categories: tuple[int, ...] = (4, 5)  # how many values each column of text has
    classes: int = 2

    @property
    def columns(self):  # checked before any worker starts
        found = {"numbers": (self.numbers,), "categories": (len(self.categories),)}
        return {"label": (), **{name: shape for name, shape in found.items() if shape[0]}}

    def model(self):
        return Network(self.numbers, self.categories, self.classes, self.width)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.01)

    def schedule(self, progress):  # a factor on the learning rate; progress goes from 0 to 1
        return cosine(progress)

    def forward(self, model, batch):
        return model(batch)

    def loss(self, outputs, batch):  # one loss per row, not averaged
        label = batch["label"]
        if not label.is_floating_point():  # algorithms that smooth or mix labels make them so
            label = label.long()
        return nn.functional.cross_entropy(outputs, label, reduction="none")

    def metrics(self):
        return {
            "accuracy": torchmetrics.classification.MulticlassAccuracy(
                self.classes, average="micro"
            )
        }

"""A sweep of trials that take one second: a file as a user writes it."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torchmetrics
from torch import nn
from torch.nn import functional

from raytrain_plus import Task
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.domain import Range
from raytrain_plus.frontier.points import Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace


@dataclass(frozen=True, kw_only=True)
class Rings(Task):
    """Classify the ring, of four, on which a noisy point is."""

    columns = {"x": (2,), "label": ()}  # noqa: RUF012 - a constant of the class

    learning_rate: float = 0.1

    def model(self):
        return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
                             nn.Linear(32, 4))  # fmt: skip

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)

    def loss(self, outputs, batch):
        labels = batch["label"]
        target = labels if labels.is_floating_point() else labels.long()
        return functional.cross_entropy(outputs, target, reduction="none")

    def metrics(self):
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(4, average="micro")}

    def data(self):
        return rings(2048, 1)

    def evaluation_data(self):
        return rings(512, 2)


def rings(count, seed):
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 4, count).astype(np.uint8)
    angle, radius = chance.uniform(0, 6.28, count), labels + 1 + chance.normal(0, 0.3, count)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    table = pa.FixedShapeTensorArray.from_numpy_ndarray(points)
    return pa.table({"x": table, "label": labels})


SWEEP = Sweep(
    name="rings",
    task=f"{__name__}:Rings" if __name__ != "__main__" else Rings(),
    space=RecipeSpace(
        baseline=Recipe(duration="2048sp", batch_size=32, task={"learning_rate": 0.1}),
        aspects={"LabelSmoothing": {"smoothing": Range(low=0.02, high=0.2)}, "EMA": {}},
        task={"learning_rate": Range(low=0.01, high=0.3, log=True)},
        durations=("2048sp", "6144sp"),
    ),
    objective=Objective(metric="accuracy", mode="max"),
    seeds=(17,),
    factors=("LabelSmoothing", "EMA"),
    most_drawn=2,
    logical_ranks=2,
    resources={"CPU": 0.5},
    evaluate_every="0.5dur",
)

"""A sweep of your own: put your task in, and say what may vary.

    python sweep.py --budget 10m
    raytrain-plus sweep sweep.py --budget 10m
    ray job submit --working-dir . -- python sweep.py --budget 10m

To continue a sweep that was interrupted or killed, add `--resume`.
"""

from dataclasses import dataclass

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
from raytrain_plus.task import Batch


@dataclass(frozen=True, kw_only=True)
class MyTask(Task):
    """Plain PyTorch. Each setting that the sweep varies is a field."""

    target = "label"
    learning_rate: float = 0.1

    def model(self) -> nn.Module:
        """Your model."""
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Your optimizer; its schedule is `schedule(progress)`, from 0 to 1 at any duration."""
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)

    def schedule(self, progress: float) -> float:
        """Decline to zero."""
        return 1.0 - progress

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """One loss per sample; an aspect may have changed labels into probabilities."""
        labels = batch["label"]
        target = labels if labels.is_floating_point() else labels.long()
        return functional.cross_entropy(outputs, target, reduction="none")

    def metrics(self) -> dict[str, torchmetrics.Metric]:
        """One of these is the sweep's objective."""
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(4, average="micro")}

    def data(self) -> pa.Table:
        """Your training data; a stream's URL will do as well."""
        return _made_up(8192, seed=1)

    def evaluation_data(self) -> pa.Table:
        """The data that quality is measured on."""
        return _made_up(2048, seed=2)


def _made_up(rows: int, seed: int) -> pa.Table:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 16, generator=generator)
    label = (x[:, 0] * x[:, 1] > 0).long() * 2 + (x[:, 2] + x[:, 3] > 0).long()
    return pa.table(
        {
            "x": pa.FixedShapeTensorArray.from_numpy_ndarray(x.numpy()),
            "label": label.numpy(),
        }
    )


SWEEP = Sweep(
    name="mine",
    task=f"{__file__}:MyTask",
    space=RecipeSpace(
        # The recipe that all others are compared with. Give every setting that varies below.
        baseline=Recipe(duration="32000sp", batch_size=64, task={"learning_rate": 0.1}),
        # What may be on (`raytrain-plus algorithms` lists all), with settings fixed or varying.
        aspects={"LabelSmoothing": {"smoothing": Range(low=0.02, high=0.2)}, "EMA": {}},
        # Settings that are tuned for the baseline and for all recipes.
        task={"learning_rate": Range(low=0.01, high=1.0, log=True)},
        # Recipes start at the shortest duration; the good ones are promoted.
        durations=("8000sp", "16000sp", "32000sp"),
    ),
    objective=Objective(metric="accuracy", mode="max"),
    factors=("LabelSmoothing", "EMA"),
)

if __name__ == "__main__":
    from raytrain_plus.cli.sweep import main

    main(SWEEP)

"""Find out which learning rate, which width, and which methods pay, in a few minutes.

    pip install 'raytrain-plus[frontier]' scikit-learn
    raytrain-plus sweep sweep.py --budget 4m --workers 2
    raytrain-plus frontier sweeps/digits            # the report: frontier.html

To continue an interrupted sweep, add `--resume`. For values of all trials in W&B or MLflow, add
`--logger wandb:project=digits`: each trial is a run of its own, in one group.

The baseline comes first, at each duration, then the methods alone and together, and then longer
runs with more seeds of what looks good. A budget of two minutes was enough for 49 trials on two
cores, and the report of the frontier. So short a sweep shows how it works, and proves little.
"""

from dataclasses import dataclass

import pyarrow as pa
import torch
import torchmetrics
from sklearn.datasets import load_digits
from torch import nn

from raytrain_plus import Task
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.domain import Range
from raytrain_plus.frontier.points import Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace
from raytrain_plus.schedules import with_warmup


@dataclass
class Digits(Task):
    """Convolutions on 1,797 handwritten digits of 8x8 pixels. The sweep varies the fields."""

    lr: float = 0.05
    width: int = 16

    def model(self):
        def block(before, after):
            return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

        return nn.Sequential(
            *block(1, self.width), nn.MaxPool2d(2), *block(self.width, 2 * self.width),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * self.width, 10),
        )  # fmt: skip

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)

    def schedule(self, progress):
        return with_warmup(progress, 0.1)

    def loss(self, outputs, batch):
        label = batch["label"]  # MixUp and LabelSmoothing make it probabilities
        label = label if label.is_floating_point() else label.long()
        return nn.functional.cross_entropy(outputs, label, reduction="none")

    def metrics(self):
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(10, average="micro")}

    def data(self):
        return table(lambda row: row % 4 != 0)

    def evaluation_data(self):
        return table(lambda row: row % 4 == 0)


def table(chosen):
    digits = load_digits()
    rows = [row for row in range(len(digits.target)) if chosen(row)]
    images = (digits.data[rows].reshape(-1, 1, 8, 8) / 8 - 1).astype("float32")
    return pa.table(
        {
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
            "label": digits.target[rows],
        }
    )


SWEEP = Sweep(
    name="digits",
    task=f"{__file__}:Digits",
    space=RecipeSpace(
        # What all recipes are compared with. It names every setting that varies below.
        baseline=Recipe(duration="8000sp", batch_size=64, task={"lr": 0.05, "width": 16}),
        # Methods that may be on, with their settings fixed or varying.
        aspects={
            "LabelSmoothing": {"smoothing": Range(low=0.02, high=0.2)},
            "MixUp": {"alpha": Range(low=0.05, high=0.4)},
            "EMA": {},
        },
        task={"lr": Range(low=0.01, high=0.5, log=True), "width": Range(low=8, high=32)},
        # Recipes start at the shortest duration; the good ones are promoted.
        durations=("2000sp", "4000sp", "8000sp"),
    ),
    objective=Objective(metric="accuracy", mode="max"),
    factors=("LabelSmoothing", "MixUp", "EMA"),
)

if __name__ == "__main__":
    from raytrain_plus.cli.sweep import main

    main(SWEEP)

"""A task whose predictions depend on everything that could differ between two batches."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray.train import RunConfig, ScalingConfig
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from raytrain_plus import ElasticConfig, ElasticTrainer, Task
from raytrain_plus.algorithms import EMA

NAME = "tests.inference.tasks:Classes"


@dataclass
class Classes(Task):
    """Four classes; it predicts with dropout that is never off, and counts its calls in a buffer.

    Attributes:
        kill_at: a file with a row's number. The process that predicts that row removes the file,
            and is killed.
    """

    kill_at: str = ""

    columns: ClassVar = {"x": (8,), "label": ()}

    def model(self):
        return Counting()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def forward(self, model, batch):
        return model(batch["x"])

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")

    def metrics(self):
        return {"accuracy": MulticlassAccuracy(4, average="micro")}

    def measure(self, outputs, batch):
        del batch
        return {"spread": outputs.std(1)}

    def predict(self, model, batch):
        self.die_once(batch["x"])
        logits = nn.functional.dropout(model(batch["x"]), 0.5, training=True)
        names = [f"class {i}" for i in logits.argmax(1).tolist()]
        return {"logits": logits, "class": names, "calls": model.calls.expand(len(names))}

    def die_once(self, x):
        path = Path(self.kill_at)
        if self.kill_at and path.exists():
            row = torch.tensor(rows(1000, 3)["x"][int(path.read_text())].as_py())
            if (x == row).all(1).any():
                path.unlink()
                os.kill(os.getpid(), signal.SIGKILL)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.head(self.layers(x))


def rows(n, seed, *, label=True):
    made = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (n,), generator=made)
    values = torch.randn(n, 8, generator=made) + classes[:, None] * 0.5
    x = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), 8)
    labels = {"label": pa.array(classes.numpy())} if label else {}
    return pa.table({"x": x, **labels, "id": pa.array(range(n))})


def trained_run(folder):
    """Train a run that is evaluated on two sets after each step; returns the folder of runs."""
    for name, n, seed in (("train", 256, 0), ("near", 203, 1), ("far", 65, 2)):
        pq.write_table(rows(n, seed), folder / f"{name}.parquet")
    pq.write_table(rows(1000, 3, label=False), folder / "rows.parquet")
    ElasticTrainer(
        task=NAME,
        data=folder / "train.parquet",
        evaluation_data={"near": folder / "near.parquet", "far": folder / "far.parquet"},
        batch_size=64,
        duration="12ba",
        evaluate_every="1ba",
        logical_ranks=4,
        algorithms=[EMA(half_life="2ba")],
        elastic=ElasticConfig(checkpoint_every="4ba"),
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    ).fit(lambda _: None)
    return folder

"""How much of a sweep's pool is idle, elastic against fixed; and the cost to start a trial.

Run as `python -m benchmarks.idle [--workers K] [--quick] [--json]`. One sweep is run twice: once
its workers move to trials that can use more, once each trial keeps its one worker. The trials have
unequal lengths, the longest six times the shortest, and start in rising order. A logical rank's
part sleeps instead of computing, as if each worker had its own device, so the number of this
machine's cores does not matter. Idle are the worker-seconds, from the first trial's first step to
the last trial's end, in which the worker was in no generation.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torchmetrics
from torch import nn

from benchmarks import report
from benchmarks.report import Aim
from raytrain_plus import Task
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.domain import Range
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.points import Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace
from raytrain_plus.frontier.sweep import run_sweep
from raytrain_plus.observe import journal

_RANKS, _ROWS = 4, 16  # logical ranks, samples in a batch
_WAITS = ("run", "target")  # between these two events a trial waits for the end of another one
_SECONDS = 0.02  # for one logical rank's part


@dataclass(frozen=True, kw_only=True)
class Sleeps(Task):
    """A linear model whose loss sleeps."""

    learning_rate: float = 0.1

    def model(self) -> nn.Module:
        """Return a model with a few parameters."""
        return nn.Linear(4, 2)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)

    def loss(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sleep, and return a loss."""
        time.sleep(_SECONDS)
        return outputs.square().mean(dim=1) + 0 * batch["label"]

    def metrics(self) -> dict[str, torchmetrics.Metric]:
        """Return the accuracy; its value does not matter."""
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(2, average="micro")}

    def data(self) -> pa.Table:
        """Return noise."""
        return _noise(1024)

    def evaluation_data(self) -> pa.Table:
        """Return noise."""
        return _noise(16)


def _noise(rows: int) -> pa.Table:
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    labels = np.zeros(rows, np.int64)
    return pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(x), "label": labels})


def defined(trials: int) -> Sweep:
    """Return a sweep of a baseline at several durations only."""
    steps = np.linspace(20, 120, trials).round().astype(int)
    durations = tuple(f"{count * _ROWS}sp" for count in steps)
    task = {"learning_rate": 0.1}
    return Sweep(
        name="idle",
        task="benchmarks.idle:Sleeps",
        space=RecipeSpace(
            baseline=Recipe(duration=durations[-1], batch_size=_ROWS, task=task),
            task={"learning_rate": Range(low=0.1, high=0.2)},
            durations=durations,
        ),
        objective=Objective(metric="accuracy", mode="max"),
        seeds=(17,),
        most_drawn=0,
        logical_ranks=_RANKS,
        resources={"CPU": 0.25},
        calibrate_every=0,
    )


def measured(folder: SweepFolder, workers: int) -> dict[str, Any]:
    """Read the use of the pool from the journals of a sweep's runs."""
    proposed = {e["name"]: e["time"] for e in folder.events() if e["event"] == "proposal"}
    runs = {path.name.rpartition(".")[0]: journal.read(path) for path in folder.runs.iterdir()}
    worked, begins, ends, overheads = 0.0, [], [], []
    for name, events in runs.items():
        steps = [event for event in events if event["event"] == "step"]
        marks = [event for event in events if event["event"] in ("generation", "end")]
        worked += sum(
            (after["time"] - before["time"]) * before["workers"]
            for before, after in pairwise(marks)
        )
        begins.append(marks[0]["time"])
        ends.append(marks[-1]["time"])
        asked, room = (next(e["time"] for e in events if e["event"] == w) for w in _WAITS)
        overheads.append(steps[0]["time"] - proposed[name] - (room - asked))
    seconds = max(ends) - min(begins)
    # The largest are left out: there, a process imported modules.
    warm = sorted(overheads)[: len(overheads) - workers - 1]
    return {
        "trials": len(runs),
        "seconds": round(seconds, 2),
        "idle": round(1.0 - worked / (seconds * workers), 4),
        "to first step": round(statistics.median(warm), 3),
        "at most": round(max(warm), 3),
    }


def main() -> None:
    """Measure both, and print which aims are met."""
    parser = report.parser("idle workers in a sweep of trials of unequal length")
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    trials = 8 if given.quick else 20
    rows = []
    for kind in ("elastic", "fixed"):
        with tempfile.TemporaryDirectory() as storage:
            sweep = defined(trials)
            elastic = kind == "elastic"
            run_sweep(sweep, storage=storage, budget=3600, workers=given.workers, elastic=elastic)
            folder = SweepFolder(Path(storage) / sweep.name)
            rows.append({"pool": kind, **measured(folder, given.workers)})
    report.show(f"a sweep of {trials} trials on {given.workers} workers", rows)
    elastic_idle, fixed_idle = (float(row["idle"]) for row in rows)
    aims = [
        Aim("idle part of the pool, elastic", elastic_idle, most=0.05),
        Aim("of the fixed one's", round(elastic_idle / fixed_idle, 3), most=0.5),
        Aim(
            "from proposed to first step, less waiting for room, median s",
            rows[0]["to first step"],
            most=1.0,
        ),
    ]
    report.finish(aims, {"idle": rows}, as_json=given.json)


if __name__ == "__main__":
    main()

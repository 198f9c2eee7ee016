"""A trial of Ray Tune that would train for hours."""

from dataclasses import dataclass
from pathlib import Path

import ray.tune
import torch
from ray.train import RunConfig, ScalingConfig

from raytrain_plus import ElasticTrainer
from tests.end_to_end.tasks import Momentum


def train(config):
    """Train in a folder, and report each step's loss to Tune on request."""

    def watch(events):
        for event in events:
            if event["event"] == "step" and config["reports"]:
                ray.tune.report({"loss": event["loss"]})

    ElasticTrainer(
        task=Momentum(),
        batch_size=64,
        duration="10000000ba",
        evaluate_every="1dur",
        logical_ranks=4,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(name="long", storage_path=config["storage"]),
    ).fit(watch)


@dataclass
class Rated(Momentum):
    """Trains at a learning rate, and fails once in the middle, if a file is there.

    Attributes:
        rate: the learning rate.
        mark: the file, which is removed.
    """

    rate: float = 0.1
    mark: str = ""
    evaluate_loss = True

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.rate)

    def schedule(self, progress):
        mark = Path(self.mark)
        if progress >= 0.5 and self.rate == 0.1 and mark.exists():
            mark.unlink()
            raise RuntimeError("once")
        return 1.0


def trainer(workers, mark):
    task = Rated(mark=str(mark))
    return ElasticTrainer(
        task=task,
        evaluation_data=task.data(),
        batch_size=64,
        duration="80ba",
        evaluate_every="4ba",
        logical_ranks=4,
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.25}),
    )

"""A trial of Ray Tune that would train for hours."""

import ray.tune
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

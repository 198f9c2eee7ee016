"""Train on a machine that is taken away: the run is killed, resumed, and has the same bits.

    python spot_instance.py

A spot instance disappears without a word. This program does that to a run on one machine:

1. A reference: the run without any disturbance, in this process.
2. The same run in another process with two workers. One worker is killed on the way, and the
   other continues. Then the whole process is killed (SIGKILL) as if the machine was gone.
3. The run is resumed from its last checkpoint, on three workers, to its end.

It compares the digest of the final weights and optimizer of 1 and 3, and the loss of each step.

On real spot machines, keep checkpoints where they survive: a folder that all nodes share, or
`ElasticConfig(checkpoint_storage="s3://bucket/runs")`. Start the same command with `resume=True`
(`--resume`) on the next machine. `raytrain-plus node-agent` on each node tells the run of a notice,
so that workers leave before their machine does.

It takes about two minutes, most of which starts processes:

    killed after 63 steps on 2 workers
    undisturbed: 4a91f55e61b0797b
    resumed:     4a91f55e61b0797b (on 3 workers)
    every loss is equal
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import ray.train
import torch
from sklearn.datasets import load_digits
from torch import nn

from raytrain_plus import ElasticConfig, ElasticTrainer, Fault, Task
from raytrain_plus.observe import journal

KILLED_AFTER = 60  # steps
CHECKPOINT_EVERY = 20


class Digits(Task):
    """1,797 handwritten digits of 8x8 pixels. Dropout and BatchNorm, which make it harder."""

    def model(self):
        return nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
        )

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")

    def data(self):
        digits = load_digits()
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(digits.data.astype("float32") / 16)
        return pa.table({"image": images, "label": digits.target})


def train(name, workers, storage, *, steps, **more):
    return ElasticTrainer(
        task=Digits(),
        batch_size=64,
        duration=f"{steps}ba",
        elastic=ElasticConfig(checkpoint_every=f"{CHECKPOINT_EVERY}ba"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(1, workers) if workers else 0, resources_per_worker={"CPU": 0.5}
        ),
        run_config=ray.train.RunConfig(name=name, storage_path=storage),
        **more,
    ).fit()


def until_killed(workers, storage, steps):
    """Run the program in another process, and kill it once it has trained for a while."""
    command = [sys.executable, __file__, "--victim", str(workers), "--storage", storage]
    process = subprocess.Popen([*command, "--steps", str(steps)], start_new_session=True)
    path = Path(storage) / "spot" / journal.FILE_NAME
    while process.poll() is None:
        events = list(journal.each(path)) if path.exists() else []
        done = max((event["step"] for event in events if event["event"] == "step"), default=0)
        kept = any(event["event"] == "checkpoint" for event in events)
        if done >= KILLED_AFTER and kept:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return done
        time.sleep(0.1)
    raise SystemExit("the process ended before it could be killed")


def losses(storage, name):
    """Return the loss of each step, to the last bit."""
    events = journal.each(Path(storage) / name / journal.FILE_NAME)
    return {event["step"]: event["loss_hex"] for event in events if event["event"] == "step"}


def main(arguments=None):
    options = argparse.ArgumentParser()
    options.add_argument("--storage", default="runs")
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--workers", type=int, nargs=2, default=(2, 3), help="before and after")
    options.add_argument("--victim", type=int, help=argparse.SUPPRESS)
    given = options.parse_args(arguments)
    settings = {"storage": str(Path(given.storage).resolve()), "steps": given.steps}
    if given.victim is not None:
        faults = [Fault(step=30, action="kill")] if given.victim else []
        train("spot", given.victim, faults=faults, **settings)
        return

    before, after = given.workers
    undisturbed = train("undisturbed", 0, **settings).return_value
    done = until_killed(before, **settings)
    print(f"killed after {done} steps on {before} workers")
    resumed = train("spot", after, resume=True, **settings).return_value

    print(f"undisturbed: {undisturbed['digest'][:16]}")
    print(f"resumed:     {resumed['digest'][:16]} (on {after} workers)")
    storage = settings["storage"]
    same = losses(storage, "undisturbed") == losses(storage, "spot")
    print("every loss is equal" if same else "the losses differ")
    if undisturbed["digest"] != resumed["digest"] or not same:
        raise SystemExit("the bits differ: please report it")


if __name__ == "__main__":
    main()

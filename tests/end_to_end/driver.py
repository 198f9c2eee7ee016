"""A driver that joins a cluster and trains, to be killed: a program.

python -m tests.end_to_end.driver ADDRESS STORAGE
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from raytrain_plus.ray_cluster.gcs import present_token

from .runs import cluster, train
from .tasks import Momentum

NAME = "driven"
STEPS = 120
LOGICAL_RANKS = 4
WANTED = {1: LOGICAL_RANKS + 1}  # never reached: each step waits for its patience
PATIENCE = 0.2


def main(address: str, storage: Path) -> None:
    """Run as a command."""
    with cluster() if address == "local" else _joined(address):
        _train(storage)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    present_token()
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    yield


def _train(storage: Path) -> None:
    train(
        Momentum(),
        storage,
        logical_ranks=LOGICAL_RANKS,
        workers=(1, 2),
        wanted=WANTED,
        patience=PATIENCE,
        steps=STEPS,
        name=NAME,
        hang_deadline=180.0,
        checkpoint_every="20ba",
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""A driver that joins a cluster and trains, to be killed: a program.

python -m tests.end_to_end.driver ADDRESS STORAGE
"""

import sys
from pathlib import Path

import ray

from raytrain_plus.elastic.steering import present_token

from .runs import train
from .tasks import Momentum

NAME = "driven"
STEPS = 120
LOGICAL_RANKS = 4


def main(address: str, storage: Path) -> None:
    """Run as a command."""
    present_token()
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    train(
        Momentum(),
        storage,
        logical_ranks=LOGICAL_RANKS,
        workers=(1, 2),
        wanted={1: LOGICAL_RANKS + 1},  # never so many: each step waits for its patience
        patience=0.2,
        steps=STEPS,
        name=NAME,
        hang_deadline=180.0,
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""The driver of a run on the hosts of a lab: a program for the host that is Ray's head.

    python -m tests.end_to_end.lab_driver STORAGE

Its steps are slow until there is a file `hurry` in the run's folder. It prints the run's summary,
and which host has which of Ray's nodes.
"""

# ruff: noqa: T201 - a command
import json
import sys
from pathlib import Path

import ray

from .runs import train
from .tasks import Plain

NAME = "lab"
STEPS = 600
LOGICAL_RANKS = 4
WORKERS = 3
PACE = 0.1  # seconds per step, until all faults have happened


def main(storage: Path) -> None:
    """Run as a command."""
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    run = train(
        Plain(),
        storage,
        logical_ranks=LOGICAL_RANKS,
        workers=(1, WORKERS),
        steps=STEPS,
        cpus=1,
        wanted={1: LOGICAL_RANKS + 1},
        patience=PACE,
        name=NAME,
        elsewhere=True,
    )
    nodes = {node["NodeManagerHostname"]: node["NodeID"] for node in ray.nodes()}
    print(json.dumps({"nodes": nodes, "summary": run.summary, "error": run.error}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

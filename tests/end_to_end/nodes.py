"""A run on a cluster whose nodes come, drain, and die: a program, since it has a Ray of its own.

    python -m tests.end_to_end.nodes STORAGE

Each node has room for one worker. The run's journal is left in STORAGE/nodes; what is printed is
its summary, and which node was which.
"""

# ruff: noqa: T201 - a command
import json
import os
import signal
import sys
import time
from pathlib import Path

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from .runs import Event, Script, train, with_workers
from .tasks import Plain

NAME = "nodes"
STEPS = 300
LOGICAL_RANKS = 4
DEADLINE = 5.0

_SLOWLY = 0.3  # seconds per step, until all has happened


class Stage:
    """The cluster, and what is done to it."""

    def __init__(self, storage: Path) -> None:
        self.nodes: dict[str, str] = {}
        self._storage = storage
        self._raylets = {}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        ray.init(self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def add(self, name: str) -> None:
        raylet = self._raylets[name] = self._cluster.add_node(num_cpus=1)
        self.nodes[name] = raylet.node_id

    def drain(self, name: str) -> None:
        accepted, why_not = GcsClient(address=self._cluster.address).drain_node(
            self.nodes[name],
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the price went up",
            int(1000 * (time.time() + 600)),
        )
        assert accepted, why_not

    def kill(self, name: str) -> None:
        self._cluster.remove_node(self._raylets[name], allow_graceful=False)

    def stop_worker(self, name: str, events: list[Event]) -> None:
        """Stop the worker of a node, where there is no other that could end it."""
        there = [e for e in events if e.get("state") == "ready" and e["node"] == self.nodes[name]]
        os.kill(there[-1]["pid"], signal.SIGSTOP)

    def hurry(self) -> None:
        (self._storage / NAME / "hurry").touch()

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def main(storage: Path) -> None:
    """Run as a command."""
    stage = Stage(storage)
    seen: list[Event] = []
    acts = Script(
        (with_workers(1), lambda _: stage.add("drained")),
        (with_workers(2), lambda _: stage.drain("drained")),
        (with_workers(1, generation=3), lambda _: stage.add("killed")),
        (with_workers(2, generation=4), lambda _: stage.stop_worker("killed", seen)),
        (with_workers(1, generation=5), lambda _: None),
        (with_workers(2, generation=6), lambda _: stage.kill("killed")),
        (with_workers(1, generation=7), lambda _: stage.hurry()),
    )

    def director(name: str, events: list[Event]) -> None:
        seen[:] = events
        acts(name, events)

    try:
        run = train(
            Plain(),
            storage,
            logical_ranks=LOGICAL_RANKS,
            workers=(1, 2),
            steps=STEPS,
            cpus=1,
            wanted={1: LOGICAL_RANKS + 1},
            patience=_SLOWLY,
            director=director,
            name=NAME,
            hang_deadline=DEADLINE,
        )
    finally:
        stage.close()
    print(json.dumps({"over": acts.is_over, "nodes": stage.nodes, "summary": run.summary}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

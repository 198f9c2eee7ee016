"""A run on a cluster whose nodes join, drain, and die: a program, since it has its own Ray.

    python -m tests.end_to_end.nodes STORAGE

Each node has room for one worker. The run's journal stays in STORAGE/nodes. It prints the run's
summary, the names of the nodes, the output of the drained node's agent, Ray's deadline for the
draining, and the doctor's findings meanwhile.
"""

# ruff: noqa: T201 - a command
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain_plus.nodes.diagnosis import Expected
from raytrain_plus.nodes.doctor import diagnosis_of, examine
from tests.nodes.metadata_server import ACTION, metadata_server

from .runs import Event, Script, train, with_workers
from .tasks import Occupant, Plain

NAME = "nodes"
STEPS = 300
LOGICAL_RANKS = 4
DEADLINE = 5.0
END = "2040-01-01T00:00:00Z"  # of the drained node, as its cloud says

_SLOWLY = 0.3  # seconds per step, until all has happened


class Stage:
    """The cluster, and the changes to it."""

    def __init__(self, storage: Path) -> None:
        self.nodes: dict[str, str] = {}
        self.agent: list[str] = []
        self.deadline = 0
        self.found: dict[str, Any] = {}
        self._open = contextlib.ExitStack()
        self._storage = storage
        self._raylets = {}
        self._notices = self._open.enter_context(metadata_server())
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        ray.init(self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def add(self, name: str) -> None:
        raylet = self._raylets[name] = self._cluster.add_node(num_cpus=1)
        self.nodes[name] = raylet.node_id

    def drain(self, name: str) -> None:
        """Let the cloud announce the end of a node; its agent tells Ray."""
        node = self.nodes[name]
        # An actor that stays there keeps Ray from ending the node before it is checked.
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        lodger = ray.remote(num_cpus=0)(Occupant).options(scheduling_strategy=there).remote()
        ray.get(lodger.is_there.remote())
        line = [sys.executable, "-m", "raytrain_plus", "node-agent", "--node-id", node]
        told = ["--address", self._cluster.address, "--metadata-url", self._notices.url]
        agent = subprocess.Popen([*line, *told], stdout=subprocess.PIPE, text=True)
        self._open.callback(agent.wait)
        self._open.callback(agent.kill)
        assert agent.stdout is not None
        self.agent.append(agent.stdout.readline())
        self._notices.said[ACTION] = json.dumps({"action": "terminate", "time": END})
        self.agent.append(agent.stdout.readline())
        self.deadline = ray._private.state.state.get_draining_nodes().get(node, 0)
        self.found = diagnosis_of([vars(n) for n in examine(60.0)], Expected(4)).as_data()
        self._lodger = lodger

    def kill(self, name: str) -> None:
        self._cluster.remove_node(self._raylets[name], allow_graceful=False)

    def stop_worker(self, name: str, events: list[Event]) -> None:
        """Stop the worker of a node on which no other process could end it."""
        there = [e for e in events if e.get("state") == "ready" and e["node"] == self.nodes[name]]
        os.kill(there[-1]["pid"], signal.SIGSTOP)

    def hurry(self) -> None:
        (self._storage / NAME / "hurry").touch()

    def close(self) -> None:
        self._open.close()
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
    seen_of_node = {"agent": stage.agent, "deadline": stage.deadline, "found": stage.found}
    told = {"over": acts.is_over, "nodes": stage.nodes, "summary": run.summary}
    print(json.dumps({**told, **seen_of_node}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

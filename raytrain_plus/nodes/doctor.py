"""Asking every node of a cluster how it is, all at once, and within a deadline."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain_plus.elastic.outside.joining import draining_nodes
from raytrain_plus.nodes.complaints import Complaint, Expected, NodeFacts, complaints
from raytrain_plus.nodes.visit import Visitor

_HEAD = "node:__internal_head__"
_CLOCK_SECONDS = 5.0
_V2_OFF = "RAY_enable_autoscaler_v2=0"


class ClusterFileError(ValueError):
    """A launch file that cannot be read; the message is for people."""


@dataclass(frozen=True)
class Diagnosis:
    """A cluster's nodes, and what is wrong with them."""

    nodes: list[NodeFacts]
    complaints: list[Complaint]

    @property
    def is_well(self) -> bool:
        """Whether nothing grave is wrong."""
        return not any(complaint.grave for complaint in self.complaints)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "well": self.is_well,
            "nodes": [asdict(node) for node in self.nodes],
            "complaints": [asdict(complaint) for complaint in self.complaints],
        }


def diagnosis_of(nodes: Sequence[Mapping[str, Any]], expected: Expected) -> Diagnosis:
    """Make a diagnosis of nodes that are given as data.

    Args:
        nodes: their facts.
        expected: which nodes there should be.
    """
    known = [NodeFacts(**{**node, "disk": tuple(node["disk"])}) for node in nodes]
    return Diagnosis(known, complaints(known, expected))


def examine(deadline: float) -> list[NodeFacts]:
    """Look at all nodes of the cluster that this process has joined; the head comes first.

    Args:
        deadline: seconds within which a node must answer.
    """
    draining = draining_nodes()
    nodes = [_of_ray(node, draining) for node in ray.nodes() if node["Alive"]]
    # Ray lets nobody onto a node that it drains.
    visitors = {node.node_id: _send(node.node_id) for node in nodes if not node.draining}
    looks = {node_id: visitor.look.remote() for node_id, visitor in visitors.items()}
    ray.wait(list(looks.values()), num_returns=len(looks), timeout=deadline)
    seen = [
        node
        if node.draining
        else _seen(node, visitors[node.node_id], looks[node.node_id], deadline)
        for node in nodes
    ]
    for visitor in visitors.values():
        ray.kill(visitor)
    return sorted(seen, key=lambda node: (not node.is_head, node.host, node.node_id))


def read_cluster_file(path: Path) -> Expected:
    """Read from a file for `ray up` which nodes there should be.

    Raises:
        ClusterFileError: it is no such file.
    """
    try:
        told = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterFileError(f"{path} cannot be read: {error}") from None
    provider = told.get("provider") if isinstance(told, dict) else None
    if not isinstance(provider, dict):
        raise ClusterFileError(f"{path} is no file for `ray up`: it has no provider")
    if provider.get("type") == "local":
        workers = tuple(map(str, provider.get("worker_ips") or ()))
        commands = "\n".join(map(str, told.get("head_start_ray_commands") or ()))
        pitfall = (
            "with autoscaler v2 `ray up` does not start all workers of a local provider",
            f"write {_V2_OFF} in front of `ray start --head` in the launch file",
        )
        pitfalls = (pitfall,) if workers and _V2_OFF not in commands else ()
        addresses = (str(provider.get("head_ip")), *workers)
        return Expected(len(addresses), addresses, pitfalls)
    kinds = told.get("available_node_types") or {}
    head = told.get("head_node_type")
    least = [int(kind.get("min_workers") or 0) for kind in kinds.values()] if kinds else []
    return Expected(1 + sum(least)) if head else Expected()


def _of_ray(node: dict[str, Any], draining: set[str]) -> NodeFacts:
    resources = node["Resources"]
    return NodeFacts(
        node_id=node["NodeID"],
        host=node["NodeManagerHostname"],
        address=node["NodeManagerAddress"],
        is_head=_HEAD in resources,
        draining=node["NodeID"] in draining,
        cpus=resources.get("CPU", 0.0),
        object_store=int(resources.get("object_store_memory", 0)),
    )


def _send(node_id: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Visitor)
    return actor.options(scheduling_strategy=there).remote()


def _seen(node: NodeFacts, visitor: Any, look: Any, deadline: float) -> NodeFacts:
    try:
        told = ray.get(look, timeout=0.0)
        began = time.time()
        clock = ray.get(visitor.clock.remote(), timeout=_CLOCK_SECONDS)
    except ray.exceptions.GetTimeoutError:
        return replace(node, trouble=f"it did not answer within {deadline:g} s")
    except RayError as error:
        last = next(reversed(str(error).strip().splitlines()), type(error).__name__)
        return replace(node, trouble=f"it could not be looked at: {last}")
    ended = time.time()
    offset, half = clock - (began + ended) / 2, (ended - began) / 2
    return replace(node, **told, clock_offset=round(offset, 4), clock_error=round(half, 4))

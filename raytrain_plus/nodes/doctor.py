"""Examines all nodes of a cluster at once, within a deadline."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import ray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain_plus.nodes.diagnosis import Expected, NodeFacts, Problem, problems
from raytrain_plus.nodes.node_probe import NodeProbe
from raytrain_plus.plain_yaml import YamlError, read_yaml
from raytrain_plus.ray_cluster.gcs import ClusterError
from raytrain_plus.ray_cluster.joining import draining_nodes

_HEAD = "node:__internal_head__"
_CLOCK_SECONDS = 5.0
_V2_OFF = "RAY_enable_autoscaler_v2=0"


_NODES = TypeAdapter(list[NodeFacts])


class _Provider(BaseModel):
    type: str
    head_ip: str | None = None
    worker_ips: list[str] | None = None


class _Kind(BaseModel):
    min_workers: Annotated[int, Field(ge=0, le=10**6)] | None = None


class _Launch(BaseModel):
    provider: _Provider
    head_start_ray_commands: list[str] | None = None
    available_node_types: dict[str, _Kind] | None = None
    head_node_type: str | None = None


_LAUNCH = TypeAdapter(_Launch)


class ClusterFileError(ValueError):
    """A launch file that cannot be read; the message is for people."""


@dataclass(frozen=True)
class Diagnosis:
    """A cluster's nodes, and what is wrong with them."""

    nodes: list[NodeFacts]
    problems: list[Problem]

    @property
    def is_well(self) -> bool:
        """Whether nothing grave is wrong."""
        return not any(problem.grave for problem in self.problems)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "well": self.is_well,
            "nodes": [asdict(node) for node in self.nodes],
            "problems": [asdict(problem) for problem in self.problems],
        }


def diagnosis_of(nodes: object, expected: Expected) -> Diagnosis:
    """Diagnose nodes that are given as data.

    Args:
        nodes: their facts, as a cluster answers.
        expected: which nodes there should be.

    Raises:
        ClusterError: the data is not that of nodes.
    """
    try:
        known = _NODES.validate_python(nodes)
    except (ValidationError, RecursionError) as error:
        wrong = _wrong(error) if isinstance(error, ValidationError) else "nested too deeply"
        raise ClusterError(f"the cluster answers something else than its nodes: {wrong}") from None
    return Diagnosis(known, problems(known, expected))


def examine(deadline: float) -> list[NodeFacts]:
    """Examine all nodes of the cluster that this process has joined; the head comes first.

    Args:
        deadline: seconds within which a node must answer.
    """
    draining = draining_nodes()
    nodes = [_of_ray(node, draining) for node in ray.nodes() if node["Alive"]]
    # Ray places no actor on a node that it drains.
    probes = {node.node_id: _start_probe(node.node_id) for node in nodes if not node.draining}
    looks = {node_id: probe.look.remote() for node_id, probe in probes.items()}
    ray.wait(list(looks.values()), num_returns=len(looks), timeout=deadline)
    seen = [
        node if node.draining else _seen(node, probes[node.node_id], looks[node.node_id], deadline)
        for node in nodes
    ]
    for probe in probes.values():
        ray.kill(probe)
    return sorted(seen, key=lambda node: (not node.is_head, node.host, node.node_id))


def read_cluster_file(path: Path) -> Expected:
    """Read from a file for `ray up` which nodes there should be.

    Raises:
        ClusterFileError: it is no such file.
    """
    try:
        told = read_yaml(path)
    except (OSError, YamlError) as error:
        raise ClusterFileError(f"{path} cannot be read: {error}") from None
    provider = told.get("provider") if isinstance(told, dict) else None
    if not isinstance(provider, dict):
        raise ClusterFileError(f"{path} is no file for `ray up`: it has no provider")
    try:
        return _expected(_LAUNCH.validate_python(told))
    except ValidationError as error:
        raise ClusterFileError(f"{path} is no file for `ray up`: {_wrong(error)}") from None


def _expected(told: "_Launch") -> Expected:
    provider = told.provider
    if provider.type == "local":
        workers = tuple(provider.worker_ips or ())
        commands = "\n".join(told.head_start_ray_commands or ())
        pitfall = (
            "with autoscaler v2 `ray up` does not start all workers of a local provider",
            f"write {_V2_OFF} in front of `ray start --head` in the launch file",
        )
        pitfalls = (pitfall,) if workers and _V2_OFF not in commands else ()
        addresses = (str(provider.head_ip), *workers)
        return Expected(len(addresses), addresses, pitfalls)
    kinds = told.available_node_types or {}
    least = [kind.min_workers or 0 for kind in kinds.values()]
    return Expected(1 + sum(least)) if told.head_node_type else Expected()


def _wrong(error: ValidationError) -> str:
    """Say in one line which fields are wrong, the first few of them."""
    found = error.errors(include_input=False)[:3]
    return "; ".join(f"{'.'.join(map(str, one['loc']))[:80]}: {one['msg']}" for one in found)


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


def _start_probe(node_id: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(NodeProbe)
    return actor.options(scheduling_strategy=there).remote()


def _seen(node: NodeFacts, probe: Any, look: Any, deadline: float) -> NodeFacts:
    try:
        told = ray.get(look, timeout=0.0)
        began = time.time()
        clock = ray.get(probe.clock.remote(), timeout=_CLOCK_SECONDS)
    except ray.exceptions.GetTimeoutError:
        return replace(node, trouble=f"it did not answer within {deadline:g} s")
    except RayError as error:
        last = next(reversed(str(error).strip().splitlines()), type(error).__name__)
        return replace(node, trouble=f"it could not be looked at: {last}")
    ended = time.time()
    offset, half = clock - (began + ended) / 2, (ended - began) / 2
    return replace(node, **told, clock_offset=round(offset, 4), clock_error=round(half, 4))

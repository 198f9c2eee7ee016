"""Where a run's workers come from: new processes of Ray, or the processes of a worker pool."""

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, cast

import ray

from raytrain_plus.elastic.protocol.handles import (
    CoordinatorHandle,
    ReusedWorkerHandle,
    WorkerHandle,
    WorkerPoolHandle,
)
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.elastic.worker.worker import WorkerActor
from raytrain_plus.names import NAMESPACE
from raytrain_plus.ray_cluster import memory_monitor
from raytrain_plus.ray_cluster.joining import draining_nodes

_NODE_LABEL = "ray.io/node-id"  # which Ray gives to each node
_ISA = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_CBWR": "AVX512",
    },
}


class WorkerSource(Protocol):
    """Provides a run's workers. Only the coordinator's thread calls it."""

    def request(self, worker: str, avoid: str = "") -> "Future[WorkerHandle]":
        """Ask for a worker of that name; its handle may come at once, later, or never.

        Args:
            worker: its name.
            avoid: node on which it starts only if no other node has room.
        """

    def give_back(self, worker: str, handle: WorkerHandle | None) -> None:
        """Return an idle worker; without a handle, one that was requested and is not there yet."""

    def end(self, worker: str, handle: WorkerHandle) -> None:
        """End a worker that cannot be trusted or does not answer."""

    def find(self) -> dict[str, WorkerHandle]:
        """Return the handles of all workers that this run has, by name."""

    def memory_kill(self, handle: WorkerHandle) -> str:
        """Say that Ray's memory monitor has ended a worker; empty if it has not."""

    def draining_nodes(self) -> set[str]:
        """Return the ids of nodes that will be taken away soon."""


def worker_source(spec: RunSpec, coordinator: CoordinatorHandle) -> WorkerSource:
    """Return where a run's workers come from.

    Args:
        spec: the run.
        coordinator: the handle that workers report to.
    """
    if spec.worker_pool is None:
        return FromRay(spec, coordinator)
    return FromPool(spec, coordinator)


class _OnRay:
    """What Ray says of workers."""

    def memory_kill(self, handle: WorkerHandle) -> str:
        """Say that Ray's memory monitor has ended a worker; empty if it has not."""
        return memory_monitor.kill_of(handle)

    def draining_nodes(self) -> set[str]:
        """Return the ids of nodes that Ray is draining."""
        return draining_nodes()


class FromRay(_OnRay):
    """A new process for each worker.

    The actors are detached, and their names begin with the run's name, so that a restarted
    coordinator finds them.
    """

    def __init__(self, spec: RunSpec, coordinator: CoordinatorHandle) -> None:
        self._spec = spec
        self._coordinator = coordinator
        self._actor = ray.remote(concurrency_groups={"control": 2})(WorkerActor)

    def request(self, worker: str, avoid: str = "") -> "Future[WorkerHandle]":
        """Ask Ray; a worker that Ray cannot place yet is demand that an autoscaler sees."""
        taken: Future[WorkerHandle] = Future()
        taken.set_result(
            self._actor.options(
                name=f"{self._spec.name}/{worker}",
                namespace=NAMESPACE,
                lifetime="detached",
                **self._options(avoid),
            ).remote(worker, self._coordinator)
        )
        return taken

    def _options(self, avoid: str) -> dict[str, Any]:
        options = worker_options(self._spec)
        group = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        is_in_group = isinstance(options.get("scheduling_strategy"), group)
        return options if is_in_group else options | placed(avoid)

    def give_back(self, worker: str, handle: WorkerHandle | None) -> None:
        """End it: no other run would use it."""
        if handle is not None:
            self.end(worker, handle)

    def end(self, worker: str, handle: WorkerHandle) -> None:
        """End its process."""
        del worker
        ray.kill(handle)

    def find(self) -> dict[str, WorkerHandle]:
        """Return all workers of the run's name, also those of an earlier run of that name."""
        prefix = f"{self._spec.name}/"
        named = [
            entry["name"]
            for entry in ray.util.list_named_actors(all_namespaces=True)
            if entry["namespace"] == NAMESPACE and entry["name"].startswith(prefix)
        ]
        found = {}
        for name in named:
            with contextlib.suppress(ValueError):  # it has died since
                found[name.removeprefix(prefix)] = ray.get_actor(name, NAMESPACE)
        return found


def placed(avoid: str) -> dict[str, Any]:
    """Return the options by which Ray places an actor on another node, if another has room.

    Args:
        avoid: the node to avoid; empty for none.
    """
    if not avoid:
        return {}
    elsewhere = {_NODE_LABEL: ray.util.scheduling_strategies.NotIn(avoid)}
    strategy = ray.util.scheduling_strategies.NodeLabelSchedulingStrategy(hard={}, soft=elsewhere)
    return {"scheduling_strategy": strategy}


class FromPool(_OnRay):
    """Processes that serve one run after another; see `worker_pool/server.py`."""

    def __init__(self, spec: RunSpec, coordinator: CoordinatorHandle) -> None:
        del coordinator  # the pool knows it
        self._run = spec.name
        self._pool: WorkerPoolHandle = ray.get_actor(str(spec.worker_pool), namespace=NAMESPACE)

    def request(self, worker: str, avoid: str = "") -> "Future[WorkerHandle]":
        """Ask the pool for a free process."""
        requested: Future[WorkerHandle] = self._pool.request_worker.remote(
            self._run, worker, avoid
        ).future()
        return requested

    def give_back(self, worker: str, handle: WorkerHandle | None) -> None:
        """Let the process close the run; the pool waits for that and checks what is left."""
        closed = []
        if handle is not None:
            handle.leave.remote()
            closed = [cast("ReusedWorkerHandle", handle).close_run.remote()]
        self._pool.return_worker.remote(self._run, worker, closed)

    def end(self, worker: str, handle: WorkerHandle) -> None:
        """Kill the process; the pool notices and starts another one."""
        del worker
        ray.kill(handle)

    def find(self) -> dict[str, WorkerHandle]:
        """Ask the pool which processes this run has."""
        found: dict[str, WorkerHandle] = ray.get(self._pool.workers_of.remote(self._run))
        return found


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a run asks of its worker pool.

    Attributes:
        run: its name.
        least, most: workers that it can run with.
        samples: that it will train on.
        options: what its workers' processes ask Ray for.
    """

    run: str
    least: int
    most: int
    samples: int
    options: Mapping[str, Any]


def request_of(spec: RunSpec) -> RunRequest:
    """Return what a run asks of its worker pool."""
    least, most = spec.workers
    return RunRequest(
        run=spec.name,
        least=least,
        most=most,
        samples=spec.clock.total_steps * spec.batch_size,
        options=worker_options(spec),
    )


def worker_options(spec: RunSpec) -> dict[str, Any]:
    """Return what the process of a run's worker asks Ray for."""
    options = process_options(spec.resources, spec.elastic.isa, spec.runtime_env)
    return {**options, **spec.placement}


def process_options(
    resources: Mapping[str, float], isa: str | None, env: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a worker's process asks Ray for.

    Args:
        resources: that it holds.
        isa: cap on the instruction set, or None.
        env: Ray's runtime environment.
    """
    if isa is not None:
        env = {**env, "env_vars": {**env.get("env_vars", {}), **_ISA[isa]}}
    wanted = dict(resources)
    return {
        "num_cpus": wanted.pop("CPU", 0),
        "num_gpus": wanted.pop("GPU", 0),
        "resources": wanted,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": dict(env) or None,
    }

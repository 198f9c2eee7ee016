"""The Ray actor around the coordinator: it starts to lead its run when Ray starts or restarts it.

Its class is made for one run and holds that run's description, so that Ray can restart it when no
other process knows the run any more.
"""

import logging
import os
import threading
import time
import traceback

import ray

from raytrain_plus.elastic.coordinator.coordinator import Coordinator
from raytrain_plus.elastic.coordinator.loggers import fed_loggers
from raytrain_plus.elastic.coordinator.worker_sources import request_of
from raytrain_plus.elastic.coordinator.workers import actors_on_ray
from raytrain_plus.elastic.protocol.handles import CoordinatorHandle, WorkerPoolHandle
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.names import NAMESPACE
from raytrain_plus.ray_cluster.metrics import Exporter
from raytrain_plus.storage.fencing import FencedError


def check_not_running(run: str) -> None:
    """Refuse a run if another run of its name lives.

    Raises:
        ValueError: a run of that name lives on this cluster.
    """
    if is_running(run):
        raise ValueError(
            f"run {run!r} lives on this cluster: `raytrain-plus attach {run}` follows it, "
            f"`raytrain-plus stop {run}` ends it; or give another --name"
        )


def is_running(run: str) -> bool:
    """Say whether the cluster that this process has joined has a coordinator of a run."""
    try:
        ray.get_actor(run, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def end_coordinator(spec: RunSpec, coordinator: CoordinatorHandle) -> None:
    """End a run's coordinator after the run."""
    if spec.worker_pool is None:
        ray.kill(coordinator)  # one of a worker pool leads another run next


def start_coordinator(spec: RunSpec) -> CoordinatorHandle:
    """Start a run's coordinator on this node; returns its handle.

    It is detached: the process that started it may end, and find it later by the run's name.
    """
    if spec.worker_pool is not None:
        pool: WorkerPoolHandle = ray.get_actor(spec.worker_pool, namespace=NAMESPACE)
        # By reference: the pool need not be able to import the user's modules.
        spec_ref = ray.put(spec)
        reused: CoordinatorHandle = ray.get(pool.start_run.remote(request_of(spec), [spec_ref]))
        return reused
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    started: CoordinatorHandle = (
        ray.remote(concurrency_groups={"control": 4})(_actor_class(spec))
        .options(
            name=spec.name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            memory=1,  # Ray 2.60 puts an actor that needs nothing at all on any node, by chance
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=here,
        )
        .remote()
    )
    return started


def lead(coordinator: Coordinator, spec: RunSpec) -> None:
    """Lead a run to its end and export its metrics.

    An error of the coordinator itself ends the process, and Ray restarts it.
    """
    exporter = Exporter(spec.name, lambda: coordinator.live.readings(time.time()))
    exporter.start()
    try:
        if coordinator.is_over:
            coordinator.retire()
        else:
            with fed_loggers(spec, coordinator.warn):
                coordinator.run()
    except FencedError as error:
        if error.replaced:
            os._exit(0)  # Ray has started another in its place
        logging.getLogger(__name__).warning("%s", error)
    except BaseException:  # noqa: BLE001 - whatever it is, it is not the end of the run
        traceback.print_exc()
        os._exit(1)
    exporter.stop()


def _actor_class(spec: RunSpec) -> type[Coordinator]:
    class CoordinatorActor(Coordinator):
        def __init__(self) -> None:
            returns = ray.get_runtime_context().was_current_actor_reconstructed
            super().__init__(spec, actors_on_ray(spec), returns=returns)
            threading.Thread(target=self._lead, daemon=True, name="coordinator").start()

        def _lead(self) -> None:
            lead(self, spec)
            # Everything is in the journal; a driver that waits for it may be gone.
            ray.kill(ray.get_actor(spec.name, namespace=NAMESPACE))

    return CoordinatorActor

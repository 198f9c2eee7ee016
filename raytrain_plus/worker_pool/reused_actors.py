"""Actors that outlive a run: each has one Worker or Coordinator after the other.

Starting processes and importing libraries make a run's start slow. A worker pool
(`worker_pool/server.py`) keeps processes of both kinds warm.
"""

import contextlib
import functools
import gc
import importlib
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import ray

from raytrain_plus.elastic.coordinator.actor import lead
from raytrain_plus.elastic.coordinator.coordinator import Coordinator
from raytrain_plus.elastic.coordinator.workers import actors_on_ray
from raytrain_plus.elastic.protocol.handles import (
    CoordinatorHandle,
    Ref,
    ReusedCoordinatorHandle,
    WorkerPoolHandle,
)
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.elastic.worker.host import RayHost
from raytrain_plus.elastic.worker.worker import Worker, own_process
from raytrain_plus.observe.stored_journal import open_journal
from raytrain_plus.storage.fencing import FencedError
from raytrain_plus.worker_pool.process_reset import ProcessBaseline

Actor = TypeVar("Actor")


def forwards(served: type) -> Callable[[type[Actor]], type[Actor]]:
    """Give an actor's class the public methods of the object that its `_served` returns.

    Callers use the same handle methods for a reused actor and for one of a single run. Each method
    keeps its concurrency group.

    Args:
        served: the class of that object.
    """

    def forwarding(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)  # also copies the concurrency group
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(self._served(), name)(*args, **kwargs)

        return forward

    def add_methods(actor: type[Actor]) -> type[Actor]:
        for name, method in vars(served).items():
            if callable(method) and not name.startswith("_"):
                assert name not in vars(actor), f"{actor.__name__}.{name} would be replaced"
                setattr(actor, name, forwarding(name, method))
        return actor

    return add_methods


class RunCoordinator:
    """A reused coordinator's handle, for the workers of one run.

    Each call names the run: when it arrives, the process may lead another one.

    Args:
        coordinator: the actor's handle.
        run: the run's name.
    """

    def __init__(self, coordinator: ReusedCoordinatorHandle, run: str) -> None:
        self._coordinator = coordinator
        self._run = run

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        call = self._coordinator.call

        def remote(*args: Any) -> Any:
            return call.remote(self._run, method, *args)

        return SimpleNamespace(remote=remote)


@forwards(Worker)
class ReusedWorker:
    """A worker's process that serves one run after another.

    For each run the pool calls `start_run`, the coordinator calls the methods of a Worker, and then
    `close_run`.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None
        own_process(self._on_notice)
        self._baseline = ProcessBaseline()

    def warm(self) -> str:
        """Import what most tasks use; returns the id of this node when the process is ready."""
        for module in ("torchmetrics", "torch._dynamo"):
            importlib.import_module(module)
        # The reset collects garbage. Libraries hold a million objects that are none.
        gc.collect()
        gc.freeze()
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def start_run(self, worker: str, run: str, coordinator: ReusedCoordinatorHandle) -> None:
        """Begin to serve a run.

        Args:
            worker: the name of this worker in the run.
            run: the run's name.
            coordinator: the handle of its reused coordinator.
        """
        told = cast("CoordinatorHandle", RunCoordinator(coordinator, run))
        # The pool ends a worker whose coordinator is gone for good.
        self._worker = Worker(worker, told, RayHost(on_release=lambda *_: None))

    def close_run(self) -> str:
        """Close the run and reset this process; returns what cannot be reset, or an empty text."""
        worker = self._served()
        folders = worker.import_paths
        try:
            worker.close()
        except Exception as error:  # noqa: BLE001 - an aspect's own; the pool replaces the process
            return f"what it did for the run could not be undone: {error!r}"
        del worker
        self._worker = None
        return self._baseline.restore(folders)

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Never return: the call fails as soon as this process ends."""
        threading.Event().wait()

    def _served(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("this worker process serves no run")
        return self._worker

    def _on_notice(self) -> None:
        worker = self._worker
        if worker is not None:
            worker.notice()


@forwards(Coordinator)
class ReusedCoordinator:
    """A coordinator's process that leads one run after another.

    Args:
        pool: the handle of the worker pool. It learns when a run has ended, and knows which run
            this process leads when Ray has restarted it.
        slot: the number of this process in the pool.
    """

    def __init__(self, pool: WorkerPoolHandle, slot: int) -> None:
        self._pool = pool
        self._coordinator: Coordinator | None = None
        self._leading: threading.Thread | None = None
        self._run = ""
        if ray.get_runtime_context().was_current_actor_reconstructed:
            for spec in ray.get(pool.spec_in.remote(slot)):
                try:
                    self._lead(ray.get(spec), returns=True)
                except (ray.exceptions.RayError, FencedError):
                    # The driver is gone and its spec with it, or another driver has the run.
                    pool.abandon_run_in.remote(slot)

    def start_run(self, spec: Sequence[Ref[RunSpec]], target: int) -> None:
        """Begin to lead a run.

        Args:
            spec: the run, as a list of one reference.
            target: how many workers it has at first.
        """
        if self._leading is not None:
            self._leading.join()
        (run,) = ray.get(list(spec))
        journal = open_journal(run.folder, run.claim)  # the same event as when a user scales a run
        journal.write("target", workers=target, reason="the worker pool has as many for it")
        journal.close()
        self._lead(run, returns=False)

    @ray.method(concurrency_group="control")
    def call(self, run: str, method: str, *args: Any) -> Any:
        """Call a method of a run's coordinator; None if this process leads another run."""
        return getattr(self._served(), method)(*args) if run == self._run else None

    def _served(self) -> Coordinator:
        if self._coordinator is None:
            raise RuntimeError("this coordinator process has led no run yet")
        return self._coordinator

    def _lead(self, spec: RunSpec, *, returns: bool) -> None:
        actors = actors_on_ray(spec)
        coordinator = self._coordinator = Coordinator(spec, actors, returns=returns)
        self._run = spec.name

        def until_end() -> None:
            lead(coordinator, spec)
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._pool.run_ended.remote(spec.name))

        self._leading = threading.Thread(target=until_end, daemon=True, name="coordinator")
        self._leading.start()

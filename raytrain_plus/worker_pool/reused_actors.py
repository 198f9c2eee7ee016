"""Processes that outlive a run: a worker and a coordinator that serve one run after another.

What makes a run slow to begin is what it has in common with all others: processes and imports. A
lender (`worker_pool/server.py`) keeps some of both kinds ready.
"""

import contextlib
import gc
import importlib
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import ray

from raytrain_plus.elastic.coordinator.actor import lead
from raytrain_plus.elastic.coordinator.coordinator import Coordinator
from raytrain_plus.elastic.protocol.handles import (
    CoordinatorHandle,
    LenderHandle,
    Ref,
    ReusedCoordinatorHandle,
)
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.elastic.worker.worker import Worker
from raytrain_plus.observe.journal import Journal
from raytrain_plus.storage.fencing import FencedError
from raytrain_plus.worker_pool.process_reset import ProcessBaseline

_UPLOAD_SECONDS = 10.0


class Addressed:
    """A lent coordinator's handle, for the workers of one run.

    What they say is marked with the run's name, since it may arrive when the coordinator leads
    another one.

    Args:
        coordinator: its handle.
        run: the run's name.
    """

    def __init__(self, coordinator: ReusedCoordinatorHandle, run: str) -> None:
        self._coordinator = coordinator
        self._run = run

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        hear = self._coordinator.hear

        def remote(*given: Any) -> Any:
            return hear.remote(self._run, method, *given)

        return SimpleNamespace(remote=remote)


class LentWorker(Worker):
    """A worker's process, which forgets a run when it is over.

    To be called in turn: `serve`, all that a worker does, `vacate`.
    """

    def __init__(self) -> None:
        super().__init__("", None)
        self._baseline = ProcessBaseline()
        self._own = {"_own", *vars(self)}

    def warm(self) -> None:
        """Return when this process has come up, with what most tasks import."""
        for module in ("torchmetrics", "torch._dynamo"):
            importlib.import_module(module)
        # Between two runs garbage is looked for, and a million objects of libraries are none.
        gc.collect()
        gc.freeze()

    def serve(self, worker: str, run: str, coordinator: ReusedCoordinatorHandle) -> None:
        """Be a worker of a run from now on."""
        self._begin(worker, cast("CoordinatorHandle", Addressed(coordinator, run)))

    def vacate(self) -> str:
        """Forget the run; returns what is left of it in this process, empty if nothing."""
        held = vars(self)  # which is not all there if the task failed while it was prepared
        folders = held["_spec"].import_paths if "_spec" in held else ()
        try:
            if "_loop" in held:
                self._loop.replica.undo_fit()
            if "_uploads" in held:
                self._uploads.finish(_UPLOAD_SECONDS)
            if "_lifeline" in held:
                self._lifeline.close()
            if "_source" in held:
                self._source.close()
            if "_evaluation" in held and self._evaluation is not None:
                self._evaluation.source.close()
            if "_memory_watch" in held:
                self._memory_watch.close()
            if "_exporter" in held:
                self._exporter.stop()
        except Exception as error:  # noqa: BLE001 - an aspect's own; another process serves as well
            return f"what it did for the run could not be undone: {error!r}"
        for name in set(held) - self._own:
            delattr(self, name)
        self._begin("", None)
        return self._baseline.restore(folders)

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Return never: whoever waits for it is told at once of this process's end."""
        threading.Event().wait()

    def _on_release(self) -> None:
        """The coordinator has let go of us, or has died: the lender knows, and decides."""


class LentCoordinator(Coordinator):
    """A coordinator's process, which leads one run after another.

    Args:
        lender: who is told when a run is over, and knows which one is ours if Ray has started this
            process again.
        place: our number among the lender's coordinators.
    """

    def __init__(self, lender: LenderHandle, place: int) -> None:
        self._lender = lender
        self._place = place
        self._leading: threading.Thread | None = None
        self._name = ""
        if ray.get_runtime_context().was_current_actor_reconstructed:
            for spec in ray.get(lender.led_by.remote(place)):
                try:
                    self._take_up(ray.get(spec), returns=True)
                except (ray.exceptions.RayError, FencedError):
                    # Whoever asked for the run is gone, and it with them; or another has it.
                    lender.abandon_led_by.remote(place)

    def lead(self, spec: Sequence[Ref[RunSpec]], target: int) -> None:
        """Begin to lead a run.

        Args:
            spec: the run; one, as a reference.
            target: how many workers it should have at first.
        """
        if self._leading is not None:
            self._leading.join()
        (run,) = ray.get(list(spec))
        journal = Journal(run.folder)  # as if `scale` had asked for that many
        journal.write("target", workers=target, reason="so many were free")
        journal.close()
        self._take_up(run, returns=False)

    def _take_up(self, spec: RunSpec, *, returns: bool) -> None:
        super().__init__(spec, returns=returns)
        self._name = spec.name
        self._leading = threading.Thread(target=self._lead, daemon=True, name="coordinator")
        self._leading.start()

    @ray.method(concurrency_group="control")
    def hear(self, run: str, method: str, *given: Any) -> Any:
        """Take what is said to the coordinator of a run, if that is who we are."""
        return getattr(self, method)(*given) if run == self._name else None

    def _lead(self) -> None:
        lead(self, self._name)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._lender.ended.remote(self._name))

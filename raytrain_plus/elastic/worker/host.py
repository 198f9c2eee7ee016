"""The process in which a worker runs: what it offers, how it is watched, how it can be reached."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import ray
import torch

from raytrain_plus import exits
from raytrain_plus.elastic.liveness import crashes, stacks
from raytrain_plus.elastic.liveness.lifeline import LifelineServer
from raytrain_plus.elastic.policy.attribution import may_be_a_machines
from raytrain_plus.elastic.protocol import control
from raytrain_plus.elastic.protocol.control import ToCoordinator, ToWorker
from raytrain_plus.elastic.protocol.handles import CoordinatorHandle
from raytrain_plus.elastic.protocol.messages import RunSpec, WorkerProcess
from raytrain_plus.elastic.worker import orphan
from raytrain_plus.elastic.worker.memory_watch import MemoryWatch
from raytrain_plus.elastic.worker.process import prepare_process, users_traceback
from raytrain_plus.observe import output
from raytrain_plus.ray_cluster.metrics import export_traffic
from raytrain_plus.storage.staging import staged
from raytrain_plus.training.endpoint import Endpoint

_LAST_WORD_SECONDS = 0.5  # for the coordinator to hear why a worker ends itself


Receive = Callable[[ToWorker], None]
Send = Callable[[ToCoordinator], bool]


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """How other processes reach a worker.

    Attributes:
        endpoint: where the other workers connect; None if none does.
        lifeline: where the coordinator connects to watch the worker; without a host, nowhere.
        stacks: the descriptor with which a neighbour reads the worker's stacks.
        send: sends a message to the coordinator; says whether one is connected.
    """

    endpoint: Endpoint | None
    lifeline: tuple[str, int, str]
    stacks: int
    send: Send


class WorkerHost(Protocol):
    """What a worker needs of its process. What is opened is closed with the worker."""

    def process(self) -> WorkerProcess:
        """Return the process and its node."""

    def guard(
        self,
        spec: RunSpec,
        worker: str,
        coordinator: CoordinatorHandle,
        closing: contextlib.ExitStack,
    ) -> None:
        """Watch the process on behalf of a run, before anything of the user's is loaded."""

    def device(self, spec: RunSpec, closing: contextlib.ExitStack) -> torch.device:
        """Set what the bits depend on in this process; returns the device to compute on."""

    def open(self, spec: RunSpec, closing: contextlib.ExitStack, receive: Receive) -> Addresses:
        """Make the worker reachable.

        Args:
            spec: the run.
            closing: closes what is opened.
            receive: called, from a thread, with each message of the coordinator.
        """

    def told(self, error: BaseException) -> tuple[str, bool]:
        """Return an error of the task as text, and whether a machine may have caused it."""


class RayHost:
    """The process of a Ray actor.

    Args:
        on_release: called when the coordinator has closed the lifeline or has died. Default: wait
            for its return, and end this process if it does not return.
    """

    def __init__(
        self, on_release: Callable[[RunSpec, LifelineServer], None] = orphan.wait_or_end
    ) -> None:
        self._on_release = on_release

    def process(self) -> WorkerProcess:
        """Return the process and its node."""
        node = ray.get_runtime_context().get_node_id()
        return WorkerProcess(pid=os.getpid(), node=node, host=ray.util.get_node_ip_address())

    def guard(
        self,
        spec: RunSpec,
        worker: str,
        coordinator: CoordinatorHandle,
        closing: contextlib.ExitStack,
    ) -> None:
        """Leave a stack if the process crashes, watch its memory, and keep what it prints."""
        closing.enter_context(staged(spec.folder, spec.output_folder(worker)))
        self._crash_word = crashes.offer(spec.node_folder, worker)

        def end_for_memory(why: str) -> None:  # the process is too large for its node
            with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                word = coordinator.report_memory_shortage.remote(worker, why)
                word.future().result(_LAST_WORD_SECONDS)
            exits.leave_at_once(1)

        closing.callback(MemoryWatch(end_for_memory).close)
        capture = output.of_process()
        capture.serve(spec.output_folder(worker), worker)
        closing.callback(capture.release)

    def device(self, spec: RunSpec, closing: contextlib.ExitStack) -> torch.device:
        """Set what the bits depend on; the process does nothing else, or is reset later."""
        del closing
        return prepare_process(spec.threads, gpu=bool(ray.get_gpu_ids()))

    def open(self, spec: RunSpec, closing: contextlib.ExitStack, receive: Receive) -> Addresses:
        """Make the worker reachable on this node's address."""
        closing.callback(export_traffic(spec.name).stop)
        host = ray.util.get_node_ip_address()
        endpoint = Endpoint(host, spec.secret)
        closing.callback(endpoint.close)
        lifeline = LifelineServer(
            host,
            lambda: self._on_release(spec, lifeline),
            lambda frame: receive(control.to_worker(frame)),
        )
        closing.callback(lifeline.close)
        return Addresses(
            endpoint=endpoint,
            lifeline=lifeline.address,
            stacks=stacks.offer(),
            send=lambda message: lifeline.send(control.encode(message)),
        )

    def told(self, error: BaseException) -> tuple[str, bool]:
        """Return an error of the task as text, and whether a machine may have caused it."""
        return users_traceback(error), may_be_a_machines(error)

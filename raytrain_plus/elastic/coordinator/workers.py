"""A run's workers as Ray actors, and the events that reach its coordinator."""

import concurrent.futures
import contextlib
import os
import queue
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.elastic.coordinator.checkpoint_coordinator import CommitReturned
from raytrain_plus.elastic.coordinator.worker_sources import WorkerSource, worker_source
from raytrain_plus.elastic.liveness import stacks
from raytrain_plus.elastic.liveness.lifeline import Lifelines
from raytrain_plus.elastic.policy.make_plan import Member
from raytrain_plus.elastic.protocol.faults import Action
from raytrain_plus.elastic.protocol.handles import Ref, WorkerHandle
from raytrain_plus.elastic.protocol.messages import (
    Plan,
    Ready,
    Report,
    RunSpec,
    Sighting,
    Unready,
    WorkerProcess,
    WorkerState,
    WorkerStatus,
)
from raytrain_plus.elastic.protocol.records import Record

_Answer = TypeVar("_Answer")

_PATIENCE_TIMES = 5  # times as long as asking took, an answer is waited for
_STACK_SECONDS = 3.0
_SELF_TEST_SECONDS = 60.0


@dataclass(frozen=True)
class PrepareReturned:
    """A worker's `prepare` call has returned: it is ready, or it failed."""

    worker: str
    ready: Ready | None
    died: str = ""
    failed: str = ""
    process: WorkerProcess | None = None
    transient: bool = False


@dataclass(frozen=True)
class WorkerStarting:
    """A worker has a process and starts to prepare itself."""

    worker: str
    process: WorkerProcess


@dataclass(frozen=True)
class TrainReturned:
    """A worker's `train` call has returned: the generation has ended for it, or it died."""

    worker: str
    generation: int
    report: Report | None
    died: str = ""


@dataclass(frozen=True)
class WorkerLost:
    """A worker's lifeline was closed: its process or its host is gone."""

    worker: str
    why: str


@dataclass(frozen=True)
class PreemptionNotice:
    """A worker was told that it will be preempted."""

    worker: str
    why: str


@dataclass(frozen=True)
class ShareWritten:
    """A worker reports on its share of a checkpoint."""

    worker: str
    share: Share


@dataclass(frozen=True)
class TargetChanged:
    """The run is to have another number of workers; `lost` members are killed for it."""

    workers: int
    lost: int = 0


@dataclass(frozen=True)
class Wakeup:
    """The coordinator should look at what it was asked to do."""


@dataclass(frozen=True)
class _WorkerGranted:
    """A requested worker has a process, or will get none."""

    worker: str
    handle: WorkerHandle | None
    error: BaseException | None


CoordinatorEvent = (
    PrepareReturned
    | WorkerStarting
    | TrainReturned
    | WorkerLost
    | PreemptionNotice
    | ShareWritten
    | CommitReturned
    | TargetChanged
    | Wakeup
)


class WorkerActors:
    """The workers of one run, by their handles. Each is an actor, so that none blocks another.

    Everything that happens to them arrives in one queue.

    Args:
        spec: the run.
        source: where the workers come from.
        node: Ray's id of the coordinator's node.
    """

    def __init__(self, spec: RunSpec, source: WorkerSource, node: str) -> None:
        self.events: queue.Queue[CoordinatorEvent | _WorkerGranted] = queue.Queue()
        self._spec = spec
        self._source = source
        self._awaited: set[str] = set()
        self._faults: dict[str, Action | None] = {}
        self._handles: dict[str, WorkerHandle] = {}
        self._short: dict[str, str] = {}  # worker -> why it ends itself for want of memory
        self._lifelines = Lifelines(lambda worker, why: self.events.put(WorkerLost(worker, why)))
        self._node = node

    def start(self, worker: str, *, fault: Action | None = None, avoid: str = "") -> None:
        """Request a worker, which prepares itself as soon as it has a process.

        Args:
            worker: its name.
            fault: what goes wrong as it prepares itself, or None.
            avoid: node on which it starts only if no other node has room.
        """
        self._awaited.add(worker)
        self._faults[worker] = fault
        future = self._source.request(worker, avoid)
        if future.done():
            self._on_granted(_granted(worker, future))
        else:
            future.add_done_callback(lambda future: self.events.put(_granted(worker, future)))

    def _on_granted(self, event: _WorkerGranted) -> None:
        worker, handle = event.worker, event.handle
        if worker not in self._awaited:
            return  # it was given back before it was there
        self._awaited.remove(worker)
        if event.error is not None or handle is None:
            why = _first_line(event.error or RuntimeError("no process"))
            self.events.put(PrepareReturned(worker, None, died=why))
            return
        self._handles[worker] = handle
        prepared = handle.prepare.remote(self._spec, self._faults.pop(worker, None))
        prepared.future().add_done_callback(
            lambda future: self.events.put(_prepared(worker, future))
        )

    def find(self) -> list[str]:
        """Find the workers that an earlier coordinator has started; returns their names.

        Those of an earlier run of the same name are among them.
        """
        self._handles |= self._source.find()
        return sorted(self._handles)

    def hold(self, worker: str, ready: Ready) -> None:
        """Connect to a worker's lifeline, if it has one: now its end is noticed at once."""
        host, _, _ = ready.lifeline
        if host:
            self._lifelines.hold(worker, ready.lifeline)

    def train(self, worker: str, plan: Plan) -> None:
        """Start a generation on a worker."""
        ref = self._handles[worker].train.remote(plan)
        ref.future().add_done_callback(
            lambda future: self.events.put(_returned(worker, plan.generation, future))
        )

    def ask_pause(self, worker: str, generation: int) -> None:
        """Make a worker raise the flag that pauses the group."""
        self._handles[worker].ask_pause.remote(generation)

    def ask_checkpoint(self, worker: str, generation: int, step: int) -> None:
        """Make a worker raise the flag that makes all take a snapshot after a step."""
        self._handles[worker].ask_checkpoint.remote(generation, step)

    def abort(self, workers: Sequence[str], generation: int, reason: str) -> None:
        """Abort a generation on some workers."""
        for worker in workers:
            self._handles[worker].abort.remote(generation, reason)

    def statuses(self, workers: Sequence[str], timeout: float) -> dict[str, WorkerStatus | None]:
        """Ask workers what they are doing; None for those that do not answer. Thread-safe."""
        return self._ask("status", workers, timeout)

    def states(self, workers: Sequence[str], timeout: float) -> dict[str, WorkerState | None]:
        """Ask workers for their state after a restart of the coordinator; None for no answer."""
        return self._ask("state", workers, timeout)

    def _ask(self, method: str, workers: Sequence[str], timeout: float) -> dict[str, Any]:
        answers: dict[str, Any] = dict.fromkeys(workers)
        handles = self._handles.copy()  # another thread may end a worker meanwhile
        began = time.monotonic()
        asked = {w: getattr(handles[w], method).remote().future() for w in workers if w in handles}
        asking = time.monotonic() - began  # answers take as long, if there are many
        concurrent.futures.wait(asked.values(), max(timeout, _PATIENCE_TIMES * asking))
        for worker, future in asked.items():
            if future.done():
                with contextlib.suppress(RayError):
                    answers[worker] = future.result()
        return answers

    def computes_right(self, worker: str) -> bool:
        """Make a worker repeat its probe; False if the result differs or it does not answer."""
        try:
            return _answer(self._handles[worker].computes_right.remote(), _SELF_TEST_SECONDS)
        except (RayError, TimeoutError):
            return False

    def stack_of(self, member: Member, neighbours: Sequence[Member]) -> Sighting:
        """Return what a process of its node sees of a worker that does not answer."""
        ready = member.ready
        if ready is None:
            return Sighting("unseen", "")
        if ready.node == self._node:
            return stacks.of_neighbour(ready.pid, ready.stacks)
        for handle in self._on_node_of(member, ready, neighbours):
            with contextlib.suppress(RayError, TimeoutError):
                asked = handle.stack_of_neighbour.remote(ready.pid, ready.stacks)
                return _answer(asked, _STACK_SECONDS)
        return Sighting("unseen", "no other worker is on its node to read its stacks")

    def _on_node_of(
        self, member: Member, ready: Ready | WorkerProcess, members: Sequence[Member]
    ) -> list[WorkerHandle]:
        """Return the handles of the other workers on a worker's node."""
        return [
            self._handles[other.worker]
            for other in members
            if other is not member and other.ready is not None and other.ready.node == ready.node
        ]

    def report_memory_shortage(self, worker: str, why: str) -> None:
        """Note why a worker ends itself for want of memory. From any thread."""
        self._short[worker] = why

    def memory_kill(self, worker: str) -> str:
        """Say that a worker was ended for want of memory; empty if it was not.

        It has ended itself, or Ray's memory monitor has ended it.
        """
        if worker in self._short:
            return self._short.pop(worker)
        handle = self._handles.get(worker)
        return "" if handle is None else self._source.memory_kill(handle)

    def records(self, worker: str, after: int, timeout: float) -> list[Record]:
        """Return a worker's records of the steps after a step; none if it does not answer."""
        try:
            return _answer(self._handles[worker].records.remote(after), timeout)
        except (RayActorError, TimeoutError):
            return []

    def save(self, worker: str, step: int) -> str:
        """Make a worker write the checkpoint of a step; returns the digest.

        Raises:
            RayError: the worker is gone or could not write.
        """
        return _answer(self._handles[worker].save.remote(step))

    def rescue(self, worker: str, step: int) -> tuple[str, str]:
        """Make a worker write the checkpoint of a step to a folder of its node.

        Returns:
            The digest, and where it is.

        Raises:
            RayError: the worker is gone or could not write.
        """
        return _answer(self._handles[worker].rescue.remote(step))

    def end(
        self, member: Member, neighbours: Sequence[Member] = (), *, hangs: bool = False
    ) -> None:
        """End a worker at once.

        Ray's own kill is a message to the process. A process that hangs does not read it, so
        another process of the same node sends the signal.
        """
        handle = self._forget(member.worker)
        if handle is None:
            return
        process = member.ready or member.process
        if hangs and process is not None:
            if process.node == self._node:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            else:
                for other in self._on_node_of(member, process, neighbours)[:1]:
                    other.kill_neighbour.remote(process.pid)
        self._source.end(member.worker, handle)

    def release(self, member: Member) -> None:
        """Release a worker that did nothing wrong: another run may use its process."""
        handle = self._forget(member.worker)
        if handle is not None:
            self._source.give_back(member.worker, handle)

    def _forget(self, worker: str) -> WorkerHandle | None:
        """Forget a worker; returns its handle, or None if it has none yet."""
        self._lifelines.release(worker)
        if worker in self._awaited:
            self._awaited.remove(worker)
            self._source.give_back(worker, None)
        return self._handles.pop(worker, None)

    def close(self) -> None:
        """Close all lifelines."""
        self._lifelines.close()

    def kill(self, worker: str) -> None:
        """Kill a worker as if its machine was preempted; the loss is noticed like any other."""
        handle = self._handles.get(worker)
        if handle is not None:
            ray.kill(handle)

    def draining_nodes(self) -> set[str]:
        """Return the ids of nodes that will be taken away soon."""
        return self._source.draining_nodes()

    def end_strangers(self, members: Collection[str]) -> None:
        """End all workers of this run's name that are no members."""
        for worker in list(self._handles):
            if worker not in members:
                self.end(Member(worker))

    def next_event(self, timeout: float) -> CoordinatorEvent | None:
        """Return the next event, or None after `timeout` seconds."""
        with contextlib.suppress(queue.Empty):
            event = self.events.get(timeout=timeout)
            if not isinstance(event, _WorkerGranted):
                return event
            self._on_granted(event)
        return None

    @property
    def is_idle(self) -> bool:
        """Whether no event waits in the coordinator's queue."""
        return self.events.empty()

    def tell(self, event: CoordinatorEvent) -> None:
        """Put an event into the coordinator's queue."""
        self.events.put(event)


def actors_on_ray(spec: RunSpec) -> WorkerActors:
    """Return the workers of a run for the coordinator that runs in this Ray actor."""
    context = ray.get_runtime_context()
    return WorkerActors(spec, worker_source(spec, context.current_actor), context.get_node_id())


def missing_resources(
    resources: Mapping[str, float], workers: int, selector: Mapping[str, str] | None = None
) -> str:
    """Say what resources some workers need, and what the cluster has of them.

    Args:
        resources: of each worker.
        workers: how many.
        selector: the labels of the nodes on which they may run. Default: any.
    """
    total = ray.cluster_resources()
    free = ray.available_resources()
    lines = [
        f"{name}: {workers} x {amount:g} = {workers * amount:g} needed, {total.get(name, 0):g} in "
        f"the cluster, {free.get(name, 0):g} free"
        for name, amount in resources.items()
    ]
    if selector:
        lines.append(f"only nodes with the labels {dict(selector)} count (see `ray list nodes`)")
    return "; ".join(lines)


def _answer(ref: Ref[_Answer], timeout: float | None = None) -> _Answer:
    """Wait for an actor's answer.

    Args:
        ref: the answer.
        timeout: seconds to wait. Default: for ever.

    Raises:
        RayError: the actor is gone, or the call has failed.
        TimeoutError: it has not answered.
    """
    answer: _Answer = ref.future().result(timeout)
    return answer


def _granted(worker: str, taken: "Future[WorkerHandle]") -> _WorkerGranted:
    error = taken.exception()
    return _WorkerGranted(worker, None if error else taken.result(), error)


def _prepared(worker: str, future: "Future[Ready | Unready]") -> PrepareReturned:
    error = future.exception()
    if isinstance(error, RayTaskError) and not isinstance(error, RayActorError):
        return PrepareReturned(
            worker, None, failed=str(error)
        )  # before the worker's own code could run
    if error is not None:
        return PrepareReturned(worker, None, died=_first_line(error))
    answer = future.result()
    if isinstance(answer, Unready):
        failed, process, transient = answer.error, answer.process, answer.transient
        return PrepareReturned(worker, None, failed=failed, process=process, transient=transient)
    return PrepareReturned(worker, answer)


def _returned(worker: str, generation: int, future: "Future[Report]") -> TrainReturned:
    error = future.exception()
    if error is None:
        return TrainReturned(worker, generation, future.result())
    return TrainReturned(worker, generation, None, died=_first_line(error))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

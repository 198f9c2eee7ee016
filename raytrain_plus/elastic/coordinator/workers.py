"""A run's workers as Ray actors, and the events that reach its coordinator."""

import concurrent.futures
import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.elastic.coordinator.checkpoint_coordinator import CommitReturned
from raytrain_plus.elastic.coordinator.control_channel import (
    ControlChannel,
    LifelineChannel,
    Questions,
    Received,
    WorkerGoneError,
)
from raytrain_plus.elastic.coordinator.worker_sources import WorkerSource, worker_source
from raytrain_plus.elastic.liveness import stacks
from raytrain_plus.elastic.liveness.lifeline import Gone
from raytrain_plus.elastic.policy.make_plan import Member
from raytrain_plus.elastic.protocol import control
from raytrain_plus.elastic.protocol.faults import Action
from raytrain_plus.elastic.protocol.handles import WorkerHandle
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
    """A generation has ended for a worker, or it died."""

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

    Ray starts their processes, prepares them and ends them. Everything else is said over the
    control channel. Everything that happens to them arrives in one queue.

    Args:
        spec: the run.
        source: where the workers come from.
        node: Ray's id of the coordinator's node.
        channel: makes the control channel. Default: one over the workers' lifelines.

    Attributes:
        on_steps: called, from a thread, with a worker's report of steps.
    """

    on_steps: Callable[[str, int, float, int, Sequence[Record]], None]

    def __init__(
        self,
        spec: RunSpec,
        source: WorkerSource,
        node: str,
        channel: Callable[[Gone, Received], ControlChannel] = LifelineChannel,
    ) -> None:
        self.events: queue.Queue[CoordinatorEvent | _WorkerGranted | Exception] = queue.Queue()
        self._spec = spec
        self._source = source
        self._awaited: set[str] = set()
        self._faults: dict[str, Action | None] = {}
        self._handles: dict[str, WorkerHandle] = {}
        self._short: dict[str, str] = {}  # worker -> why it ends itself for want of memory
        self._channel = channel(self._gone, self._received)
        self._questions = Questions()
        self._reports: queue.SimpleQueue[tuple[str, control.ToCoordinator] | None] = (
            queue.SimpleQueue()
        )
        self._reporting: threading.Thread | None = None
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
        """Connect to a worker: now it serves this coordinator, and its end is noticed at once."""
        self._channel.hold(worker, ready.lifeline)
        served = self._handles[worker].serve.remote()
        served.future().add_done_callback(lambda future: self._served(worker, future))

    def _served(self, worker: str, future: "Future[None]") -> None:
        error = future.exception()
        if error is not None:
            self._gone(worker, _first_line(error))

    def _gone(self, worker: str, why: str) -> None:
        self.events.put(WorkerLost(worker, why))
        self._questions.fail(worker)

    def _received(self, worker: str, message: control.ToCoordinator) -> None:
        if isinstance(message, control.Answer):
            self._questions.answered(message)
        elif isinstance(message, control.ShareReported):
            self.events.put(ShareWritten(worker, message.share))
        else:  # a report of steps takes the coordinator's lock
            if self._reporting is None:
                self._reporting = threading.Thread(target=self._report, daemon=True, name="reports")
                self._reporting.start()
            self._reports.put((worker, message))

    def _report(self) -> None:
        """Take reports in order: the steps of a generation before its end."""
        while (told := self._reports.get()) is not None:
            worker, message = told
            if isinstance(message, control.GenerationEnded):
                self.events.put(TrainReturned(worker, message.generation, message.report))
            elif isinstance(message, control.Steps):
                steps = message.generation, message.started, message.moves, message.records
                try:
                    self.on_steps(worker, *steps)
                except Exception as error:  # noqa: BLE001 - it ends the coordinator's thread
                    self.events.put(error)
                self._channel.send(worker, control.StepsReceived(message.number))

    def train(self, workers: Sequence[str], plan: Plan) -> None:
        """Start a generation on some workers."""
        message = control.Train(plan)
        for worker in workers:
            self._channel.send(worker, message)

    def ask_pause(self, worker: str, generation: int) -> None:
        """Make a worker raise the flag that pauses the group."""
        self._channel.send(worker, control.Pause(generation))

    def ask_checkpoint(self, worker: str, generation: int, step: int) -> None:
        """Make a worker raise the flag that makes all take a snapshot after a step."""
        self._channel.send(worker, control.TakeCheckpoint(generation, step))

    def abort(self, workers: Sequence[str], generation: int, reason: str) -> None:
        """Abort a generation on some workers."""
        message = control.Abort(generation, reason)
        for worker in workers:
            self._channel.send(worker, message)

    def statuses(self, workers: Sequence[str], timeout: float) -> dict[str, WorkerStatus | None]:
        """Ask workers what they are doing; None for those that do not answer. Thread-safe."""
        began = time.monotonic()
        asked = {
            worker: self._questions.ask(self._channel, worker, control.AskStatus)
            for worker in workers
        }
        asking = time.monotonic() - began  # answers take as long, if there are many
        futures = {worker: self._questions.future(number) for worker, number in asked.items()}
        concurrent.futures.wait(futures.values(), max(timeout, _PATIENCE_TIMES * asking))
        answers: dict[str, WorkerStatus | None] = dict.fromkeys(workers)
        for worker, future in futures.items():
            if future.done() and future.exception() is None:
                answer = future.result()
                assert isinstance(answer, control.Status)
                answers[worker] = answer.status
        self._questions.forget(list(asked.values()))
        return answers

    def states(self, workers: Sequence[str], timeout: float) -> dict[str, WorkerState | None]:
        """Ask workers for their state after a restart of the coordinator; None for no answer."""
        answers: dict[str, WorkerState | None] = dict.fromkeys(workers)
        handles = self._handles
        asked = {w: handles[w].state.remote().future() for w in workers if w in handles}
        concurrent.futures.wait(asked.values(), timeout)
        for worker, future in asked.items():
            if future.done():
                with contextlib.suppress(RayError):
                    answers[worker] = future.result()
        return answers

    def _answer(
        self, worker: str, make: Callable[[int], control.ToWorker], timeout: float | None = None
    ) -> control.Answer:
        """Ask a worker and wait for its answer.

        Raises:
            WorkerGoneError: it is gone.
            TimeoutError: it has not answered.
        """
        number = self._questions.ask(self._channel, worker, make)
        try:
            return self._questions.future(number).result(timeout)
        finally:
            self._questions.forget([number])

    def computes_right(self, worker: str) -> bool:
        """Make a worker repeat its probe; False if the result differs or it does not answer."""
        try:
            answer = self._answer(worker, control.CheckArithmetic, _SELF_TEST_SECONDS)
        except (WorkerGoneError, TimeoutError):
            return False
        return isinstance(answer, control.Arithmetic) and answer.right

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
                seen: Sighting = asked.future().result(_STACK_SECONDS)
                return seen
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

    def records(self, worker: str, after: int, timeout: float) -> Sequence[Record]:
        """Return a worker's records of the steps after a step; none if it does not answer."""
        try:
            answer = self._answer(worker, partial(control.AskRecords, after=after), timeout)
        except (WorkerGoneError, TimeoutError):
            return []
        assert isinstance(answer, control.FoundRecords)
        return answer.records

    def save(self, worker: str, step: int) -> str:
        """Make a worker write the checkpoint of a step; returns the digest.

        Raises:
            WorkerGoneError: the worker is gone or could not write.
        """
        return self._save(worker, step, rescue=False).digest

    def rescue(self, worker: str, step: int) -> tuple[str, str]:
        """Make a worker write the checkpoint of a step to a folder of its node.

        Returns:
            The digest, and where it is.

        Raises:
            WorkerGoneError: the worker is gone or could not write.
        """
        saved = self._save(worker, step, rescue=True)
        return saved.digest, saved.place

    def _save(self, worker: str, step: int, *, rescue: bool) -> control.Saved:
        saved = self._answer(worker, partial(control.Save, step=step, rescue=rescue))
        assert isinstance(saved, control.Saved)
        if saved.error:
            raise WorkerGoneError(saved.error)
        return saved

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
        self._channel.release(worker)
        self._questions.fail(worker)
        if worker in self._awaited:
            self._awaited.remove(worker)
            self._source.give_back(worker, None)
        return self._handles.pop(worker, None)

    def close(self) -> None:
        """Close the control channel."""
        self._channel.close()
        self._reports.put(None)

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
            if isinstance(event, Exception):
                raise event
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


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

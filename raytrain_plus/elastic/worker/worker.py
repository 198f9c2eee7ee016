"""The worker: a Ray actor around one replica."""

import contextlib
import copy
import os
import queue
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from raytrain_plus import exits, user_code
from raytrain_plus.algorithms import AspectWarning, Step, Weave
from raytrain_plus.algorithms.naming import unpack
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.checkpointer import CheckpointError
from raytrain_plus.checkpoint.upload import Share, Uploads
from raytrain_plus.elastic.liveness import stacks
from raytrain_plus.elastic.liveness.fault_log import FaultLog
from raytrain_plus.elastic.policy.trust import named
from raytrain_plus.elastic.protocol import control
from raytrain_plus.elastic.protocol.faults import Action
from raytrain_plus.elastic.protocol.handles import CoordinatorHandle
from raytrain_plus.elastic.protocol.messages import (
    Ending,
    Plan,
    Ready,
    Report,
    RunSpec,
    Sighting,
    Unready,
    WorkerState,
    WorkerStatus,
    import_first,
)
from raytrain_plus.elastic.worker import process_faults
from raytrain_plus.elastic.worker.data import open_data, open_evaluations, resolve, told
from raytrain_plus.elastic.worker.fault_injection import WorkerFaults
from raytrain_plus.elastic.worker.fingerprint import fingerprint
from raytrain_plus.elastic.worker.healing import receive_state, send_state
from raytrain_plus.elastic.worker.host import RayHost, WorkerHost
from raytrain_plus.elastic.worker.process import CODE_THAT_MAY_EXIT, USERS
from raytrain_plus.elastic.worker.progress import AbortedError, Progress
from raytrain_plus.elastic.worker.reporter import Records, Reporter
from raytrain_plus.observe import output
from raytrain_plus.ray_cluster.memory_monitor import memory_use
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.stopping import Stopping
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.fencing import check_claim
from raytrain_plus.storage.ownership import Owners
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.cache import TRAFFIC
from raytrain_plus.streams.loader import Batch, Loader, load_step_part, to_device
from raytrain_plus.task import TaskError, TaskWarning, load_task
from raytrain_plus.training.admission import check_start
from raytrain_plus.training.corruption import CorruptionError
from raytrain_plus.training.endpoint import NOWHERE
from raytrain_plus.training.evaluation import named_in
from raytrain_plus.training.flops import Flops, count_flops
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.modes import evaluated
from raytrain_plus.training.purity import check_function
from raytrain_plus.training.state import Replica
from raytrain_plus.training.transport import Transport, TransportError

_UPLOAD_SECONDS = 10.0  # to wait for uploads when the run is closed
_TOLD = (AspectWarning, TaskWarning)  # written to the journal; others go to stderr


def _check_sees_checkpoints(spec: RunSpec) -> None:
    """See that this node shares the folder or store to which its part of a checkpoint would go.

    Raises:
        StoreError: it does not.
        FencedError: another driver has the run.
    """
    store = spec.checkpoint_store
    if not spec.claim:
        return
    seen = Owners(store).latest() is not None
    if not seen and not store.is_local:
        raise StoreError(
            f"node {socket.gethostname()} does not see in {store} what the driver has written "
            "there: give all nodes the same configuration of that store (endpoint, region), or "
            "give it as options of the checkpoints' storage"
        )
    if not seen:
        raise StoreError(
            f"node {socket.gethostname()} does not see the run's folder {store.local_path}, as the "
            "driver does: give a --storage that all nodes share, or keep the checkpoints in object "
            "storage (--checkpoint-storage s3://bucket/folder)"
        )
    check_claim(store, spec.claim)


class Worker:
    """Hosts one replica through one generation after another.

    Methods of the concurrency group `control` are answered while `train` runs.

    Args:
        name: the worker's name in the run.
        coordinator: the coordinator's handle, to which the worker reports.
        host: the process that it runs in. Default: that of a Ray actor.
    """

    def __init__(
        self,
        name: str,
        coordinator: CoordinatorHandle,
        host: WorkerHost | None = None,
    ) -> None:
        self._name = name
        self._coordinator = coordinator
        self._host = host or RayHost()
        self._closing = contextlib.ExitStack()
        self.import_paths: Sequence[str] = ()
        self._progress = Progress()
        self._records = Records()
        self._transport: Transport | None = None
        self._loader: Loader | None = None
        self._ready: Ready | None = None
        self._report_of: Report | None = None
        self._reporter: Reporter | None = None
        self._jobs: queue.SimpleQueue[control.Job | None] = queue.SimpleQueue()

    def prepare(self, spec: RunSpec, fault: Action | None = None) -> Ready | Unready:
        """Load the task and the data, build the replica, and compute the probe.

        Args:
            spec: the run.
            fault: what goes wrong meanwhile: `hang_newcomer`, `edit_task` or None.
        """
        process = self._host.process()
        self._coordinator.report_starting.remote(self._name, process)
        if fault == "hang_newcomer":
            process_faults.stall()
        self._host.guard(spec, self._name, self._coordinator, self._closing)
        try:
            self._ready = self._prepare(spec)
        except USERS as error:  # Ray would hide the traceback, and obey an exit
            text, transient = self._host.told(error)
            return Unready(text, process, transient=transient)
        if fault == "edit_task":
            return replace(self._ready, code=user_code.as_if_edited(self._ready.code, self._task))
        return self._ready

    def _prepare(self, spec: RunSpec) -> Ready:
        self.import_paths = spec.import_paths
        import_first(spec.import_paths)
        _check_sees_checkpoints(spec)
        self._device = self._host.device(spec, self._closing)
        self._spec = spec
        seed_global_generators(seed_for(spec.seed, "task"))
        self._task = load_task(spec.task, spec.task_settings, spec.cwd)
        if spec.initial_weights is not None:
            self._task.initial_weights, self._task.partial_weights = spec.initial_weights
        self._source, self._order = open_data(spec, self._task)
        self._closing.callback(self._source.close)
        self._evaluations = open_evaluations(spec, self._task, self._closing)
        with _for_the_journal() as warned:
            replica = self._build_replica(spec)
            self._loop = TrainingLoop(
                self._task,
                replica,
                self._weave,
                self._progress.enter,
                check_every=spec.elastic.check_every,
                audit_every=spec.elastic.audit_every,
                watch_task=True,
            )
            check_function(self._loop, self._probe)
            check_start(self._task, replica)
        identity = {"data": self._source.identity, "evaluation data": told(self._evaluations)}
        proof = {**identity, **fingerprint(self._loop, self._probe(), self._device)}
        flops = self._flops()
        self._weave.spent()  # the cost of the probe is not the run's
        self._uploads = Uploads(
            spec.checkpoint_store,
            [one for one in self._weave.aspects if not one.observes],
            self._report_share,
            partial(check_claim, spec.checkpoint_store, spec.claim),
            spec.manifest_header(proof),
        )
        self._closing.callback(self._uploads.finish, _UPLOAD_SECONDS)
        victim = WorkerFaults(self._task, replica, self._uploads)
        self._faults = process_faults.Injector(self._name, FaultLog(spec.folder), victim)
        process, reached = self._host.process(), self._host.open(spec, self._closing, self.receive)
        self._endpoint, self._send = reached.endpoint, reached.send
        return Ready(
            pid=process.pid,
            node=process.node,
            host=process.host,
            endpoint=NOWHERE if self._endpoint is None else self._endpoint.address,
            lifeline=reached.lifeline,
            stacks=reached.stacks,
            fingerprint=proof,
            step=replica.step,
            code=user_code.loaded_code(),
            warnings=warned,
            flops=flops,
        )

    def _flops(self) -> Flops:
        """Count the operations of a sample; a model that cannot be counted has none."""
        try:
            peak = self._spec.elastic.peak_tflops
            return count_flops(self._loop.probe, self._probe(), self._device, peak)
        except Exception:  # noqa: BLE001 - such as an operation that no dispatch mode may see
            self._loop.drop_part()
            return Flops()

    def _build_replica(self, spec: RunSpec) -> Replica:
        self._weave = Weave(unpack(spec.algorithms))
        replica = Replica.build(
            self._task,
            spec.seed,
            self._device,
            weave=self._weave,
            clock=spec.clock,
            folder=spec.output_folder(self._name),
        )
        self._closing.callback(replica.undo_fit)
        return replica

    def serve(self) -> None:
        """Do what coordinators want of the training thread, until `leave`.

        A coordinator that was restarted calls it, too: that call waits for the end of this one,
        and both end together.
        """
        while (job := self._jobs.get()) is not None:
            self.execute(job)
        self._jobs.put(None)

    @ray.method(concurrency_group="control")
    def leave(self) -> None:
        """Let `serve` return: the run needs this worker no more."""
        self._jobs.put(None)

    def receive(self, message: control.ToWorker) -> None:
        """Take a message of the coordinator; it is answered while the training thread trains."""
        match message:
            case control.Pause():
                self._progress.ask_pause(message.generation)
            case control.TakeCheckpoint():
                self._progress.ask_checkpoint(message.generation, message.step)
            case control.Abort():
                self._progress.abort(message.generation, message.reason)
            case control.StepsReceived():
                if self._reporter is not None:
                    self._reporter.received(message.number)
            case control.AskStatus():
                self._send(control.Status(message.number, self.status()))
            case control.AskRecords():
                found = self._records.after(message.after)
                self._send(control.FoundRecords(message.number, found))
            case _:
                self._jobs.put(message)

    def execute(self, job: control.Job) -> None:
        """Do what the coordinator wants of the training thread, and tell it the result."""
        match job:
            case control.Train():
                self._send(control.GenerationEnded(job.plan.generation, self.train(job.plan)))
            case control.Save():
                self._send(self._saved(job))
            case control.CheckArithmetic():
                self._send(control.Arithmetic(job.number, self.computes_right()))

    def _saved(self, job: control.Save) -> control.Saved:
        try:
            if not job.rescue:
                return control.Saved(job.number, self.save(job.step))
            digest, place = self.rescue(job.step)
        except Exception as error:  # noqa: BLE001 - of the store, or of an aspect's
            return control.Saved(job.number, error=str(error).strip() or type(error).__name__)
        return control.Saved(job.number, digest, place)

    def train(self, plan: Plan) -> Report:
        """Run one generation: meet, heal, and run steps until it ends."""
        places = [assignment.worker for assignment in plan.assignments]
        index = places.index(self._name)
        transport = self._transport = Transport(index, len(places), self._device)
        faults = [f for f in plan.faults if index in f.victims(len(places))]
        self._report_of, self._reason = None, ""
        self._progress.start_generation(plan, faults, self._faults.hit, self._interrupt)
        reporter = self._reporter = Reporter(self._send, self._progress, self._records)
        self._formed_at = 0.0
        try:
            self._form(plan, transport)
            self._formed_at = time.time()
            self._progress.phase_timer.settle()
            reporter.start(plan.generation, sends=index == 0)
            ending = self._run(plan, transport)
            if ending == "finished":
                self._loop.check_state()
            report = self._report(ending, reason=self._reason)
            transport.close()
        except USERS as error:  # the coordinator decides what to do about it
            transport.abort("the generation is over")  # the other members notice at once
            ours = isinstance(error, (TransportError, AbortedError)) or self._progress.is_aborted
            if isinstance(error, CheckpointError):
                report = self._report("refused", reason=str(error))
            elif isinstance(error, CorruptionError):
                report = self._report("corrupt", corruption=named(error, places))
            elif ours:
                report = self._report("aborted", reason=str(error))
            else:
                text, transient = self._host.told(error)
                report = self._report("failed", error=text, transient=transient)
        if self._loader is not None:
            self._loader.close()
            self._loader = None
        reporter.stop()
        self._loop.end_generation()
        self._progress.end()
        self._report_of = report
        return report

    def computes_right(self) -> bool:
        """Repeat the probe of the start; returns whether the result is the same."""
        assert self._ready is not None
        weave = Weave(unpack(self._spec.algorithms))
        with warnings.catch_warnings():
            for told in _TOLD:
                warnings.simplefilter("ignore", told)
            replica = Replica.build(
                self._task, self._spec.seed, self._device, weave=weave, clock=self._spec.clock
            )
        again = fingerprint(TrainingLoop(self._task, replica, weave), self._probe(), self._device)
        return all(self._ready.fingerprint[key] == value for key, value in again.items())

    def _probe(self) -> Batch:
        batch = copy.deepcopy(resolve(self._spec.probe))  # not the one in Ray's store
        return to_device(batch, self._device)

    def save(self, step: int) -> str:
        """Write the checkpoint of a step alone; returns its digest."""
        replica = self._loop.replica
        assert replica.step == step
        with self._weave.around("checkpoint", Step(replica.training, replica.step)):
            return self._uploads.write_alone(replica)

    def rescue(self, step: int) -> tuple[str, str]:
        """Write the checkpoint of a step to a new folder of this node.

        Returns:
            Its digest, and where it is.
        """
        replica = self._loop.replica
        assert replica.step == step
        folder = tempfile.mkdtemp(prefix=checkpointer.RESCUED)
        with self._weave.around("checkpoint", Step(replica.training, replica.step)):
            digest = self._uploads.write_alone(replica, Store(folder))
        return digest, f"{folder}/{checkpointer.name_of(step)}"

    def close(self) -> None:
        """Undo and close what the worker did in its process for the run.

        Raises:
            Exception: whatever an aspect's own undoing raises; the rest is closed all the same.
        """
        self._closing.close()

    def notice(self) -> None:
        """Tell the coordinator of SIGTERM, so that the worker leaves at the next step boundary."""
        why = "it got SIGTERM"
        threading.Thread(
            target=lambda: self._coordinator.report_notice.remote(self._name, why), daemon=True
        ).start()

    def status(self) -> WorkerStatus:
        """Say what the training thread is doing, and what memory there is: it may be short."""
        transport = self._transport
        waits_for = transport.waits_for if transport is not None else None
        return replace(self._progress.status(waits_for), memory=memory_use())

    @ray.method(concurrency_group="control")
    def state(self) -> WorkerState:
        """Return this worker's state, for a coordinator that was restarted."""
        step = self._loop.replica.step if self._ready is not None else 0
        return WorkerState(
            ready=self._ready,
            generation=self._progress.generation,
            report=self._report_of,
            step=step,
        )

    @ray.method(concurrency_group="control")
    def stack_of_neighbour(self, pid: int, descriptor: int) -> Sighting:
        """Look at another worker of this run on this node, which does not answer."""
        return stacks.of_neighbour(pid, descriptor)

    @ray.method(concurrency_group="control")
    def kill_neighbour(self, pid: int) -> None:
        """End another worker of this run on this node, which does not answer any more."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _form(self, plan: Plan, transport: Transport) -> None:
        """Meet the other members and bring all to the same step."""
        self._progress.enter("meet")
        replica, index = self._loop.replica, transport.index
        receivers = [to for to, source in plan.healed_by.items() if source == index]
        source = plan.healed_by.get(index)
        healing = receivers if source is None else [source, *receivers]
        part = self._loop.group_of(plan.ranges).part(index)
        transport.meet(self._endpoint, plan.endpoints, plan.generation, part, healing)
        self._progress.enter("heal")
        if plan.checkpoint is not None and source is None:
            self._load(plan.checkpoint)
        if source is not None:
            noted = receive_state(replica, source, transport, receivers)
            if noted is not None:
                self._loop.guard.expect(noted)
        elif receivers:
            send_state(replica, receivers, transport, self._loop.guard.noted)
        self._progress.step = replica.step
        self._loop.begin_generation(plan.ranges, transport, alike=plan.bitwise)

    def _load(self, place: str) -> None:
        try:
            store = Store(place, self._spec.elastic.checkpoint_options)
            checkpointer.load(store, self._loop.replica, self._spec.run_id)
        except StoreError as error:  # not the checkpoint's fault: the load is tried again
            raise AbortedError(str(error)) from error

    def _run(self, plan: Plan, transport: Transport) -> Ending:
        replica, clock = self._loop.replica, self._spec.clock
        self._stopping = Stopping(self._spec.stop, plan.evaluations, replica.step, plan.values)
        if clock.evaluation_due(replica.step) and not plan.evaluated:
            self._evaluate(plan, transport)
        if replica.step >= clock.total_steps or self._stops(plan, transport):
            return "finished"
        self._loader = Loader(
            self._source,
            self._order,
            part_rows=self._spec.part_rows,
            lanes=plan.ranges[transport.index],
            first_step=replica.step,
        )
        while True:
            self._progress.enter("fetch")
            parts = self._loader.next(lambda: self._progress.enter("fetch"))
            if self._device.type != "cpu":
                parts = [to_device(part, self._device) for part in parts]
            audit_part = self._audit_part(transport.index)
            self._progress.enter("step")
            result = self._loop.run_step(
                parts,
                ask_pause=self._progress.pause_asked,
                ask_checkpoint=self._progress.checkpoint_asked,
                audit_part=audit_part,
            )
            self._progress.phase_timer.settle()
            self._progress.step = result.step
            self._records.add_step(plan.generation, result)
            self._stopping.add_step(result.step, result.loss, result.logged)
            if result.checkpoint:
                self._take_snapshot(plan, transport)
            if clock.evaluation_due(result.step):
                self._evaluate(plan, transport)
            if result.step >= clock.total_steps or self._stops(plan, transport):
                return "finished"
            if result.pause or result.step == plan.pause_at:
                return "paused"

    def _audit_part(self, place: int) -> Batch | None:
        """Return the part that this worker computes in addition to its own, to check its owner."""
        step = self._loop.replica.step
        audit = self._loop.guard.audit_of(step)
        if audit is None or audit[1] != place:
            return None
        part = load_step_part(
            self._source,
            self._order,
            step,
            audit[0],
            part_rows=self._spec.part_rows,
            steps=self._spec.clock.steps_per_epoch,
        )
        return to_device(part, self._device)

    def _take_snapshot(self, plan: Plan, transport: Transport) -> None:
        self._progress.enter("snapshot")
        self._loop.check_state()
        replica = self._loop.replica
        with self._weave.around("checkpoint", Step(replica.training, replica.step)):
            nodes = [host for host, *_ in plan.endpoints]
            self._uploads.start(replica, transport.index, nodes, plan.generation)

    def _stops(self, plan: Plan, transport: Transport) -> bool:
        """Say whether a rule ends the run here; if so, evaluate the final state."""
        self._reason = self._stopping.reason()
        if self._reason and not self._stopping.is_evaluated:
            self._evaluate(plan, transport, every=True)
        return bool(self._reason)

    def _evaluate(self, plan: Plan, transport: Transport, *, every: bool = False) -> None:
        replica = self._loop.replica
        due = {
            name: evaluation
            for name, evaluation in self._evaluations.items()
            if every or self._spec.clock.evaluation_due(replica.step, name)
        }
        if not due:
            return
        step = Step(replica.training, replica.step)
        samples: list[dict[str, str]] = []
        with self._loop.guard.unchanged(), evaluated(replica.model, replica.optimizer):
            self._loop.buffers.snapshot()
            try:
                values: dict[str, Any] = {}
                for set_name, evaluation in due.items():
                    found = evaluation.run(
                        step, self._weave, plan.ranges, transport, self._progress.enter, set_name
                    )
                    values |= {named_in(set_name, name): one for name, one in found.items()}
                    samples += step.evaluation.shown if step.evaluation else []
            finally:
                self._loop.buffers.restore()
        if len(due) == len(self._evaluations) and (why := self._stopping.unmeasured(values)):
            raise TaskError(why)
        self._records.add_evaluation(plan.generation, replica.step, values, samples)
        self._stopping.add_evaluation(replica.step, values)

    def _report(self, ending: Ending, **why: Any) -> Report:
        replica, phase_timer = self._loop.replica, self._progress.phase_timer
        if ending in ("finished", "paused"):
            phase_timer.settle()
        return Report(
            samples=replica.samples,
            tokens=replica.tokens,
            costs=self._weave.spent(),
            seconds=phase_timer.parts(),
            settled_at=phase_timer.settled_at,
            traffic=TRAFFIC.news(),
            ending=ending,
            step=replica.step,
            committed_at=max(self._records.last_time, self._formed_at),
            formed=self._formed_at > 0,
            digest=replica.digest() if ending == "finished" else "",
            **why,
        )

    def _report_share(self, share: Share) -> None:
        self._send(control.ShareReported(share))

    def _interrupt(self, reason: str) -> None:
        if self._transport is not None:
            self._transport.abort(reason)
        if self._loader is not None:
            self._loader.close()


class WorkerActor(Worker):
    """A worker that has its process for itself."""

    def __init__(self, name: str, coordinator: CoordinatorHandle) -> None:
        super().__init__(name, coordinator)
        own_process(self.notice)


def own_process(on_notice: Callable[[], None]) -> None:
    """Decide how this process ends. To be called in its main thread.

    Args:
        on_notice: called at SIGTERM: the machine will be taken away.
    """
    signal.signal(signal.SIGTERM, lambda *_: on_notice())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the driver's
    exits.refuse_hard_exits(CODE_THAT_MAY_EXIT)
    output.of_process()  # before the user's modules are imported: their log handlers keep a stream


@contextlib.contextmanager
def _for_the_journal() -> Iterator[list[str]]:
    """Collect the texts of the warnings inside that are written to the journal."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        for kind in _TOLD:
            warnings.simplefilter("always", kind)
        yield told
    for one in caught:
        if issubclass(one.category, _TOLD):
            told.append(str(one.message))
        else:
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)

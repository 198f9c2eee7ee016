"""The coordinator: plan, run a generation, learn which workers are left, plan again."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from raytrain_plus.elastic.coordinator.checkpoint_coordinator import (
    CheckpointCoordinator,
    CommitReturned,
)
from raytrain_plus.elastic.coordinator.eviction import evict, evict_all_untrusted
from raytrain_plus.elastic.coordinator.fault_injection import CoordinatorFaults
from raytrain_plus.elastic.coordinator.membership import (
    Handler,
    Membership,
    RunError,
    StoppedError,
)
from raytrain_plus.elastic.coordinator.restart import find_workers
from raytrain_plus.elastic.coordinator.run_log import DivergenceError, RunLog
from raytrain_plus.elastic.coordinator.shipped_journal import open_for_coordinator
from raytrain_plus.elastic.coordinator.status import RunStatus
from raytrain_plus.elastic.coordinator.usage import Usage
from raytrain_plus.elastic.coordinator.workers import (
    CoordinatorEvent,
    PreemptionNotice,
    ShareWritten,
    TargetChanged,
    TrainReturned,
    Wakeup,
    WorkerActors,
    WorkerLost,
    WorkerStarting,
)
from raytrain_plus.elastic.liveness.lifeline import Lifelines
from raytrain_plus.elastic.policy.attribution import Attribution
from raytrain_plus.elastic.policy.hang_detection import Silence, Watch, all_wait, culprits
from raytrain_plus.elastic.policy.make_plan import Situation, make_plan
from raytrain_plus.elastic.policy.rebalance import Rebalancer
from raytrain_plus.elastic.policy.trust import GroupHistory
from raytrain_plus.elastic.protocol.messages import (
    Assignment,
    CoordinatorHealth,
    Corruption,
    Outcome,
    Plan,
    Report,
    RunSpec,
    WorkerProcess,
    WorkerStatus,
)
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.elastic.protocol.run_state import RunState
from raytrain_plus.observe import journal
from raytrain_plus.observe.causes import Cause, sentence
from raytrain_plus.observe.gauges import LiveRun
from raytrain_plus.observe.journal import Event
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.fencing import Fence, FencedError
from raytrain_plus.storage.staging import staged
from raytrain_plus.training.corruption import audit_of

_TICK = 0.25  # seconds between two looks at what sends no event
_DRAIN_POLL = 1.0  # seconds between two questions to Ray for draining nodes
_CALL_SECONDS = 30.0  # to wait for records that may be nowhere else
_GLANCE = 1.0  # seconds to wait for records that can be fetched later
_SETTLE_SECONDS = 10.0  # to wait at the end for a journal that cannot be written
_FOLLOWER_SECONDS = 30.0  # to wait for the driver to ask how the run ended
_FUTILE = 20  # generations in a row without a step, after which the run fails


class Coordinator:
    """Leads one run.

    `run` is the one thread that decides. Methods of the concurrency group `control` only put events
    into its queue. What must outlive this process is in the journal and on the workers.

    Args:
        spec: the run.
        actors: starts, reaches and ends its workers.
        returns: the run had a coordinator before, and this one takes its place.

    Raises:
        FencedError: another driver has the run.

    Attributes:
        is_over: the coordinator before has written the run's end.
        live: the run in numbers.
    """

    def __init__(self, spec: RunSpec, actors: WorkerActors, *, returns: bool = False) -> None:
        self._spec = spec
        self._returns = returns
        self._lock = threading.RLock()
        self._fence = Fence(spec.folder, spec.claim, spec.run_id, spec.address)
        self._fence.acquire()
        self._journal = open_for_coordinator(spec.folder, spec.claim, self._fence.check)
        self._settled = False  # the journal has what it takes of the run's end
        self._end_told = threading.Event()
        self.live = LiveRun(spec.batch_size, spec.clock.total_steps, time.time())
        events: list[Event] = []  # all but the steps, of which there may be millions
        told = self.live.passing(journal.each(self._journal.file), events)
        self._run_log = RunLog(self._journal, told, self._fence.check, self.live.add)
        this_time = journal.since_last_run(events)
        self.is_over = returns and any(event["event"] == "end" for event in this_time)
        self._usage = Usage()
        self._actors = actors
        self._actors.on_steps = self.report_steps
        self._membership = Membership(spec, self._actors, self._run_log)
        self._run_status = RunStatus(spec, self._run_log, self.live, self._membership, self._actors)
        self._watch, self._silence = Watch(spec.elastic), Silence()
        self._group: tuple[Assignment, ...] = ()
        self._running: Generation | None = None
        self._faults = CoordinatorFaults(spec, self._run_log, self._journal, this_time)
        self._membership.fault_of = lambda w: self._faults.of_newcomer(w, self._run_log.step)
        self._generation = 0
        self._causes: Sequence[Cause] = (Cause("start"),)
        self._moves = -1
        self._last_commit: float | None = None
        self._failure: str | None = None
        self._drains_at = 0.0
        self._state = RunState.STARTING
        if any(event["event"] == "stop" for event in this_time):
            self._state = RunState.STOPPING
        if spec.resume_from is not None and not returns:
            place, step = spec.resume_from
            events = [*events, {"event": "checkpoint", "folder": place, "step": step}]
        self._checkpoints = CheckpointCoordinator(spec, self._run_log, self._actors.tell, events)
        self._membership.on_end = lambda worker: self._checkpoints.lost(worker, time.monotonic())
        every = spec.elastic.check_every, spec.elastic.audit_every
        self._attribution = Attribution()
        self._history = GroupHistory(*every, partial(audit_of, spec.seed))
        self._history.recall(this_time)
        threshold = spec.elastic.rebalance_above
        self._rebalancer = Rebalancer(threshold=threshold or 0.5, measures=threshold is not None)
        targets = [e["workers"] for e in this_time if e["event"] == "target"]
        self._membership.target = targets[-1] if targets else self._membership.target

    def run(self) -> Outcome:
        """Train; returns how the run ended. An error of the run is in the outcome, not raised.

        Raises:
            FencedError: another coordinator leads the run now.
        """
        with staged(self._spec.folder, self._spec.output_folder("coordinator")):
            return self._run()

    def _run(self) -> Outcome:
        driver = Lifelines(self._driver_gone)
        if self._spec.driver is not None:
            driver.hold("driver", self._spec.driver)
        try:
            outcome = self._train(driver)
        except FencedError as error:
            self._become(RunState.REPLACED)
            driver.close()
            if not error.replaced:  # else the workers belong to the other coordinator
                self._membership.dismiss_all()
            raise
        self.retire()
        return outcome

    def retire(self) -> None:
        """Release the run's folder after the end: from now on any driver may resume the run."""
        self._fence.release()

    def _train(self, driver: Lifelines) -> Outcome:
        try:
            outcome = self._recover()
            futile = 0
            while outcome is None:
                before = self._run_log.step
                plan = self._plan()
                outcome = self._learn(self._run_generation(plan), plan)
                futile = 0 if self._run_log.step > before else futile + 1
                if futile >= _FUTILE:
                    raise RunError(
                        f"{futile} groups in a row ended without a step, the last because "
                        f"{sentence(self._causes)}: see the `worker` lines of the journal"
                    )
        except StoppedError:
            outcome = self._outcome(RunState.STOPPED, [])
        except (RunError, DivergenceError) as error:
            where = getattr(error, "failed_on", {})
            outcome = self._outcome(RunState.FAILED, [], error=str(error), failed_on=where)
        self._fence.check()  # before workers end that may belong to another coordinator
        self._become(outcome.state)
        driver.close()
        self._membership.dismiss_all()
        self._run_log.extend_to(outcome.steps)
        self._run_log.end(outcome)
        self._journal.settle(_SETTLE_SECONDS)
        self._settled = True
        if self._journal.trouble:  # the driver gets the end when it next asks for our health
            self._end_told.wait(_FOLLOWER_SECONDS)
        return outcome

    def _driver_gone(self, driver: str, why: str) -> None:
        """Stop the run: its driver is gone."""
        self._run_log.note(
            "warning", text=f"the run is stopped because its {driver} is gone: {why}"
        )
        self.stop()

    def _recover(self) -> Outcome | None:
        """Recover an earlier coordinator's workers, or start; returns the outcome if it ended."""
        if self._returns:
            self._generation, reports = find_workers(self._actors, self._membership, self._run_log)
            if self._membership.members:
                self._membership.because(Cause("coordinator"))
                return self._learn(reports)
        else:
            self._faults.forget()
            self._membership.avoid(self._actors.find())
            self._actors.end_strangers(())  # of an earlier run of this name
        self._faults.apply_planned(self._run_log.step, self._group, self._membership)
        self._membership.await_first(self._handle)
        return None

    def report_steps(
        self, worker: str, generation: int, started: float, moves: int, records: Sequence[Record]
    ) -> None:
        """Take a worker's report of committed steps."""
        del worker
        with self._lock:
            if self._state.is_over:
                return
            self._run_log.started(generation, started)
            self._add_records(records)
            if moves != self._moves and generation == self._generation:
                self._moves = moves
                self._watch.note_progress(time.monotonic())

    @ray.method(concurrency_group="control")
    def scale(self, workers: int) -> Event:
        """Change the number of workers from the next step boundary on."""
        least, most = self._spec.workers
        if not least <= workers <= most:
            raise ValueError(f"the run has between {least} and {most} workers, not {workers}")
        self._actors.tell(TargetChanged(workers))
        return {**self._status(), "target": workers}

    @ray.method(concurrency_group="control")
    def lose(self, workers: int, target: int) -> Event:
        """Kill members without notice, and change the number of workers: for replays of traces."""
        self._actors.tell(TargetChanged(target, lost=workers))
        return {**self._status(), "target": target}

    @ray.method(concurrency_group="control")
    def stop(self) -> Event:
        """End the run after the step in flight, and keep its state."""
        with self._lock:
            if not self._state.is_over:  # nothing is written after a run's end
                self._become(RunState.STOPPING)
                self._run_log.note("stop")  # for a coordinator that is restarted
        with contextlib.suppress(StorageError):
            self._run_log.sync()
        self._actors.tell(Wakeup())
        return self._status()

    @ray.method(concurrency_group="control")
    def health(self) -> CoordinatorHealth:
        """Show that this process lives; returns what the journal lacks."""
        waiting = self._journal.waiting()
        # A driver that has the end may shut down Ray: not before the journal had its time.
        if not self._settled or not any(event["event"] == "end" for event in waiting):
            return CoordinatorHealth(unwritten=self._journal.trouble)
        self._end_told.set()
        end = [event for event in waiting if event["event"] in ("generation", "end")]
        return CoordinatorHealth(unwritten=self._journal.trouble, unwritten_end=end)

    @ray.method(concurrency_group="control")
    def report_starting(self, worker: str, process: WorkerProcess) -> None:
        """Take a worker's report that it has a process and starts to prepare itself."""
        self._actors.tell(WorkerStarting(worker, process))

    @ray.method(concurrency_group="control")
    def report_memory_shortage(self, worker: str, why: str) -> None:
        """Take a worker's word that it ends itself, as it is too large for its node."""
        self._actors.report_memory_shortage(worker, why)

    @ray.method(concurrency_group="control")
    def report_notice(self, worker: str, why: str) -> None:
        """Take a worker's report that it will be preempted soon."""
        self._actors.tell(PreemptionNotice(worker, why))

    @ray.method(concurrency_group="control")
    def checkpoint(self) -> Event:
        """Make all workers write a checkpoint as soon as they can."""
        self._checkpoints.request()
        self._actors.tell(Wakeup())
        return self._status()

    @ray.method(concurrency_group="control")
    def status(self) -> Event:
        """Return the status of the run, and what each worker is doing."""
        return {**self._status(), **self._run_status.more(self._group)}

    def _status(self) -> Event:
        with self._lock:
            told = self._run_status.of(self._state, self._generation, self._group)
        trouble = self._journal.trouble
        return {**told, "unwritten": trouble} if trouble else told

    def warn(self, text: str) -> None:
        """Write a warning to the journal, unless the run is over."""
        with self._lock:
            if not self._state.is_over:
                self._run_log.note("warning", text=text)

    @property
    def _is_stopping(self) -> bool:
        return self._state is RunState.STOPPING

    def _become(self, state: RunState) -> None:
        with self._lock:
            self._state = self._state.followed_by(state)

    # -- plan

    def _plan(self) -> Plan:
        """Plan the next generation: of survivors, and of newcomers that are ready."""
        members = self._membership.await_members(self._handle)
        self._fence.check()
        with self._lock:
            self._generation += 1
            previous = self._group
            plan = make_plan(
                self._rebalancer.speeds([member.worker for member in members]),
                members,
                Situation(
                    logical_ranks=self._spec.logical_ranks,
                    generation=self._generation,
                    previous=previous,
                    faults=self._faults.left,
                    evaluated_step=self._run_log.evaluated_step,
                    imbalance=self._rebalancer.imbalance.follow(),
                    bitwise=self._membership.bitwise,
                    checkpoint=self._checkpoints.newest(),
                ),
            )
            if self._spec.stop:
                known = self._run_log.evaluations_to(plan.step)
                plan = replace(plan, evaluations=known, values=self._run_log.values_at(plan.step))
            self._group = plan.assignments
            self._rebalancer.start_generation(self._group)
            names, nodes = [a.worker for a in self._group], [host for host, *_ in plan.endpoints]
            self._checkpoints.start_generation(plan.generation, names, nodes)
            self._run_log.extend_to(plan.step)
            self._history.start_generation(plan.step, {a.worker: a.ranks for a in self._group})
            before = {a.worker for a in previous}
            joined = [Cause("joined", a.worker) for a in self._group if a.worker not in before]
            causes = [*self._membership.pop_causes(), *(joined if previous else ())]
            causes = causes if self._generation > 1 else [Cause("start")]
            self._causes = causes or [Cause("other")]
            self._run_log.expect(plan, self._causes, self._last_commit)
            self._moves = -1
            if not self._is_stopping:
                self._become(RunState.TRAINING)
        return plan

    # -- run a generation

    def _run_generation(self, plan: Plan) -> dict[str, Report]:
        """Run all members; returns the survivors' reports."""
        self._running = Generation(
            plan, self._actors, self._membership, self._run_log, self._watch, self._silence
        )
        try:
            return self._running.run(self._handle, self._look_around)
        finally:
            self._running = None

    def _handle(self, event: CoordinatorEvent | None) -> None:
        """Handler an event that is not about a member of the running generation."""
        self._journal.flush()
        ready = any(member.ready is not None for member in self._membership.members.values())
        if self._is_stopping and self._running is None and not (self._group and ready):
            raise StoppedError("the run was stopped while it waited for workers")
        if isinstance(event, ShareWritten):
            members = self._membership.members
            behind = self._run_log.step < event.share.step
            if behind and event.share.files is not None and event.worker in members:
                # No checkpoint may know more steps than the journal. The wait is short, since the
                # worker may hang by now.
                self._fetch_records_after(event.worker, _GLANCE)
            self._checkpoints.written(event.worker, event.share, members, time.monotonic())
        elif isinstance(event, CommitReturned):
            self._checkpoints.committed(event, time.monotonic())
        else:
            with self._lock:
                self._membership.handle(event, [assignment.worker for assignment in self._group])

    def _look_around(self) -> None:
        """Ask for a pause if the group must change; find draining nodes."""
        now = time.monotonic()
        if now >= self._drains_at:
            self._drains_at = now + _DRAIN_POLL
            self._fence.check()
            self._membership.drain_nodes(self._actors.draining_nodes())
        self._membership.recruit()
        self._membership.give_up_stuck()
        running = self._running
        assert running is not None
        self._journal.flush()
        self._failure = self._failure or self._checkpoints.fatal or self._journal.fatal
        if self._failure is not None:
            running.abort(self._failure)
        if self._is_stopping or self._membership.wants_change([a.worker for a in self._group]):
            running.pause()
        elif self._rebalancer.advises():
            self._membership.because(Cause("rebalanced"))
            running.pause()
        running.ask_checkpoint(self._checkpoints.next_step(self._run_log.step, now))

    # -- learn which workers are left

    def _learn(self, reports: Mapping[str, Report], plan: Plan | None = None) -> Outcome | None:
        """Process the reports of a generation; returns the outcome if the run has ended."""
        steps = {w: self._membership.reported(w, report) for w, report in reports.items()}
        self._run_log.note("usage", generation=self._generation, **self._usage.add(reports))
        top = max(steps.values(), default=-1)
        ahead = sorted(worker for worker, step in steps.items() if step == top >= 0)
        commits = [reports[worker].committed_at for worker in ahead]
        self._last_commit = max(commits, default=self._last_commit)
        early = any(report.reason and report.ending == "finished" for report in reports.values())
        self._catch_up(ahead, top, ends=early)
        on_purpose = self._faults.mark_struck()
        blamed = self._blame(plan, on_purpose=on_purpose)
        if blamed is not None:
            return self._outcome(RunState.FAILED, ahead, error=blamed)
        for report in reports.values():
            if report.ending == "refused" and plan is not None and plan.checkpoint is not None:
                self._checkpoints.refuse(plan.checkpoint, report.reason)
                evict_all_untrusted(self._membership, self._checkpoints)
            if report.corruption is not None:
                self._evict(report.corruption, on_purpose=on_purpose)
                return None
        failed = {w: r for w, r in reports.items() if r.ending == "failed"}
        finished = {w: r for w, r in reports.items() if r.ending == "finished"}
        if self._failure and not failed:
            return self._outcome(RunState.FAILED, ahead, error=str(self._failure))
        if failed and not self._is_transient(failed):
            # Of equal errors, that of one worker may also name the module: the longest says most.
            worker, report = max(failed.items(), key=lambda one: len(one[1].error))
            where = {**self._membership.place_of(worker), "step": report.step + 1}
            return self._outcome(RunState.FAILED, ahead, error=report.error, failed_on=where)
        self._replace(failed, ahead)
        if finished:
            digests = sorted({report.digest for report in finished.values()})
            if len(digests) > 1 and self._membership.bitwise:
                raise RunError(f"the replicas ended with different states: {digests}")
            reason = next(iter(finished.values())).reason
            return self._outcome(RunState.FINISHED, sorted(finished), digests[0], reason=reason)
        if self._is_stopping and ahead:
            return self._outcome(RunState.STOPPED, ahead)
        step = max(top, self._run_log.step)
        self._faults.apply_planned(step, self._group, self._membership)
        self._membership.release_surplus()
        return None

    def _blame(self, plan: Plan | None, *, on_purpose: bool) -> str | None:
        """Return why the run ends, if the task is the likely cause of the losses."""
        losses = self._membership.pop_losses()
        alone = self._membership.target == 1 and plan is not None
        step = self._run_log.step
        return self._attribution.lost(step, losses, alone=alone, on_purpose=on_purpose)

    def _is_transient(self, failed: Mapping[str, Report]) -> bool:
        """Say whether a machine may have caused the errors, so that another one is tried."""
        if len(failed) > 1 or not all(report.transient for report in failed.values()):
            return False
        return not any(self._attribution.failed(r.step, w) for w, r in failed.items())

    def _replace(self, failed: Mapping[str, Report], ahead: list[str]) -> None:
        """Replace the workers on which the task has failed once."""
        for worker, report in failed.items():
            if ahead == [worker]:  # no other worker has the last state
                self._checkpoints.save_last({worker: report.step}, self._actors.save)
            self._membership.replace(worker, report.error)

    def _evict(self, found: Corruption, *, on_purpose: bool) -> None:
        evicted = list(found.accused or found.suspects)
        why = self._attribution.evicted(found.step, evicted, on_purpose=on_purpose)
        if why is not None:
            raise RunError(why)
        evict(
            found,
            self._history,
            self._generation,
            actors=self._actors,
            membership=self._membership,
            checkpoints=self._checkpoints,
            run_log=self._run_log,
        )

    def _catch_up(self, ahead: Sequence[str], top: int, *, ends: bool) -> None:
        """Fetch the steps from a survivor that a lost worker did not report."""
        due = ends or self._spec.clock.evaluation_due(top)
        due = due and self._spec.evaluation_data is not None
        for worker in ahead:
            if self._run_log.step >= top and (not due or self._run_log.evaluated_step >= top):
                return
            self._fetch_records_after(worker, _CALL_SECONDS)

    def _fetch_records_after(self, worker: str, timeout: float) -> None:
        """Fetch the steps that a worker has not reported yet."""
        records = self._actors.records(worker, self._run_log.step, timeout)
        with self._lock:
            self._add_records(records)

    def _add_records(self, records: Sequence[Record]) -> None:
        try:
            commits = self._run_log.add(records, len(self._group))
        except DivergenceError as error:
            self._failure = str(error)
            return
        if records:
            self._silence.clear()
            self._watch.note_progress(time.monotonic(), commits)
        if commits:  # if all workers are lost, no report has the last commit
            self._last_commit = max(self._last_commit or 0.0, *commits)
        for record in records:
            seconds = record.compute_seconds
            known = len(seconds) == len(self._group) > 0 and all(seconds)
            if known and record.generation == self._generation:
                self._rebalancer.add_step(record.step, seconds, record.exchange_seconds)
                self._run_status.add_step(self._group, seconds)

    # -- the end

    def _outcome(
        self,
        state: RunState,
        ahead: Sequence[str],
        digest: str = "",
        error: str = "",
        failed_on: Mapping[str, Any] | None = None,
        reason: str = "",
    ) -> Outcome:
        """Save the last state, if a worker has it, and return the run's outcome."""
        steps = {worker: self._membership.members[worker].step for worker in ahead}
        # A run that goes on from a checkpoint may end before the journal's last step.
        step = max(steps.values(), default=self._run_log.step)
        place, saved = self._checkpoints.save_last(steps, self._actors.save, self._actors.rescue)
        digest = saved or digest
        return Outcome(
            state=state,
            steps=step,
            error=error,
            failed_on=failed_on or {},
            reason=reason,
            digest=digest,
            loss=self._run_log.loss_at(step),
            metrics=self._run_log.metrics_at(step),
            logged=self._run_log.logged,
            generations=self._run_log.generations,
            device_seconds=self._run_log.device_seconds,
            checkpoint=place,
            bitwise=self._membership.bitwise and self._run_log.bitwise,
            faults_left=len(self._faults.left),
            samples=self._usage.samples,
            tokens=self._usage.tokens,
            costs=self._usage.costs,
        )


class Generation:
    """Runs one generation.

    Args:
        plan: who is in it.
        actors: reaches the members.
        membership: knows the members.
        run_log: takes notes.
        watch: says when no member makes progress.
        silence: says which silent members are to blame.

    Attributes:
        running: the members that have neither reported nor been lost.
    """

    def __init__(
        self,
        plan: Plan,
        actors: WorkerActors,
        membership: Membership,
        run_log: RunLog,
        watch: Watch,
        silence: Silence,
    ) -> None:
        self._plan = plan
        self._actors = actors
        self._membership = membership
        self._run_log = run_log
        self._watch = watch
        self.running = {assignment.worker for assignment in plan.assignments}
        self._reports: dict[str, Report] = {}
        self._pause_asked = False
        self._aborted = False
        self._checkpoint_at: int | None = None
        self._silence = silence

    def run(self, handle: Handler, look: Callable[[], None]) -> dict[str, Report]:
        """Run all members.

        Args:
            handle: called with each event that is not about a member's end.
            look: called when no event waits any more, and a few times a second: it looks at all
                members, and must not do so after each of their events.

        Returns:
            What the survivors report; one may have been lost after its report.
        """
        warm = all(self._membership.members[worker].warm for worker in self.running)
        self._watch.start_generation(time.monotonic(), warm=warm)
        self._actors.train(sorted(self.running), self._plan)
        look()  # at once: a checkpoint may be due after the first steps
        looked = time.monotonic()
        while self.running:
            event = self._membership.next_event(_TICK)
            if not self._is_about_a_member(event):
                handle(event)
            if self._actors.is_idle or time.monotonic() - looked >= _TICK or not self.running:
                look()
                looked = time.monotonic()
            if self._watch.overdue(time.monotonic()):
                self._investigate()
        return {w: r for w, r in self._reports.items() if w in self._membership.members}

    def pause(self) -> None:
        """Make all members stop after the same step."""
        if not self._pause_asked and self.running:
            self._pause_asked = True
            for worker in sorted(self.running):
                self._actors.ask_pause(worker, self._plan.generation)

    def ask_checkpoint(self, step: int | None) -> None:
        """Make all members take a snapshot after a step; None if none is due.

        It is requested once, and again if it becomes due earlier.
        """
        if step is None:
            self._checkpoint_at = None
        elif (self._checkpoint_at is None or step < self._checkpoint_at) and self.running:
            self._checkpoint_at = step
            self._actors.ask_checkpoint(min(self.running), self._plan.generation, step)

    def abort(self, reason: str) -> None:
        """Abort all members that still run: only a lost worker's neighbours notice it otherwise."""
        if not self._aborted:
            self._aborted = True
            self._watch.start_generation(time.monotonic(), warm=True)
            self._actors.abort(sorted(self.running), self._plan.generation, reason)

    def _is_about_a_member(self, event: CoordinatorEvent | None) -> bool:
        if isinstance(event, WorkerLost) and event.worker in self.running:
            self._lose(event.worker, event.why)
            return True
        if not isinstance(event, TrainReturned):
            return False
        if event.worker in self.running and event.generation == self._plan.generation:
            if event.report is None:
                self._lose(event.worker, event.died)
            else:
                self._reported(event.worker, event.report)
        return True

    def _reported(self, worker: str, report: Report) -> None:
        self.running.discard(worker)
        self._reports[worker] = report
        if report.ending in ("aborted", "failed", "refused"):
            self.abort(f"{worker}: {report.reason or 'the task failed'}")

    def _lose(self, worker: str, why: str, *, hangs: bool = False) -> None:
        self.running.discard(worker)
        self._membership.lost(worker, why, hangs=hangs)
        self.abort(f"{worker} was lost")

    def _investigate(self) -> None:
        """The group makes no progress: find the workers that hang, and go on without them."""
        deadline, patience = self._watch.deadline, self._watch.answer_seconds
        statuses = self._actors.statuses(sorted(self.running), patience)
        silent = [worker for worker, status in statuses.items() if status is None]
        if silent:  # a question or an answer may have been lost or late
            statuses |= self._actors.statuses(silent, patience)
        late = self._watch.asked()
        # A worker that hangs entered its phase a moment after the last reported progress.
        busy = deadline - patience if late else deadline
        found = culprits(statuses, busy)
        if late and self._aborted:  # there is nothing left to wait for
            found = {**dict.fromkeys(statuses, "it did not leave its group"), **found}
        found = self._without_the_innocent(statuses, found, late=late)
        if found:
            self._note_hang(statuses, found, deadline)
        for worker, why in found.items():
            if worker in self.running:
                self._lose(worker, f"no progress for {deadline:.1f} s: {why}", hangs=True)
        if late and not found and all_wait(statuses, busy):
            self.abort("all members waited for each other")
        if found or late:
            self._watch.note_progress(time.monotonic())

    def _without_the_innocent(
        self, statuses: dict[str, WorkerStatus | None], found: dict[str, str], *, late: bool
    ) -> dict[str, str]:
        """Leave out members that do not answer, if so many are silent that others are to blame."""
        silent = [worker for worker, status in statuses.items() if status is None]
        members = self._membership.members
        nodes = {w: getattr(members[w].ready, "node", "") for w in statuses}
        spared = set(silent).difference(self._silence.blamed(silent, nodes, at_deadline=late))
        if spared and late:
            self._run_log.note(
                "warning",
                text=f"{len(spared)} of {len(statuses)} workers do not answer at the same time: "
                "rather the coordinator's process or the network is in trouble, and none of them "
                "is ended for it yet",
            )
        return {worker: why for worker, why in found.items() if worker not in spared}

    def _note_hang(
        self, statuses: dict[str, WorkerStatus | None], found: dict[str, str], deadline: float
    ) -> None:
        """Write to the journal which workers waited, and where the stacks of the others stand."""
        members = self._membership.members
        stacks = {
            worker: status.stack
            if (status := statuses[worker]) is not None
            else self._actors.stack_of(members[worker], list(members.values())).stack
            for worker in found
        }
        self._run_log.note(
            "hang",
            statuses={
                w: self._described(s) if s is not None else "no answer" for w, s in statuses.items()
            },
            waited=sorted(w for w, s in statuses.items() if s is not None and s.waiting),
            culprits=found,
            stacks=stacks,
            deadline=deadline,
        )

    def _described(self, status: WorkerStatus) -> str:
        text = f"{status.phase} for {status.age:.1f} s"
        if status.waits_for is None:
            return text
        return f"{text}, waiting for {self._plan.assignments[status.waits_for].worker}"

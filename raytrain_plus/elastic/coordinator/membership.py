"""The workers of a run: requests them, admits them, releases them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raytrain_plus import user_code
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.workers import (
    CoordinatorEvent,
    PreemptionNotice,
    PrepareReturned,
    TargetChanged,
    TrainReturned,
    WorkerActors,
    WorkerLost,
    WorkerStarting,
    missing_resources,
)
from raytrain_plus.elastic.liveness import crashes
from raytrain_plus.elastic.policy.admission import difference
from raytrain_plus.elastic.policy.attribution import Loss
from raytrain_plus.elastic.policy.make_plan import Member
from raytrain_plus.elastic.protocol.faults import Action
from raytrain_plus.elastic.protocol.messages import Fingerprint, Ready, Report, RunSpec
from raytrain_plus.observe.causes import Cause
from raytrain_plus.redaction import redacted
from raytrain_plus.training.flops import Flops

_LOOK = 0.25
_FUTILE = 3  # newcomers refused in a row, after which a run without workers fails
_HUNG = 2  # newcomers that hang, after which a run that waits for workers fails
_GRACE = 2.0
_STATUS_SECONDS = 1.0
_FIRST_DELAY = 1.0  # seconds before the next request after a worker failed to start; doubles
_LONGEST_DELAY = 60.0

Handler = Callable[[CoordinatorEvent | None], None]


class RunError(RuntimeError):
    """The run cannot go on; the message is for people.

    Attributes:
        failed_on: `{worker, node, host, step}` where the task failed; empty otherwise.
    """

    def __init__(self, message: str, failed_on: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.failed_on = dict(failed_on or {})


class StoppedError(RuntimeError):
    """The run was asked to stop while it waited for workers."""


class Membership:
    """The members of a run.

    Args:
        spec: the run.
        actors: starts, reaches and ends workers.
        run_log: writes the journal.

    Attributes:
        members: all workers that live or were requested, by name.
        target: how many there should be.
        bitwise: whether all admitted workers compute the same bits.
        on_end: called with each worker that is ended or released.
        fault_of: called with each requested worker; returns the fault that is injected into it.
    """

    def __init__(self, spec: RunSpec, actors: WorkerActors, run_log: RunLog) -> None:
        self._spec = spec
        self._actors = actors
        self._run_log = run_log
        self.members: dict[str, Member] = {}
        self.target = spec.workers[1]
        self.bitwise = True
        self.on_end: Callable[[str], None] = lambda _: None
        self.fault_of: Callable[[str], Action | None] = lambda _: None
        self._started = 0
        self._reference: Fingerprint = run_log.environment
        self._group_once = False
        self._error = ""
        self._failed_on: dict[str, Any] = {}
        self._trouble = ""
        self._warnings: set[str] = set()
        self._code = dict(spec.code)
        self._futile = 0  # newcomers in a row with other code or bits than the run's
        self._delay = _FIRST_DELAY
        self._retry_at = 0.0
        self._failed_node = ""  # node on which the task has failed last, for the next worker
        self._causes: list[Cause] = []
        self._losses: list[Loss] = []
        self._failures: list[tuple[str, str]] = []  # worker, error of the task as it came up

    # -- waiting

    def next_event(self, timeout: float) -> CoordinatorEvent | None:
        """Return the next event, or None after `timeout` seconds."""
        return self._actors.next_event(timeout)

    def await_first(self, handle: Handler) -> None:
        """Wait for the least number of workers that the run may start with.

        Raises:
            RunError: too few were ready in time, or the task failed on them.
        """
        began = time.monotonic()
        self._await(handle, lambda: len(self._available()) >= self._least())
        # Others were requested at the same time and are about to be ready, if they will be.
        until = time.monotonic() + max(_GRACE, (time.monotonic() - began) / 2)
        while len(self._available()) < self.target and time.monotonic() < until:
            handle(self.next_event(_LOOK))

    def await_members(self, handle: Handler) -> list[Member]:
        """Return the workers of the next generation; waits for one if none is left.

        Raises:
            RunError: no worker was ready in time.
        """
        self._await(handle, lambda: bool(self._available() or self._leaving()))
        self._group_once = True
        chosen = self._available()[: self.target]
        top = max(member.step for member in [*self._available(), *self._leaving()])
        if not any(member.step == top for member in chosen):
            # A worker that alone has the latest state stays until another has it, even if it
            # drains.
            holder = [s for s in [*self._available(), *self._leaving()] if s.step == top][:1]
            chosen = [*holder, *chosen][: self._spec.logical_ranks]
        return chosen

    def wants_change(self, group: Sequence[str]) -> bool:
        """Say whether a worker would join or leave if the group paused."""
        staying = [w for w in group if w in self.members and not self.members[w].draining]
        leaving = [w for w in group if w in self.members and self.members[w].draining]
        members = set(group)
        newcomers = [member for member in self._available() if member.worker not in members]
        if newcomers and len(staying) < self.target:
            return True
        return bool(leaving and staying)

    def _await(self, handle: Handler, enough: Callable[[], bool]) -> None:
        timeout = self._spec.elastic.start_timeout
        deadline, hung = time.monotonic() + timeout, 0
        while not enough():
            self.recruit()
            if stuck := self.give_up_stuck():
                hung += stuck
                deadline = time.monotonic() + timeout  # as long for its replacement
            if self._error:
                raise RunError(self._error, self._failed_on)
            if self._futile >= _FUTILE and not (self._available() or self._leaving()):
                raise RunError(self._trouble)
            if hung >= _HUNG and not self._is_coming():
                raise RunError(self._trouble)
            if time.monotonic() > deadline and not self._is_coming():
                least = self._least()
                selector = self._spec.placement.get("label_selector")
                missing = missing_resources(self._spec.resources, least, selector)
                why = self._trouble or (
                    f"Resources: {missing}. "
                    "Ask for fewer workers or less for each, add nodes, or raise start_timeout."
                )
                raise RunError(
                    f"{len(self._available())} of at least {least} workers came up within "
                    f"{self._spec.elastic.start_timeout:g} s. {why}"
                )
            handle(self.next_event(_LOOK))
            while not self._actors.is_idle:  # all that wait, and then one look at all members
                handle(self.next_event(0.0))

    def _is_coming(self) -> bool:
        """Say whether a worker has a process and prepares itself: it has its own time for that."""
        return any(s.ready is None and s.since is not None for s in self.members.values())

    def _least(self) -> int:
        return min(self._spec.workers[0], self.target)

    def _available(self) -> list[Member]:
        """Return the workers that can train: those that have run steps first, then by age."""
        members = [s for s in self.members.values() if s.ready is not None and not s.draining]
        return sorted(members, key=lambda member: not member.warm)

    def _leaving(self) -> list[Member]:
        return [s for s in self.members.values() if s.ready is not None and s.draining]

    # -- coming

    def handle(self, event: CoordinatorEvent | None, group: Sequence[str]) -> None:
        """Handler an event about a worker that is not in the running generation.

        Args:
            event: what has happened; an event of another kind is ignored.
            group: the members of the last generation, in order.
        """
        if isinstance(event, PrepareReturned):
            self.on_prepared(event)
        elif isinstance(event, WorkerStarting):
            self.on_starting(event)
        elif isinstance(event, TrainReturned) and event.report is None:
            self.lost(event.worker, event.died)
        elif isinstance(event, WorkerLost):
            self.lost(event.worker, event.why)
        elif isinstance(event, PreemptionNotice):
            self.drain([event.worker], event.why)
        elif isinstance(event, TargetChanged) and event.lost:
            self.kill_members(group[-event.lost :], event.workers)
        elif isinstance(event, TargetChanged):
            self.set_target(event.workers, "asked for by `scale`")

    def recruit(self) -> None:
        """Request the workers that are missing."""
        if time.monotonic() < self._retry_at:
            return
        wanted = self.target + self._spec.elastic.spares
        while sum(not member.draining for member in self.members.values()) < wanted:
            worker = f"w{self._started}"
            self._started += 1
            self.members[worker] = Member(worker)
            avoid, self._failed_node = self._failed_node, ""
            self._actors.start(worker, fault=self.fault_of(worker), avoid=avoid)

    def on_starting(self, event: WorkerStarting) -> None:
        """Note that a worker has a process; its start timeout begins now."""
        member = self.members.get(event.worker)
        if member is not None:
            member.process, member.since = event.process, time.monotonic()

    def give_up_stuck(self) -> int:
        """End the workers that have a process but are not ready within the start timeout.

        Returns:
            How many were ended.
        """
        ended = 0
        timeout = self._spec.elastic.start_timeout
        for member in list(self.members.values()):
            if member.ready is None and member.since is not None:
                if time.monotonic() - member.since <= timeout:
                    continue
                (status,) = self._actors.statuses([member.worker], _STATUS_SECONDS).values()
                stack = status.stack if status is not None else "it does not answer"
                why = f"it did not come up within {timeout:g} s. It stands here:\n{stack}"
                self._note(member, "failed", why)
                self._give_up(
                    member, f"The last that came, {_place(member)}, hangs: {why}", hangs=True
                )
                ended += 1
        return ended

    def on_prepared(self, event: PrepareReturned) -> None:
        """Admit or refuse a worker that is ready; replace one that failed."""
        member = self.members.get(event.worker)
        if member is None:
            return
        ready = event.ready
        if ready is None:
            self._failed_to_come(member, event)
            return
        if changed := self._other_code(ready):
            self._futile += 1
            self._note(member, "refused", f"it has imported other code than the run: {changed}")
            self._give_up(
                member,
                f"The last that came has imported other code than the run was started with: "
                f"{changed}. Put it back as it was and give the command again with --resume, or "
                "go on with the new code (--resume --accept-changed-code).",
            )
            return
        fingerprint = redacted(ready.fingerprint)  # as the journal keeps it
        if not self._reference and not self._is_as_before(member, fingerprint, ready.flops):
            return
        self._futile = 0
        reason = difference(self._reference, fingerprint)
        if reason and self._spec.elastic.bitwise:
            self._note(member, "refused", f"it computes other bits than the group: {reason}")
            self._give_up(
                member, f"The last that came computes other bits than the group: {reason}."
            )
            return
        if reason:
            self.bitwise = self._run_log.bitwise = False
            self._note(member, "admitted", f"although it may compute other bits: {reason}")
        self._admit(member, ready)
        self._delay, self._trouble = _FIRST_DELAY, ""
        self._run_log.note(
            "worker", worker=member.worker, state="ready", pid=ready.pid, node=ready.node
        )
        for said in sorted(set(ready.warnings) - self._warnings):
            self._warnings.add(said)  # once for the run, not for each worker
            self._run_log.note("warning", text=said)

    def _is_as_before(self, member: Member, fingerprint: Fingerprint, flops: Flops) -> bool:
        """Say whether the first worker of a resumed run computes as those before the resume.

        If it computes differently it is refused or, if that is allowed, the run is marked.
        """
        changed = difference(self._spec.environment, fingerprint, "before it was")
        if changed and self._spec.elastic.bitwise and not self._spec.allow_change:
            self._futile += 1
            why = f"computes other bits than the run before it was resumed: {changed}"
            self._note(member, "refused", f"it {why}")
            self._give_up(
                member,
                f"The last that came, {_place(member)}, {why}. Resume the run where it computes as "
                "before; or allow the change (--allow-change): the run is then marked, and its "
                "bits are those of no undisturbed run.",
            )
            return False
        self._reference = fingerprint
        changes = [f"environment: {changed}"] if changed else []
        self._run_log.computes_with(fingerprint, changes, flops)
        for text in changes:
            said = "the run goes on, and its bits are those of no undisturbed run"
            self._run_log.note("warning", text=f"{text}; {said}")
        return True

    def _other_code(self, ready: Ready) -> str:
        """Say which of the user's files a newcomer has imported in another version."""
        # Of files that the driver has not seen, the first worker's version counts.
        self._code = {**ready.code, **self._code}
        return user_code.difference(self._code, ready.code)

    def _admit(self, member: Member, ready: Ready) -> None:
        member.ready, member.step = ready, ready.step
        self._actors.hold(member.worker, ready)

    def avoid(self, names: Sequence[str]) -> None:
        """Give these names to no new worker: their holders may not have ended yet."""
        taken = [int(name.removeprefix("w")) for name in names]
        self._started = max([self._started, *(number + 1 for number in taken)])

    def readmit(self, worker: str, ready: Ready, step: int) -> None:
        """Admit a worker again that an earlier coordinator had admitted."""
        fingerprint = redacted(ready.fingerprint)
        self._reference = self._reference or fingerprint
        self._code = {**ready.code, **self._code}
        self.bitwise = self.bitwise and not difference(self._reference, fingerprint)
        self.avoid([worker])
        self._group_once = True
        member = self.members[worker] = Member(worker)
        self._admit(member, ready)
        member.step = step

    def _failed_to_come(self, member: Member, event: PrepareReturned) -> None:
        crash = crashes.of(self._spec.node_folder, member.worker)
        why = event.failed or crash or self._actors.memory_kill(member.worker) or event.died
        member.process = member.process or event.process
        self._note(member, "failed", why)
        if event.failed or crash:
            self._failures.append((member.worker, why))
            self._failed_on = {**_location_of(member), "step": 0}
            self._failed_node = self._failed_on.get("node", "")
        self._give_up(member, f"The last that came, {_place(member)}, failed: {why}")
        if (event.failed or crash) and self._is_the_tasks(transient=event.transient or bool(crash)):
            self._error = why

    def _is_the_tasks(self, *, transient: bool) -> bool:
        """Say whether the task is to blame for the failures of workers that started.

        It is not to blame while a worker is ready or prepares itself, nor for a single failure that
        a machine may have caused.
        """
        if self._group_once or any(member.ready is not None for member in self.members.values()):
            return False
        if any(member.since is not None for member in self.members.values()):
            return False
        return len(self._failures) > 1 or not transient

    def _give_up(self, member: Member, why: str, *, hangs: bool = False) -> None:
        self._trouble = why
        self._retry_at = time.monotonic() + self._delay
        self._delay = min(_LONGEST_DELAY, 2 * self._delay)
        self._end(member, hangs=hangs)

    # -- leaving

    def evict(self, worker: str, why: str) -> None:
        """End a worker whose memory or arithmetic is wrong; it will be replaced."""
        member = self.members.get(worker)
        if member is not None:
            self._causes.append(Cause("corruption", worker))
            self._note(member, "evicted", why)
            self._end(member)

    def distrust_after(self, step: int) -> None:
        """Trust no state of a later step any more: a worker that has one must be healed."""
        for member in self.members.values():
            if member.step > step:
                member.step = -1

    def reported(self, worker: str, report: Report) -> int:
        """Note how a generation ended for a worker.

        Returns:
            The committed steps of its state, or -1 if that is not to be trusted.
        """
        member = self.members[worker]
        member.warm = True
        if member.step >= 0 or report.formed:
            member.step = report.step
        return member.step

    def lost(self, worker: str, why: str, *, hangs: bool = False) -> None:
        """End a worker that has died or hangs; it will be replaced."""
        member = self.members.get(worker)
        if member is None:
            return
        crash = crashes.of(self._spec.node_folder, worker)
        short = "" if crash or hangs else self._actors.memory_kill(worker)
        why = crash or short or why
        self._losses.append(Loss(worker, why, crashed=bool(crash), memory=bool(short)))
        self._causes.append(Cause("hung" if hangs else "lost", worker))
        self._note(member, "lost", why)
        self._end(member, hangs=hangs)

    def pop_losses(self) -> list[Loss]:
        """Return the workers that were lost since the last call."""
        losses, self._losses = self._losses, []
        return losses

    def replace(self, worker: str, why: str) -> None:
        """End a worker on which the task failed, if its machine may have caused that."""
        member = self.members.get(worker)
        if member is not None:
            self._causes.append(Cause("failed", worker))
            self._failed_node = _location_of(member).get("node", "")
            self._note(member, "failed", why)
            self._end(member)

    def place_of(self, worker: str) -> dict[str, str]:
        """Return a worker's node and host, with its name."""
        return _location_of(self.members[worker])

    def drain(self, workers: Sequence[str], why: str = "") -> None:
        """Make workers leave at the next step boundary; they will be replaced."""
        for worker in workers:
            member = self.members.get(worker)
            if member is not None and not member.draining:
                member.draining = True
                self._causes.append(Cause("drained", worker))
                self._note(member, "draining", why)

    def drain_nodes(self, nodes: set[str]) -> None:
        """Make the workers of some nodes leave."""
        self.drain(
            [w for w, s in self.members.items() if s.ready is not None and s.ready.node in nodes],
            "its node is being drained",
        )

    def kill_members(self, workers: Sequence[str], target: int) -> None:
        """Kill workers as if their machines were preempted, and set the number of workers."""
        for worker in workers:
            self._actors.kill(worker)
        self.set_target(target, f"{len(workers)} workers were killed without notice", gone=workers)

    def set_target(self, workers: int, reason: str, gone: Sequence[str] = ()) -> None:
        """Change how many workers there should be; those that are `gone` count no more.

        Args:
            workers: how many.
            reason: who wants that, for people.
            gone: members that are being killed.
        """
        if workers == self.target:
            return
        self.target = workers
        self._causes.append(Cause("scaled", detail=str(workers)))
        self._run_log.note("target", workers=workers, reason=reason)
        staying = [s for s in self.members.values() if not s.draining and s.worker not in gone]
        for member in sorted(staying, key=lambda s: (s.ready is not None, s.warm)):
            if len(staying) <= workers + self._spec.elastic.spares:
                break
            staying.remove(member)
            if member.ready is None:
                self._release(member)
            else:
                member.draining = True
                self._note(member, "draining", f"scaled to {workers}: {reason}")

    def release_surplus(self) -> None:
        """Release the workers that drain, unless they alone have the latest state."""
        held = max((member.step for member in self._available()), default=-1)
        for member in self._leaving():
            if member.step <= held:
                self._note(member, "left", "")
                self._release(member)

    def dismiss_all(self) -> None:
        """Release all workers."""
        for member in list(self.members.values()):
            self._release(member)
        self._actors.end_strangers(())
        self._actors.close()

    def _release(self, member: Member) -> None:
        crashes.forget(self._spec.node_folder, member.worker)
        self.members.pop(member.worker, None)
        self.on_end(member.worker)
        self._actors.release(member)

    def _end(self, member: Member, *, hangs: bool = False) -> None:
        crashes.forget(self._spec.node_folder, member.worker)
        self.members.pop(member.worker, None)
        self.on_end(member.worker)
        self._actors.end(member, list(self.members.values()), hangs=hangs)

    # -- status and causes

    def pids(self) -> dict[str, int]:
        """Return the process id of each worker that is ready. Thread-safe."""
        members = list(self.members.values())  # workers come and go meanwhile
        return {s.worker: s.ready.pid for s in members if s.ready is not None}

    def because(self, cause: Cause) -> None:
        """Add a cause for the group to change, unless it is there already."""
        if cause not in self._causes:
            self._causes.append(cause)

    def pop_causes(self) -> list[Cause]:
        """Return the causes for the group to change, and forget them."""
        causes, self._causes = self._causes, []
        return causes

    def _note(self, member: Member, state: str, reason: str) -> None:
        fields: dict[str, Any] = {**_location_of(member), "state": state}
        process = member.ready or member.process
        if process is not None:
            fields["pid"] = process.pid
        self._run_log.note("worker", **fields, reason=reason)


def _location_of(member: Member) -> dict[str, str]:
    process = member.ready or member.process
    if process is None:
        return {"worker": member.worker}
    return {"worker": member.worker, "node": process.node, "host": process.host}


def _place(member: Member) -> str:
    process = member.ready or member.process
    return f"{member.worker} on {process.host}" if process is not None else member.worker

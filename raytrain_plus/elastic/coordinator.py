"""The coordinator: plan, run a generation, learn who is left, plan again."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from raytrain_plus.elastic.account import Account
from raytrain_plus.elastic.chronicle import Chronicle, DivergenceError
from raytrain_plus.elastic.faults import Strikes, due_at
from raytrain_plus.elastic.messages import Event, Outcome, Plan, Report, RunSpec
from raytrain_plus.elastic.plan import Assignment, Member, assign
from raytrain_plus.elastic.pool import Came, Pool, Returned, Woken, draining_nodes
from raytrain_plus.elastic.recruiting import Recruiting, RunError
from raytrain_plus.elastic.reporter import Record
from raytrain_plus.elastic.watch import Watch, all_wait, culprits
from raytrain_plus.observe.journal import Journal
from raytrain_plus.training.checkpoint import step_of

_TICK = 0.25  # seconds between two looks at what nobody tells
_DRAIN_POLL = 1.0
_FUTILE = 20  # generations in a row without a step, after which something is wrong for good


class StoppedError(RuntimeError):
    """Somebody asked the run to stop while it waited for its first workers."""


class Coordinator:
    """Leads one run.

    `run` is the one thread that decides; all else arrives in the pool's queue. Methods of the
    concurrency group `control` only leave word.

    Args:
        spec: the run.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._lock = threading.RLock()
        first = 0 if spec.resume_from is None else step_of(spec.resume_from)
        self._chronicle = Chronicle(Journal(spec.folder), first)
        self._account = Account()
        self._pool = Pool(spec, ray.get_runtime_context().current_actor)
        self._crew = Recruiting(spec, self._pool, self._chronicle)
        self._watch = Watch(spec.elastic)
        self._group: tuple[Assignment, ...] = ()
        self._faults = list(spec.faults)
        self._strikes = Strikes(spec.folder)
        self._generation = 0
        self._cause = "start"
        self._moves = -1
        self._last_commit: float | None = None
        self._scale_to: int | None = None
        self._stopping = False
        self._failure: str | None = None
        self._drains_at = 0.0
        self._state = "starting"

    def run(self) -> Outcome:
        """Train; returns how it ended. Nothing that goes wrong in the run is raised."""
        try:
            self._apply_planned(self._chronicle.step)
            self._crew.await_first(self._handle)
            futile = 0
            while True:
                before = self._chronicle.step
                plan = self._plan()
                reports = self._run_generation(plan)
                outcome = self._learn(reports)
                if outcome is not None:
                    return self._ended(outcome)
                futile = 0 if self._chronicle.step > before else futile + 1
                if futile >= _FUTILE:
                    raise RunError(
                        f"{futile} groups in a row ended without a step, the last because "
                        f"{self._cause}: see the `worker` lines of the journal"
                    )
        except StoppedError:
            return self._ended(self._outcome("stopped", []))
        except (RunError, DivergenceError) as error:
            return self._ended(self._failed(str(error)))
        finally:
            self._crew.dismiss_all()

    @ray.method(concurrency_group="control")
    def told(
        self, worker: str, generation: int, started: float, moves: int, records: list[Record]
    ) -> None:
        """Take a worker's word on steps that are committed."""
        del worker
        with self._lock:
            if self._state == "ended":
                return
            self._chronicle.started(generation, started)
            self._take(records)
            if moves != self._moves and generation == self._generation:
                self._moves = moves
                self._watch.moved(time.monotonic())

    @ray.method(concurrency_group="control")
    def scale(self, workers: int) -> Event:
        """Change how many workers there should be, from the next step boundary on."""
        least, most = self._spec.workers
        if not least <= workers <= most:
            raise ValueError(f"the run has between {least} and {most} workers, not {workers}")
        self._scale_to = workers
        self._pool.wake()
        return {**self._status(), "target": workers}

    @ray.method(concurrency_group="control")
    def stop(self) -> Event:
        """End the run after the step in flight, keeping its state."""
        self._stopping = True
        self._pool.wake()
        return self._status()

    @ray.method(concurrency_group="control")
    def status(self) -> Event:
        """Say how the run stands."""
        return self._status()

    def _status(self) -> Event:
        with self._lock:
            return {
                "run": self._spec.name,
                "state": "stopping" if self._stopping and self._state != "ended" else self._state,
                "step": self._chronicle.step,
                "total_steps": self._spec.clock.total_steps,
                "loss": self._chronicle.loss,
                "metrics": self._chronicle.metrics,
                "generation": self._generation,
                "target": self._crew.target,
                "workers": [a.worker for a in self._group],
                "pids": self._crew.pids(),
                "folder": str(self._spec.folder),
            }

    # -- plan

    def _plan(self) -> Plan:
        """Decide who is in the next generation: survivors, and newcomers that are ready."""
        members = self._crew.await_members(self._handle)
        with self._lock:
            self._generation += 1
            previous = self._group
            self._group = assign(
                self._spec.logical_ranks, [Member(seat.worker) for seat in members], previous
            )
            seats = [self._crew.seats[a.worker] for a in self._group]
            top = max(seat.step for seat in seats)
            sources = [i for i, seat in enumerate(seats) if seat.step == top]
            if not self._crew.bitwise:  # equal steps are then no proof of equal states
                sources = [i for i in sources if seats[i].warm][:1] or sources[:1]
            receivers = [i for i in range(len(seats)) if i not in sources]
            planned = [f.step for f in self._faults if not f.strikes and f.step > top]
            plan = Plan(
                generation=self._generation,
                step=top,
                assignments=self._group,
                healed_by={to: sources[n % len(sources)] for n, to in enumerate(receivers)},
                meeting_point=_ready(seats[0]).meeting_point,
                pause_at=min(planned, default=None),
                evaluated=self._chronicle.evaluated_step >= top,
                faults=[f for f in self._faults if f.strikes],
            )
            before = {a.worker for a in previous}
            joined = [
                f"{a.worker} joined" for a in self._group if previous and a.worker not in before
            ]
            causes = [*self._crew.take_causes(), *joined] if previous else ["start"]
            self._cause = ", ".join(causes) or "regrouped"
            self._chronicle.expect(plan, self._cause, self._last_commit)
            self._moves = -1
            self._state = "training"
        return plan

    # -- run a generation

    def _run_generation(self, plan: Plan) -> dict[str, Report]:
        """Let all members run; returns what the survivors report."""
        reports: dict[str, Report] = {}
        self._running = {a.worker for a in plan.assignments}
        self._pause_asked = False
        self._aborted = False
        warm = all(self._crew.seats[worker].warm for worker in self._running)
        self._watch.begin(time.monotonic(), warm=warm)
        for worker in sorted(self._running):
            self._pool.train(worker, plan)
        while self._running:
            event = self._crew.next_event(_TICK)
            if isinstance(event, Returned):
                if event.worker not in self._running or event.generation != plan.generation:
                    continue
                self._running.discard(event.worker)
                if event.report is not None:
                    reports[event.worker] = event.report
                    if event.report.ending in ("aborted", "failed"):
                        self._abort(f"{event.worker}: {event.report.reason or 'the task failed'}")
                else:
                    self._lose(event.worker, event.died)
            else:
                self._handle(event)
            self._look_around()
        return reports

    def _handle(self, event: Came | Returned | Woken | None) -> None:
        """Deal with whatever is not about the running generation."""
        if self._stopping and not self._group:
            raise StoppedError("the run was stopped before it had started")
        if self._scale_to is not None:
            self._crew.set_target(self._scale_to, f"scaled to {self._scale_to}")
            self._scale_to = None
        if isinstance(event, Came):
            with self._lock:
                self._crew.came(event)
        elif isinstance(event, Returned) and event.report is None:
            self._crew.lost(event.worker, event.died)

    def _look_around(self) -> None:
        """Ask for a pause if the group is to change; find draining nodes and hanging workers."""
        now = time.monotonic()
        if now >= self._drains_at:
            self._drains_at = now + _DRAIN_POLL
            self._crew.drain_nodes(draining_nodes())
        self._crew.recruit()
        if self._failure is not None:
            self._abort(self._failure)
        wants_change = self._stopping or self._crew.wants_change([a.worker for a in self._group])
        if wants_change and not self._pause_asked and self._running:
            self._pause_asked = True
            for worker in sorted(self._running):
                self._pool.ask_pause(worker, self._generation)
        if self._watch.overdue(now):
            self._investigate()

    def _investigate(self) -> None:
        """The group makes no progress: find out who keeps it waiting, and go on without."""
        deadline, patience = self._watch.deadline, self._watch.answer_seconds
        standings = self._pool.standings(sorted(self._running), patience)
        late = self._watch.asked()
        # Who hangs entered its phase a moment after the last progress that was heard of.
        busy = deadline - patience if late else deadline
        found = culprits(standings, busy)
        if late and self._aborted:  # there is nothing left to wait for
            found = {**dict.fromkeys(standings, "it did not let go of its group"), **found}
        said = {w: s.phase if s is not None else "no answer" for w, s in standings.items()}
        if found:
            self._chronicle.note("hang", standings=said, culprits=found, deadline=deadline)
        for worker, why in found.items():
            if worker in self._running:
                self._running.discard(worker)
                self._lose(worker, f"no progress for {deadline:.1f} s: {why}", hangs=True)
        if late and not found and all_wait(standings, busy):
            self._abort("everybody waited for everybody")
        if found or late:
            self._watch.moved(time.monotonic())

    def _lose(self, worker: str, why: str, *, hangs: bool = False) -> None:
        self._crew.lost(worker, why, hangs=hangs)
        self._abort(f"{worker} was lost")

    def _abort(self, reason: str) -> None:
        """Tell all who are still running; only a lost worker's neighbours notice by themselves."""
        if not self._aborted:
            self._aborted = True
            self._watch.begin(time.monotonic(), warm=True)
            self._pool.abort(sorted(self._running), self._generation, reason)

    # -- learn who is left

    def _learn(self, reports: Mapping[str, Report]) -> Outcome | None:
        """Take in how a generation ended; returns the outcome if the run has ended with it."""
        for worker, report in reports.items():
            seat = self._crew.seats[worker]
            seat.step, seat.warm = report.step, True
        self._account.add(reports.values())
        top = max((report.step for report in reports.values()), default=-1)
        ahead = sorted(worker for worker, report in reports.items() if report.step == top)
        commits = [report.committed_at for report in reports.values() if report.step == top]
        self._last_commit = max(commits, default=self._last_commit)
        self._catch_up(ahead, top)
        self._mark_struck()
        failed = [report.error for report in reports.values() if report.ending == "failed"]
        finished = {w: r for w, r in reports.items() if r.ending == "finished"}
        if failed or self._failure:
            return self._failed(failed[0] if failed else str(self._failure), ahead)
        if finished:
            digests = sorted({report.digest for report in finished.values()})
            if len(digests) > 1 and self._crew.bitwise:
                raise RunError(f"the replicas ended with different states: {digests}")
            return self._outcome("finished", sorted(finished), digests[0])
        if self._stopping and ahead:
            return self._outcome("stopped", ahead)
        self._apply_planned(max(top, self._chronicle.step))
        self._crew.release_surplus()
        return None

    def _catch_up(self, ahead: Sequence[str], top: int) -> None:
        """Ask a survivor for the steps that a lost worker did not tell any more."""
        due = self._spec.clock.evaluation_due(top) and self._spec.evaluation_data is not None
        for worker in ahead:
            if self._chronicle.step >= top and (not due or self._chronicle.evaluated_step >= top):
                return
            records = self._pool.records(worker, self._chronicle.step)
            with self._lock:
                self._take(records)

    def _take(self, records: Sequence[Record]) -> None:
        try:
            commits = self._chronicle.add(records, len(self._group))
        except DivergenceError as error:
            self._failure = str(error)
            return
        if records:
            self._watch.moved(time.monotonic(), commits)

    def _mark_struck(self) -> None:
        """Forget faults that have struck, so that they do not strike the step's second try."""
        for fault, hit in self._strikes.new().items():
            if fault in self._faults:
                self._faults.remove(fault)
            self._chronicle.note(
                "fault", step=fault.step, action=fault.action, phase=fault.phase, hit=hit
            )

    def _apply_planned(self, step: int) -> None:
        for fault in due_at(self._faults, step):
            self._faults.remove(fault)
            size = len(self._group)
            hit: list[str] = []
            if fault.action == "drain":
                hit = [self._group[place].worker for place in fault.victims(size)] if size else []
                self._crew.drain(hit)
            else:
                change = fault.workers if fault.action == "add" else -fault.workers
                least, most = self._spec.workers
                wanted = min(most, max(least, self._crew.target + change))
                self._crew.set_target(wanted, f"{fault.action} {fault.workers}")
            self._chronicle.note("fault", step=fault.step, action=fault.action, hit=hit)

    # -- the end

    def _outcome(self, state: Any, ahead: Sequence[str], digest: str = "") -> Outcome:
        folder: Path | None = None
        for worker in ahead:
            wanted = self._spec.folder / f"checkpoint_{self._crew.seats[worker].step:08d}"
            try:
                digest = self._pool.save(worker, wanted)
            except RayError as error:
                self._chronicle.note("checkpoint", step=self._chronicle.step, error=str(error))
                continue
            folder = wanted
            self._chronicle.note("checkpoint", step=self._chronicle.step, folder=str(folder))
            break
        return Outcome(
            state=state,
            steps=self._chronicle.step,
            digest=digest,
            loss=self._chronicle.loss,
            metrics=self._chronicle.metrics,
            generations=self._chronicle.generations,
            device_seconds=self._chronicle.device_seconds,
            checkpoint=folder,
            bitwise=self._crew.bitwise,
            faults_left=len(self._faults),
            samples=self._account.samples,
            tokens=self._account.tokens,
            costs=self._account.costs,
        )

    def _failed(self, error: str, ahead: Sequence[str] = ()) -> Outcome:
        outcome = self._outcome("failed", ahead)
        return Outcome(**{**vars(outcome), "error": error})

    def _ended(self, outcome: Outcome) -> Outcome:
        with self._lock:
            self._state = "ended"
            self._chronicle.note(
                "end",
                state=outcome.state,
                step=outcome.steps,
                digest=outcome.digest,
                loss=outcome.loss,
                metrics=outcome.metrics,
                device_seconds=outcome.device_seconds,
                bitwise=outcome.bitwise,
                error=outcome.error,
            )
        return outcome


def _ready(seat: Any) -> Any:
    assert seat.ready is not None
    return seat.ready

"""One generation, as the coordinator leads it: until each member has reported or is lost."""

import time
from collections.abc import Callable

from raytrain_plus.elastic.coordinator.membership import Membership
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.workers import (
    CoordinatorEvent,
    TrainReturned,
    WorkerActors,
    WorkerLost,
)
from raytrain_plus.elastic.policy.hang_detection import Watch, all_wait, culprits
from raytrain_plus.elastic.protocol.messages import Plan, Report, WorkerStatus

_TICK = 0.25  # seconds between two looks at what sends no event

Handle = Callable[[CoordinatorEvent | None], None]


class Generation:
    """Runs one generation.

    Args:
        plan: who is in it.
        actors: reaches the members.
        membership: knows the members.
        run_log: takes notes.
        watch: says when no member makes progress.

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

    def run(self, handle: Handle, look: Callable[[], None]) -> dict[str, Report]:
        """Run all members.

        Args:
            handle: called with each event that is not about a member's end.
            look: called after each event and a few times a second.

        Returns:
            What the survivors report; one may have been lost after its report.
        """
        warm = all(self._membership.members[worker].warm for worker in self.running)
        self._watch.start_generation(time.monotonic(), warm=warm)
        for worker in sorted(self.running):
            self._actors.train(worker, self._plan)
        look()  # at once: a checkpoint may be due after the first steps
        while self.running:
            event = self._membership.next_event(_TICK)
            if not self._is_about_a_member(event):
                handle(event)
            look()
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
        late = self._watch.asked()
        # A worker that hangs entered its phase a moment after the last reported progress.
        busy = deadline - patience if late else deadline
        found = culprits(statuses, busy)
        if late and self._aborted:  # there is nothing left to wait for
            found = {**dict.fromkeys(statuses, "it did not leave its group"), **found}
        if found:
            self._note_hang(statuses, found, deadline)
        for worker, why in found.items():
            if worker in self.running:
                self._lose(worker, f"no progress for {deadline:.1f} s: {why}", hangs=True)
        if late and not found and all_wait(statuses, busy):
            self.abort("all members waited for each other")
        if found or late:
            self._watch.note_progress(time.monotonic())

    def _note_hang(
        self, statuses: dict[str, WorkerStatus | None], found: dict[str, str], deadline: float
    ) -> None:
        """Write to the journal which workers waited, and where the stacks of the others stand."""
        members = self._membership.members
        stacks = {
            worker: status.stack
            if (status := statuses[worker]) is not None
            else self._actors.stack_of(members[worker], list(members.values()))
            for worker in found
        }
        self._run_log.note(
            "hang",
            statuses={
                w: f"{s.phase} for {s.age:.1f} s" if s is not None else "no answer"
                for w, s in statuses.items()
            },
            waited=sorted(w for w, s in statuses.items() if s is not None and s.waiting),
            culprits=found,
            stacks=stacks,
            deadline=deadline,
        )

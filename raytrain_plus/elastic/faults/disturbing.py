"""Faults on purpose, as the coordinator deals with them: those that it brings about, and notes."""

from collections.abc import Sequence
from functools import partial

from raytrain_plus.elastic.faults.fault import Action, Fault, Strikes, due_at, left
from raytrain_plus.elastic.faults.full_disk import FullDisk
from raytrain_plus.elastic.membership.recruiting import Recruiting
from raytrain_plus.elastic.messages import Event, RunSpec
from raytrain_plus.elastic.plan import Assignment
from raytrain_plus.elastic.records.chronicle import Chronicle
from raytrain_plus.elastic.records.patient import PatientJournal

# After these nothing can be noted, or not for a while.
_NOTED_FIRST = ("kill_coordinator", "stop_coordinator", "fill_disk")


class Disturbances:
    """The faults of a run that have not happened yet.

    Args:
        spec: the run.
        chronicle: takes notes.
        journal: what the notes are written to.
        events: what the journal tells of this run so far.

    Attributes:
        left: what has not happened.
    """

    def __init__(
        self,
        spec: RunSpec,
        chronicle: Chronicle,
        journal: PatientJournal,
        events: Sequence[Event],
    ) -> None:
        self._workers = spec.workers
        self._code = spec.code
        self._chronicle = chronicle
        self._journal = journal
        self._strikes = Strikes(spec.folder)
        self.left = left(spec.faults, events)

    def forget(self) -> None:
        """Forget the strikes of an earlier run in this folder."""
        self._strikes.forget()

    def mark_struck(self) -> bool:
        """Forget faults that have struck, so that they do not strike the step's second try.

        Returns:
            Whether any has, since the last time.
        """
        struck = False
        for fault, hit in self._strikes.new().items():
            struck = True
            if fault in self.left:  # else a coordinator before has noted it
                self.left.remove(fault)
                self._chronicle.note(
                    "fault", step=fault.step, action=fault.action, phase=fault.phase, hit=hit
                )
        return struck

    def apply_planned(self, step: int, group: Sequence[Assignment], crew: Recruiting) -> None:
        """Bring about what is due when so many steps are committed."""
        for fault in due_at(self.left, step):
            self.left.remove(fault)
            hit: list[str] = []
            if fault.action in _NOTED_FIRST:
                self._chronicle.note("fault", step=fault.step, action=fault.action, hit=hit)
                self._hit_coordinator(fault)
                continue
            if fault.action == "drain":
                hit = [group[place].worker for place in fault.victims(len(group))] if group else []
                crew.drain(hit)
            else:
                self._resize(fault, crew)
            self._chronicle.note("fault", step=fault.step, action=fault.action, hit=hit)

    def of_newcomer(self, worker: str, step: int) -> Action | None:
        """Return what happens to a worker that is asked for, as it comes up.

        Args:
            worker: its name.
            step: committed steps.
        """
        for fault in self.left:
            if not fault.waits_for_newcomer or fault.step > step:
                continue
            if fault.action == "edit_task" and not self._code:
                continue  # the task is not the user's own code: no file of it is compared
            self.left.remove(fault)
            self._chronicle.note("fault", step=fault.step, action=fault.action, hit=[worker])
            return fault.action
        return None

    def _hit_coordinator(self, fault: Fault) -> None:
        if fault.action == "fill_disk":
            self._journal.write_through(partial(FullDisk, seconds=fault.lasts))
        else:
            fault.strike()

    def _resize(self, fault: Fault, crew: Recruiting) -> None:
        change = fault.workers if fault.action == "add" else -fault.workers
        least, most = self._workers
        wanted = min(most, max(least, crew.target + change))
        crew.set_target(wanted, f"{fault.action} {fault.workers}")

"""The coordinator's part of fault injection: it causes some faults, and notes all."""

import contextlib
import errno
import os
import time
from collections.abc import Sequence
from functools import partial

from raytrain_plus.elastic.coordinator.membership import Membership
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.shipped_journal import CoordinatorJournal
from raytrain_plus.elastic.liveness.fault_log import FaultLog
from raytrain_plus.elastic.protocol.faults import SIGNALS, Action, Fault, due_at, left
from raytrain_plus.elastic.protocol.messages import Assignment, RunSpec
from raytrain_plus.observe.journal import Event, Journal
from raytrain_plus.storage.errors import StorageError

# After these faults nothing can be written to the journal, or not for a while.
_NOTED_FIRST = ("kill_coordinator", "stop_coordinator", "fill_disk")


class CoordinatorFaults:
    """The faults of a run that have not happened yet.

    Args:
        spec: the run.
        run_log: writes the journal.
        journal: the journal itself, for `fill_disk`.
        events: of the run so far.

    Attributes:
        left: the faults that have not happened.
    """

    def __init__(
        self,
        spec: RunSpec,
        run_log: RunLog,
        journal: CoordinatorJournal,
        events: Sequence[Event],
    ) -> None:
        self._has_any = bool(spec.faults)
        self._workers = spec.workers
        self._code = spec.code
        self._run_log = run_log
        self._journal = journal
        self._log = FaultLog(spec.folder)
        self.left = left(spec.faults, events)

    def forget(self) -> None:
        """Forget the faults that have struck in an earlier run in this folder."""
        self._log.forget()

    def mark_struck(self) -> bool:
        """Forget faults that have struck, so that they do not strike the step's second try.

        Returns:
            Whether any has, since the last time.
        """
        struck = False
        for fault, hit in self._log.new().items() if self._has_any else ():
            struck = True
            if fault in self.left:  # else an earlier coordinator has noted it
                self.left.remove(fault)
                self._run_log.note(
                    "fault", step=fault.step, action=fault.action, phase=fault.phase, hit=hit
                )
        return struck

    def apply_planned(self, step: int, group: Sequence[Assignment], membership: Membership) -> None:
        """Cause the faults that are due when so many steps are committed."""
        for fault in due_at(self.left, step):
            self.left.remove(fault)
            hit: list[str] = []
            if fault.action in _NOTED_FIRST:
                self._run_log.note("fault", step=fault.step, action=fault.action, hit=hit)
                self._hit_coordinator(fault)
                continue
            if fault.action == "drain":
                hit = [group[place].worker for place in fault.victims(len(group))] if group else []
                membership.drain(hit)
            else:
                self._resize(fault, membership)
            self._run_log.note("fault", step=fault.step, action=fault.action, hit=hit)

    def of_newcomer(self, worker: str, step: int) -> Action | None:
        """Return what goes wrong with a requested worker as it prepares itself.

        Args:
            worker: its name.
            step: committed steps.
        """
        for fault in self.left:
            if not fault.waits_for_newcomer or fault.step > step:
                continue
            if fault.action == "edit_task" and not self._code:
                continue  # no file of the task is compared: it is not the user's own code
            self.left.remove(fault)
            self._run_log.note("fault", step=fault.step, action=fault.action, hit=[worker])
            return fault.action
        return None

    def _hit_coordinator(self, fault: Fault) -> None:
        if fault.action == "fill_disk":
            self._journal.write_through(partial(FullDisk, seconds=fault.lasts))
        else:
            with contextlib.suppress(StorageError):
                self._journal.sync()
            os.kill(os.getpid(), SIGNALS[fault.action])

    def _resize(self, fault: Fault, membership: Membership) -> None:
        change = fault.workers if fault.action == "add" else -fault.workers
        least, most = self._workers
        wanted = min(most, max(least, membership.target + change))
        membership.set_target(wanted, f"the fault `{fault.action}` asks for it")


class FullDisk(Journal):
    """A journal that cannot be written for some seconds, as if its disk was full.

    Args:
        journal: the journal.
        seconds: how long.
    """

    def __init__(self, journal: Journal, seconds: float) -> None:  # opens no file of its own
        self.file = journal.file
        self._journal = journal
        self._until = time.monotonic() + seconds

    def write_all(self, events: list[Event]) -> list[Event]:
        """Append finished events.

        Raises:
            OSError: the disk is full.
        """
        if time.monotonic() < self._until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._journal.write_all(events)

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        self._journal.sync()

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

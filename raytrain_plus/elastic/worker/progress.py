"""What a worker is doing, as the outside sees it; and how the outside interrupts it.

The training thread calls `enter` as each phase begins. That one call moves the heartbeat, notices
an abort, and strikes the process when a fault is due, so that none of them costs anything else.
"""

import threading
import time
from collections.abc import Callable, Sequence

from raytrain_plus.elastic.liveness import stacks
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import Plan, WorkerStatus
from raytrain_plus.elastic.worker import process_faults
from raytrain_plus.elastic.worker.phase_timer import PhaseTimer

_WAITING = frozenset({"idle", "meet", "heal", "exchange", "finish", "slice", "gather"})


class AbortedError(RuntimeError):
    """The generation is over; the state is that of the last committed step."""


class Progress:
    """Shared by a worker's training thread and its control thread.

    Attributes:
        generation: the generation that is running, or ran last.
        step: committed steps.
        moves: how many phases have been entered: what the heartbeat carries.
        phase_timer: where the training thread's time went.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.step = 0
        self.moves = 0
        self.phase_timer = PhaseTimer()
        self._phase = "idle"
        self._since = time.monotonic()
        self._thread = threading.get_ident()
        self._faults: Sequence[Fault] = ()
        self._on_fault: Callable[[Fault], None] = process_faults.strike
        self._lock = threading.Lock()
        self._aborted: dict[int, str] = {}
        self._pause = 0
        self._checkpoint = (0, 0)  # generation, step
        self._on_abort: Callable[[str], None] | None = None

    def start_generation(
        self,
        plan: Plan,
        faults: Sequence[Fault],
        on_fault: Callable[[Fault], None],
        on_abort: Callable[[str], None],
    ) -> None:
        """Start a generation; `on_abort` is called at once if it has been aborted already."""
        with self._lock:
            self.generation = plan.generation
            self.step = plan.step  # a newcomer, too, is struck as a member of the group it joins
            self._faults = faults
            self._thread = threading.get_ident()
            self.phase_timer.start()
            self._on_fault = on_fault
            self._on_abort = on_abort
            reason = self._aborted.get(plan.generation)
        if reason is not None:
            on_abort(reason)

    def end(self) -> None:
        """End the generation."""
        with self._lock:
            self._on_abort = None
            self._phase, self._since = "idle", time.monotonic()

    def enter(self, phase: str) -> None:
        """Note that a phase begins.

        If the exchange runs during the backward, its thread enters phases, too. The status of a
        worker is the phase of its training thread.

        Raises:
            AbortedError: the generation has been aborted.
        """
        if threading.get_ident() == self._thread:
            self._since = self.phase_timer.enter(phase)
            self._phase = phase
        self.moves += 1
        for fault in self._faults:
            if fault.due(phase, self.step):
                self._on_fault(fault)
        if self._aborted and self.generation in self._aborted:
            raise AbortedError(self._aborted[self.generation])

    def abort(self, generation: int, reason: str) -> None:
        """Abort a generation, whether it has started or not."""
        with self._lock:
            if generation < max([self.generation, *self._aborted]):
                return
            self._aborted = {generation: reason}
            callback = self._on_abort if generation == self.generation else None
        if callback is not None:
            callback(reason)

    def ask_pause(self, generation: int) -> None:
        """Make this worker raise its flag, so that all pause after the same step."""
        self._pause = generation

    def ask_checkpoint(self, generation: int, step: int) -> None:
        """Make this worker raise its flag, so that all take a snapshot after a step."""
        self._checkpoint = (generation, step)

    @property
    def checkpoint_asked(self) -> bool:
        """Whether all should take a snapshot after the step that begins. Says so once."""
        generation, step = self._checkpoint
        asked = generation == self.generation and self.step + 1 >= step
        if asked:
            self._checkpoint = (0, 0)
        return asked

    @property
    def is_aborted(self) -> bool:
        """Whether the running generation has been aborted."""
        return self.generation in self._aborted

    @property
    def pause_asked(self) -> bool:
        """Whether the running generation is asked to pause."""
        return self._pause == self.generation

    def status(self, waits_for: int | None = None) -> WorkerStatus:
        """Return what the training thread is doing.

        Args:
            waits_for: the member whose message is missing, if the thread waits in its group.
        """
        phase, since = self._phase, self._since
        return WorkerStatus(
            phase=phase,
            waiting=phase in _WAITING,
            age=time.monotonic() - since,
            waits_for=waits_for if phase in _WAITING - {"idle"} else None,
            stack=stacks.own(self._thread),
        )

"""How a live run stands, as the coordinator tells whoever asks."""

import os
import statistics
import threading
import time
from collections.abc import Sequence

from raytrain_plus.elastic.coordinator.membership import Membership
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.workers import Pool
from raytrain_plus.elastic.policy.make_plan import Seat
from raytrain_plus.elastic.protocol.messages import Assignment, RunSpec, WorkerStatus
from raytrain_plus.observe.gauges import LiveRun
from raytrain_plus.observe.journal import Event

_ANSWER_SECONDS = 0.5  # to wait for workers that are asked what they are doing
_STEPS = 15  # of which a worker's speed is the median
_GENERATIONS = 5  # that are told of

# What the training thread's phases are called for people; any other is "computing".
_PHASES = {
    "fetch": "fetching",
    **dict.fromkeys(("exchange", "finish", "slice", "gather"), "exchange"),
    **dict.fromkeys(("idle", "meet", "heal"), "waiting"),
}


class RunStatus:
    """Puts together what is known of a run. From any thread.

    Args:
        spec: the run.
        run_log: its losses, metrics and generations.
        live: its speed and checkpoints.
        membership: the workers' seats.
        pool: asks them.
    """

    def __init__(
        self, spec: RunSpec, run_log: RunLog, live: LiveRun, membership: Membership, pool: Pool
    ) -> None:
        self._spec = spec
        self._run_log = run_log
        self._live = live
        self._membership = membership
        self._pool = pool
        self._seconds: dict[str, tuple[float, ...]] = {}  # per logical rank, of the last steps
        self._asking = threading.Lock()
        self._standings: dict[str, WorkerStatus | None] = {}

    def heard(self, group: Sequence[Assignment], compute_seconds: Sequence[float]) -> None:
        """The group has committed a step; so long did each of it compute."""
        self._seconds = {
            one.worker: (*self._seconds.get(one.worker, ()), seconds / len(one.ranks))[-_STEPS:]
            for one, seconds in zip(group, compute_seconds, strict=True)
        }

    def of(self, state: str, generation: int, group: Sequence[Assignment]) -> Event:
        """Return what is known without asking a worker.

        Args:
            state: what the coordinator is at.
            generation: the last that was planned.
            group: its members.
        """
        return {
            "run": self._spec.name,
            "state": state,
            "step": self._run_log.step,
            "total_steps": self._spec.clock.total_steps,
            "loss": self._run_log.loss,
            "metrics": self._run_log.metrics,
            "generation": generation,
            "target": self._membership.target,
            "workers": [one.worker for one in group],
            "pids": self._membership.pids(),
            "coordinator_pid": os.getpid(),
            "folder": str(self._spec.folder),
        }

    def more(self, group: Sequence[Assignment]) -> Event:
        """Return how fast the run is, why the group has changed, and how each worker stands.

        Workers are asked, but none that does not answer is waited for. Never called by the thread
        that decides, nor while anything is locked.
        """
        now = time.time()
        return {
            "samples_per_second": round(self._live.samples_per_second(now), 3),
            "checkpoint": self._live.checkpoint(now),
            "generations": self._run_log.generations[-_GENERATIONS:],
            "members": self._members(group),
        }

    def _members(self, group: Sequence[Assignment]) -> list[Event]:
        seats = list(self._membership.seats.values())  # workers come and go meanwhile
        standings = self._ask([seat.worker for seat in seats if seat.ready is not None])
        ranks = {one.worker: list(one.ranks) for one in group}
        return [
            {
                "worker": seat.worker,
                "node": seat.ready.host if seat.ready else None,
                "pid": seat.ready.pid if seat.ready else None,
                "ranks": ranks.get(seat.worker, []),
                "seconds_per_rank": self._pace(seat.worker),
                "phase": phase_of(seat, standings.get(seat.worker), is_member=seat.worker in ranks),
            }
            for seat in seats
        ]

    def _ask(self, workers: Sequence[str]) -> dict[str, WorkerStatus | None]:
        """One asks at a time; who comes meanwhile gets the answers from before."""
        if self._asking.acquire(blocking=False):
            try:
                self._standings = self._pool.standings(workers, _ANSWER_SECONDS)
            finally:
                self._asking.release()
        return self._standings

    def _pace(self, worker: str) -> float | None:
        known = self._seconds.get(worker)
        return round(statistics.median(known), 6) if known else None


def phase_of(seat: Seat, standing: WorkerStatus | None, *, is_member: bool) -> str:
    """Return what a worker is at, in one word for people.

    Args:
        seat: its seat.
        standing: what it says, None for no answer.
        is_member: it is in the group.
    """
    if seat.ready is None:
        return "starting"
    if standing is None:
        return "no answer"
    if seat.draining:
        return "draining"
    if not is_member:
        return "spare"
    return _PHASES.get(standing.phase, "computing")

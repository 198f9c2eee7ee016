"""The status of a live run."""

import os
import statistics
import threading
import time
from collections.abc import Sequence

from raytrain_plus.elastic.coordinator.membership import Membership
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.workers import WorkerActors
from raytrain_plus.elastic.policy.make_plan import Member
from raytrain_plus.elastic.protocol.messages import Assignment, RunSpec, WorkerStatus
from raytrain_plus.elastic.protocol.run_state import RunState
from raytrain_plus.observe.events import scalars_for_json
from raytrain_plus.observe.gauges import LiveRun
from raytrain_plus.observe.journal import Event

_ANSWER_SECONDS = 0.5  # to wait for workers that are asked what they are doing
_STEPS = 15  # of which a worker's speed is the median
_GENERATIONS = 5  # in a status

# What the training thread's phases are called for people; any other is "computing".
_PHASES = {
    "fetch": "fetching",
    **dict.fromkeys(("exchange", "finish", "slice", "gather"), "exchange"),
    **dict.fromkeys(("idle", "meet", "heal"), "waiting"),
}


class RunStatus:
    """Makes the status of a run. Thread-safe.

    Args:
        spec: the run.
        run_log: its losses, metrics and generations.
        live: its speed and checkpoints.
        membership: the workers.
        actors: asks them.
    """

    def __init__(
        self,
        spec: RunSpec,
        run_log: RunLog,
        live: LiveRun,
        membership: Membership,
        actors: WorkerActors,
    ) -> None:
        self._spec = spec
        self._run_log = run_log
        self._live = live
        self._membership = membership
        self._actors = actors
        self._seconds: dict[str, tuple[float, ...]] = {}  # per logical rank, of the last steps
        self._asking = threading.Lock()
        self._statuses: dict[str, WorkerStatus | None] = {}

    def add_step(self, group: Sequence[Assignment], compute_seconds: Sequence[float]) -> None:
        """Note how long each worker of the group computed in a committed step."""
        self._seconds = {
            one.worker: (*self._seconds.get(one.worker, ()), seconds / len(one.ranks))[-_STEPS:]
            for one, seconds in zip(group, compute_seconds, strict=True)
        }

    def of(self, state: RunState, generation: int, group: Sequence[Assignment]) -> Event:
        """Return the status without asking the workers.

        Args:
            state: of the run.
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
            "logged": scalars_for_json(self._run_log.logged),
            "generation": generation,
            "target": self._membership.target,
            "workers": [one.worker for one in group],
            "pids": self._membership.pids(),
            "coordinator_pid": os.getpid(),
            "folder": str(self._spec.folder),
        }

    def more(self, group: Sequence[Assignment]) -> Event:
        """Return the speed, the causes of recent changes, and the status of each worker.

        Asks the workers, and waits half a second for those that do not answer. Must not be called
        by the thread that decides, nor with a lock held.
        """
        now = time.time()
        tokens, use = self._live.tokens_per_second(now), self._live.mfu(now)
        return {
            "samples_per_second": round(self._live.samples_per_second(now), 3),
            **({"tokens_per_second": round(tokens, 3)} if tokens else {}),
            **({} if use is None else {"mfu": round(use, 6)}),
            "checkpoint": self._live.checkpoint(now),
            "generations": self._run_log.generations[-_GENERATIONS:],
            "members": self._members(group),
        }

    def _members(self, group: Sequence[Assignment]) -> list[Event]:
        members = list(self._membership.members.values())  # a copy: workers come and go meanwhile
        statuses = self._ask([member.worker for member in members if member.ready is not None])
        ranks = {one.worker: list(one.ranks) for one in group}
        return [
            {
                "worker": member.worker,
                "node": member.ready.host if member.ready else None,
                "pid": member.ready.pid if member.ready else None,
                "ranks": ranks.get(member.worker, []),
                "seconds_per_rank": self._pace(member.worker),
                "phase": phase_of(
                    member, statuses.get(member.worker), is_member=member.worker in ranks
                ),
            }
            for member in members
        ]

    def _ask(self, workers: Sequence[str]) -> dict[str, WorkerStatus | None]:
        """Ask the workers; a caller that comes while another asks gets the answers from before."""
        if self._asking.acquire(blocking=False):
            try:
                self._statuses = self._actors.statuses(workers, _ANSWER_SECONDS)
            finally:
                self._asking.release()
        return self._statuses

    def _pace(self, worker: str) -> float | None:
        known = self._seconds.get(worker)
        return round(statistics.median(known), 6) if known else None


def phase_of(member: Member, status: WorkerStatus | None, *, is_member: bool) -> str:
    """Return what a worker is doing, in one or two words for people.

    Args:
        member: the worker.
        status: its answer, None for no answer.
        is_member: whether it is in the group.
    """
    if member.ready is None:
        return "starting"
    if status is None:
        return "no answer"
    if member.draining:
        return "draining"
    if not is_member:
        return "spare"
    return _PHASES.get(status.phase, "computing")

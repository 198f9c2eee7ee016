"""A restarted coordinator finds its workers and ends the generation they are in."""

import time
from collections.abc import Mapping
from dataclasses import replace

from raytrain_plus.elastic.coordinator.membership import Membership
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.workers import WorkerActors
from raytrain_plus.elastic.protocol.messages import Report, WorkerState

_ANSWER_SECONDS = 5.0
_SETTLE_SECONDS = 20.0  # for an aborted generation to end
_LOOK = 0.02


def find_workers(
    actors: WorkerActors, membership: Membership, run_log: RunLog
) -> tuple[int, dict[str, Report]]:
    """Find the workers, which may still train, and end their generation.

    They keep their state, and the next plan starts from it. A worker that is not ready yet or does
    not answer is ended and replaced.

    Returns:
        The last generation, and the reports of its members.
    """
    workers = actors.find()
    found = actors.states(workers, _ANSWER_SECONDS) if workers else {}
    membership.avoid(workers)
    generation = max((one.generation for one in found.values() if one is not None), default=0)
    for worker, one in found.items():
        if one is not None and one.ready is not None:
            membership.readmit(worker, one.ready, one.step)
    if generation:
        actors.abort(sorted(membership.members), generation, "the coordinator was restarted")
        found |= _settled(actors, membership)
    for worker in sorted(membership.members):
        if not _is_idle(found.get(worker)):
            membership.lost(worker, "it did not leave its group when the coordinator was restarted")
    actors.end_strangers(membership.members)
    run_log.note("coordinator_restart", workers=sorted(membership.members), generation=generation)
    for worker, member in membership.members.items():
        member.step = _trusted_step(found[worker], run_log)
    known = max((one["generation"] for one in run_log.generations), default=0)
    return max(generation, known), {
        worker: replace(
            one.report, formed=one.report.formed and membership.members[worker].step >= 0
        )
        for worker, one in found.items()
        if worker in membership.members
        and one is not None
        and one.report is not None
        and one.generation == generation
    }


def _settled(actors: WorkerActors, membership: Membership) -> Mapping[str, WorkerState | None]:
    """Wait until all workers have ended their generation, or time is up."""
    until = time.monotonic() + _SETTLE_SECONDS
    while True:
        found = actors.states(sorted(membership.members), _ANSWER_SECONDS)
        if all(_is_idle(one) for one in found.values()) or time.monotonic() > until:
            return found
        time.sleep(_LOOK)


def _trusted_step(one: WorkerState | None, run_log: RunLog) -> int:
    """Return the step of a worker's state, or -1 if that is withdrawn."""
    assert one is not None
    formed = one.report is None or one.report.formed
    return -1 if run_log.is_void(one.generation - (not formed), one.step) else one.step


def _is_idle(one: WorkerState | None) -> bool:
    return one is not None and (one.report is not None or one.generation == 0)

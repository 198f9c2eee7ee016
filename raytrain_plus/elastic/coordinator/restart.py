"""A coordinator that comes back finds its workers, and lets go on what they were doing."""

import time
from collections.abc import Mapping
from dataclasses import replace

from raytrain_plus.elastic.coordinator.membership import Recruiting
from raytrain_plus.elastic.coordinator.run_log import Chronicle
from raytrain_plus.elastic.coordinator.workers import Pool
from raytrain_plus.elastic.protocol.messages import Found, Report

_ANSWER_SECONDS = 5.0
_SETTLE_SECONDS = 20.0  # for a generation to end that is told to
_LOOK = 0.02


def find_again(pool: Pool, crew: Recruiting, chronicle: Chronicle) -> tuple[int, dict[str, Report]]:
    """Find the workers, who went on training meanwhile, and end their generation.

    They keep what they have; the next plan begins where they stand. Who has not come up yet, or
    does not answer, is ended: another will be asked for.

    Returns:
        The last generation, and how it ended for those who were in it.
    """
    workers = pool.find()
    found = pool.found(workers, _ANSWER_SECONDS) if workers else {}
    crew.avoid(workers)
    generation = max((one.generation for one in found.values() if one is not None), default=0)
    for worker, one in found.items():
        if one is not None and one.ready is not None:
            crew.found_again(worker, one.ready, one.step)
    if generation:
        pool.abort(sorted(crew.seats), generation, "the coordinator came back")
        found |= _settled(pool, crew)
    for worker in sorted(crew.seats):
        if not _is_idle(found.get(worker)):
            crew.lost(worker, "it did not let go of its group when the coordinator came back")
    pool.end_strangers(crew.seats)
    chronicle.note("returned", workers=sorted(crew.seats), generation=generation)
    for worker, seat in crew.seats.items():
        seat.step = _trusted_step(found[worker], chronicle)
    known = max((one["generation"] for one in chronicle.generations), default=0)
    return max(generation, known), {
        worker: replace(one.report, formed=one.report.formed and crew.seats[worker].step >= 0)
        for worker, one in found.items()
        if worker in crew.seats
        and one is not None
        and one.report is not None
        and one.generation == generation
    }


def _settled(pool: Pool, crew: Recruiting) -> Mapping[str, Found | None]:
    """Wait until everybody has ended its generation, or time is up."""
    until = time.monotonic() + _SETTLE_SECONDS
    while True:
        found = pool.found(sorted(crew.seats), _ANSWER_SECONDS)
        if all(_is_idle(one) for one in found.values()) or time.monotonic() > until:
            return found
        time.sleep(_LOOK)


def _trusted_step(one: Found | None, chronicle: Chronicle) -> int:
    """Return which step's state a worker has, or -1 if that is withdrawn."""
    assert one is not None
    formed = one.report is None or one.report.formed
    return -1 if chronicle.is_void(one.generation - (not formed), one.step) else one.step


def _is_idle(one: Found | None) -> bool:
    return one is not None and (one.report is not None or one.generation == 0)

"""Which worker computes which logical ranks: a pure function.

Since the result of a step does not depend on who computes what, a plan is free to follow three
wishes, in this order:

1. *Balance.* A step lasts as long as its slowest worker, so ranges follow the workers' speeds. Some
   imbalance is allowed for the sake of the second request: 12.5 % until it is known
   what the request is worth (see `raytrain_plus.elastic.policy.imbalance`).
2. *Few messages.* A worker sends one partial sum per maximal subtree inside its range (see
   `raytrain_plus.training.tree`), so ranges are aligned to the summation tree.
3. *Few moves.* A logical rank that changes its owner costs the new owner the start of a new lane
   of data.

The first wish gives each worker a least and a most number of logical ranks; among all cuts within
these, an exact dynamic programme over the cut positions finds the best for the other two.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from raytrain_plus.elastic.protocol.messages import Assignment
from raytrain_plus.training.tree import subtree_count

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Bound = tuple[int, int]  # least and most logical ranks of a worker

IMBALANCE = 0.125  # allowed imbalance, as a share of a worker's load
_ROUNDING = 1e-9  # a load within this of a whole number is that number
_UNREACHABLE = np.int64(1) << 61


class PlanError(ValueError):
    """These members cannot share these logical ranks."""


@dataclass(frozen=True)
class WorkerSpeed:
    """A worker that takes part in a generation.

    Attributes:
        worker: Its name, unique in the group.
        speed: Logical ranks it computes per unit of time, in a unit common to the group.
    """

    worker: str
    speed: float = 1.0


def assign(
    logical_ranks: int,
    speeds: Sequence[WorkerSpeed],
    previous: Sequence[Assignment] = (),
    imbalance: float = IMBALANCE,
) -> tuple[Assignment, ...]:
    """Give each member a range of logical ranks.

    Survivors keep their order. A newcomer takes the place of a departed worker, the first place
    first, and otherwise goes to the end; newcomers come in the order of their names. So the plan
    does not depend on the order in which members are listed.

    Let the *pace* be the least time in which all can finish, if a worker that could not finish even
    one logical rank in it computes exactly one. A worker gets at most what it computes in
    1 + imbalance times the pace, and at least 1 - imbalance times its proportional share, both
    rounded down, but never less than one. Among these plans the result has the fewest maximal
    subtrees, then the fewest logical ranks that change owner, then the lexicographically smallest
    cuts. Planning again from the result, with the same speeds and imbalance, returns it unchanged.

    Args:
        logical_ranks: Number V of logical ranks of the run.
        speeds: The workers of the next generation with their speeds, in any order, at most V.
        previous: The plan of the generation before, in order of rank, as returned by this function;
            empty for the first.
        imbalance: Allowed share of a worker's load, from 0 to below 1. Default 0.125.

    Returns:
        One assignment per member, covering `[0, V)` in order.

    Raises:
        PlanError: V < 1, no members, more members than V, two members of one name, a speed that is
            not positive and finite, a previous plan for another V, or an imbalance out of range.
    """
    _check(logical_ranks, speeds, previous)
    if not 0 <= imbalance < 1:
        raise PlanError(f"the imbalance is {imbalance}; it is a share of a load, from 0 to below 1")
    speed = {one.worker: one.speed for one in speeds}
    workers = _order(set(speed), [assignment.worker for assignment in previous])
    least, most = _loads(logical_ranks, np.array([speed[w] for w in workers]), imbalance)
    owned = {assignment.worker: (assignment.start, assignment.stop) for assignment in previous}
    cuts = _cuts(logical_ranks, least, most, [owned.get(worker) for worker in workers])
    return tuple(map(Assignment, workers, cuts, cuts[1:]))


def moved(previous: Sequence[Assignment], current: Sequence[Assignment]) -> int:
    """Count the logical ranks of `current` whose owner is not the one they had in `previous`."""
    owned = {assignment.worker: assignment.ranks for assignment in previous}
    kept = 0
    for assignment in current:
        before = owned.get(assignment.worker, range(0))
        overlap = min(assignment.stop, before.stop) - max(assignment.start, before.start)
        kept += max(0, overlap)
    return sum(len(assignment.ranks) for assignment in current) - kept


def makespan(plan: Sequence[Assignment], speeds: Mapping[str, float]) -> float:
    """Return how long a step's slowest worker computes, in seconds.

    Args:
        plan: who computes what.
        speeds: logical ranks per second of each of its workers.
    """
    return max(len(a.ranks) / speeds[a.worker] for a in plan)


def _check(
    logical_ranks: int, speeds: Sequence[WorkerSpeed], previous: Sequence[Assignment]
) -> None:
    if logical_ranks < 1:
        raise PlanError(f"logical_ranks is {logical_ranks}; it must be at least 1")
    if not speeds:
        raise PlanError("there are no members to plan for; wait until at least one worker is ready")
    if len(speeds) > logical_ranks:
        raise PlanError(
            f"{len(speeds)} members cannot share {logical_ranks} logical ranks, since each "
            f"computes at least one; keep {len(speeds) - logical_ranks} of them as spares, or "
            f"start a new run with logical_ranks={len(speeds)} or more"
        )
    names = set()
    for member in speeds:
        if member.worker in names:
            raise PlanError(f"two members are named {member.worker!r}; give each its own name")
        names.add(member.worker)
        if not (math.isfinite(member.speed) and member.speed > 0):
            raise PlanError(
                f"the speed of {member.worker!r} is {member.speed}; it must be a positive, finite "
                f"number of logical ranks per unit of time (1.0 if it has not been measured)"
            )
    if previous and previous[-1].stop != logical_ranks:
        raise PlanError(
            f"the previous plan ends at logical rank {previous[-1].stop}, this one at "
            f"{logical_ranks}; the number of logical ranks never changes within a run, so pass "
            f"the plan of the same run"
        )


def _order(members: set[str], before: Sequence[str]) -> list[str]:
    newcomers = iter(sorted(members.difference(before)))
    places = [worker if worker in members else next(newcomers, None) for worker in before]
    return [worker for worker in places if worker is not None] + list(newcomers)


def _loads(logical_ranks: int, speeds: Floats, imbalance: float) -> tuple[list[int], list[int]]:
    """Return the least and the most logical ranks of each worker, for balance."""
    # Only ratios matter. A worker that is that slow computes one logical rank in any case.
    speeds = np.maximum(speeds / speeds.max(), 1e-12)
    level = _water_level(logical_ranks, speeds)
    least = np.maximum(1, np.floor((1 - imbalance) * level * speeds + _ROUNDING))

    # Whole logical ranks: those left over go, one by one, to the worker that finishes it first.
    loads = np.maximum(1, np.floor(level * speeds + _ROUNDING))
    pace = float((loads / speeds)[level * speeds >= 1 - _ROUNDING].max())
    finish = [
        ((load + 1) / speed, load + 1, speed)
        for load, speed in zip(loads.tolist(), speeds.tolist(), strict=True)
    ]
    heapq.heapify(finish)
    for _ in range(logical_ranks - int(loads.sum())):
        pace, load, speed = finish[0]
        heapq.heapreplace(finish, ((load + 1) / speed, load + 1, speed))
    most = np.maximum(1, np.floor((1 + imbalance) * pace * speeds + _ROUNDING))
    return least.astype(int).tolist(), most.astype(int).tolist()


def _water_level(logical_ranks: int, speeds: Floats) -> float:
    """Return t such that the sum of max(1, t * speed) over all workers is `logical_ranks`."""
    fastest = np.sort(speeds)[::-1]
    sharing = np.arange(1, len(fastest) + 1)  # the others have their one
    levels = (logical_ranks - len(fastest) + sharing) / np.cumsum(fastest)
    enough = np.flatnonzero(levels * fastest >= 1 - _ROUNDING)
    return float(levels[enough[-1]])


def _cuts(
    logical_ranks: int,
    least: Sequence[int],
    most: Sequence[int],
    owned: Sequence[tuple[int, int] | None],
) -> list[int]:
    """Find the best cuts: a dynamic programme over cut positions, from the last worker back.

    One integer orders the candidates by all wishes at once:
    `(subtrees * (V + 1) - ranks kept) * base + size of the first range`, far below 2**61 for any V
    that fits a run (2**20). The ranks that a worker keeps separate into a term per cut,
    `held(stop) - held(start)` with `held(x) = clip(x, *owned)`, so that only subtrees need a table.

    Args:
        logical_ranks: Number V of logical ranks.
        least: Fewest logical ranks of each worker.
        most: Most logical ranks of each worker.
        owned: The range `(start, stop)` each worker had, None for a newcomer.

    Returns:
        The `len(least) + 1` cuts, from 0 to V.
    """
    bounds = list(zip(least, most, strict=True))
    base = 1 << max(most).bit_length()
    first, last = _windows(logical_ranks, least, most)
    rest = np.full(logical_ranks + 1 + max(most), _UNREACHABLE)  # best value from a cut to V
    rest[logical_ranks] = 0
    costs = {
        bound: _costs(logical_ranks, base, bound, starts)
        for bound, starts in _starts(logical_ranks, bounds, first, last).items()
    }
    after = {(low, high): sliding_window_view(rest[low:], high - low + 1).T for low, high in costs}
    scaled = np.arange(logical_ranks + 1) * base
    choices = []
    for worker in reversed(range(len(bounds))):
        here = slice(first[worker], last[worker] + 1)
        following = slice(first[worker + 1], last[worker + 1] + 1)
        before = owned[worker]
        if before:
            start, stop = before[0] * base, before[1] * base
            rest[following] -= np.minimum(np.maximum(scaled[following], start), stop)
        cost, column = costs[bounds[worker]]
        columns = slice(column[here.start], column[here.stop - 1] + 1)
        best = (cost[:, columns] + after[bounds[worker]][:, here]).min(axis=0)
        choice = best & (base - 1)
        best -= choice
        if before:
            best += np.minimum(np.maximum(scaled[here], start), stop)
        rest[following] = _UNREACHABLE
        rest[here] = best
        choices.append(choice)
    cuts = [0]
    for low, choice in zip(first, reversed(choices), strict=False):
        cuts.append(cuts[-1] + int(choice[cuts[-1] - low]))
    return cuts


def _windows(
    logical_ranks: int, least: Sequence[int], most: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the first and the last position that each cut can have."""
    fewest = np.cumsum([0, *least])
    greatest = np.cumsum([0, *most])
    first = np.maximum(fewest, logical_ranks - (greatest[-1] - greatest))
    last = np.minimum(greatest, logical_ranks - (fewest[-1] - fewest))
    return first.tolist(), last.tolist()


def _starts(
    logical_ranks: int, bounds: Sequence[_Bound], first: Sequence[int], last: Sequence[int]
) -> dict[_Bound, npt.NDArray[np.bool_]]:
    """Mark, for all workers of the same bounds together, where their ranges can start."""
    starts: dict[_Bound, npt.NDArray[np.bool_]] = {}
    for bound, low, high in zip(bounds, first, last, strict=False):
        if bound not in starts:
            starts[bound] = np.zeros(logical_ranks, dtype=np.bool_)
        starts[bound][low : high + 1] = True
    return starts


def _costs(
    logical_ranks: int, base: int, bound: _Bound, starts: npt.NDArray[np.bool_]
) -> tuple[Integers, list[int]]:
    """Return the cost of every range, as (size, column), and the column of every start."""
    sizes = np.arange(bound[0], bound[1] + 1)[:, np.newaxis]
    start = np.flatnonzero(starts)
    stop = np.minimum(start + sizes, logical_ranks)  # what lies beyond is unreachable anyway
    costs = subtree_count(start, stop, logical_ranks) * ((logical_ranks + 1) * base) + sizes
    return costs, (np.cumsum(starts) - 1).tolist()

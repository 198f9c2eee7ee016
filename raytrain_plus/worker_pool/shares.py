"""How many workers of a pool each run gets."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Demand:
    """How many workers a live run needs and can use.

    Attributes:
        least: workers without which it cannot train.
        most: workers that it can use.
        work: what it has left to do, in the same unit for all runs.
    """

    least: int
    most: int
    work: float


def shares(workers: int, demands: Mapping[str, Demand]) -> dict[str, int]:
    """Divide workers among runs, so that the last of them ends as early as possible.

    Each run gets its least, in the order of `demands`. A run whose least is more than what is left
    gets none. Each further worker goes to the run that would end last. A run's time is its work
    divided by its workers, so no other division with the same minima ends earlier.

    Args:
        workers: how many there are.
        demands: by run, in the order in which the runs came.
    """
    given: dict[str, int] = {}
    for run, demand in demands.items():
        given[run] = demand.least if demand.least <= workers else 0
        workers -= given[run]
    while workers > 0:
        able = [run for run, demand in demands.items() if 0 < given[run] < demand.most]
        if not able:
            break
        last = max(able, key=lambda run: demands[run].work / given[run])
        given[last] += 1
        workers -= 1
    return given

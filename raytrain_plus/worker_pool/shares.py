"""Who gets how many of the workers that several runs share."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a live run asks for.

    Attributes:
        least: workers that it needs to make any progress.
        most: workers that it can use.
        work: what it has left to do, in a unit that all claims share.
    """

    least: int
    most: int
    work: float


def shares(workers: int, claims: Mapping[str, Claim]) -> dict[str, int]:
    """Divide workers among runs, so that the last of them ends as early as possible.

    Each gets its least, in the order of `claims`; who comes when too little is left gets none. Each
    further worker goes to the run that would end last. As work is divided by workers, no other
    division of the same minima lets all end earlier.

    Args:
        workers: how many there are.
        claims: by run, in the order in which they came.
    """
    given: dict[str, int] = {}
    for run, claim in claims.items():
        given[run] = claim.least if claim.least <= workers else 0
        workers -= given[run]
    while workers > 0:
        able = [run for run, claim in claims.items() if 0 < given[run] < claim.most]
        if not able:
            break
        last = max(able, key=lambda run: claims[run].work / given[run])
        given[last] += 1
        workers -= 1
    return given

"""Shares of a pool: nobody below the least, nobody idle who is of use, and the earliest end."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.worker_pool.shares import Claim, shares

CLAIM = st.builds(
    lambda least, more, work: Claim(least=least, most=least + more, work=work),
    st.integers(1, 3),
    st.integers(0, 4),
    st.floats(0.0, 1e6),
)
CLAIMS = st.lists(CLAIM, max_size=4).map(lambda found: dict(zip("abcd", found, strict=False)))
WORKERS = st.integers(0, 9)


def end(claims, given_):
    """Return when the last run ends, of those that have workers."""
    return max((claims[run].work / n for run, n in given_.items() if n), default=0.0)


@given(WORKERS, CLAIMS)
def test_nobody_has_more_than_there_is_or_than_it_can_use(workers, claims):
    found = shares(workers, claims)
    assert found.keys() == claims.keys()
    assert sum(found.values()) <= workers
    for run, n in found.items():
        assert n == 0 or claims[run].least <= n <= claims[run].most


@given(WORKERS, CLAIMS)
def test_no_worker_is_idle_that_somebody_could_use(workers, claims):
    found = shares(workers, claims)
    left = workers - sum(found.values())
    for run, n in found.items():
        assert left == 0 or n == claims[run].most or (n == 0 and claims[run].least > left)


@given(WORKERS, CLAIMS)
def test_no_other_division_ends_earlier(workers, claims):
    """Against all divisions among the same runs."""
    found = shares(workers, claims)
    ranges = [range(claims[r].least, claims[r].most + 1) if n else (0,) for r, n in found.items()]
    others = (o for o in itertools.product(*ranges) if sum(o) <= workers)
    best = min(end(claims, dict(zip(found, other, strict=True))) for other in others)
    assert end(claims, found) == best


@given(WORKERS, CLAIMS)
def test_who_came_first_is_served_first(workers, claims):
    found = shares(workers, claims)
    for earlier, later in itertools.pairwise(found):
        if found[earlier] == 0 and found[later]:
            assert claims[later].least < claims[earlier].least


def test_the_longest_remaining_work_gets_the_rest():
    claims = {
        "short": Claim(least=1, most=8, work=10.0),
        "long": Claim(least=1, most=8, work=100.0),
    }
    assert shares(4, claims) == {"short": 1, "long": 3}
    assert shares(4, {"long": claims["long"]}) == {"long": 4}  # when the other has ended

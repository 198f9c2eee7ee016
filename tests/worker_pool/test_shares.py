"""Shares of a pool: no run below its minimum, no usable worker idle, and the earliest end."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.worker_pool.shares import Demand, shares

DEMAND = st.builds(
    lambda least, more, work: Demand(least=least, most=least + more, work=work),
    st.integers(1, 3),
    st.integers(0, 4),
    st.floats(0.0, 1e6),
)
DEMANDS = st.lists(DEMAND, max_size=4).map(lambda found: dict(zip("abcd", found, strict=False)))
WORKERS = st.integers(0, 9)


def end(demands, given_):
    """Return the end of the last run that has workers."""
    return max((demands[run].work / n for run, n in given_.items() if n), default=0.0)


@given(WORKERS, DEMANDS)
def test_no_run_has_more_workers_than_there_are_or_than_it_can_use(workers, demands):
    found = shares(workers, demands)
    assert found.keys() == demands.keys()
    assert sum(found.values()) <= workers
    for run, n in found.items():
        assert n == 0 or demands[run].least <= n <= demands[run].most


@given(WORKERS, DEMANDS)
def test_no_worker_that_a_run_could_use_is_idle(workers, demands):
    found = shares(workers, demands)
    left = workers - sum(found.values())
    for run, n in found.items():
        assert left == 0 or n == demands[run].most or (n == 0 and demands[run].least > left)


@given(WORKERS, DEMANDS)
def test_no_other_division_ends_earlier(workers, demands):
    """Compared with all divisions among the same runs."""
    found = shares(workers, demands)
    ranges = [range(demands[r].least, demands[r].most + 1) if n else (0,) for r, n in found.items()]
    others = (o for o in itertools.product(*ranges) if sum(o) <= workers)
    best = min(end(demands, dict(zip(found, other, strict=True))) for other in others)
    assert end(demands, found) == best


@given(WORKERS, DEMANDS)
def test_the_run_that_came_first_is_served_first(workers, demands):
    found = shares(workers, demands)
    for earlier, later in itertools.pairwise(found):
        if found[earlier] == 0 and found[later]:
            assert demands[later].least < demands[earlier].least


def test_the_longest_remaining_work_gets_the_rest():
    demands = {
        "short": Demand(least=1, most=8, work=10.0),
        "long": Demand(least=1, most=8, work=100.0),
    }
    assert shares(4, demands) == {"short": 1, "long": 3}
    assert shares(4, {"long": demands["long"]}) == {"long": 4}  # when the other run has ended

"""The goodput simulator compared with cases computed by hand, and goodput read from a journal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import replay
from benchmarks.simulator import Costs, Job, Spent, simulate
from raytrain_plus.chaos.trace import Change

FREE = Costs(loss=0.0, change=0.0, start=0.0)
JOB = Job(logical_ranks=8, rank_seconds=1.0)


def test_without_disturbance_all_time_is_useful():
    spent = simulate(JOB, [Change(0.0, 4)], FREE, until=100.0)
    assert spent == Spent(useful=400.0)
    assert spent.goodput == 1.0


def test_one_loss_costs_a_pause_the_step_in_flight_and_imbalance():
    # Four workers commit a step every 2 s: at 11 s half a step is in flight. Then three: 3, 3, 2.
    costs = Costs(loss=4.0, change=0.0, start=0.0)
    spent = simulate(JOB, [Change(0.0, 4), Change(11.0, -1)], costs, until=18.0)
    assert spent == Spent(useful=40.0 + 8.0, redone=4.0, paused=12.0, imbalance=1.0)
    assert spent.offered == 4 * 11.0 + 3 * 7.0


def test_balance_is_not_traded_for_bytes_that_cost_nothing():
    # 11, 11, 10 ranks; and 12, 10, 10 without the choice of the imbalance.
    job = Job(logical_ranks=32, rank_seconds=1.0)
    for follows, step in ((True, 11), (False, 12)):
        costs = Costs(loss=0.0, change=0.0, start=0.0, follows=follows)
        spent = simulate(job, [Change(0.0, 3)], costs, until=1.0 * 11 * 12)
        assert spent.useful == pytest.approx(32 * 11 * 12 / step)


def test_salvage_keeps_the_work_of_survivors():
    costs = Costs(loss=0.0, change=0.0, start=0.0, salvage=True)
    spent = simulate(JOB, [Change(0.0, 4), Change(11.0, -1)], costs, until=11.0)
    assert spent == Spent(useful=40.0 + 3.0, redone=1.0)


def test_an_announced_loss_costs_only_a_pause():
    costs = Costs(loss=4.0, change=0.0, start=0.0, noticed=True)
    spent = simulate(JOB, [Change(0.0, 4), Change(11.0, -2)], costs, until=15.0)
    assert spent == Spent(useful=44.0, paused=8.0)


def test_a_newcomer_starts_while_the_others_train():
    costs = Costs(loss=0.0, change=3.0, start=5.0)
    spent = simulate(JOB, [Change(0.0, 1), Change(10.0, 1)], costs, until=20.0)
    assert spent == Spent(useful=10.0 + 4.0, starting=5.0 + 5.0, paused=6.0)


def test_a_worker_that_is_lost_while_it_starts_costs_no_pause():
    costs = Costs(loss=9.0, change=9.0, start=5.0)
    spent = simulate(JOB, [Change(0.0, 2), Change(2.0, -1)], costs, until=6.0)
    assert spent == Spent(useful=1.0, starting=4.0 + 3.0)


def test_a_restart_goes_back_to_its_checkpoint_and_not_further():
    costs = Costs(loss=10.0, change=0.0, start=0.0, redone_steps=2.0, planned=False)
    changes = [Change(0.0, 4), Change(20.0, -2)]
    spent = simulate(JOB, changes, costs, until=30.0)
    assert spent == Spent(useful=64.0, redone=16.0, paused=20.0)
    # A loss during the restart starts it again, from the same checkpoint.
    spent = simulate(JOB, [*changes, Change(25.0, -1)], costs, until=35.0)
    assert spent == Spent(useful=64.0, redone=16.0, paused=20.0)


CHANGES = st.lists(st.tuples(st.floats(0.0, 50.0), st.integers(-3, 4)), max_size=12)
COSTS = st.builds(
    Costs,
    loss=st.floats(0.0, 5.0),
    change=st.floats(0.0, 5.0),
    start=st.floats(0.0, 5.0),
    redone_steps=st.floats(0.0, 3.0),
    salvage=st.booleans(),
    noticed=st.booleans(),
    planned=st.booleans(),
    follows=st.booleans(),
)


@settings(deadline=None)
@given(CHANGES, COSTS)
def test_every_worker_second_is_spent_once(drawn, costs):
    changes, workers, offered = [Change(0.0, 1)], 1, 60.0
    for seconds, wanted in sorted(drawn):
        delta = min(64 - workers, max(wanted, 1 - workers))
        if delta:
            changes.append(Change(seconds, delta))
            workers += delta
            offered += delta * (60.0 - seconds)
    spent = simulate(Job(64, 0.25), changes, costs, until=60.0)
    assert all(value >= -1e-6 for value in vars(spent).values())
    assert spent.offered == pytest.approx(offered)
    free = Costs(loss=0.0, change=0.0, start=0.0, noticed=True, planned=False)
    assert simulate(Job(64, 0.25), changes, free, until=60.0).goodput == pytest.approx(1.0)


def steps(generation, workers, times):
    fields = {"event": "step", "generation": generation, "workers": workers}
    return [{**fields, "time": time} for time in times]


def test_time_is_useful_between_the_commits_of_one_group():
    journal = [
        *steps(1, 2, [0.0, 1.0, 2.0, 3.0, 9.0]),
        {"event": "generation", "time": 10.0},
        *steps(2, 1, [20.0, 22.0, 24.0]),
        *steps(3, 4, [99.0]),  # the duration of a single step is unknown
    ]
    assert replay.useful(journal) == 2 * (9.0 + 1.0) + 1 * (4.0 + 2.0)


def test_a_window_starts_with_the_workers_that_are_there():
    changes = [Change(0.0, 3), Change(5.0, -1), Change(8.0, 2), Change(20.0, -1)]
    cut = replay.window(changes, 5.0, 10.0)
    assert cut == [Change(0.0, 2), Change(3.0, 2)]
    assert replay.offered(cut, 10.0) == 2 * 10.0 + 2 * 7.0

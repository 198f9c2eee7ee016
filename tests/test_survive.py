"""The survival benchmark's reading of journals, checked with journals made by hand."""

import pytest

from benchmarks.outages import SETTLED, Outage, RunningGroup, outages
from benchmarks.under_fire import Fire, PeriodicKiller, Timeline, alone, share


def step(at, number, generation=1):
    return {"event": "step", "time": at, "step": number, "generation": generation}


def generation(at, number, start, workers=2):
    members = [f"w{n}" for n in range(workers)]
    return {
        "event": "generation",
        "time": at,
        "generation": number,
        "step": start,
        "workers": workers,
        "members": members,
    }


def lost(at, worker="w1"):
    return {"event": "worker", "time": at, "worker": worker, "state": "lost"}


def ready(worker, pid):
    return {"event": "worker", "time": 0.0, "worker": worker, "state": "ready", "pid": pid}


def test_an_outage_ends_with_the_first_step_of_the_next_group():
    events = [
        generation(0.0, 1, 0),
        step(1.0, 1),
        step(2.0, 2),
        step(2.25, 3),  # it was nearly done at the fault, at 2.125
        lost(2.5),
        generation(2.75, 2, 3, workers=1),
        step(3.125, 4, 2),
    ]
    assert outages(events, [2.125]) == [Outage(1.0, 0.375, 0.625, 0)]


def test_steps_that_are_computed_again_belong_to_the_outage():
    events = [
        generation(0.0, 1, 0),
        *(step(float(n), n) for n in range(1, 6)),
        lost(5.5),
        generation(7.0, 2, 2),  # from a checkpoint of step 2; 3 to 5 are not written again
        step(10.0, 6, 2),
    ]
    assert outages(events, [5.25]) == [Outage(4.75, 0.25, 1.75, 3)]


def test_if_training_goes_on_the_longest_time_between_commits_counts():
    events = [
        generation(0.0, 1, 0),
        *(step(float(n), n) for n in range(1, 4)),
        step(4.5, 4),
        {"event": "coordinator_restart", "time": 6.0, "workers": ["w0", "w1"], "generation": 1},
        generation(6.5, 2, 4),
        step(7.0, 5, 2),
        *(step(7.0 + n, 5 + n, 2) for n in range(1, SETTLED + 1)),
        step(90.0, SETTLED + 6, 2),  # another fault's, or no fault's
    ]
    assert outages(events, [3.25], training_goes_on=True) == [Outage(2.5, 2.75, 3.25, 0)]


def test_a_journal_that_misses_a_step_is_an_error():
    events = [generation(0.0, 1, 0), step(1.0, 1), step(3.0, 3)]
    with pytest.raises(RuntimeError, match="not consecutive"):
        outages(events, [2.0])


def test_a_group_is_settled_when_all_have_trained_together():
    group = RunningGroup()
    group.add([ready("w0", 10), ready("w1", 11), generation(0.0, 1, 0)])
    group.add([step(float(n), n) for n in range(SETTLED - 1)])
    assert group.members == [10, 11]
    assert not group.is_settled
    group.add([step(0.0, SETTLED)])
    assert group.is_settled
    group.add([generation(1.0, 2, SETTLED, workers=1)])
    group.add([step(float(n), n) for n in range(SETTLED)])
    assert not group.is_settled


def test_share_is_the_rate_under_fire_relative_to_the_rests():
    commits = [(second / 2, 10) for second in range(100)]  # 20 per second until 50
    commits += [(50.0 + second, 4) for second in range(1, 51)]
    commits += [(100.0 + second, 12) for second in range(1, 51)]
    timeline = Timeline(rests=[(10.0, 30.0), (110.0, 120.0)], fire=(60.0, 100.0))
    found = share(commits, timeline)
    rates = {"before": 20.0, "fire": 4.0, "after": 12.0}
    assert found == {**rates, "share": 0.25, "least": 0.2}


def test_alone_is_the_part_of_the_time_without_the_whole_group():
    events = [
        generation(0.0, 1, 0),
        generation(5.0, 2, 0, workers=1),  # five of its ten seconds are in the span
        generation(15.0, 3, 0),
        generation(28.0, 4, 0, workers=1),
    ]
    assert alone(events, (10.0, 30.0)) == (5.0 + 2.0) / 20.0
    assert alone(events, (16.0, 26.0)) == 0.0


def test_kills_come_on_time_between_two_rests(monkeypatch):
    now, killed, stopped = 1000.0, [], []
    monkeypatch.setattr("benchmarks.under_fire.time.time", lambda: now)
    monkeypatch.setattr("benchmarks.under_fire.os.kill", lambda pid, _: killed.append((now, pid)))
    monkeypatch.setattr("benchmarks.under_fire.stop", lambda: stopped.append(now))
    killer = PeriodicKiller(Fire(every=5.0, kills=2, rest=3.0))
    killer([ready("w0", 10), ready("w1", 11), generation(0.0, 1, 0)])
    killer([step(0.0, n) for n in range(SETTLED)])
    while not stopped and now < 1100.0:
        now += 1.0
        killer([])
    assert [at for at, _ in killed] == [1003.0, 1008.0]
    assert {pid for _, pid in killed} <= {10, 11}
    assert killer.timeline == Timeline([(1000.0, 1003.0), (1013.0, 1016.0)], (1003.0, 1013.0))
    assert stopped == [1016.0]

"""Each second of a run belongs to one part, for any journal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.observe.report.history import read_history
from raytrain_plus.observe.report.spending import TRAINING, UNKNOWN, cause_of, spending_of
from tests.observe import journals

NEAR = {"rel": 1e-9, "abs": 1e-6}


def spent(events):
    return spending_of(read_history(events))


def test_the_time_of_a_disturbed_run_is_divided_into_parts():
    found = spent(journals.disturbed())
    assert found.wall == 35.0
    assert (found.startup, found.ending) == (10.0, 1.0)
    assert found.training == 10.0 + 5.5 + 5.0
    assert found.pauses == {"a worker was lost": 2.5, "a worker joined": 1.0}
    assert found.longest_pause == 2.5
    assert found.workers == {
        "compute": 19.0,
        "exchange": 5.0,
        "data": 1.0,
        "evaluation": 0.25,
        "snapshot": 0.25,
        UNKNOWN: 10.0,  # the work of the worker that died
        "pause": 2.5 + 1.0,  # one worker waited, each time
    }
    assert found.forming == 0.5


def test_without_usage_events_the_time_of_training_is_unknown():
    events = [e for e in journals.disturbed() if e["event"] != "usage"]
    found = spent(events)
    assert set(found.workers) == {*TRAINING, UNKNOWN, "pause"}
    assert {part for part, seconds in found.workers.items() if seconds} == {UNKNOWN, "pause"}
    assert found.wall == 35.0


def test_time_between_two_sessions_does_not_count():
    once = journals.disturbed()
    again = [{**event, "time": event["time"] + 1000.0} for event in once]
    again = [
        event | ({"until": event["until"] + 1000} if "until" in event else {}) for event in again
    ]
    found = spent([*once, *again])
    assert found.wall == 70.0
    assert found.workers == {part: 2 * s for part, s in spent(once).workers.items()}


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("lost", "joined"), "a worker was lost"),
        (("hung",), "a worker hung"),
        (("drained", "joined"), "a worker was drained"),
        (("joined",), "a worker joined"),
        (("scaled",), "the run was scaled"),
        (("corruption",), "a worker computed wrong"),
        (("coordinator",), "the coordinator was restarted"),
        (("rebalanced",), "the work was rebalanced"),
        (("other",), "the group was formed again"),
    ],
)
def test_a_pause_is_attributed_to_its_main_cause(kinds, said):
    causes = [{"kind": kind, "worker": "w1"} for kind in kinds]
    events = [journals.run_line(0.0), journals.generation(1.0, 1, 0, ["w0"], causes)]
    assert cause_of(read_history(events).last.generations[0]) == said


SECONDS = st.integers(0, 400).map(lambda n: n / 8)
PARTS = st.dictionaries(st.sampled_from([*TRAINING, "forming", "anything"]), SECONDS)


@st.composite
def sessions(draw):
    """One session with any generations: clocks jump, workers report nothing or too much."""
    at = draw(SECONDS)
    events = [journals.run_line(at)]
    for number in range(1, draw(st.integers(1, 6))):
        at += draw(SECONDS) - draw(st.sampled_from([0, 0, 0, 3]))
        members = [f"w{i}" for i in draw(st.sets(st.integers(0, 5), min_size=1))]
        events.append(journals.generation(at, number, 0, members, [journals.LOST]))
        for count in range(draw(st.integers(0, 3))):
            at += draw(SECONDS)
            events.append(journals.step(at, count + 1, number))
        if draw(st.booleans()):
            until = at + draw(SECONDS) - 5
            events.append(journals.usage(at, number, until, members, **draw(PARTS)))
    if draw(st.booleans()):
        events.append(journals.end(at + draw(SECONDS), 3))
    return events


@given(st.lists(sessions(), min_size=1, max_size=3))
def test_parts_sum_to_the_whole(told):
    history = read_history([event for session in told for event in session])
    found = spending_of(history)
    wall = sum(session.end - session.start for session in history.sessions)
    assert found.wall == pytest.approx(wall, **NEAR)
    parts = found.startup + found.training + found.paused + found.ending
    assert parts == pytest.approx(wall, **NEAR)
    assert sum(found.shares.values()) == pytest.approx(found.training, **NEAR)
    everything = [found.startup, found.ending, *found.pauses.values(), *found.workers.values()]
    assert all(seconds >= 0 for seconds in everything)
    most = max((g.workers for s in history.sessions for g in s.generations), default=0)
    assert found.worker_seconds <= most * wall + 1e-6


@given(sessions())
def test_the_parts_of_one_generation_sum_to_workers_times_seconds(events):
    history = read_history(events)
    first = [g for g in history.last.generations if g.number == 1]
    only = {"run", "end"}
    kept = [e for e in events if e["event"] in only or e.get("generation") == 1]
    found = spent(kept)
    if first:
        workers = first[0].workers
        assert found.worker_seconds == pytest.approx(workers * found.training, **NEAR)
    else:
        assert found.worker_seconds == 0

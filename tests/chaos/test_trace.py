"""A trace of preemptions is checked, and keeps its shape at any size and speed."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.chaos.trace import (
    Change,
    NodeEvent,
    TraceError,
    at_speed,
    changes,
    parse_trace,
    read_trace,
    scaled,
)

BAMBOO = Path(__file__).parents[2] / "benchmarks" / "data" / "bamboo-p3.csv"


@st.composite
def lines(draw):
    """Draw the lines of a trace: nodes join and leave at times that often coincide."""
    here, found, time = [], [], 0
    for number in range(draw(st.integers(1, 40))):
        time += draw(st.sampled_from([0, 0, 1, 500, 60_000]))
        if here and draw(st.booleans()):
            found.append(f"{time},remove,{here.pop(draw(st.integers(0, len(here) - 1)))}")
        else:
            here.append(f"n{number}")
            found.append(f"{time},add,n{number}")
    return found


def sizes(changed):
    """Return the number of workers after each change."""
    return list(itertools.accumulate(change.delta for change in changed))


@given(lines())
def test_every_line_is_an_event(given_lines):
    trace = parse_trace(given_lines)
    assert [f"{round(e.seconds * 1000)},{e.action},{e.node}" for e in trace.events] == given_lines
    added = sum(e.action == "add" for e in trace.events)
    assert trace.counts()[-1][1] == added - (len(given_lines) - added)
    assert trace.seconds == trace.events[-1].seconds


@given(lines(), st.integers(1, 100))
def test_a_scaled_trace_is_proportional(given_lines, most):
    trace = parse_trace(given_lines)
    changed = scaled(trace, most)
    assert all(change.delta for change in changed)
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(changed))
    assert max(sizes(changed)) == most
    assert min(sizes(changed)) >= 0
    # After each change, the number is within half a worker of the exact share.
    after = dict(zip([c.seconds for c in changed], sizes(changed), strict=True))
    now = 0
    for seconds, nodes in dict(trace.counts()).items():
        now = after.get(seconds, now)
        assert abs(now - nodes * most / trace.peak) <= 0.5


@given(lines())
def test_a_trace_scaled_to_its_own_size_is_unchanged(given_lines):
    trace = parse_trace(given_lines)
    assert sizes(scaled(trace, trace.peak)) == [nodes for _, nodes in trace.counts()]


@given(lines(), st.floats(0.01, 1000), st.integers(1, 50))
def test_speed_changes_times_and_nothing_else(given_lines, speed, most):
    trace = parse_trace(given_lines)
    slow, fast = scaled(trace, most), changes(trace, most=most, speed=speed)
    assert fast == at_speed(slow, speed)
    assert [c.delta for c in fast] == [c.delta for c in slow]
    assert [c.seconds * speed for c in fast] == pytest.approx([c.seconds for c in slow])
    assert changes(trace, most=most) == slow


def test_a_loss_that_is_replaced_at_once_is_a_loss():
    trace = parse_trace(["0,add,a", "0,add,b", "9000,remove,a", "9000,add,c"])
    assert scaled(trace, 2) == [Change(0.0, 2), Change(9.0, -1), Change(9.0, 1)]


def test_halves_are_rounded_up():
    trace = parse_trace(["0,add,a", "1000,add,b", "2000,remove,a", "3000,remove,b"])
    assert scaled(trace, 1) == [Change(0.0, 1), Change(3.0, -1)]


def test_the_recorded_trace():
    trace = read_trace(BAMBOO)
    assert (len(trace.events), trace.peak, trace.seconds) == (344, 32, 40920.0)
    assert trace.events[0] == NodeEvent(0.0, "add", "node1")
    changed = scaled(trace, 32)
    assert sum(c.delta < 0 for c in changed) == 79
    assert -sum(c.delta for c in changed if c.delta < 0) == 167
    assert set(sizes(scaled(trace, 4))) <= {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: it needs a line"),
        ("0,add,a\n5", r"line 2: '5' has 1 fields; it is `milliseconds,add\|remove,node`"),
        ("\n1.5,add,a", "line 2: the time '1.5' is not a whole number of milliseconds"),
        ("-1,add,a", "line 1: the time '-1'"),
        ("0,kill,a", "line 1: the action 'kill' is not known; it is `add` or `remove`"),
        ("0,add, ", "line 1: the node has no name"),
        ("9,add,a\n8,add,b", "line 2: the time goes back from 0.009 s to 0.008 s"),
        ("0,add,a\n1,add,a", "line 2: node 'a' is added, but it is there already"),
        ("0,remove,a", "line 1: node 'a' is removed, but it is not there"),
    ],
)
def test_wrong_lines_are_reported(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"missing.csv cannot be read: .*No such file"):
        read_trace(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(TraceError, match=r"binary.csv cannot be read: .*decode"):
        read_trace(tmp_path / "binary.csv")


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_a_speed_must_be_above_zero(speed):
    with pytest.raises(TraceError, match=f"speed is {speed}"):
        at_speed([], speed)


def test_a_trace_needs_a_worker():
    with pytest.raises(TraceError, match="scaled to 0 workers"):
        scaled(parse_trace(["0,add,a"]), 0)

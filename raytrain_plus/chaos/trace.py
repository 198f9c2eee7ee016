"""Traces of preemptions: when a cloud added and removed nodes. Pure except for reading a file.

A trace is a CSV file without a header, one line `milliseconds,add|remove,node` for each node that
is added or removed, in order of time. It can be replayed at another size and speed: only the times
and the shares of nodes matter.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_ACTIONS = ("add", "remove")
_MOST_DIGITS = 15  # thirty thousand years


class TraceError(ValueError):
    """A trace cannot be read, or cannot be replayed as requested."""


@dataclass(frozen=True)
class NodeEvent:
    """A node is added or removed.

    Attributes:
        seconds: since the trace began.
        action: `add` or `remove`.
        node: name of the node.
    """

    seconds: float
    action: Literal["add", "remove"]
    node: str


@dataclass(frozen=True)
class Trace:
    """The events of a set of nodes, in order of time."""

    events: tuple[NodeEvent, ...]

    @property
    def seconds(self) -> float:
        """The time of the last event, in seconds."""
        return self.events[-1].seconds

    @property
    def peak(self) -> int:
        """The most nodes that exist at once."""
        return max(nodes for _, nodes in self.counts())

    def counts(self) -> list[tuple[float, int]]:
        """Return the number of nodes after each change, with its time.

        Consecutive lines of the same time and action are one change. So a loss that is replaced at
        the same instant still counts as a change.
        """
        found: list[tuple[float, int]] = []
        nodes = 0
        for (seconds, action), together in itertools.groupby(
            self.events, key=lambda event: (event.seconds, event.action)
        ):
            nodes += len(list(together)) * (1 if action == "add" else -1)
            found.append((seconds, nodes))
        return found


@dataclass(frozen=True)
class Change:
    """Workers are added or removed at once.

    Attributes:
        seconds: since the beginning.
        delta: number of workers added; below zero, removed.
    """

    seconds: float
    delta: int


def read_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        TraceError: the file cannot be read, or a line is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"trace {path} cannot be read: {error}") from error
    return parse_trace(text.splitlines(), str(path))


def parse_trace(lines: Iterable[str], where: str = "trace") -> Trace:
    """Read the lines of a trace; empty ones are skipped.

    Args:
        lines: each is `milliseconds,add|remove,node`.
        where: name of the lines in error messages.

    Raises:
        TraceError: a line is wrong; the message has its number and what is allowed.
    """
    events: list[NodeEvent] = []
    here: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = _event(line)
            _check_follows(event, events, here)
        except TraceError as error:
            raise TraceError(f"{where}, line {number}: {error}") from None
        events.append(event)
        here ^= {event.node}
    if not events:
        raise TraceError(f"{where} is empty: it needs a line `milliseconds,add,node` at least")
    return Trace(tuple(events))


def scaled(trace: Trace, most: int) -> list[Change]:
    """Scale a trace from nodes to workers, so that its peak is `most` workers.

    At any time there are `nodes * most / peak` workers, rounded to the nearest number, halves up.

    Args:
        trace: the trace.
        most: workers at the trace's peak.

    Returns:
        The changes, in the trace's order.

    Raises:
        TraceError: `most` is below 1.
    """
    if most < 1:
        raise TraceError(f"the trace cannot be scaled to {most} workers; at least 1 is needed")
    peak = trace.peak
    counts = [
        (seconds, (2 * nodes * most + peak) // (2 * peak)) for seconds, nodes in trace.counts()
    ]
    steps = itertools.pairwise([(0.0, 0), *counts])
    return [
        Change(seconds, workers - before)
        for (_, before), (seconds, workers) in steps
        if workers != before
    ]


def at_speed(changes: Sequence[Change], speed: float) -> list[Change]:
    """Speed a trace up: at speed 10, ten minutes become one.

    Raises:
        TraceError: the speed is not finite and above zero.
    """
    if not (math.isfinite(speed) and speed > 0):
        raise TraceError(f"speed is {speed}; it must be above zero, 1 being the trace's own")
    return [Change(change.seconds / speed, change.delta) for change in changes]


def changes(trace: Trace, *, most: int, speed: float = 1.0) -> list[Change]:
    """Return a trace as changes of a group of at most `most` workers, `speed` times as fast.

    Raises:
        TraceError: `most` is below 1, or the speed not above zero.
    """
    return at_speed(scaled(trace, most), speed)


def _event(line: str) -> NodeEvent:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 3:
        raise TraceError(f"{line!r} has {len(fields)} fields; it is `milliseconds,add|remove,node`")
    milliseconds, action, node = fields
    is_number = milliseconds.isascii() and milliseconds.isdigit()
    if not is_number or len(milliseconds) > _MOST_DIGITS:
        raise TraceError(
            f"the time {milliseconds[:40]!r} is not a whole number of milliseconds >= 0 with at "
            f"most {_MOST_DIGITS} digits"
        )
    if action not in _ACTIONS:
        raise TraceError(f"the action {action!r} is not known; it is `add` or `remove`")
    if not node:
        raise TraceError("the node has no name; give each its own")
    return NodeEvent(int(milliseconds) / 1000, "add" if action == "add" else "remove", node)


def _check_follows(event: NodeEvent, events: Sequence[NodeEvent], here: set[str]) -> None:
    if events and event.seconds < events[-1].seconds:
        raise TraceError(
            f"the time goes back from {events[-1].seconds:g} s to {event.seconds:g} s; sort the "
            "lines by time"
        )
    if (event.action == "add") == (event.node in here):
        raise TraceError(
            f"node {event.node!r} is added, but it is there already; remove it before"
            if event.action == "add"
            else f"node {event.node!r} is removed, but it is not there; add it before"
        )

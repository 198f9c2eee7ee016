"""Half an hour of the recorded trace, replayed on real workers of this machine.

Workers that the trace removes are killed without notice, and the run is scaled down. For workers
that it adds, the run is scaled up. The trace's busiest half hour at this size is replayed (its
first half hour only adds).

Goodput is read from the journal. Useful worker-seconds are the time between two commits of one
group, times its workers; the first commit of a group counts as its median step. So other load on
the machine makes steps longer, but does not reduce goodput. Imbalance does not show either. The
worker-seconds that the trace offers are counted from the first step on.
"""

import itertools
import os
import random
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from benchmarks.elastic import RUN, Event, of_kind, train
from benchmarks.tasks import COMPUTE_BOUND
from raytrain_plus.chaos.trace import Change, at_speed, read_trace, scaled
from raytrain_plus.names import NAMESPACE

TRACE = Path(__file__).parent / "data" / "bamboo-p3.csv"
MOST = 4  # workers
_BEGIN, _SECONDS = 16_080.0, 1800.0  # of the trace
_ENDLESS = 1_000_000  # steps


def window(changes: Sequence[Change], begin: float, seconds: float) -> list[Change]:
    """Cut a window out of a trace; workers that are there at its start come at time 0."""
    here = sum(change.delta for change in changes if change.seconds <= begin)
    inside = [c for c in changes if begin < c.seconds < begin + seconds]
    return [Change(0.0, here), *(Change(c.seconds - begin, c.delta) for c in inside)]


def offered(changes: Sequence[Change], until: float) -> float:
    """Return the worker-seconds that a trace offers."""
    return sum(c.delta * (until - c.seconds) for c in changes if c.seconds < until)


def useful(events: list[Event]) -> float:
    """Return the useful worker-seconds of the journal's steps."""
    groups: dict[int, list[Event]] = defaultdict(list)
    for step in of_kind(events, "step"):
        groups[step["generation"]].append(step)
    total = 0.0
    for steps in groups.values():
        gaps = [after["time"] - before["time"] for before, after in itertools.pairwise(steps)]
        if gaps:
            total += steps[0]["workers"] * (sum(gaps) + statistics.median(gaps))
    return total


@dataclass
class Replayer:
    """Watches a run, and applies a trace's changes to it.

    Attributes:
        changes: the changes that are still to come; the first is the group at the start.
        until: seconds after which the run is stopped.
        began: Unix time of the first step.
        ended: Unix time at which it was stopped.
        starts: for each worker that was added, seconds from the request until it was ready.
    """

    changes: list[Change]
    until: float
    began: float | None = None
    ended: float | None = None
    starts: list[float] = field(default_factory=list)
    _pids: dict[str, int] = field(default_factory=dict)
    _members: list[str] = field(default_factory=list)
    _killed: set[str] = field(default_factory=set)
    _wanted: int = 0
    _asked: float | None = None
    _scaled: int = 0

    def __call__(self, events: list[Event]) -> None:
        """Handle new events of the journal."""
        for event in events:
            self._learn(event)
        now = time.time()
        if not self._wanted:
            self._wanted = self.changes.pop(0).delta
        # The run is scaled down only after it has noticed the loss; otherwise it would remove one
        # more worker.
        if not self._killed and self._scaled != self._wanted:
            self._steer("scale", self._wanted)
            self._asked = now if self._wanted > self._scaled > 0 else None
            self._scaled = self._wanted
        if self.began is None or self.ended is not None:
            return
        if now >= self.began + self.until:
            self.ended = now
            self._steer("stop")
        elif self.changes and now >= self.began + self.changes[0].seconds and not self._killed:
            self._change(self.changes.pop(0).delta)

    def _learn(self, event: Event) -> None:
        kind, state = event["event"], event.get("state")
        if kind == "generation":
            self._members = event["members"]
        elif kind == "step" and self.began is None and event["workers"] == self._wanted:
            self.began = event["time"]
        elif kind == "worker" and state == "ready":
            self._pids[event["worker"]] = event["pid"]
            if self._asked is not None:
                self.starts.append(event["time"] - self._asked)
        elif kind == "worker" and state in ("lost", "left"):
            self._pids.pop(event["worker"], None)
            self._killed.discard(event["worker"])

    def _change(self, delta: int) -> None:
        self._wanted += delta
        if delta < 0:
            alive = [worker for worker in self._members if worker in self._pids]
            for worker in random.sample(alive, min(-delta, len(alive) - 1)):
                self._killed.add(worker)
                os.kill(self._pids[worker], signal.SIGKILL)

    def _steer(self, how: str, *given: int) -> None:
        coordinator: Any = ray.get_actor(RUN, namespace=NAMESPACE)
        ray.get(getattr(coordinator, how).remote(*given))


def replay(speed: float, seconds: float = _SECONDS) -> dict[str, Any]:
    """Replay the trace's busiest half hour, or its first part, on at most four workers.

    Args:
        speed: how many times as fast as recorded.
        seconds: seconds of the trace. Default: half an hour.

    Returns:
        The measured goodput with its parts, and the changes that were replayed.
    """
    random.seed(0)
    changes = at_speed(window(scaled(read_trace(TRACE), MOST), _BEGIN, seconds), speed)
    replayer = Replayer(list(changes), seconds / speed)
    events = train(COMPUTE_BOUND, (1, MOST), _ENDLESS, replayer)
    began, ended = replayer.began, replayer.ended
    assert began is not None
    assert ended is not None
    counted = [e for e in events if began < e["time"] <= ended]
    steps = of_kind(counted, "step")
    if [s["step"] for s in steps] != list(range(steps[0]["step"], steps[-1]["step"] + 1)):
        raise RuntimeError("the journal's steps are not consecutive: committed steps were lost")
    total = offered(changes, ended - began)
    return {
        "seconds": round(ended - began, 1),
        "changes": [vars(change) for change in changes],
        "generations": len(of_kind(counted, "generation")),
        "steps": len(steps),
        "start_seconds": [round(start, 2) for start in replayer.starts],
        "goodput": round(useful(counted) / total, 3),
    }

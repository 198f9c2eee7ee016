"""How long a group pauses when a worker joins.

Run as `python -m benchmarks.grow [--quick] [--json]`.

A group of two is scaled to three and back many times while it trains a model of 23 MB (and as much
momentum). Reported is `pause_seconds` of the journal: from the last commit of the old group to the
start of the new group's first step (meeting, new process group, transfer of the state). Also
reported is the time from commit to commit, which includes the new group's first step.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import ray

from benchmarks import report
from benchmarks.elastic import RUN, Event, of_kind, train
from benchmarks.report import Aim, Row
from benchmarks.tasks import COMMUNICATION_BOUND
from raytrain_plus.names import NAMESPACE

_SETTLED = 10  # steps of a group before it is resized
_ENDLESS = 1_000_000  # steps
_MOST = 1.0  # seconds
_SMALL, _LARGE = 2, 3


@dataclass
class Resizer:
    """Watches a run, resizes it each time it is stable, and stops it in the end.

    Attributes:
        growths: how many times the group has still to grow.
    """

    growths: int
    _size: int = 0
    _steps: int = 0
    _asked: int = 0

    def __call__(self, events: list[Event]) -> None:
        """Handle new events of the journal."""
        for event in events:
            if event["event"] == "generation":
                self._size, self._steps = event["workers"], 0
            elif event["event"] == "step":
                self._steps += 1
        if self._steps < _SETTLED or self._asked not in (0, self._size):
            return
        coordinator: Any = ray.get_actor(RUN, namespace=NAMESPACE)
        if self._size == _LARGE and self.growths == 0:
            coordinator.stop.remote()
            return
        self._asked = _SMALL if self._size == _LARGE else _LARGE
        self.growths -= self._asked == _LARGE
        coordinator.scale.remote(self._asked)


def pauses(events: list[Event]) -> list[Row]:
    """Return how long the group paused each time it grew."""
    steps = of_kind(events, "step")
    found = []
    for before, after in itertools.pairwise(of_kind(events, "generation")):
        if after["workers"] > before["workers"]:
            last = [s for s in steps if s["generation"] == before["generation"]][-1]
            first = next(s for s in steps if s["generation"] == after["generation"])
            found.append(
                {
                    "generation": after["generation"],
                    "step": after["step"],
                    "pause s": round(after["pause_seconds"], 3),
                    "commit to commit s": round(first["time"] - last["time"], 3),
                }
            )
    return found


def main() -> None:
    """Measure the pauses."""
    options = report.options("the pause of a group of two when a third worker joins")
    events = train(COMMUNICATION_BOUND, (1, _LARGE), _ENDLESS, Resizer(3 if options.quick else 8))
    rows = pauses(events)
    report.show("grow: a third worker joins, 23 MB of parameters, 23 MB of momentum", rows)
    seconds = [row["pause s"] for row in rows]
    aims = [
        Aim("pause in seconds, median", report.median(seconds), most=_MOST),
        Aim("pause in seconds, worst", max(seconds), most=_MOST),
    ]
    report.finish(aims, {"grow": rows}, as_json=options.json)


if __name__ == "__main__":
    main()

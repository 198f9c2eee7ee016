"""The time from SIGKILL of one of two workers to the next committed step, compared with Ray Train.

Run as `python -m benchmarks.recovery [--quick] [--json]`.

raytrain_plus: in one run a worker is killed many times, each time after the previous replacement
has joined and the group is stable. The two places of the group take turns. Recovery ends with the
first step that the group commits without the lost worker: a step that was nearly done when the
signal was sent does not count. Lost committed steps are read from the journal.

Peer: `ray.train.torch.TorchTrainer`, with default settings and tuned (`ray_train.py`), on the same
task.
"""

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from benchmarks import ray_train, report
from benchmarks.elastic import RUN, Event, of_kind, train
from benchmarks.report import Aim, Row
from benchmarks.tasks import COMPUTE_BOUND
from raytrain_plus.names import NAMESPACE

_WORKERS = 2
_SETTLED = 20  # steps of the whole group before the next kill
_ENDLESS = 1_000_000  # steps
_MEDIAN, _WORST = 0.5, 1.5  # seconds
_PHASES = ("noticed", "formed", "seconds")


@dataclass(frozen=True)
class Recovery:
    """One kill.

    Attributes:
        seconds: until the next committed step.
        lost: committed steps that were lost.
        noticed: seconds until the coordinator had noticed; None for a peer.
        formed: seconds until the new group had formed; None for a peer.
    """

    seconds: float
    lost: int
    noticed: float | None = None
    formed: float | None = None


@dataclass
class Killer:
    """Watches a run, kills a worker each time the group has settled, and stops the run in the end.

    Attributes:
        kills: how many kills are left.
        at: the Unix time of each kill.
    """

    kills: int
    at: list[float] = field(default_factory=list)
    _pids: dict[str, int] = field(default_factory=dict)
    _members: list[str] = field(default_factory=list)
    _steps: int = 0
    _has_stopped: bool = False

    def __call__(self, events: list[Event]) -> None:
        """Handle new events of the journal."""
        for event in events:
            if event["event"] == "worker" and event["state"] == "ready":
                self._pids[event["worker"]] = event["pid"]
            elif event["event"] == "generation":
                self._members, self._steps = event["members"], 0
            elif event["event"] == "step":
                self._steps += 1
        if self._has_stopped or self._steps < _SETTLED or len(self._members) < _WORKERS:
            return
        if self.kills == 0:
            self._has_stopped = True  # the events of the run's end come still
            coordinator: Any = ray.get_actor(RUN, namespace=NAMESPACE)
            coordinator.stop.remote()
            return
        self.kills -= 1
        self._steps = 0
        time.sleep(random.uniform(0.0, 0.2))  # any point of a step
        victim = self._pids[self._members[len(self.at) % _WORKERS]]
        self.at.append(time.time())
        os.kill(victim, signal.SIGKILL)


def recoveries(events: list[Event], kills: Sequence[float]) -> list[Recovery]:
    """Read from a journal how long each kill delayed the run, and how many steps it lost."""
    steps = of_kind(events, "step")
    generations = {event["generation"]: event for event in of_kind(events, "generation")}
    numbers = [step["step"] for step in steps]
    if numbers != list(range(1, len(numbers) + 1)):
        raise RuntimeError("the journal's steps are not consecutive: committed steps were lost")
    found = []
    for kill in kills:
        before = [step for step in steps if step["time"] <= kill][-1]
        after = next(step for step in steps if step["generation"] > before["generation"])
        noticed = next(e for e in of_kind(events, "worker", state="lost") if e["time"] > kill)
        formed = generations[after["generation"]]
        lost = max(0, before["step"] - formed["step"])
        found.append(
            Recovery(after["time"] - kill, lost, noticed["time"] - kill, formed["time"] - kill)
        )
    return found


def ours(kills: int) -> list[Recovery]:
    """Kill workers of raytrain_plus."""
    killer = Killer(kills)
    events = train(COMPUTE_BOUND, _WORKERS, _ENDLESS, killer)
    return recoveries(events, killer.at)


def row(system: str, found: Sequence[Recovery], reference: float) -> Row:
    """Summarise the recoveries of one system."""
    seconds = [recovery.seconds for recovery in found]
    return {
        "system": system,
        "kills": len(found),
        "median s": report.median(seconds),
        "worst s": round(max(seconds), 3),
        "steps redone, median": report.median([recovery.lost for recovery in found]),
        "steps redone, most": max(recovery.lost for recovery in found),
        "times slower": round(report.median(seconds, 6) / reference, 1),
    }


def main() -> None:
    """Measure raytrain_plus and Ray Train."""
    options = report.options("from SIGKILL of one of two workers to the next committed step")
    random.seed(0)
    found = ours(3 if options.quick else 12)
    reference = report.median([recovery.seconds for recovery in found], 6)
    rows = [row("raytrain_plus", found, reference)]
    for name, tuned in (("Ray Train, default settings", False), ("Ray Train, tuned", True)):
        peer = ray_train.measure(COMPUTE_BOUND, _WORKERS, 1 if options.quick else 3, tuned=tuned)
        rows.append(row(name, [Recovery(**one) for one in peer], reference))
    report.show("recovery: from SIGKILL of one of two workers to the next committed step", rows)
    every = [vars(recovery) for recovery in found]
    phases = {name: report.median([e[name] for e in every]) for name in _PHASES}
    report.show("raytrain_plus: median seconds from the kill until", [phases])
    aims = [
        Aim("seconds to recover, median", rows[0]["median s"], most=_MEDIAN),
        Aim("seconds to recover, worst", rows[0]["worst s"], most=_WORST),
        Aim("committed steps lost", rows[0]["steps redone, most"], most=0),
    ]
    report.finish(aims, {"recovery": rows, "kills": every}, as_json=options.json)


if __name__ == "__main__":
    main()

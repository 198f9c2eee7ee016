"""Faults injected into a run of raytrain_plus from outside, and their records in its journal.

One run gets the same fault many times, each time after all lost workers have been replaced and the
group is stable.
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from benchmarks.elastic import RUN, Event, of_kind, train
from benchmarks.tasks import Workload
from raytrain_plus.names import NAMESPACE

WORKERS = 2
SETTLED = 20  # steps of the whole group before the next fault
CHECKPOINTS = "20ba"

_ENDLESS = 1_000_000  # steps


@dataclass(frozen=True)
class Outage:
    """What one fault did.

    Attributes:
        seconds: until the next step that had not been committed before.
        noticed: seconds until the coordinator knew of it; of its own death, until it was back.
        formed: seconds until the next group began its first step.
        redone: committed steps that were computed again.
    """

    seconds: float
    noticed: float
    formed: float
    redone: int


@dataclass
class RunningGroup:
    """The workers that train now, read from the run's journal.

    Attributes:
        members: the process of each member of the running group.
        steps: how many steps this group has committed.
    """

    members: list[int] = field(default_factory=list)
    steps: int = 0
    _pids: dict[str, int] = field(default_factory=dict)

    def add(self, events: Sequence[Event]) -> None:
        """Take in new events of the journal."""
        for event in events:
            if event["event"] == "worker" and event["state"] == "ready":
                self._pids[event["worker"]] = event["pid"]
            elif event["event"] == "generation":
                self.members = [self._pids[worker] for worker in event["members"]]
                self.steps = 0
            elif event["event"] == "step":
                self.steps += 1

    @property
    def is_settled(self) -> bool:
        """Whether all workers have trained together for a while."""
        return len(self.members) == WORKERS and self.steps >= SETTLED


@dataclass
class FaultInjector:
    """Watches a run, injects a fault each time the group has settled, and stops the run in the end.

    Attributes:
        inject: called with the members' processes and the number of faults so far.
        times: number of faults.
        spread: the longest time from a settled group to the fault, in seconds. Default 0.2.
        at: the Unix time of each fault.
    """

    inject: Callable[[Sequence[int], int], None]
    times: int
    spread: float = 0.2
    at: list[float] = field(default_factory=list)
    _group: RunningGroup = field(default_factory=RunningGroup)

    def __call__(self, events: list[Event]) -> None:
        """Take in new events of the journal."""
        self._group.add(events)
        if not self._group.is_settled:
            return
        if len(self.at) == self.times:
            stop()
            return
        time.sleep(random.uniform(0.0, self.spread))
        members, self._group.members = self._group.members, []  # until the next group has formed
        self.at.append(time.time())
        self.inject(members, len(self.at))


def stop() -> None:
    """Stop the run."""
    _coordinator().stop.remote()


def one_member(members: Sequence[int], number: int, *, sent: signal.Signals) -> None:
    """Send a signal to a member; the places of the group take turns."""
    os.kill(members[number % len(members)], sent)


def all_members(members: Sequence[int], _number: int) -> None:
    """Kill all members at once."""
    for pid in members:
        os.kill(pid, signal.SIGKILL)


def the_coordinator(_members: Sequence[int], _number: int) -> None:
    """Kill the coordinator's process."""
    os.kill(ray.get(_coordinator().status.remote())["coordinator_pid"], signal.SIGKILL)


FAULTS: dict[str, Callable[[Sequence[int], int], None]] = {
    "worker SIGKILL": partial(one_member, sent=signal.SIGKILL),
    "worker SIGSTOP": partial(one_member, sent=signal.SIGSTOP),
    "coordinator SIGKILL": the_coordinator,
    "all workers SIGKILL": all_members,
}


def measure(workload: Workload, fault: str, times: int) -> list[Outage]:
    """Train, and inject one of the `FAULTS` again and again."""
    kills_all = fault == "all workers SIGKILL"
    spread = 1.0 if kills_all else 0.2  # any point between two checkpoints, or of a step
    injector = FaultInjector(FAULTS[fault], times, spread)
    keep = {"checkpoint_every": CHECKPOINTS} if kills_all else {}
    events = train(workload, WORKERS, _ENDLESS, injector, **keep)
    return outages(events, injector.at, training_goes_on=fault == "coordinator SIGKILL")


def outages(
    events: Sequence[Event], times: Sequence[float], *, training_goes_on: bool = False
) -> list[Outage]:
    """Read from a journal what each fault did.

    Args:
        events: the journal.
        times: the Unix time of each fault.
        training_goes_on: the group trains on during the fault. Then the longest time between two
            commits counts, until the next group has settled.

    Raises:
        RuntimeError: the journal misses steps.
    """
    steps = of_kind(list(events), "step")
    numbers = [step["step"] for step in steps]
    if numbers != list(range(1, len(numbers) + 1)):
        raise RuntimeError("the journal's steps are not consecutive: committed steps were lost")
    found = []
    for at, until in itertools.pairwise([*times, float("inf")]):
        before = [step for step in steps if step["time"] <= at][-1]
        after = next(step for step in steps if step["generation"] > before["generation"])
        formed = next(e for e in events if e["event"] == "generation" and e["time"] > at)
        noticed = next(e for e in events if _is_notice(e) and e["time"] > at)
        known = [step for step in steps if step["generation"] == before["generation"]][-1]
        seconds = after["time"] - at
        if training_goes_on:
            close = [before, *(step for step in steps if at < step["time"] < until)]
            close = [s for s in close if s["step"] <= after["step"] + SETTLED]
            seconds = max(b["time"] - a["time"] for a, b in itertools.pairwise(close))
        redone = max(0, known["step"] - formed["step"])
        found.append(Outage(seconds, noticed["time"] - at, formed["time"] - at, redone))
    return found


def _is_notice(event: Event) -> bool:
    lost = event["event"] == "worker" and event["state"] == "lost"
    return lost or event["event"] == "coordinator_restart"


def _coordinator() -> Any:
    return ray.get_actor(RUN, namespace=NAMESPACE)

"""How much imbalance to plan with, from the measured cost of the exchange. Pure.

`assignment.assign` gives away some balance for fewer bytes. What an imbalance is worth depends on
the model and on the network. Where a step is nearly all compute, an imbalance of an eighth loses
up to an eighth of it. Where the exchange takes a tenth of a step or more, it gains.

The model of a step: it lasts as long as its slowest worker computes, plus the visible part of the
exchange. The exchange is proportional to the bytes of the worker that sends most. A part of it is
hidden by the backward of the last logical rank, and with more bytes it may become visible. So a
plan that sends more bytes must save time even if all hidden communication becomes visible. A plan
that sends fewer bytes is judged by visible communication only. As far as the model holds, each
change shortens the step and none is undone. Where it does not hold, patience doubles each time that
an earlier value returns.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from raytrain_plus.elastic.policy.assignment import IMBALANCE, WorkerSpeed, assign, makespan
from raytrain_plus.elastic.protocol.messages import Assignment
from raytrain_plus.training.tree import subtree_count

CHOICES = (IMBALANCE, IMBALANCE / 2, IMBALANCE / 4, IMBALANCE / 8, 0.0)

_PAYS = 0.03  # share of a step that a change must save
_PATIENCE = 2  # windows in a row that must speak for the same change, to begin with


class Imbalance:
    """Which imbalance to plan with.

    Attributes:
        value: a share of a worker's load, one of `CHOICES`; the largest, until more is known.
    """

    def __init__(self) -> None:
        self.value = self._wanted = CHOICES[0]
        self._left: set[float] = set()
        self._votes = 0
        self._patience = _PATIENCE
        self._plans_for: tuple[object, ...] = ()
        self._plans: list[tuple[float, Sequence[Assignment]]] = []

    def judge(
        self,
        plan: Sequence[Assignment],
        speeds: Sequence[WorkerSpeed],
        measured: Mapping[str, float],
        seen: float,
        unseen: float,
    ) -> None:
        """Ask at the end of a window whether another imbalance would pay.

        Args:
            plan: the present one.
            speeds: its workers, with the speeds to plan with.
            measured: logical ranks per second of each worker.
            seen: seconds per step that the group waits for the exchange.
            unseen: seconds per step that the exchange runs, at most, while workers compute.
        """
        compute = makespan(plan, measured)
        fair = plan[-1].stop / sum(measured.values())
        goal = (1 - _PAYS) * (compute + seen)
        wanted = self.value
        if fair + seen < goal or compute < goal:  # perfect balance or a free exchange would pay
            hidden, bytes_now = min(unseen, 1 / min(measured.values())), _bytes(plan)
            for imbalance, other in self._alternatives(plan, speeds):
                more = _bytes(other) / bytes_now
                seconds = makespan(other, measured) + seen * more
                seconds += hidden * max(0.0, more - 1)
                if seconds < goal:
                    wanted, goal = imbalance, seconds
        if wanted != self._wanted:
            self._wanted, self._votes = wanted, 0
        self._votes = self._votes + 1 if wanted != self.value else 0

    def advises(self) -> bool:
        """Say whether a plan with another imbalance would pay; `follow` returns that imbalance."""
        return self._votes >= self._patience

    def follow(self) -> float:
        """Return the imbalance for a new plan; it is `value` from now on."""
        if self.advises():
            if self._wanted in self._left:
                self._patience *= 2
            self._left.add(self.value)
            self.value = self._wanted
        self._votes = 0
        return self.value

    def _alternatives(
        self, plan: Sequence[Assignment], speeds: Sequence[WorkerSpeed]
    ) -> list[tuple[float, Sequence[Assignment]]]:
        """Return the plans with other imbalances; cached as long as nothing has changed."""
        if (key := (self.value, tuple(plan), tuple(speeds))) != self._plans_for:
            others = [imbalance for imbalance in CHOICES if imbalance != self.value]
            leaves = plan[-1].stop
            self._plans = [
                (imbalance, assign(leaves, speeds, plan, imbalance)) for imbalance in others
            ]
            self._plans_for = key
        return self._plans


def _bytes(plan: Sequence[Assignment]) -> float:
    """Return what the worker that sends most sends, in sizes of the gradients."""
    start, stop = np.array([(a.start, a.stop) for a in plan]).T
    return 1.0 + float(subtree_count(start, stop, plan[-1].stop).max())

"""Compares two runs step by step."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raytrain_plus.observe.journal import Event


@dataclass(frozen=True)
class RunComparison:
    """The result of a comparison of two journals.

    Attributes:
        equal: whether both runs ended, and every step, evaluation and digest is the same.
        steps: how many steps both have.
        first_difference: `{step, what, values}` of the first difference, None if there is none.
    """

    equal: bool
    steps: int
    first_difference: dict[str, Any] | None


def compare(one: Iterable[Event], other: Iterable[Event]) -> RunComparison:
    """Compare two journals: losses bit for bit, metrics, and the digest of the final state.

    Args:
        one: the events of a run, which are read once; a step takes 16 bytes.
        other: the events of another run.
    """
    left, right = _Facts.of(one), _Facts.of(other)
    at, common = _losses_differ(left, right)
    differing = [
        key
        for key in left.rest.keys() | right.rest.keys()
        if left.rest.get(key) != right.rest.get(key)
    ]
    if at is not None:
        differing.append((at, "loss"))
    if differing:
        step, what = first = min(differing)
        values = [
            facts.loss_at(int(step)) if what == "loss" else facts.rest.get(first)
            for facts in (left, right)
        ]
        told = {"step": None if step == _END else int(step), "what": what, "values": values}
        return RunComparison(False, common, told)
    ended = any(what == "digest" for _, what in left.rest)
    unfinished = None if ended else {"step": None, "what": "digest", "values": [None, None]}
    return RunComparison(ended, common, unfinished)


_END = float("inf")


@dataclass
class _Facts:
    """The facts of a run's journal; a repeated fact replaces the one before."""

    steps: "array[int]" = field(default_factory=lambda: array("q"))
    losses: "array[float]" = field(default_factory=lambda: array("d"))
    rest: dict[tuple[float, str], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> "_Facts":
        facts, resumed = cls(), 0
        for event in events:
            if event["event"] == "run":
                resumed = event.get("resumed_step", 0)
            if event.get("changes"):  # of a `run` or `environment`: what follows is another run's
                facts.forget_after(resumed)
            elif event["event"] == "withdrawn":
                facts.forget_after(event["step"])
            elif event["event"] == "step":
                facts.steps.append(event["step"])
                told = event.get("loss_hex")
                facts.losses.append(event["loss"] if told is None else float.fromhex(told))
            elif event["event"] == "evaluate":
                for name, value in event["metrics"].items():
                    facts.rest[event["step"], f"metric {name}"] = value
            elif event["event"] == "end" and event.get("digest"):
                facts.rest[_END, "digest"] = event["digest"]
                for name, value in event.get("logged", {}).items():
                    facts.rest[_END, f"logged {name}"] = value
        return facts

    def forget_after(self, step: int) -> None:
        """Forget the facts after a step."""
        while self.steps and self.steps[-1] > step:
            self.steps.pop()
            self.losses.pop()
        self.rest = {key: value for key, value in self.rest.items() if key[0] <= step}

    def by_step(self) -> tuple[Any, Any]:
        """Return the steps in order, and the bits of the last loss of each."""
        steps = np.frombuffer(self.steps, np.int64)[::-1]
        bits = np.frombuffer(self.losses, np.int64)[::-1]
        known, last = np.unique(steps, return_index=True)
        return known, bits[last]

    def loss_at(self, step: int) -> str | None:
        """Return a step's loss in hexadecimal; None if the journal does not have it."""
        for at in range(len(self.steps) - 1, -1, -1):
            if self.steps[at] == step:
                return self.losses[at].hex()
        return None


def _losses_differ(left: _Facts, right: _Facts) -> tuple[int | None, int]:
    """Return the first step with different losses, and how many steps both have."""
    (one, ours), (other, theirs) = left.by_step(), right.by_step()
    common, here, there = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    unequal = common[ours[here] != theirs[there]]
    lone = np.setxor1d(one, other, assume_unique=True)
    first = [int(steps.min()) for steps in (unequal, lone) if len(steps)]
    return min(first, default=None), len(common)

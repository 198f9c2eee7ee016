"""Holding two runs against each other, step by step."""

from dataclasses import dataclass
from typing import Any

from raytrain_plus.observe.journal import Event


@dataclass(frozen=True)
class Comparison:
    """What two journals have in common.

    Attributes:
        equal: both runs ended, and every step, evaluation and digest is the same.
        steps: steps that both have.
        first_difference: what differs first, None if nothing does.
    """

    equal: bool
    steps: int
    first_difference: dict[str, Any] | None


def compare(one: list[Event], other: list[Event]) -> Comparison:
    """Compare two journals: losses bit for bit, metrics, and the digest of the final state."""
    left, right = _facts(one), _facts(other)
    common = sum(1 for key in left if key in right and key[1] == "loss")
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            step, what = key
            difference = {
                "step": int(step) if step != _END else None,
                "what": what,
                "values": [left.get(key), right.get(key)],
            }
            return Comparison(False, common, difference)
    ended = any(what == "digest" for _, what in left)
    unfinished = None if ended else {"step": None, "what": "digest", "values": [None, None]}
    return Comparison(ended, common, unfinished)


_END = float("inf")


def _facts(events: list[Event]) -> dict[tuple[float, str], Any]:
    facts: dict[tuple[float, str], Any] = {}
    for event in events:
        if event["event"] == "step":
            facts[event["step"], "loss"] = event["loss_hex"]
        elif event["event"] == "evaluate":
            for name, value in event["metrics"].items():
                facts[event["step"], f"metric {name}"] = value
        elif event["event"] == "end" and event.get("digest"):
            facts[_END, "digest"] = event["digest"]
    return facts

"""Why a group of workers changed, as a value. Pure.

The journal holds causes as data. A sentence is made where one is shown, and nothing reads a
sentence back. The kinds are few, so that a metric can have them as a label.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

CauseKind = Literal[
    "corruption", "coordinator", "hung", "lost", "failed", "drained", "scaled", "rebalanced",
    "joined", "start", "other",
]  # fmt: skip
KINDS: tuple[CauseKind, ...] = get_args(CauseKind)
"""All kinds. What forces a pause stands before what happens on the occasion."""

_SENTENCES: Mapping[CauseKind, str] = {
    "corruption": "{worker} evicted",
    "coordinator": "the coordinator was restarted",
    "hung": "{worker} hung",
    "lost": "{worker} lost",
    "failed": "{worker} failed",
    "drained": "{worker} drained",
    "scaled": "scaled to {detail}",
    "rebalanced": "rebalanced",
    "joined": "{worker} joined",
    "start": "start",
    "other": "regrouped",
}


@dataclass(frozen=True)
class Cause:
    """One reason for which a new generation is formed.

    Attributes:
        kind: what happened; see `KINDS`.
        worker: to which worker; empty if it is about none.
        detail: for `scaled`, how many workers the run wants now; empty otherwise.
    """

    kind: CauseKind
    worker: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """Return it for people, as `w1 lost`."""
        return _SENTENCES[self.kind].format(worker=self.worker, detail=self.detail)

    def as_data(self) -> dict[str, str]:
        """Return it as the journal holds it, without what is empty."""
        return {name: value for name, value in vars(self).items() if value}


def causes_of(event: Mapping[str, Any]) -> list[Cause]:
    """Return the causes of a `generation` event, or of a generation in a run's summary."""
    return [Cause(**one) for one in event["causes"]]


def sentence(causes: Iterable[Cause]) -> str:
    """Return causes for people, as `w1 lost, w3 joined`."""
    return ", ".join(map(str, causes))


def main_kind(causes: Sequence[Cause]) -> CauseKind:
    """Return the kind that forced the pause: of several causes, the first in `KINDS`."""
    return min((cause.kind for cause in causes), key=KINDS.index, default="other")

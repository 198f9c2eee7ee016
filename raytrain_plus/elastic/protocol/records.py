"""What workers report of each step, and the journal keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What a generation is described by, in the journal and in a run's summary.
GENERATION = ("generation", "step", "workers", "causes", "pause_seconds")


@dataclass(frozen=True, slots=True)
class Record:
    """One committed step, or the evaluation that follows it.

    Attributes:
        step: committed steps.
        generation: in which generation.
        time: Unix time of the commit.
        loss: the step's loss; NaN for an evaluation.
        busy_seconds: summed busy time of all workers since the step before.
        metrics: the evaluation's values, or None for a step.
        compute_seconds: how long each worker of the group computed in the step before.
        exchange_seconds: how long its exchange kept all of them waiting, and how long, at most, it
            ran while they computed.
        salvaged: logical ranks that a failed attempt at the step had computed.
        samples: rows and texts that the evaluation shows.
        logged: scalars that the task and algorithms have logged, by name.
    """

    step: int
    generation: int
    time: float
    loss: float = float("nan")
    busy_seconds: float = 0.0
    metrics: dict[str, Any] | None = None
    compute_seconds: tuple[float, ...] = ()
    exchange_seconds: tuple[float, float] = (0.0, 0.0)
    salvaged: int = 0
    logged: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()

"""Schedules: pure functions from the progress of a run to a factor on the learning rate.

Progress goes from 0 to 1 whatever the duration, so a schedule scales with the duration.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""Maps the progress of a run, in [0, 1], to a factor."""


def constant(progress: float) -> float:  # noqa: ARG001 - a schedule like the others
    """Return 1."""
    return 1.0


def linear(progress: float, final: float = 0.0) -> float:
    """Decline from 1 to `final` in a line."""
    return 1.0 - (1.0 - final) * progress


def cosine(progress: float, final: float = 0.0) -> float:
    """Decline from 1 to `final` along half a cosine (Loshchilov 2016, arXiv 1608.03983)."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def with_warmup(
    progress: float, warmup: float, then: Schedule = cosine, initial: float = 0.01
) -> float:
    """Rise in a line, then follow another schedule (Goyal et al. 2017, arXiv 1706.02677).

    Args:
        progress: where the run is.
        warmup: the part of the run in which the factor rises, in [0, 1).
        then: the schedule after it, which sees its own progress from 0 to 1.
        initial: the factor at the start.
    """
    if progress < warmup:
        return initial + (1.0 - initial) * progress / warmup
    return then((progress - warmup) / (1.0 - warmup))


SCHEDULES: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine}

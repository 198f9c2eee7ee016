"""Times among the settings of aspects, checked when an aspect is constructed."""

from typing import Annotated

from pydantic import AfterValidator

from raytrain_plus.clock import Clock, Duration, DurationError


def _time(text: str) -> str:
    Duration.parse(text)
    return text


def _interval(text: str) -> str:
    if Duration.parse(text).value <= 0:
        raise DurationError(f"interval {text!r} must be above zero: write 1ba for every step")
    return text


Time = Annotated[str, AfterValidator(_time)]
"""A point of the run such as `0.5dur`, `2ep` or `100ba`."""

Interval = Annotated[str, AfterValidator(_interval)]
"""A stretch of the run above zero; at least one step where it is counted."""


def check_order(start: str, finish: str) -> None:
    """Refuse a stretch that is empty, where that can be known before the run's length is.

    Raises:
        DurationError: both have the same unit and `start` is not before `finish`.
    """
    first, last = Duration.parse(start), Duration.parse(finish)
    if first.unit == last.unit and first.value >= last.value:
        raise DurationError(
            f"start={start!r} is not before finish={finish!r}, so that nothing lies between: "
            "make start earlier or finish later"
        )


def due(clock: Clock, committed: int, start: str, interval: str) -> bool:
    """Say whether something is done at `start` and from there at every `interval`.

    Args:
        clock: the run's.
        committed: how many steps are committed.
        start: the first time.
        interval: from one time to the next; counted as at least one step.
    """
    since = committed - clock.step_of(start)
    return since >= 0 and since % max(1, clock.step_of(interval)) == 0

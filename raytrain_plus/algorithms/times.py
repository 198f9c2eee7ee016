"""Types of settings that are times, checked when an aspect is constructed."""

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
"""A stretch of the run above zero; it counts as at least one step."""


def check_order(start: str, finish: str) -> None:
    """Refuse an empty stretch, if that is certain before the run's length is known.

    Raises:
        DurationError: both have the same unit and `start` is not before `finish`.
    """
    first, last = Duration.parse(start), Duration.parse(finish)
    if first.unit == last.unit and first.value >= last.value:
        raise DurationError(
            f"start={start!r} is not before finish={finish!r}, so that nothing is between them: "
            "make start earlier or finish later"
        )


def due(clock: Clock, committed: int, start: str, interval: str) -> bool:
    """Return whether something that is done at `start` and then at every `interval` is due now.

    Args:
        clock: the run's clock.
        committed: number of committed steps.
        start: when it is done first.
        interval: from one time to the next, at least one step.
    """
    since = committed - clock.step_of(start)
    return since >= 0 and since % max(1, clock.step_of(interval)) == 0

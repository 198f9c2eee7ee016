"""Finds which schedules of a shared run changed a bit of it, or lost a step: a pure function."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raytrain_plus.chaos.flaws import broken_promises
from raytrain_plus.chaos.schedules import Schedule
from raytrain_plus.elastic.protocol.faults import Fault, left
from raytrain_plus.observe.journal import Event, since_last_run
from raytrain_plus.observe.verify import compare

State = Literal["equal", "differs", "failed", "flawed"]


@dataclass(frozen=True)
class Act:
    """One schedule's place in a run.

    Attributes:
        seed: seed of the schedule.
        first, last: first and last step of the run that belong to the schedule.
        schedule: the faults, and the steps of the run at which they strike.
    """

    seed: int
    first: int
    last: int
    schedule: Schedule


@dataclass(frozen=True)
class Verdict:
    """The result of a run under one schedule.

    Attributes:
        act: the schedule.
        state: `equal` to the undisturbed run in every bit, or `differs` from it, or the run
            `failed`, or its bits are equal and it is `flawed`: it lost a step or a worker.
        reason: where it differs, why it failed, or what it lost.
        not_struck: faults that found no worker to strike, which is no failure.
    """

    act: Act
    state: State
    reason: str
    not_struck: tuple[Fault, ...]


def judge(
    acts: Sequence[Act], reference: list[Event], events: list[Event], error: str = ""
) -> list[Verdict]:
    """Compare a run with the undisturbed one.

    A difference is attributed to the schedule in whose steps it begins. The schedules before it
    were equal. Those after it are not judged, since the difference hides theirs. A run of equal
    bits that has lost steps or surviving workers is flawed: the last schedule gets that verdict.

    Args:
        acts: the schedules that shared the run, in order.
        reference: the journal of the undisturbed run.
        events: the journal of the run.
        error: why it failed, empty if it did not.

    Returns:
        The verdicts on the first schedules, up to one that differs or failed.
    """
    found = compare(reference, events)
    if found.equal and not error:
        verdicts = [_verdict(act, "equal", "", events) for act in acts]
        if broken := broken_promises(events):
            verdicts[-1] = _verdict(acts[-1], "flawed", "; ".join(broken), events)
        return verdicts
    step = (found.first_difference or {}).get("step")
    guilty = next((i for i, act in enumerate(acts) if step is not None and step <= act.last), -1)
    before = [_verdict(act, "equal", "", events) for act in acts[:guilty]]
    reason = error or _first_difference(found.first_difference)
    state: State = "failed" if error else "differs"
    return [*before, _verdict(acts[guilty], state, reason, events)]


def ended_by_gradient(events: Sequence[Event], error: str) -> bool:
    """Return whether a run ended as expected after an injected NaN gradient.

    Args:
        events: the journal of the run.
        error: why it failed, empty if it did not.
    """
    this_time = since_last_run(list(events))
    injected = any(event.get("action") == "nan_gradient" for event in this_time)
    return injected and "the gradient of parameter" in error and "is not finite at step" in error


def _verdict(act: Act, state: State, reason: str, events: list[Event]) -> Verdict:
    struck = [event for event in events if event["event"] == "fault"]  # also before a resume
    return Verdict(act, state, reason, tuple(left(act.schedule.faults, struck)))


def _first_difference(found: dict[str, object] | None) -> str:
    assert found is not None
    values = found["values"]
    assert isinstance(values, list)
    place = "at the end" if found["step"] is None else f"at step {found['step']}"
    return f"{found['what']} {place} is {values[1]}, undisturbed {values[0]}"

"""What the journal's events hold: the fields that their readers rely on, and of which type. Pure.

Fields that are not listed are kept as they are: a writer may say more. An event that lacks one of
the needed fields, or has one of another type, is damaged or was written by something else.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Event = dict[str, Any]

MOST_STEPS = 10**15
_LATEST = 1e11  # seconds since 1970; what is later is no time at which anybody trained


class EventError(ValueError):
    """What is read is no event; the message says why, and has no subject."""


def _text(value: object) -> bool:
    return isinstance(value, str)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_STEPS


def _whole(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(_count(one) for one in value)


def _number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= MOST_STEPS)


def _finite(value: object) -> bool:
    return _number(value) and math.isfinite(value)  # type: ignore[arg-type]


def _time(value: object) -> bool:
    return _finite(value) and 0 <= value < _LATEST  # type: ignore[operator]


def _table(value: object) -> bool:
    return isinstance(value, dict)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _or_none(check: Callable[[object], bool]) -> Callable[[object], bool]:
    def checked(value: object) -> bool:
        return value is None or check(value)

    return checked


def _hexadecimal(value: object) -> bool:
    try:
        float.fromhex(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    return True


Checks = Mapping[str, Callable[[object], bool]]

# For each event: what it must have, and of which type the rest is where it is there.
_NEEDED: Mapping[str, Checks] = {
    "step": {"step": _count, "loss": _number},
    "evaluate": {"step": _count, "metrics": _table},
    "generation": {
        "generation": _count,
        "step": _count,
        "workers": _count,
        "cause": _text,
        "pause_seconds": _finite,
    },
    "withdrawn": {"step": _count},
    "account": {"generation": _count},
    "proposal": {"name": _text, "purpose": _text, "recipe": _table, "seed": _whole},
    "sitting": {"sweep": _table},
    "problem": {"text": _text},
}
_TYPED: Mapping[str, Checks] = {
    "step": {
        "loss_hex": _hexadecimal,
        "busy_seconds": _finite,
        "generation": _count,
        "workers": _count,
        "salvaged": _count,
    },
    "generation": {"members": _texts, "ranks": _counts},
    "withdrawn": {"generation": _count, "reason": _text},
    "checkpoint": {
        "folder": _text,
        "step": _count,
        "metrics": _table,
        "error": _text,
        "refused": _text,
        "failures": _count,
        "retry_seconds": _finite,
    },
    "run": {
        "run": _text,
        "address": _text,
        "identity": _table,
        "elastic": _table,
        "changes": _texts,
        "refused": _table,
        "resumed_from": _or_none(_text),
        "resumed_step": _count,
        "total_steps": _count,
        "steps_per_epoch": _count,
        "batch_size": _count,
        "batch_tokens": _count,
        "threads": _count,
        "workers": _counts,
        "task": _text,
        "evaluate_every": _count,
        "checkpoint_every": _or_none(_count),
        "ray": _text,
        "platform": _text,
        "lender": _or_none(_text),
    },
    "sitting": {"time": _time, "workers": _or_none(_count), "budget": _or_none(_finite)},
    "worker": {"worker": _text, "state": _text},
    "fault": {"step": _count, "action": _text, "phase": _or_none(_text)},
    "target": {"workers": _count},
    "environment": {"fingerprint": _table, "changes": _texts},
    "account": {"seconds": _table, "traffic": _table},
    "warning": {"text": _text},
    "end": {
        "state": _text,
        "step": _count,
        "error": _text,
        "digest": _text,
        "loss": _or_none(_number),
        "metrics": _table,
        "device_seconds": _finite,
        "checkpoint": _or_none(_text),
        "bitwise": _flag,
        "faults_left": _count,
        "samples": _count,
        "tokens": _count,
        "costs": _table,
    },
}
_ALLOWED: dict[Callable[[object], bool], str] = {
    _count: "a whole number that is not negative",
    _whole: "a whole number",
    _number: "a number",
    _finite: "a finite number",
    _text: "a text",
    _texts: "a list of texts",
    _counts: "a list of whole numbers",
    _table: "an object",
    _hexadecimal: "a hexadecimal number",
    _flag: "true or false",
}
_NONE: Checks = {}


def check_event(event: object) -> Event:
    """Return what was read, if it is an event.

    Raises:
        EventError: it is not, or a field is missing or of another type.
    """
    if not isinstance(event, dict):
        raise EventError("it is no JSON object")
    kind = event.get("event")
    if type(kind) is not str:
        raise EventError("it does not say its event")
    if "time" in event and not _time(event["time"]):
        raise EventError("its time is no time in seconds since 1970")
    for field, check in _NEEDED.get(kind, _NONE).items():
        if field not in event:
            raise EventError(f"a {kind!r} event has no {field!r}")
        if not check(event[field]):
            raise _wrong(kind, field, event[field], check)
    for field, check in _TYPED.get(kind, _NONE).items():
        if field in event and not check(event[field]):
            raise _wrong(kind, field, event[field], check)
    return event


def _wrong(kind: str, field: str, value: object, check: Callable[[object], bool]) -> EventError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    allowed = _ALLOWED.get(check, "what it should be")
    return EventError(f"the {field!r} of a {kind!r} event is {shown}, not {allowed}")

"""What a cloud's answers mean: whether this machine will be preempted, and when. Pure.

Sources: EC2's "Spot Instance interruption notices" and "Amazon EC2 instance rebalance
recommendations"; Compute Engine's "Preemptible VM instances: preemption process".
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

EC2_SECONDS = 120.0  # between EC2's notice and the end
GCE_SECONDS = 30.0  # between Compute Engine's signal and the end
# A rebalance recommendation names no end: an interruption is likely, not certain.
REBALANCE_SECONDS = 600.0

_LONGEST = 1e8  # seconds, three years
_ACTIONS = ("terminate", "stop", "hibernate")
_OK, _NOT_FOUND = 200, 404


class NoticeError(ValueError):
    """An answer that means nothing here; the message is for people."""


@dataclass(frozen=True)
class Notice:
    """A machine will be preempted.

    Attributes:
        reason: why, for people.
        deadline: when, in seconds since 1970.
    """

    reason: str
    deadline: float


def is_news(notice: Notice, known: Notice | None) -> bool:
    """Say whether a notice changes the deadline that is known."""
    return known is None or notice.deadline < known.deadline - 1.0


def ec2_action(status: int, body: str, now: float) -> Notice | None:
    """Read EC2's `spot/instance-action`.

    An action whose time cannot be read counts from now: the machine will go in any case.

    Args:
        status: of the answer; 404 as long as there is no notice.
        body: of the answer, as `{"action": "terminate", "time": "2026-01-01T08:22:00Z"}`.
        now: seconds since 1970.

    Raises:
        NoticeError: it says something else.
    """
    if status == _NOT_FOUND:
        return None
    told = _object(status, body)
    action = told.get("action")
    if action not in _ACTIONS:
        raise NoticeError(f"no action of {', '.join(_ACTIONS)} in {_short(body)}")
    deadline = _instant(told.get("time"))
    return Notice(f"EC2 will {action} it", now + EC2_SECONDS if deadline is None else deadline)


def ec2_rebalance(status: int, body: str, now: float) -> Notice | None:
    """Read EC2's `events/recommendations/rebalance`, as `{"noticeTime": "2026-01-01T08:22:00Z"}`.

    Args:
        status: of the answer; 404 as long as there is no recommendation.
        body: of the answer.
        now: seconds since 1970.

    Raises:
        NoticeError: it says something else.
    """
    if status == _NOT_FOUND:
        return None
    told = _object(status, body)
    if "noticeTime" not in told:
        raise NoticeError(f"no noticeTime in {_short(body)}")
    since = _instant(told["noticeTime"])
    deadline = (now if since is None else since) + REBALANCE_SECONDS
    return Notice("EC2 recommends to leave it", max(deadline, now))


def gce_preempted(status: int, body: str, now: float) -> Notice | None:
    """Read Compute Engine's `instance/preempted`: TRUE or FALSE.

    Args:
        status: of the answer.
        body: of the answer.
        now: seconds since 1970.

    Raises:
        NoticeError: it says something else.
    """
    said = body.strip().upper()
    if status != _OK or said not in ("TRUE", "FALSE"):
        raise NoticeError(f"status {status}, neither TRUE nor FALSE: {_short(body)}")
    return Notice("Compute Engine preempts it", now + GCE_SECONDS) if said == "TRUE" else None


def file_notice(text: str, written: float, grace: float) -> Notice:
    """Read a notice that a script has left in a file: the time, and then the reason.

    Args:
        text: nothing, or seconds from when it was written, as `90`, or an instant, as
            `2026-01-01T08:22:00Z`; after it, a reason.
        written: when, in seconds since 1970.
        grace: seconds that count where it says none.

    Raises:
        NoticeError: it says something else.
    """
    when, _, reason = text.strip().partition(" ")
    told = Notice(reason.strip() or "a notice was left in a file", written + grace)
    if not when:
        return told
    try:
        seconds: float | None = float(when)
    except ValueError:
        seconds = None
    if seconds is not None and not 0 <= seconds <= _LONGEST:
        raise NoticeError(f"{when} seconds are no time in which a node can go")
    deadline = _instant(when) if seconds is None else written + seconds
    if deadline is None:
        raise NoticeError(
            f"{when!r} is neither a number of seconds such as 90 nor an instant such as "
            "2026-01-01T08:22:00Z"
        )
    return Notice(told.reason, deadline)


def _object(status: int, body: str) -> dict[str, Any]:
    if status != _OK:
        raise NoticeError(f"status {status}: {_short(body)}")
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise NoticeError(f"not JSON: {_short(body)}") from None
    if not isinstance(told, dict):
        raise NoticeError(f"no JSON object: {_short(body)}")
    return told


def _instant(text: object) -> float | None:
    """Return an ISO 8601 instant as seconds since 1970; one without a zone is in UTC."""
    try:
        instant = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    try:
        return instant.timestamp()
    except (OverflowError, ValueError):
        return None


def _short(body: str) -> str:
    return repr(body if len(body) <= 80 else f"{body[:80]}...")

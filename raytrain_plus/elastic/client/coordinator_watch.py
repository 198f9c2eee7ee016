"""Whether a run's coordinator lives and answers, as the process that follows the run sees it.

A question to Ray may take a minute if Ray's head is gone, and a stopped coordinator never answers.
So each look has a thread of its own, and the follower goes on meanwhile.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from raytrain_plus.elastic.client.find_run import find_coordinator
from raytrain_plus.elastic.protocol.messages import CoordinatorHealth
from raytrain_plus.observe.journal import Event
from raytrain_plus.ray_cluster import actors, memory_monitor, own_ray

_WAIT = 1.0  # seconds that a look may block the follower
_ANSWER = 5.0  # seconds to answer
_HUNG = 30.0  # the same as `coordinator_deadline`, for a journal that does not tell it
_STOPPING = 15.0  # seconds without an answer, after which a request to stop is given up
_AWAY = 120.0  # seconds that a restart of the coordinator may take
_RAY_AWAY = 40.0  # seconds without an answer of Ray, which ends this process after 60


@dataclass(frozen=True)
class _Seen:
    """What a look has found: an answer, that there is no coordinator, or neither."""

    health: CoordinatorHealth | None = None
    gone: bool = False
    actor: actors.ActorState | None = None


class CoordinatorWatch:
    """Watches the coordinator of one run.

    Args:
        run: its name.
        events: with the run's `run` event; may grow meanwhile.
        now: monotonic seconds.

    Attributes:
        health: the last answer, None before the first.
        given_up: whether to stop waiting for a coordinator that was asked to stop.
    """

    def __init__(self, run: str, events: Sequence[Event], now: float) -> None:
        self.health: CoordinatorHealth | None = None
        self.given_up = False
        self._run = run
        self._events = events
        self._heard = self._answered = self._down = now
        self._stop_asked: float | None = None
        self._stop_taken = False
        self._thread: threading.Thread | None = None
        self._found: list[_Seen] = []

    def ask_stop(self, now: float) -> None:
        """Ask the coordinator to stop the run, again with each look until it has accepted."""
        self._stop_asked = now
        self.look(now)

    def look(self, now: float) -> str | None:
        """Return why the run cannot go on without help; None while it may go on.

        Args:
            now: monotonic seconds.
        """
        dead = own_ray.dead_daemon()
        if dead is not None:
            own_ray.end_daemons()  # what the run has committed is final once its workers have ended
            return f"Ray's own process {dead} has ended, and the run's workers with it"
        if self._thread is None:
            self._thread = threading.Thread(target=self._ask, daemon=True, name="coordinator watch")
            self._thread.start()
        self._thread.join(_WAIT)
        if not self._thread.is_alive():
            self._thread = None
            return self._judge(self._found.pop(), now)
        if now - self._heard > _RAY_AWAY:
            return f"Ray has not answered for {now - self._heard:.0f} s"
        return None

    @property
    def _patience(self) -> float:
        """Seconds that the coordinator may take to start or to restart."""
        start = float(self._elastic.get("start_timeout", _AWAY))
        return start if self.health is None else max(_AWAY, start)

    @property
    def _elastic(self) -> dict[str, Any]:
        """The run's settings, from its journal."""
        told = [event.get("elastic", {}) for event in self._events if event["event"] == "run"]
        settings: dict[str, Any] = (told or [{}])[-1]
        return settings

    def _judge(self, seen: _Seen, now: float) -> str | None:
        self._heard = now
        if seen.gone:
            return f"the coordinator of run {self._run} was ended from outside"
        if seen.health is not None:
            self.health, self._answered = seen.health, now
            return None
        silent = now - self._answered
        if self._stop_asked is not None and not self._stop_taken:
            self.given_up = min(silent, now - self._stop_asked) > _STOPPING
        if seen.actor is not None and seen.actor.state != "ALIVE":
            self._down = now  # one that has just come up has not been silent since it went down
        if seen.actor is not None and seen.actor.state == "ALIVE":
            deadline = float(self._elastic.get("coordinator_deadline", _HUNG))
            if now - max(self._answered, self._down) > deadline:
                _end_hung(self._run, self._events, seen.actor)
                self._answered = now
        elif silent > self._patience:
            starts = 0 if seen.actor is None else seen.actor.starts
            return (
                f"the coordinator of run {self._run} did not come up within {silent:.0f} s; Ray "
                f"has started it {starts} times{memory_monitor.trouble()}"
            )
        return None

    def _ask(self) -> None:
        self._found = [self._seen()]

    def _seen(self) -> _Seen:
        if not ray.is_initialized():  # a question would start a Ray of its own
            return _Seen()
        try:
            coordinator = find_coordinator(self._run, self._events)
            if self._stop_asked is not None and not self._stop_taken:
                ray.get(coordinator.stop.remote(), timeout=_ANSWER)
                self._stop_taken = True
            return _Seen(health=ray.get(coordinator.health.remote(), timeout=_ANSWER))
        except ValueError:
            return _Seen(gone=True)
        except (RayActorError, GetTimeoutError):
            return self._unanswered()
        except RayError:  # it is of another version, or has ended a moment ago
            return _Seen()

    def _unanswered(self) -> _Seen:
        with contextlib.suppress(RayError, ValueError, RuntimeError):
            return _Seen(actor=actors.state_of(find_coordinator(self._run, self._events)))
        return _Seen()


def _end_hung(run: str, events: Sequence[Event], actor: actors.ActorState) -> None:
    """End a coordinator that is stopped or hangs; Ray restarts it.

    Ray's own kill is a message to the process, and one that is stopped does not read it.
    """
    if actor.here and actor.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(actor.pid, signal.SIGKILL)
        return
    with contextlib.suppress(RayError, ValueError):
        ray.kill(find_coordinator(run, events), no_restart=False)

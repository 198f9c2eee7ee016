"""Signals that ask this process to end: the first in good order, the second at once.

SIGINT is Ctrl-C, SIGTERM comes from `timeout`, systemd, `scancel`, `docker stop` and `ray job
stop`, SIGHUP from a terminal that is closed. SIGQUIT asks the process to end at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_STATUS = 128  # what a shell adds to the number of the signal that ended a process
_AT_ONCE = 2  # signals


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def status(self) -> int:
        """The exit status for the signal: 130 for SIGINT, 143 for SIGTERM."""
        return _STATUS + self.number


class RunInterrupted(Interrupted):
    """A signal ended a run or a sweep before its end, or the process that follows a run.

    Args:
        number: of the signal.
        text: the state of the run or sweep, for people.
        summary: what is known of it, as the command line prints it.
    """

    def __init__(self, number: int, text: str, summary: dict[str, Any]) -> None:
        super().__init__(number)
        self.args = (text,)
        self.summary = summary


def status_of(error: KeyboardInterrupt) -> int:
    """Return the exit status of a process that an interrupt ends."""
    return (error if isinstance(error, Interrupted) else Interrupted()).status


class Interrupts:
    """Handles the signals while it is entered, in the main thread.

    A signal that was ignored before (`nohup`, a background job of a script) stays ignored. Python
    allows no handlers in other threads: there, it handles nothing.

    Args:
        raises: how many signals may raise `Interrupted`; a later one ends this process, since the
            user does not want to wait for the cleaning up either. Default 2.

    Attributes:
        number: of the first signal; 0 before any.
        count: how many signals have come.
    """

    def __init__(self, raises: int = 2) -> None:
        self.number = 0
        self.count = 0
        self._raises = raises
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Record the first signal and continue; only the second one raises, at once."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    @property
    def at_once(self) -> bool:
        """Whether this process must end without waiting for anything."""
        return self.count >= _AT_ONCE

    def note(self, number: int = signal.SIGINT) -> None:
        """Record a signal that came in another way, such as a notebook's KeyboardInterrupt."""
        self.number = self.number or number
        self.count = max(self.count + 1, _AT_ONCE if number == signal.SIGQUIT else 0)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.note(number)
        if self.count > self._raises:
            os._exit(_STATUS + number)
        if not self._held or self.at_once:
            raise Interrupted(self.number)


def end_at_signals() -> None:
    """Let a signal end this process at once, without a traceback.

    A command calls this before its imports. So a signal that comes while it starts or cleans up
    ends it with the status of the signal. In between, `Interrupts` handles the signals.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: os._exit(_STATUS + number))


def redeliver(number: int) -> None:
    """End this process by a signal that it has handled, if it has no handler of its own for it.

    So a script whose `fit` was ended by SIGTERM ends like any other script. SIGINT is left to
    Python, which raises KeyboardInterrupt for it.
    """
    if number == signal.SIGINT or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(number) is signal.SIG_DFL:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        signal.raise_signal(number)

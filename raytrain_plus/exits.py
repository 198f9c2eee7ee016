"""A task's code must not end the process that runs it: an exit becomes an error with its place.

A task may call `sys.exit` while its file is imported (a script whose last line is not guarded), or
`os._exit` when it gives up. Without this check, the first would end a command with status 0 and
nothing trained, and the second would end one worker after another.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

leave_at_once = os._exit
"""The original `os._exit`, for processes that have to end without cleaning up."""


class TaskExitError(ValueError):
    """A task's code tried to end the process."""


@contextlib.contextmanager
def as_errors(what: str) -> Iterator[None]:
    """Raise an error if the code inside exits.

    Args:
        what: the code that runs, for the error.

    Raises:
        TaskExitError: the code called `sys.exit`, `quit`, `exit` or `os._exit`.
    """
    try:
        with _hard_exits_are_exits():
            yield
    except SystemExit as error:
        raise TaskExitError(f"{what} ends the process: {_describe_exit(error)}") from error


def refuse_hard_exits(libraries: tuple[str, ...]) -> None:
    """Make `os._exit` raise SystemExit in this process from now on; in forked children it exits.

    Args:
        libraries: folders whose code may end the process.
    """
    if os._exit is not leave_at_once:
        return
    owner = os.getpid()

    def _exit(status: int) -> NoReturn:
        caller = sys._getframe(1).f_code.co_filename  # noqa: SLF001 - the documented way
        if os.getpid() != owner or caller.startswith(libraries):
            leave_at_once(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = _exit


@contextlib.contextmanager
def _hard_exits_are_exits() -> Iterator[None]:
    before = os._exit
    refuse_hard_exits(libraries=(str(Path(os.__file__).parent / "multiprocessing"),))
    try:
        yield
    finally:
        os._exit = before


def _describe_exit(error: SystemExit) -> str:
    """Say which value an exit had, and where it was called."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith((_OURS, "<frozen"))]
    place = f" at {users[-1].filename}:{users[-1].lineno} ({users[-1].line})" if users else ""
    return (
        f"it raised SystemExit({error.code!r}){place}. Raise another error to stop the run; put "
        "what is a script's own under `if __name__ == '__main__':`"
    )


_OURS = str(Path(__file__).parent)

"""A worker whose process crashes leaves its stack, which tells why it was lost.

The stack is written by the handler of SIGSEGV, SIGABRT, SIGBUS, SIGFPE and SIGILL, which
needs no interpreter. A process that is ended from outside (SIGKILL) leaves none: that tells the two
apart.
"""

import contextlib
import faulthandler
from pathlib import Path
from typing import IO

_PREFIX = ".crash-"
_MOST = 64 << 10  # bytes that are read
_CURRENT = "Current thread"
_LINES = 12


def offer(folder: Path, worker: str) -> IO[bytes] | None:
    """Make this process leave its stack if it crashes; returns the file, which must stay open.

    A folder that cannot be written is no reason not to train: then no stack is left.
    """
    try:
        file = _path(folder, worker).open("wb")
    except OSError:
        return None
    faulthandler.enable(file=file, all_threads=True)
    return file


def of(folder: Path, worker: str) -> str:
    """Return what has crashed a worker, and where; empty if it has not crashed."""
    try:
        with _path(folder, worker).open("rb") as file:
            text = file.read(_MOST).decode(errors="replace")
    except OSError:
        return ""
    if not text.strip():
        return ""
    first = text.strip().splitlines()[0]
    _, _, current = text.partition(_CURRENT)
    stack = [line for line in current.splitlines()[1:] if line.startswith("  File")]
    where = "".join(f"\n{line}" for line in stack[:_LINES])
    return f"its process crashed: {first}{', most recent call first:' if where else ''}{where}"


def forget(folder: Path, worker: str) -> None:
    """Remove what a worker has left, if anything."""
    with contextlib.suppress(OSError):
        _path(folder, worker).unlink()


def _path(folder: Path, worker: str) -> Path:
    return folder / f"{_PREFIX}{worker}"

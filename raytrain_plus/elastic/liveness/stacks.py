"""Where a process stands: the stacks of its threads, even when its interpreter does not answer.

A worker that answers reports them itself. For one that does not, a signal handler writes them: it
needs no lock of the interpreter. It writes into memory of the process, which a neighbour on the
same machine reads, so that no file is left behind.
"""

import faulthandler
import os
import re
import signal
import sys
import threading
import time
import traceback
from functools import cache
from pathlib import Path

_OURS = "raytrain_plus "  # how the names of our background threads begin
_SIGNAL = signal.SIGUSR1
_DUMP_SECONDS = 1.0
_LOOK = 0.01
_THREAD = re.compile(r"^(?=(?:Current t|T)hread 0x)", re.MULTILINE)
_MOST_LINES = 60
_TRAINING = " in train\n"


@cache
def offer() -> int:
    """Let other processes read this process's stacks; returns the descriptor that they need."""
    descriptor = os.memfd_create("stacks")
    faulthandler.register(_SIGNAL, file=descriptor, all_threads=True)
    return descriptor


def own(thread: int) -> str:
    """Return the stacks of a thread of this process, and of the threads that read data for it."""
    names = {t.ident: t.name for t in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way
        name = names.get(ident, "")
        if ident == thread or name.startswith(_OURS):
            lines = "".join(traceback.format_stack(frame))
            found.append((ident != thread, f"{name or 'training'}:\n{lines}"))
    return "".join(text for _, text in sorted(found))


def of_neighbour(pid: int, descriptor: int) -> str:
    """Return the stacks of another process of this machine, which has offered them.

    A stopped process cannot write them; then the result says that it is stopped.
    """
    try:
        state = _state(pid)
        if state.startswith(("T", "t")):
            return f"the process is stopped (state {state})"
        path = Path(f"/proc/{pid}/fd/{descriptor}")
        before = path.stat().st_size
        os.kill(pid, _SIGNAL)
        until = time.monotonic() + _DUMP_SECONDS
        size = -1
        while time.monotonic() < until and (size != path.stat().st_size or size == before):
            size = path.stat().st_size
            time.sleep(_LOOK)
        text = path.read_bytes()[before:].decode(errors="replace")
    except (OSError, ProcessLookupError) as error:
        return f"its stacks cannot be read: {error}"
    return _in_training(text) or f"it did not say where it stands (state {state})"


def _state(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((line.split("\t")[1] for line in lines if line.startswith("State:")), "unknown")


def _in_training(text: str) -> str:
    """Keep the threads that are in this package: a Ray worker has many others."""
    package = str(Path(__file__).parents[2])
    parts = _THREAD.split(text)[1:]
    ours = [part for part in parts if package in part]
    ours.sort(key=lambda part: _TRAINING not in part)  # that one first
    lines = "".join(ours or parts).splitlines()
    return "\n".join(lines[:_MOST_LINES])

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

from raytrain_plus.elastic.protocol.messages import Sighting

_OURS = "raytrain_plus "  # how the names of our background threads begin
_SIGNAL = signal.SIGUSR1
_DUMP_SECONDS = 1.0
_LOOK = 0.01
_THREAD = re.compile(r"^(?=(?:Current t|T)hread 0x)", re.MULTILINE)
_BETWEEN = 0.2  # seconds between two looks
_MOST_LINES = 60
_FRAME = re.compile(r'^  File "(.+)", line \d+ in (.+)$', re.MULTILINE)
_PACKAGE = Path(__file__).parents[2]
_WAITING_FILES = {
    str(_PACKAGE / "training" / name) for name in ("frames.py", "transport.py", "nccl.py")
}
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


def of_neighbour(pid: int, descriptor: int) -> Sighting:
    """Look at another process of this machine, which has offered its stacks.

    It is looked at twice, to see whether its training thread moves. A stopped process cannot write
    its stacks, nor can one that waits in the kernel for a disk.
    """
    try:
        state = _state(pid)
        if state.startswith(("T", "t")):
            return Sighting("stopped", f"the process is stopped (state {state})")
        if state.startswith(("Z", "X")):
            return Sighting("gone", f"the process has ended (state {state})")
        first = _threads(_dump(pid, descriptor))
        time.sleep(_BETWEEN)
        second = _threads(_dump(pid, descriptor))
    except (FileNotFoundError, ProcessLookupError) as error:
        if not Path(f"/proc/{pid}").exists():
            return Sighting("gone", f"its stacks cannot be read: {error}")
        return Sighting("unseen", f"its stacks cannot be read: {error}")
    except OSError as error:
        return Sighting("unseen", f"its stacks cannot be read: {error}")
    if not second:
        return Sighting("stands", f"it did not say where it stands (state {state})")
    text = "\n".join("".join(second).splitlines()[:_MOST_LINES])
    if not first or _frames(first[0]) != _frames(second[0]):
        return Sighting("moves", text)
    return Sighting("waits" if _waits(second[0]) else "stands", text)


def _state(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((line.split("\t")[1] for line in lines if line.startswith("State:")), "unknown")


def _dump(pid: int, descriptor: int) -> str:
    """Make a process write its stacks; empty if it does not in time."""
    path = Path(f"/proc/{pid}/fd/{descriptor}")
    before = path.stat().st_size
    os.kill(pid, _SIGNAL)
    until = time.monotonic() + _DUMP_SECONDS
    size = -1
    while time.monotonic() < until and (size != path.stat().st_size or size == before):
        size = path.stat().st_size
        time.sleep(_LOOK)
    return path.read_bytes()[before:].decode(errors="replace")


def _threads(text: str) -> list[str]:
    """Return the threads that are in this package, that of the training first.

    A Ray worker has many others. They are returned if no thread is in this package.
    """
    parts = _THREAD.split(text)[1:]
    ours = [part for part in parts if str(_PACKAGE) in part]
    return sorted(ours or parts, key=lambda part: _TRAINING not in part)


def _frames(thread: str) -> list[str]:
    """Return the lines of a stack, without its heading, which names the thread that writes."""
    return [line for line in thread.splitlines() if line.startswith("  File")]


def _waits(thread: str) -> bool:
    """Say whether a thread stands in a wait for a message of another worker."""
    frames = _FRAME.findall(thread)
    ours = [(path, name) for path, name in frames if path.startswith(str(_PACKAGE))]
    if not ours or ours[0][0] not in _WAITING_FILES:
        return False
    return frames[0] in ours or frames[0][0].endswith("threading.py")

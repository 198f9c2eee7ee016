"""What a process can do to itself, or to its machine, to see who notices."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn

# Ends with its parent: a hog that outlived its run would slow whatever comes after.
_HOG = """
import os, sys, time
until, parent = time.monotonic() + float(sys.argv[1]), int(sys.argv[2])
while time.monotonic() < until and os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


def send_oneself(number: signal.Signals) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)


def spin() -> None:
    """Compute for ever without letting go of the interpreter: only SIGKILL ends it."""
    sum(itertools.repeat(0))


def stall() -> NoReturn:
    """Do nothing for ever in this thread; the others of the process go on."""
    while True:
        time.sleep(3600.0)


def hog(seconds: float) -> int:
    """Keep one CPU busy beside this process, as a job next to it would; returns its process id.

    The hog inherits the niceness and the CPUs of this process, and ends with it.

    Args:
        seconds: how long.
    """
    hog = subprocess.Popen(  # noqa: S603 - this interpreter, on the text above
        [sys.executable, "-I", "-S", "-c", _HOG, str(seconds), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    threading.Thread(target=hog.wait, daemon=True).start()  # else it would stay as a zombie
    return hog.pid

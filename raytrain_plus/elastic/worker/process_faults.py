"""Faults in the worker that they strike, and what a process can do to itself or to its machine."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn, Protocol

from raytrain_plus.elastic.liveness.fault_log import FaultLog
from raytrain_plus.elastic.protocol.faults import SIGNALS, Fault, FaultError

# Ends with its parent: a hog that outlived its run would slow whatever comes after.
_HOG = """
import os, sys, time
until, parent = time.monotonic() + float(sys.argv[1]), int(sys.argv[2])
while time.monotonic() < until and os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


class Struck(Protocol):
    """What a worker can do to itself when a fault wants it, because only it knows how."""

    def flip_bit(self, draw: int) -> None:
        """Flip one bit of one weight; which one follows from a 64-bit number."""

    def miscompute(self) -> None:
        """Let all arithmetic be wrong from now on."""

    def lose_store(self, seconds: float) -> None:
        """Let the checkpoint store be out of reach for some seconds."""

    def spoil_gradient(self) -> None:
        """Let the next gradient be NaN, though the loss is a number."""


class Injector:
    """Faults of a run, as they hit one worker.

    Args:
        worker: its name.
        log: where the fault is written before it strikes.
        target: the worker's parts that can be damaged.
    """

    def __init__(self, worker: str, log: FaultLog, target: Struck | None = None) -> None:
        self._worker = worker
        self._log = log
        self._target = target
        self._done: set[Fault] = set()

    def hit(self, fault: Fault) -> None:
        """Log a fault, and strike the calling process.

        Once: a step enters some phases more than once, and not every fault ends the process.
        """
        if fault in self._done:
            return
        self._done.add(fault)
        self._log.add(self._worker, fault)
        strike(fault, self._target, self._worker)


def strike(fault: Fault, target: Struck | None = None, worker: str = "") -> None:
    """Strike the calling process, in the calling thread; some faults do not return.

    Args:
        fault: what happens.
        target: the worker's parts, for the faults that damage them.
        worker: its name.

    Raises:
        FaultError: the fault needs a target, or is none that strikes a worker.
    """
    if fault.action in SIGNALS:
        send_oneself(SIGNALS[fault.action])
    elif fault.action == "spin":
        spin()
    elif fault.action == "stall":
        stall()
    elif fault.action == "slow":
        hog(fault.lasts)
    elif target is None or not fault.strikes:
        raise FaultError(f"{fault.action} cannot strike here: this is no worker that can do it")
    elif fault.action == "flip":
        target.flip_bit(fault.draw(worker))
    elif fault.action == "miscompute":
        target.miscompute()
    elif fault.action == "nan_gradient":
        target.spoil_gradient()
    else:
        target.lose_store(fault.lasts)


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
    """Keep one CPU busy, as another job on this node would; returns the id of its process.

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

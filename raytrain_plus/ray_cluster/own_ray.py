"""A Ray of this process's own: it ends with the process, but gets none of its signals.

Ray's daemons would get each signal that is sent to the process group of the command (`timeout`,
systemd, `scancel`, a terminal that is closed) and would end before the run's last state is saved.
So they get a session of their own. The kernel ends them if this process dies.
"""

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import services, utils

from raytrain_plus.interrupts import SIGNALS
from raytrain_plus.redaction import redact_command

_END_SECONDS = 10.0  # for a process that was killed


def start(cpus: int) -> None:
    """Start a Ray cluster on this host alone, and join it.

    Args:
        cpus: that the cluster offers.
    """
    # Ray's memory monitor frees by default 5 % of the node's memory more than it must. After the
    # worker that is too large it would end the coordinator, too.
    os.environ.setdefault("RAY_max_kill_memory_buffer_bytes", "0")
    with _daemons_in_a_session(), signals_as_they_are(), command_without_secrets():
        ray.init(
            address="local",  # else Ray would join one that is another process's own, if it sees it
            num_cpus=cpus,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
        )


def dead_daemon() -> str | None:
    """Return the name of a daemon of our own Ray that has ended; None while all live."""
    for kind, process in _daemons():
        status = process.poll()
        if status is not None:
            return f"{kind} (process {process.pid}, status {status})"
    return None


def end_daemons() -> None:
    """End the daemons of our own Ray that still live, and wait until its workers have ended, too.

    A raylet outlives its head by many seconds. Its workers would train on meanwhile.
    """
    workers = [pid for kind, daemon in _daemons() if kind == "raylet" for pid in _children(daemon)]
    held = []
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            held.append(os.pidfd_open(pid))
    for _, daemon in _daemons():
        daemon.kill()
        daemon.wait()
    for descriptor in held:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], _END_SECONDS)
        os.close(descriptor)


def _children(process: "subprocess.Popen[bytes]") -> list[int]:
    if process.poll() is not None:
        return []
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def _daemons() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    node = getattr(ray._private.worker, "_global_node", None)  # noqa: SLF001
    for kind in ("gcs_server", "raylet"):
        for info in node.all_processes.get(kind, []) if node is not None else []:
            yield kind, info.process


@contextlib.contextmanager
def _daemons_in_a_session() -> Iterator[None]:
    class Popen(services.ConsolePopen):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "start_new_session": True})

    assert issubclass(Popen, subprocess.Popen)
    before, services.ConsolePopen = services.ConsolePopen, Popen
    try:
        yield
    finally:
        services.ConsolePopen = before


@contextlib.contextmanager
def signals_as_they_are() -> Iterator[None]:
    """Keep this process's signal handlers while `ray.init` runs.

    Ray's Python handler of SIGTERM ends the daemons, and the process with 1. Its C++ one prints a
    stack and aborts.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)


@contextlib.contextmanager
def command_without_secrets() -> Iterator[None]:
    """Hide passwords in this process's command line from Ray's list of jobs while it joins Ray.

    Ray's dashboard shows the list to every user of the cluster.
    """
    before = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: redact_command(before())
    try:
        yield
    finally:
        utils.get_entrypoint_name = before

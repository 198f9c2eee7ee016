"""The peer in survival: two replica groups of torchft on gloo, in a separate environment.

torchft does not restart dead processes: here this program starts them again at once. A hanging
process is replaced after the other's recovery has been timed.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.tasks import Workload

ENVIRONMENT = Path(__file__).parent / ".venv-torchft"

_REPLICAS = 2
_SETTLED = 20  # steps of both replicas
_POLL = 0.05
_TO_SETTLE = 240.0  # seconds


@dataclass(frozen=True)
class Settings:
    """Settings of torchft.

    Attributes:
        heartbeat: seconds without a heartbeat after which a replica counts as dead. torchft's
            default: 5.
        timeout: the longest time for a collective, in seconds. torchft's default: 60.
        join: the longest wait of a quorum for a live replica that has not joined, in seconds.
            torchft's default: 60.
    """

    heartbeat: float = 5.0
    timeout: float = 60.0
    join: float = 60.0


DEFAULT = Settings()
TUNED = Settings(heartbeat=1.0, timeout=5.0, join=1.0)


@dataclass
class Group:
    """Two running replicas.

    Attributes:
        log: the file to which they write their commits.
        processes: the process of each replica.
    """

    workload: Workload
    settings: Settings
    lighthouse: str
    log: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, replica: int) -> subprocess.Popen[bytes]:
        """Start the process of a replica."""
        parts = self.workload.logical_ranks // _REPLICAS
        rows = self.workload.batch_size // self.workload.logical_ranks
        command = [ENVIRONMENT / "bin" / "python", "-m", "benchmarks.torchft_peer"]
        command += [self.lighthouse, replica, self.log, parts, rows, self.settings.timeout]
        with self.log.with_name(f"{replica}.out").open("ab") as out:
            return subprocess.Popen(
                [str(word) for word in command],
                cwd=Path(__file__).parents[1],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=out,
            )

    def replace(self, replica: int) -> None:
        """End a replica's process, if it is alive, and start another."""
        self.processes[replica].kill()
        self.processes[replica].wait()
        self.processes[replica] = self.start(replica)

    def commits(self) -> list[dict[str, Any]]:
        """Return the replicas' commits in order of time."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        found = [json.loads(line) for line in text.split("\n")[:-1]]
        return sorted(found, key=lambda commit: commit["time"])

    def settle(self, since: float) -> None:
        """Wait until both replicas have trained together for a while."""
        deadline = time.monotonic() + _TO_SETTLE
        while time.monotonic() < deadline:
            last = [c for c in self.commits() if c["time"] > since][-_SETTLED * _REPLICAS :]
            together = all(commit["replicas"] == _REPLICAS for commit in last)
            if len(last) == _SETTLED * _REPLICAS and together:
                return
            time.sleep(_POLL)
        raise TimeoutError(f"torchft's replicas did not train together within {_TO_SETTLE:g} s")


@contextlib.contextmanager
def group(workload: Workload, settings: Settings) -> Iterator[Group]:
    """Run a lighthouse and two replicas."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    command = [ENVIRONMENT / "bin" / "torchft_lighthouse", "--min_replicas", 1, "--bind", place]
    command += ["--heartbeat_timeout_ms", int(settings.heartbeat * 1000)]
    command += ["--join_timeout_ms", int(settings.join * 1000)]
    with tempfile.TemporaryDirectory() as folder:
        lighthouse = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        running = Group(workload, settings, f"http://{place}", Path(folder, "log"))
        try:
            running.processes += [running.start(replica) for replica in range(_REPLICAS)]
            running.settle(0.0)
            yield running
        finally:
            for process in (*running.processes, lighthouse):
                process.kill()
                process.wait()


def measure(
    workload: Workload, settings: Settings, sent: signal.Signals, times: int, patience: float
) -> list[dict[str, Any] | None]:
    """Send a signal to one of two replicas, again and again.

    Args:
        workload: the model and its batches.
        settings: settings of torchft.
        sent: the signal, SIGKILL or SIGSTOP.
        times: how often.
        patience: seconds to wait for each recovery.

    Returns:
        For each signal the `seconds` until the next commit and the steps `lost`; None if there was
        no commit in time.
    """
    found = []
    with group(workload, settings) as running:
        for number in range(times):
            time.sleep(random.uniform(0.0, 0.2))  # any point of a step
            victim = number % _REPLICAS
            sent_at = time.time()
            running.processes[victim].send_signal(sent)
            if sent == signal.SIGKILL:
                running.replace(victim)
            found.append(_next_commit(running, sent_at, patience))
            if sent != signal.SIGKILL:
                running.replace(victim)
            running.settle(time.time())
    return found


def _next_commit(running: Group, sent_at: float, patience: float) -> dict[str, Any] | None:
    while time.time() < sent_at + patience:
        # A step of both replicas that was nearly done does not count as recovery.
        last = 0
        for commit in running.commits():
            if commit["time"] > sent_at and (commit["began"] > sent_at or commit["replicas"] == 1):
                lost = max(0, last - commit["step"] + 1)
                return {"seconds": commit["time"] - sent_at, "lost": lost}
            last = commit["step"]
        time.sleep(_POLL)
    return None

"""A run on four hosts, one of which loses its power and another its cable: a program.

    python -m tests.end_to_end.lab_run STORAGE [HOST HOST]

The driver and the coordinator are on `head`; each other host has room for one worker. The first
named host is powered off. When the others have trained on for a while, the second host's cable is
pulled. The run's journal stays in STORAGE/lab. It prints as JSON the driver's last line, the worker
that each event hit, and the seconds from each event to the first step that was committed without
that host.
"""

# ruff: noqa: T201 - a command
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.lab.hosts import Lab
from cluster.lab.nodes import ENVIRONMENT, start_head, start_nodes
from raytrain_plus.observe import journal

from . import lab_driver
from .lab_driver import NAME, WORKERS
from .runs import Event

LAB = "hosts"  # its folder
HEAD = "head"
HOSTS = ("n1", "n2", "n3")

_SETTLED = 20  # steps of the whole group before the next event
_PATIENCE = 150.0  # seconds for any operation
_POLL = 0.05


class Stage:
    """The lab, the driver, and the journal that it writes.

    Args:
        lab: the lab; its hosts have Ray.
        storage: where the run's folder will be.
    """

    def __init__(self, lab: Lab, storage: Path) -> None:
        self._lab = lab
        self._storage = storage
        line = [sys.executable, "-m", lab_driver.__name__, str(storage)]
        self._driver = subprocess.Popen(
            lab.command(HEAD, line, ENVIRONMENT),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def settle(self, workers: int) -> int:
        """Wait until a number of workers has trained for a while; returns their generation."""

        def settled(events: Sequence[Event]) -> int | None:
            last = [e for e in events if e["event"] == "generation"][-1:]
            for generation in last:
                steps = _steps(events, generation["generation"])
                if generation["workers"] == workers and len(steps) >= _SETTLED:
                    return int(generation["generation"])
            return None

        return self._await(settled)

    def disturb(self, act: Callable[[str], None], host: str, workers: int) -> dict[str, Any]:
        """Disturb the host of one of some workers; returns how long the run was delayed."""
        generation = self.settle(workers)
        time.sleep(random.uniform(0.0, lab_driver.PACE))  # any point of a step
        at = time.time()
        act(host)

        def gone_on(events: Sequence[Event]) -> float | None:
            later = [e for e in _steps(events) if e["generation"] > generation]
            return later[0]["time"] if later else None

        seconds = self._await(gone_on) - at
        return {"host": host, "at": at, "seconds": round(seconds, 3)}

    def finish(self) -> dict[str, Any]:
        """Let the run go on at full speed to its end; returns the driver's output."""
        (self._storage / NAME / "hurry").touch()
        out, err = self._driver.communicate(timeout=_PATIENCE)
        if self._driver.returncode:
            raise RuntimeError(f"the driver failed: {err}")
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        return told

    def _await(self, answer: Callable[[Sequence[Event]], Any]) -> Any:
        path = self._storage / NAME / journal.FILE_NAME
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            events, _ = journal.follow(path)
            if (found := answer(events)) is not None:
                return found
            if self._driver.poll() is not None:
                raise RuntimeError(f"the driver ended: {self._driver.communicate()}")
            time.sleep(_POLL)
        others = [event for event in events if event["event"] != "step"]
        raise RuntimeError(f"it did not go on within {_PATIENCE} s: {others}")


def _steps(events: Sequence[Event], generation: int | None = None) -> list[Event]:
    return [
        event
        for event in events
        if event["event"] == "step" and generation in (None, event["generation"])
    ]


def main(storage: Path, powered_off: str = HOSTS[0], cut: str = HOSTS[1]) -> None:
    """Run as a command."""
    with Lab.of(storage / LAB, [HEAD, *HOSTS], visible=[storage]) as lab:
        start_head(lab, HEAD)
        start_nodes(lab, HEAD, HOSTS)
        stage = Stage(lab, storage)
        told = {
            "power_off": stage.disturb(lab.kill, powered_off, WORKERS),
            "cable_pull": stage.disturb(lab.cut, cut, WORKERS - 1),
        }
        told.update(stage.finish())
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

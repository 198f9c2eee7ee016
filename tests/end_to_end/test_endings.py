"""How a command ends: by a signal, by the end of what it stands on, by what its task does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raytrain_plus.observe import journal

TASK = """
import os, sys, time
import numpy as np, pyarrow as pa, torch
from torch import nn
from raytrain_plus import Task

class Slow(Task):
    def model(self):
        return nn.Linear(4, 3)
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)
    def schedule(self, progress):
        time.sleep(0.02)
        return 1.0
    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")
    def data(self):
        x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        image = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
        return pa.table({"image": image, "label": x[:, :3].argmax(1)})
"""
PATIENCE = 90.0
STEPS = 5000

pytestmark = pytest.mark.timeout(300)


class Command:
    """`raytrain-plus train` as a process of its own, in a process group of its own."""

    def __init__(self, folder: Path, task: str, name: str, *options: str, **env: str) -> None:
        (folder / "slow.py").write_text(TASK)
        self.folder = folder / "runs" / name
        self.seen: dict[int, str] = {}
        place = ["--storage", str(folder / "runs"), "--name", name]
        arguments = [
            "train",
            task,
            *place,
            "--batch-size",
            "16",
            "--duration",
            f"{STEPS}ba",
            "--json",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raytrain_plus", *arguments, *options],
            cwd=folder,
            env={**os.environ, "RAY_ADDRESS": "local", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def events(self):
        there = (self.folder / journal.FILE_NAME).exists()
        return journal.read(self.folder) if there else []

    def until(self, event, step=0):
        deadline = time.monotonic() + PATIENCE
        while not any(e["event"] == event and e.get("step", 0) >= step for e in self.events()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        self.seen |= below(self.process.pid)

    def ended(self):
        """Return the status, the text on stderr, and the JSON of the last line."""
        out, error = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, error, json.loads(out.splitlines()[-1]) if out else None

    def left(self):
        """Return what is left of all processes that there were."""
        deadline = time.monotonic() + 30.0
        while (left := alive(self.seen)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def processes():
    """Return all processes: id -> (parent, when it began)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(entry.name)] = (int(fields[1]), fields[19])
    return found


def below(pid):
    """Return the processes that a process has begun, and theirs, with when each began."""
    there = processes()
    found, more = {pid}, True
    while more:
        new = {one for one, (parent, _) in there.items() if parent in found} - found
        found, more = found | new, bool(new)
    return {one: there[one][1] for one in found - {pid}}


def alive(seen):
    there = processes()
    return [pid for pid, began in seen.items() if pid in there and there[pid][1] == began]


@pytest.fixture
def command(tmp_path):
    started = []

    def start(*given, **env):
        started.append(Command(tmp_path, *given, **env))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        for process in one.left():
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_group_keeps_the_state_and_says_how_far_it_came(command, number, status):
    """As `timeout`, systemd, scancel and a terminal send it: to all processes of the group."""
    run = command("slow.py:Slow", "run")
    run.until("step", 10)
    os.killpg(run.process.pid, number)
    returned, error, told = run.ended()
    assert returned == status, error
    assert "Traceback" not in error
    end = run.events()[-1]
    assert (end["event"], end["state"]) == ("end", "stopped")
    assert 10 <= end["step"] < STEPS
    assert Path(end["checkpoint"], "model.safetensors").exists()
    assert (told["state"], told["steps"], told["total_steps"]) == ("stopped", end["step"], STEPS)
    assert f"after {end['step']} of {STEPS} steps" in error
    assert end["checkpoint"] in error
    assert not run.left()


def test_nothing_is_left_of_a_command_that_is_killed(command):
    run = command("slow.py:Slow", "run")
    run.until("step", 3)
    assert len(run.seen) > 3  # Ray's daemons, the coordinator, a worker
    run.process.kill()
    # Ray's two agents on a node notice by themselves, later, that its raylet has gone.
    assert all("Agent" in Path(f"/proc/{pid}/cmdline").read_text() for pid in run.left())

"""How a command ends: by a signal, by the end of its Ray, or by its task."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.observe import journal
from tests.end_to_end import small_sweep
from tests.end_to_end.runs import cluster

TASK = """
import os, pathlib, sys, time
import numpy as np, pyarrow as pa, torch, torchmetrics
from torch import nn
from raytrain_plus import Task
from raytrain_plus.storage.store import Store

def linger(where):
    \"\"\"Hang a while in one place, and say so, if the test wants that.\"\"\"
    if os.environ.get("LINGERS_IN") == where:
        pathlib.Path(os.environ["MARK"]).touch()
        time.sleep(1.0)

write = Store.write

def write_slowly(self, name, *args, **kwargs):
    if name.endswith(".safetensors"):
        linger("checkpoint")
    return write(self, name, *args, **kwargs)

Store.write = write_slowly

class Slow(Task):
    def model(self):
        linger("start")
        return nn.Linear(4, 3)
    def metrics(self):
        return {"mean": torchmetrics.MeanMetric()}
    def update_metric(self, metric, outputs, batch):
        linger("evaluation")
        metric.update(outputs)
    def evaluation_data(self):
        return self.data().slice(0, 16)
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
ROOT = str(Path(__file__).parents[2])
PATIENCE = 240.0
STEPS = 5000

pytestmark = pytest.mark.timeout(600)


class Command:
    """A command as a separate process, with its own process group and its own Ray."""

    def __init__(self, folder: Path, run: str, *arguments: str, **env: str) -> None:
        (folder / "slow.py").write_text(TASK)
        self.folder = folder / "runs" / run
        self.mark = folder / f"mark-{time.monotonic_ns()}"
        self.seen: dict[int, str] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raytrain_plus", *arguments, "--json"],
            cwd=folder,
            env={**os.environ, "RAY_ADDRESS": "local", "MARK": str(self.mark), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def events(self):
        there = (self.folder / journal.FILE_NAME).exists()
        return journal.read(self.folder) if there else []

    def until(self, event, step=0):
        self.until_true(
            lambda: any(e["event"] == event and e.get("step", 0) >= step for e in self.events())
        )

    def until_true(self, is_so):
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        self.seen |= below(self.process.pid)

    def ended(self):
        """Return the status, the text on stderr, and the JSON of the last line."""
        out, error = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, error, json.loads(out.splitlines()[-1]) if out else None

    def left(self):
        """Return the processes that are still there."""
        deadline = time.monotonic() + 30.0
        while (left := alive(self.seen)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def processes():
    """Return all processes: id -> (parent, start time)."""
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
    """Return all descendants of a process, with their start times."""
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
    """Return a function that starts a command: the name of its run, its arguments, its settings."""
    started = []

    def start(run, *arguments, **env):
        started.append(Command(tmp_path, run, *arguments, **env))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        for process in one.left():
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def train(command, tmp_path):
    """Return a function that starts `train` with the name of a run."""
    sizes = ["--batch-size", "16", "--duration", f"{STEPS}ba", "--evaluate-every", "20ba"]

    def start(run, *options, **env):
        place = ["--storage", str(tmp_path / "runs"), "--name", run]
        return command(run, "train", "slow.py:Slow", *place, *sizes, *options, **env)

    return start


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_group_keeps_the_state_and_reports_the_last_step(train, number, status):
    """`timeout`, systemd, scancel and a terminal send it to all processes of the group."""
    run = train("run")
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


@pytest.mark.parametrize(
    ("where", "number"), [("evaluation", signal.SIGTERM), ("checkpoint", signal.SIGHUP)]
)
def test_a_signal_during_an_evaluation_or_a_checkpoint_keeps_the_state(train, where, number):
    run = train("run", "--checkpoint-every", "20ba", LINGERS_IN=where)
    run.until("step", 1)
    run.until_true(run.mark.exists)
    os.killpg(run.process.pid, number)
    returned, error, told = run.ended()
    assert (returned, "Traceback" in error) == (128 + number, False), error
    end = run.events()[-1]
    assert (end["event"], end["state"], told["state"]) == ("end", "stopped", "stopped")
    assert 20 <= end["step"] < STEPS
    assert checkpointer.verify(end["checkpoint"]).step == end["step"]
    assert not run.left()


def test_a_signal_before_a_resumed_run_has_a_group_keeps_its_checkpoint(train):
    first = train("run")
    first.until("step", 10)
    first.process.send_signal(signal.SIGINT)
    _, _, before = first.ended()
    assert not first.left()
    resumed = train("run", "--resume", LINGERS_IN="start")
    resumed.until_true(resumed.mark.exists)
    os.killpg(resumed.process.pid, signal.SIGTERM)
    returned, error, told = resumed.ended()
    assert (returned, "Traceback" in error) == (143, False), error
    assert (told["state"], told["steps"]) == ("stopped", before["steps"])
    assert told["checkpoint"] == before["checkpoint"]
    assert before["checkpoint"] in error
    assert checkpointer.verify(told["checkpoint"]).step == before["steps"]
    assert not resumed.left()


@pytest.mark.slow
def test_a_signal_ends_the_demo(command, tmp_path):
    demo = command("", "demo", "--storage", str(tmp_path / "runs"))

    def trains():
        journals = (tmp_path / "runs").glob("disturbed-*/journal.jsonl")
        return any(e["event"] == "step" for one in journals for e in journal.read(one.parent))

    demo.until_true(trains)
    os.killpg(demo.process.pid, signal.SIGTERM)
    returned, error, told = demo.ended()
    assert (returned, "Traceback" in error) == (143, False), error
    assert told["state"] == "stopped"
    (run,) = (tmp_path / "runs").glob("*disturbed-*")
    assert journal.read(run)[-1]["state"] == "stopped"
    assert not demo.left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_sweep_that_can_be_resumed(command, tmp_path, number):
    file = str(Path(small_sweep.__file__))
    given = ["--budget", "10m", "--workers", "2", "--storage", str(tmp_path)]
    sweep = command("", "sweep", file, *given, PYTHONPATH=ROOT)
    folder = SweepFolder(tmp_path / small_sweep.SWEEP.name)
    sweep.until_true(lambda: folder.exists and folder.finished())
    os.killpg(sweep.process.pid, number)
    returned, error, told = sweep.ended()
    assert (returned, "Traceback" in error) == (128 + number, False), error
    assert told["state"] == "interrupted"
    assert "to go on: raytrain-plus sweep" in error
    assert not sweep.left()
    outcomes = {trial.outcome for trial in folder.finished()}
    assert outcomes <= {"complete", "dominated"}  # no trial counts as failed
    again = command("", "sweep", file, *given, "--resume", PYTHONPATH=ROOT)
    finished = len(folder.finished())
    again.until_true(lambda: len(folder.finished()) > finished)
    os.killpg(again.process.pid, number)
    assert again.ended()[0] == 128 + number
    assert not again.left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_chaos_campaign(command, tmp_path, number):
    task = ["tests.end_to_end.tasks:Plain", "--workers", "2", "--batch-size", "64"]
    chaos = command(
        "",
        "chaos",
        *task,
        "--storage",
        str(tmp_path / "runs"),
        PYTHONPATH=ROOT,
    )

    def disturbs():
        journals = (tmp_path / "runs").glob("*-0-*/journal.jsonl")
        return any(e["event"] == "step" for one in journals for e in journal.read(one.parent))

    chaos.until_true(disturbs)
    os.killpg(chaos.process.pid, number)
    returned, error, told = chaos.ended()
    assert (returned, "Traceback" in error) == (128 + number, False), error
    assert told["interrupted"] is True
    assert not chaos.left()


@pytest.mark.slow
def test_a_signal_to_a_process_that_follows_a_run(train, command, tmp_path):
    """SIGHUP, from a closed terminal, does not stop the run; SIGTERM stops it."""
    with cluster():
        address = ray.get_runtime_context().gcs_address
        run = train("run", RAY_ADDRESS=address)
        run.until("step", 3)
        follow = ["attach", "run", "--storage", str(tmp_path / "runs"), "--address", address]
        for number in (signal.SIGHUP, signal.SIGTERM):
            attached = command("run", *follow)
            assert "run" in attached.process.stderr.readline()  # its progress
            attached.process.send_signal(number)
            returned, error, told = attached.ended()
            assert (returned, "Traceback" in error) == (128 + number, False), error
            assert not attached.left()
            if number == signal.SIGHUP:
                assert "attach run` follows it" in error
                run.until("step", told["steps"] + 10)  # it goes on
        returned, error, told = run.ended()
    assert (returned, told["state"]) == (0, "stopped"), error
    assert checkpointer.verify(told["checkpoint"]).step == told["steps"]


def test_a_killed_command_leaves_no_processes(train):
    run = train("run")
    run.until("step", 3)
    assert len(run.seen) > 3  # Ray's daemons, the coordinator, a worker
    run.process.kill()
    # Ray's two agents on a node notice later that its raylet has ended.
    assert all("Agent" in Path(f"/proc/{pid}/cmdline").read_text() for pid in run.left())

"""The command line on real runs, as a user types it: each command is a separate process."""

import json
import shlex
import subprocess
import sys
import time

import pytest
import yaml

from raytrain_plus.frontier.folder import write_trials
from raytrain_plus.frontier.points import FinishedTrial
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.observe import journal

TASK = """
import time
from pathlib import Path
import numpy as np, pyarrow as pa, torch, torchmetrics
from torch import nn
from raytrain_plus import Task

def table(rows, seed):
    x = np.random.default_rng(seed).normal(size=(rows, 16)).astype("float32")
    image = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 16)
    return pa.table({"image": image, "label": x[:, :4].argmax(1)})

class Small(Task):
    def model(self):
        layers = [nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1)]
        return nn.Sequential(*layers, nn.Linear(32, 4))
    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=1e-3)
    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")
    def metrics(self):
        return {"accuracy": torchmetrics.classification.MulticlassAccuracy(4)}
    def data(self):
        return table(1003, 0)
    def evaluation_data(self):
        return table(317, 1)

class Braked(Small):
    def schedule(self, progress):
        while progress > 0.2 and not (Path(__file__).parent / "released").exists():
            time.sleep(0.05)
        return 1.0
"""

PATIENCE = 90.0
CONTRACT = {
    "run", "steps", "digest", "loss", "metrics", "generations", "device_seconds", "wall_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.py").write_text(TASK)
    faults = [
        {"step": 0, "action": "remove", "workers": 1},
        {"step": 20, "action": "kill"},
        {"step": 40, "action": "add", "workers": 1},
    ]
    (folder / "faults.yaml").write_text(json.dumps(faults))  # JSON is YAML
    return folder


def command(*arguments):
    return [sys.executable, "-m", "raytrain_plus", *arguments, "--storage", "runs", "--json"]


def ask(folder, *arguments, status=0):
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr


def await_step(run, step):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        path = run / journal.FILE_NAME
        events = journal.read(run) if path.exists() else []
        if any(e["event"] == "step" and e["step"] >= step for e in events):
            return
        time.sleep(0.1)
    raise AssertionError(f"{run} did not reach step {step}: {events[-3:]}")


def check_report(folder, told, digest):
    """A kill, a worker that joined, a stop and a resume: the page must show where time went."""
    assert (told["state"], told["steps"]) == ("finished", 300)
    assert told["pause_seconds"].keys() >= {"a worker was lost"}
    worked, training = told["worker_seconds"], told["training_seconds"]
    known = sum(worked[part] for part in ("compute", "exchange", "data", "evaluation", "snapshot"))
    assert min(worked["compute"], worked["exchange"], worked["data"], worked["evaluation"]) > 0
    # The killed worker could not report the usage of its twenty steps.
    assert 0 < worked["unknown"] < 0.5 * known
    assert training - 0.01 <= known + worked["unknown"] <= 2 * training
    told_seconds = [told["startup_seconds"], training, *told["pause_seconds"].values()]
    assert sum(told_seconds) <= told["wall_seconds"] + 0.1
    page = (folder / "runs" / "live" / "report.html").read_text()
    assert told["page"].endswith("runs/live/report.html")
    for words in ("on purpose: kill of w", "resumed", "stopped", digest, "probe gradient", "torch"):
        assert words in page


@pytest.mark.timeout(400)  # seven processes, one after the other, each with its imports
def test_a_disturbed_run_is_watched_scaled_stopped_and_resumed_to_the_bits_of_an_undisturbed_one(
    folder,
):
    train = ("train", "small.py:Braked", "--batch-size", "64", "--duration", "300ba")
    live = subprocess.Popen(
        command(
            *(*train, "--name", "live", "--workers", "1:2"),
            *("--faults", "faults.yaml", "--hang-deadline", "300"),
        ),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_step(folder / "runs" / "live", 60)  # where the task waits until it is released
        standing = ask(folder, "status", "live")
        assert (standing["state"], standing["total_steps"]) == ("training", 300)
        assert "between 1 and 2" in ask(folder, "scale", "live", "3", status=2)
        assert ask(folder, "scale", "live", "1")["target"] == 1
        ask(folder, "stop", "live")
        (folder / "released").touch()
        out, err = live.communicate(timeout=PATIENCE)
    finally:
        live.kill()
        live.wait()
    assert live.returncode == 0, err
    stopped = json.loads(out.splitlines()[-1])
    assert stopped["state"] == "stopped"
    assert 60 <= stopped["steps"] < 70
    assert stopped["faults_left"] == 0
    assert len(stopped["generations"]) >= 2
    generation = {"generation", "step", "workers", "causes", "pause_seconds"}
    assert generation <= stopped["generations"][0].keys()
    resumed = ask(folder, *train, "--name", "live", "--resume")
    whole = ask(folder, *train, "--name", "whole")
    assert whole.keys() >= CONTRACT
    for key in ("digest", "loss", "metrics", "steps"):
        assert resumed[key] == whole[key]
    assert ask(folder, "verify", "live", "whole")["equal"] is True
    check_report(folder, ask(folder, "report", "live"), whole["digest"])
    ended = ask(folder, "status", "live")
    assert (ended["state"], ended["step"], ended["digest"]) == ("finished", 300, whole["digest"])
    assert "has ended" in ask(folder, "scale", "live", "1", status=1)


def finished(name, quality, algorithms, duration):
    recipe = Recipe(duration=duration, batch_size=64, algorithms=algorithms)
    return FinishedTrial(
        name=name, purpose="search" if algorithms else "baseline", recipe=recipe, seed=23,
        cost=float(duration[:-2]), quality=quality, started=0.0, ended=1.0,
    )  # fmt: skip


def test_the_command_in_a_sweeps_report_trains_the_winner(folder):
    trials = [
        finished("short", 0.5, {}, "20ba"),
        finished("long", 0.6, {}, "40ba"),
        finished("winner", 0.7, {"GradientClipping": {"norm": 0.5}}, "30ba"),
    ]
    write_trials(trials, folder / "trials.parquet")
    done = subprocess.run(
        [sys.executable, "-m", "raytrain_plus", "frontier", "trials.parquet", "--json",
         "--metric", "accuracy", "--task", "small.py:Small"],
        cwd=folder, capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    named = shlex.split(json.loads(done.stdout.splitlines()[-1])["command"])
    assert named[0] == "raytrain-plus"
    trained = ask(folder, *named[1:], "--name", "winner")
    assert trained["steps"] == 30
    run = journal.read(folder / "runs" / "winner")[0]
    assert run["identity"]["seed"] == 23
    assert run["identity"]["algorithms"]["GradientClipping"]["norm"] == 0.5
    assert "accuracy" in trained["metrics"]
    said = yaml.safe_load((folder / "report" / "winner.yaml").read_text())
    assert said["duration"] == "30ba"

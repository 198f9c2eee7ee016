"""The command line on wrong input: status 2, one clear line on stderr, no worker started."""

import io
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner

from raytrain_plus import cli
from raytrain_plus.cli import app
from raytrain_plus.observe.journal import line_of
from raytrain_plus.observe.progress import summary_table

TASK = """
import torch
from torch import nn
from raytrain_plus import Task

class Small(Task):
    columns = {"image": (4,), "label": ()}
    def model(self):
        return nn.Linear(4, 2)
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)
    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")

class Broken(Small):
    model = Task.model

def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(TASK)
    (tmp_path / "raises.py").write_text("import nothing_of_this_name\n")
    image = pa.array([[0.0] * 4] * 100, pa.list_(pa.float32(), 4))
    pq.write_table(pa.table({"image": image, "label": [0] * 100}), tmp_path / "data.parquet")
    wide = pa.array([[0.0] * 5] * 100, pa.list_(pa.float32(), 5))
    pq.write_table(pa.table({"image": wide, "label": [0] * 100}), tmp_path / "wide.parquet")
    pq.write_table(pa.table({"image": image.slice(0, 0)}), tmp_path / "empty.parquet")
    (tmp_path / "faults.yaml").write_text("[{step: -1, action: kill}, {step: 2, action: hug}]")
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    for name in ("small", "raises"):  # each test imports its own files
        sys.modules.pop(name, None)


GOOD = ["--data", "data.parquet", "--batch-size", "16", "--storage", "runs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere:Task", *GOOD], ["nowhere", "cannot be imported"]),
        (["raises.py:Task", *GOOD], ["nothing_of_this_name"]),
        (["missing.py:Task", *GOOD], ["missing.py", "does not exist"]),
        (["small.py:Nothing", *GOOD], ["Nothing"]),
        (["small.py", *GOOD], ["module:attribute"]),
        (["small.py:number", *GOOD], ["int", "Task"]),
        (["small.py:Broken", *GOOD], ["Broken", "model()"]),
        (["small.py:Small", "--batch-size", "16"], ["no training data"]),
        (["small.py:Small", *GOOD, "--data", "gone.parquet"], ["gone.parquet", "does not exist"]),
        (["small.py:Small", *GOOD, "--data", "empty.parquet"], ["empty.parquet"]),
        (["small.py:Small", *GOOD, "--data", "wide.parquet"], ["image", "(4,)", "(5,)"]),
        (["small.py:Small", *GOOD, "--batch-size", "20"], ["20", "8 logical ranks", "16 or 24"]),
        (["small.py:Small", *GOOD, "--batch-size", "800"], ["800", "100 rows"]),
        (["small.py:Small", *GOOD, "--workers", "1:9"], ["9 workers", "8 logical ranks"]),
        (["small.py:Small", *GOOD, "--workers", "3:2"], ["3", "2"]),
        (["small.py:Small", *GOOD, "--workers", "0:2"], ["0:2", "a local run"]),
        (["small.py:Small", *GOOD, "--workers", "0", "--spares", "1"], ["spares", "0 workers"]),
        (["small.py:Small", *GOOD, "--workers", "many"], ["many", "1:8"]),
        (["small.py:Small", *GOOD, "--algorithm", "Nope"], ["Nope", "GradientClipping"]),
        (["small.py:Small", *GOOD, "--algorithm", "GradientClipping:n=1"], ["n", "norm=1.0"]),
        (["small.py:Small", *GOOD, "--algorithm", "GradientClipping:norm=-1"], ["norm", "0"]),
        (["small.py:Small", *GOOD, "--duration", "10 fortnights"], ["fortnights", "10ep"]),
        (["small.py:Small", *GOOD, "--duration", "0ep"], ["0ep", "above zero"]),
        (["small.py:Small", *GOOD, "--storage", "/proc/none"], ["/proc/none", "cannot be written"]),
        (
            ["small.py:Small", *GOOD, "--storage", "nowhere://b/x"],
            ["nowhere://b/x", "cannot be used"],
        ),
        (["small.py:Small", *GOOD, "--faults", "gone.yaml"], ["gone.yaml"]),
        (["small.py:Small", *GOOD, "--faults", "faults.yaml"], ["0.step", "1.action"]),
        (["small.py:Small", *GOOD, "--name", "x", "--resume"], ["no run to resume"]),
        (["small.py:Small", *GOOD, "--hang-deadline", "0"], ["hang_deadline", "above zero"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_input_is_refused_before_any_worker_starts(arguments, words):
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr or "raises.py" in arguments[0]
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kinds", "kill,hug"], ["no kind of fault hug", "miscompute"]),
        (["--kinds", ""], ["no kind is given"]),
        (["--kinds", "add"], ["add and remove go together"]),
        (["--steps", "51"], ["51", "even"]),
        (["--steps", "10"], ["10 steps", "22"]),
        (["--runs", "0"], ["runs is 0"]),
        (["--workers", "9"], ["9 workers", "8 logical ranks"]),
        (["--batch-size", "20"], ["20", "16 or 24"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_chaos_refuses_impossible_settings_before_any_worker_starts(arguments, words):
    task = ["chaos", "small.py:Small", "--data", "data.parquet", "--batch-size", "16"]
    result = CliRunner().invoke(app, [*task, "--storage", "runs", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert all(word in result.stderr for word in words)
    assert "Traceback" not in result.stderr
    assert not ray.is_initialized()


def test_a_run_is_not_overwritten(folder):
    (folder / "runs" / "old").mkdir(parents=True)
    (folder / "runs" / "old" / "journal.jsonl").write_text('{"event": "run"}\n')
    result = CliRunner().invoke(app, ["train", "small.py:Small", *GOOD, "--name", "old"])
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert (folder / "runs" / "old" / "journal.jsonl").read_text() == '{"event": "run"}\n'


@pytest.mark.usefixtures("folder")
def test_steering_a_run_that_does_not_exist_says_where_it_looked():
    for command in (["status", "ghost"], ["scale", "ghost", "2"], ["stop", "ghost"]):
        result = CliRunner().invoke(app, [*command, "--storage", "runs"])
        assert result.exit_code == 2
        assert "ghost" in result.stderr
        assert "runs" in result.stderr


def _journal(folder, losses, digest):
    folder.mkdir(parents=True)
    lines = [
        {"event": "step", "step": i + 1, "loss": x, "loss_hex": x.hex()}
        for i, x in enumerate(losses)
    ]
    lines.append({"event": "end", "digest": digest})
    (folder / "journal.jsonl").write_bytes(b"".join(map(line_of, lines)))


@pytest.mark.parametrize(
    ("losses", "digest", "equal", "step"),
    [
        ([1.0, 0.5, 0.25], "a", True, None),
        ([1.0, 0.5000000000000001, 0.25], "a", False, 2),
        ([1.0, 0.5], "a", False, 3),
        ([1.0, 0.5, 0.25], "b", False, None),
    ],
)
def test_verify_names_the_first_step_that_differs(tmp_path, losses, digest, equal, step):
    _journal(tmp_path / "one", [1.0, 0.5, 0.25], "a")
    _journal(tmp_path / "other", losses, digest)
    arguments = ["verify", "one", "other", "--storage", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (0 if equal else 1)
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["equal"] is equal
    assert equal or answer["first_difference"]["step"] == step


def test_the_commands_and_options_are_pinned():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    contract = {"train", "demo", "status", "scale", "stop", "verify"}
    others = {"algorithms", "export", "chaos", "attach", "checkpoint", "report", "log", "init"}
    others |= {"evaluate", "predict"}
    assert commands == contract | others | {"doctor", "node_agent", "sweep", "frontier"}
    help_text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).stdout
    needed = (
        "data workers logical-ranks batch-size duration seed algorithm setting recipe storage name "
        "resume faults "
        "json debug"
    )
    for option in needed.split():
        assert f"--{option}" in help_text


def test_the_version_is_that_of_the_package():
    told = subprocess.run(
        [sys.executable, "-m", "raytrain_plus", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"raytrain-plus {version('raytrain-plus')}\n"


@pytest.mark.parametrize("command", [(), ("train",), ("status",), ("data", "write")])
def test_help_has_a_short_form(command):
    told = [CliRunner().invoke(app, [*command, option]).stdout for option in ("-h", "--help")]
    assert told[0] == told[1]
    assert "Usage: " in told[0]


def test_the_help_names_the_version_and_the_completion_of_the_shell():
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert "--version" in help_text
    assert "--install-completion" in help_text
    assert help_text.index(" train ") < help_text.index(" node-agent ")


def completion_of(words):
    return {
        "_RAYTRAIN_PLUS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("raytrain-plus fro", "frontier"), ("raytrain-plus train --resu", "--resume")],
)
def test_a_shell_completes_commands_and_options(words, wanted):
    told = CliRunner().invoke(app, env=completion_of(words), prog_name="raytrain-plus")
    assert told.stdout.strip() == wanted


def test_the_installed_program_completes():
    told = subprocess.run(
        [Path(sys.executable).with_name("raytrain-plus")],
        env=os.environ | completion_of("raytrain-plus fro"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.strip() == "frontier"


def test_text_in_brackets_is_shown_unchanged(tmp_path):
    """Metrics, folders and messages are the user's own words, and no markup of rich's."""
    out = io.StringIO()
    summary = {
        "run": "mine", "state": "stopped", "steps": 3, "loss": 0.5, "generations": [],
        "metrics": {"top[1]": 0.5, "[bold]": 1.0}, "device_seconds": 1.0, "wall_seconds": 1.0,
        "samples": {"trained": 1, "loaded": 1}, "tokens": {"trained": 0, "loaded": 0},
        "algorithms": {}, "bitwise": True, "faults_left": 0, "checkpoint": f"{tmp_path}/[red]x",
        "digest": "d" * 64, "folder": f"{tmp_path}/[red]",
    }  # fmt: skip
    Console(file=out, markup=False, width=200).print(summary_table({"[dim]": summary}))
    for text in ("top[1]", "[bold]", "[red]"):
        assert text in out.getvalue()
    commands = Path(cli.__file__).parent.glob("*.py")
    made = [line for path in commands for line in re.findall(r"Console\([^)]*\)", path.read_text())]
    assert len(made) > 10
    assert [line for line in made if "markup=False" not in line] == ["Console()"]  # the doctor's


def test_the_demo_writes_to_a_folder_of_this_machine():
    answered = CliRunner().invoke(app, ["demo", "--storage", "s3://bucket/runs"])
    assert answered.exit_code == 2
    assert "give a path" in answered.stderr

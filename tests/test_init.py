"""`raytrain-plus init` writes projects whose tests pass and that train at once."""

import importlib
import json
import operator
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from raytrain_plus import ElasticTrainer, run_file
from raytrain_plus.cli import app
from raytrain_plus.cli import train as command
from raytrain_plus.cli.init import PROJECTS
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.task import import_named
from tests import tutorial
from tests.test_tutorial import parse

MODULES = ("task", "prepare_data", "test_task")
FILES = ["README.md", "prepare_data.py", "run.yaml", "task.py", "test_task.py"]
# Smaller samples than those that a user gets, so that the tests are quick.
FEW = slice(8)  # files of the sample
SMALLER = {
    "images": {"sample": {"rows": 400}},
    "text": {},
    "finetune": {"train_base": {"steps": 1, "files": 2}},
    "tabular": {"write_sample": {"rows": 1000}},
}


@pytest.fixture(params=PROJECTS)
def project(tmp_path, monkeypatch, request):
    """A project as `init` writes it, which is the working folder."""
    folder = tmp_path / "mine"
    done = CliRunner().invoke(app, ["init", str(folder), "--template", request.param])
    assert done.exit_code == 0, done.stderr
    assert f"cd {folder}\npython prepare_data.py" in done.stdout
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for name in MODULES:  # these tests have a test_task of their own
        monkeypatch.delitem(sys.modules, name, raising=False)
    threads = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(threads)
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_project_is_tested_prepared_and_trained(project, monkeypatch):
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:timeout", f"--rootdir={Path.cwd()}"]
    assert pytest.main([*options, "test_task.py"]) == 0
    prepare = importlib.import_module("prepare_data")
    for name, less in SMALLER[project].items():
        monkeypatch.setattr(prepare, name, partial(getattr(prepare, name), **less))
    if project == "text":
        monkeypatch.setattr(prepare, "sample", partial(operator.getitem, prepare.sample(), FEW))
    if project == "finetune":
        few = prepare.LIBRARY[FEW]
        monkeypatch.setattr(prepare, "docstrings", partial(prepare.docstrings, few))
    prepare.main()
    settings = command._settings(command._file(Path("run.yaml")), {})
    assert str(settings.workers) == "1:2"
    here = command._settings(
        command._file(Path("run.yaml")), {"workers": "0", "duration": "2ba", "name": "here"}
    )
    result = ElasticTrainer(**run_file.arguments(here)).fit()
    assert result.metrics["steps"] == 2
    assert set(result.metrics) & {"accuracy", "bits_per_byte"}
    assert Path(result.path) == Path("runs/here").resolve()


def test_each_command_of_a_projects_readme_parses(project):
    assert project in PROJECTS
    commands = tutorial.commands(Path("README.md"))
    assert [words[0] for words in commands][:2] == ["train", "train"] or "export" in commands[1][0]
    for words in commands:
        parse(words)


def test_a_file_that_exists_is_kept(tmp_path):
    (tmp_path / "task.py").write_text("mine")
    done = CliRunner().invoke(app, ["init", str(tmp_path), "--template", "text"])
    assert done.exit_code == 2
    assert "has task.py already, and nothing was written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["task.py"]
    assert (tmp_path / "task.py").read_text() == "mine"
    wrong = CliRunner().invoke(app, ["init", str(tmp_path / "x"), "--template", "audio"])
    assert (wrong.exit_code, (tmp_path / "x").exists()) == (2, False)


def test_the_answer_names_the_files(tmp_path):
    done = CliRunner().invoke(app, ["init", str(tmp_path / "x"), "--template", "text", "--json"])
    assert json.loads(done.stdout)["files"] == FILES
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == FILES


def test_a_sweep_is_one_file_with_a_definition(tmp_path, monkeypatch):
    done = CliRunner().invoke(app, ["init", str(tmp_path / "x"), "--template", "sweep"])
    assert done.exit_code == 0
    assert done.stdout.endswith(f"cd {tmp_path / 'x'}\nraytrain-plus sweep sweep.py --budget 10m\n")
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "sweep", raising=False)
    sweep = import_named(f"{tmp_path / 'x' / 'sweep.py'}:SWEEP", "sweep")
    assert isinstance(sweep, Sweep)
    sys.modules.pop("sweep")

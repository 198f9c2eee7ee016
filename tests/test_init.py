"""`raytrain-plus init` writes projects whose tests pass and that train at once."""

import importlib
import json
import operator
import sys
import tomllib
from functools import partial
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from raytrain_plus import ElasticTrainer, run_file
from raytrain_plus.cli import app, init
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


LAUNCH = ("cluster.yaml", "cluster/aws.yaml", "cluster/gcp.yaml")


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def as_wheel(found, folder):
    """Lay out files as an installed wheel has them, by pyproject.toml's own list."""
    wheel = tomllib.loads((tutorial.ROOT / "pyproject.toml").read_text())
    wheel = wheel["tool"]["hatch"]["build"]["targets"]["wheel"]
    info = Path("raytrain_plus-0.1.0.dist-info")
    extra = wheel["extra-metadata"]
    assert all(source == target for source, target in extra.items())
    names = []
    for name, content in found.items():
        if Path(name).parts[0] in wheel["packages"]:
            path = Path(name)
        elif name in extra or Path(name).parts[0] in extra:
            path = info / "extra_metadata" / name
        else:
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        names.append(f"{path},,")
    (folder / info / "RECORD").write_text("\n".join([*names, "raytrain_plus/x.pyc,,"]))
    return Distribution.at(folder / info)


def test_the_launch_files_are_written_with_what_they_install(tmp_path):
    folder = tmp_path / "mine"
    done = CliRunner().invoke(app, ["init", str(folder), "--template", "cluster"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith("ray up cluster.yaml\n")
    for launch in LAUNCH:
        assert (folder / launch).read_bytes() == (tutorial.ROOT / launch).read_bytes()
        for source in yaml.safe_load((folder / launch).read_text())["file_mounts"].values():
            assert source.startswith("~") or (folder / source).exists()
    dockerfile = (folder / "cluster/kubernetes/Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY")]
    assert copied
    assert all((folder / name).exists() for names in copied for name in names)
    for script in ("install.sh", "start.sh"):
        assert (folder / "cluster" / script).stat().st_mode & 0o111
    assert not (folder / "cluster" / "lab").exists()
    # An installed wheel writes the same files.
    written = files_of(folder)
    assert init._files_of_wheel(as_wheel(written, tmp_path / "site")) == written


def test_a_nodes_installation_has_no_launch_files(tmp_path, monkeypatch):
    part = {"raytrain_plus/__init__.py": b"", "pyproject.toml": b"", "cluster/install.sh": b""}
    installed = as_wheel(part, tmp_path)
    assert set(init._files_of_wheel(installed)) == set(part)
    monkeypatch.setattr(init, "files", lambda _: tmp_path / "raytrain_plus")
    monkeypatch.setattr(init, "distribution", lambda _: installed)
    with pytest.raises(ValueError, match=r"no launch files.*install the wheel"):
        init.write_project(tmp_path / "mine", "cluster")
    assert not (tmp_path / "mine").exists()

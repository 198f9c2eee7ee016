"""The command that writes a sweep's report prints where it is, or what was wrong."""

import fcntl
import json
import shlex
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.cli import frontier as command
from raytrain_plus.frontier.folder import write_trials
from raytrain_plus.frontier.recipe import read_recipe
from tests.frontier import synthetic
from tests.frontier.synthetic import World

FILES = {
    "frontier.html", "frontier.png", "frontier.md", "recipes.csv", "trials.csv", "winner.yaml",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return synthetic.whole()


def run(*arguments):
    return CliRunner().invoke(app, ["frontier", *map(str, arguments)])


def test_a_report_is_written_next_to_the_sweep(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    whole.write(tmp_path / "sweeps" / "s", "finished", "session_end")
    result = run("sweeps/s", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["page"] == "sweeps/s/report/frontier.html"
    assert told["state"] == "finished"
    assert told["trials"] == {"complete": 157, "dominated": 3, "failed": 2}
    assert told["synergies"] == [["BlurPool", "ProgressiveResizing"]]
    assert set(told["winner"]["recipe"]["algorithms"]) == {
        "BlurPool",
        "EMA",
        "ProgressiveResizing",
    }
    assert told["winner"]["speed_up"]["low"] > 1
    assert told["winner"]["speed_up"]["high"] is None  # better than any baseline
    folder = tmp_path / "sweeps" / "s" / "report"
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    words = shlex.split(told["command"])
    assert words[:3] == ["raytrain-plus", "train", "tasks:Synthetic"]
    # The command can read the recipe, and it has the named algorithms.
    recipe = read_recipe(words[words.index("--recipe") + 1])
    assert [type(aspect).__name__ for aspect in recipe.aspects()]
    assert recipe.duration == "48000sp"


def test_a_bare_table_is_enough(tmp_path):
    sweep = synthetic.baseline_alone(World(less_is_better=True))
    write_trials(sweep.trials, tmp_path / "trials.parquet")
    arguments = ["--metric", "accuracy:min", "--task", "a:B", "--output", tmp_path / "here"]
    result = run(tmp_path / "trials.parquet", *arguments)
    assert result.exit_code == 0
    assert "frontier.html" in result.stdout
    assert "raytrain-plus train a:B" in result.stdout
    assert {path.name for path in (tmp_path / "here").iterdir()} == FILES


def test_a_sweep_without_a_finished_trial_has_a_page_and_no_winner(tmp_path):
    folder = synthetic.Sweep(World()).write(tmp_path / "s")
    told = json.loads(run(folder, "--json").stdout.splitlines()[-1])
    assert (told["winner"], told["command"]) == (None, "")
    assert "No trial has run to its end yet" in (folder / "report" / "frontier.html").read_text()
    assert not (folder / "report" / "winner.yaml").exists()


def test_a_page_follows_a_sweep_to_its_end(tmp_path, monkeypatch):
    sweep = synthetic.baseline_alone(World(), (12000, 24000), (17,))
    folder = sweep.write(tmp_path / "s", under_way=1)
    page = folder / "report" / "frontier.html"
    with locked(folder) as let_go:
        seen = []

        def passing(_):
            seen.append('http-equiv="refresh"' in page.read_text())
            if len(seen) == 2:
                let_go()

        monkeypatch.setattr(command, "time", SimpleNamespace(sleep=passing))  # of it alone
        result = run(folder, "--watch", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["state"] == "interrupted"
    assert seen == [True, True]
    assert 'http-equiv="refresh"' not in page.read_text()


@contextmanager
def locked(folder):
    with (folder / "sweep" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


def test_an_impossible_report_says_why(tmp_path, monkeypatch):
    said = run(tmp_path / "gone")
    assert (said.exit_code, "there is no sweep at" in said.stderr) == (2, True)
    folder = synthetic.baseline_alone(World(), (12000,), (17,)).write(tmp_path / "s", "session_end")
    (tmp_path / "file").touch()
    said = run(folder, "--output", tmp_path / "file")
    assert (said.exit_code, "Name another place with --output" in said.stderr) == (2, True)
    (folder / "trials" / "broken.parquet").write_bytes(b"no table")
    said = run(folder)
    assert (said.exit_code, "broken.parquet is no Parquet file" in said.stderr) == (2, True)
    for name in [name for name in sys.modules if name.startswith("raytrain_plus.frontier.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "moocore", None)
    said = run(folder)
    assert (said.exit_code, "raytrain-plus[frontier]" in said.stderr) == (2, True)


def test_a_failed_report_leaves_the_previous_one(tmp_path, monkeypatch, whole):
    folder = whole.write(tmp_path / "s", "finished", "session_end")
    assert run(folder).exit_code == 0
    before = (folder / "report" / "winner.yaml").read_text()
    assert yaml.safe_load(before)["batch_size"] == 64
    monkeypatch.setattr("pathlib.Path.replace", _refuse)
    assert run(folder).exit_code == 2
    monkeypatch.undo()
    assert (folder / "report" / "winner.yaml").read_text() == before
    assert {path.name for path in (folder / "report").iterdir()} == FILES  # and no partial file


def _refuse(*_):
    raise OSError("no room")

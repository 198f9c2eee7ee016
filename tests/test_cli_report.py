"""The command that writes a run's page prints where it is, or what was wrong."""

import json

import pytest
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.observe import journal
from tests.observe import journals


@pytest.fixture
def storage(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = b"".join(map(journal.line_of, journals.disturbed()))
    (folder / journal.FILE_NAME).write_bytes(lines)
    return tmp_path


def run(storage, *arguments):
    return CliRunner().invoke(app, ["report", *arguments, "--storage", str(storage)])


@pytest.mark.parametrize("named", [True, False])
def test_a_page_is_written_for_a_runs_name_or_folder(storage, named):
    page = storage / "mine" / "report.html"
    result = run(storage, "mine" if named else str(storage / "mine"), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "run": journals.RUN,
        "page": str(page),
        "state": "finished",
        "steps": 20,
        "wall_seconds": 35.0,
        "training_seconds": 20.5,
        "startup_seconds": 10.0,
        "pause_seconds": {"a worker was lost": 2.5, "a worker joined": 1.0},
        "worker_seconds": {
            "compute": 19.0,
            "exchange": 5.0,
            "data": 1.0,
            "evaluation": 0.25,
            "snapshot": 0.25,
            "unknown": 10.0,
            "pause": 3.5,
        },
    }
    assert "w1 lost: it died" in page.read_text()


def test_the_page_may_be_elsewhere(storage):
    result = run(storage, "mine", "--output", str(storage / "mine.html"))
    assert str(storage / "mine.html") in result.stdout.replace("\n", "")
    assert (storage / "mine.html").exists()
    assert not (storage / "mine" / "report.html").exists()


def test_an_impossible_report_says_why(storage):
    said = run(storage, "yours")
    assert (said.exit_code, "no run 'yours'" in said.stderr) == (2, True)
    said = run(storage, "mine", "--output", str(storage))
    assert (said.exit_code, "Name another place with --output" in said.stderr) == (2, True)
    (storage / "mine" / journal.FILE_NAME).write_bytes(
        journal.line_of({"event": "step", "step": 1, "loss": 0.5})
    )
    said = run(storage, "mine")
    assert (said.exit_code, "no `run` line" in said.stderr) == (2, True)

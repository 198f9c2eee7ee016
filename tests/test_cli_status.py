"""The status command: once or repeatedly, and for a run that cannot be reached."""

import contextlib
import json
import signal

import pytest
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.elastic.client import control
from raytrain_plus.elastic.client.control import SteeringError
from raytrain_plus.interrupts import Interrupted
from raytrain_plus.observe.events import VERSION
from raytrain_plus.observe.journal import line_of

BEGUN = [
    {"event": "run", "time": 1.0, "version": VERSION, "run": "demo", "total_steps": 30}
    | {"address": "127.0.0.1:1"},
    {"event": "step", "time": 2.0, "step": 1, "loss": 0.5, "generation": 1},
]
END = {"event": "end", "time": 3.0, "state": "finished", "digest": "abc"}
LIVE = {
    "run": "demo", "state": "training", "step": 20, "total_steps": 30, "loss": 0.25, "metrics": {},
    "generation": 1, "folder": "here",
}  # fmt: skip


@pytest.fixture
def told(tmp_path):
    """Return a function that adds to the journal of a run."""
    (tmp_path / "demo").mkdir()

    def tell(*events):
        with (tmp_path / "demo" / "journal.jsonl").open("ab") as file:
            file.writelines(map(line_of, events))

    tell(*BEGUN)
    return tell


@pytest.fixture
def status(tmp_path, told):  # noqa: ARG001 - whose run it is
    """Return a function that runs the command."""
    return lambda *options: CliRunner().invoke(
        app, ["status", "demo", "--storage", str(tmp_path), *options]
    )


@pytest.fixture
def live(monkeypatch):
    """Return a function that gives a coordinator's answers, one after the other."""

    @contextlib.contextmanager
    def reached(*_):
        yield "demo"

    def answer(*answers):
        left = list(answers)

        def ask(_, _events):
            said = left.pop(0)
            if isinstance(said, BaseException):
                raise said
            return said() if callable(said) else said

        monkeypatch.setattr(control, "reached", reached)
        monkeypatch.setattr(control, "_live", ask)

    return answer


@pytest.mark.parametrize("option", [(), ("--once",), ("--watch",)])
def test_a_run_that_has_ended_is_shown_once_from_its_journal(status, told, option):
    told(END)
    result = status(*option)
    assert result.exit_code == 0
    assert "finished" in result.stdout
    assert "abc" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()].count("run") == 1


def test_json_is_one_status_in_one_line(status, told):
    told(END)
    for option in ((), ("--watch",)):
        (line,) = status("--json", *option).stdout.splitlines()
        answered = json.loads(line)
        assert (answered["state"], answered["step"], answered["digest"]) == ("finished", 1, "abc")


@pytest.mark.parametrize("option", ["--once", "--watch"])
def test_a_run_that_cannot_be_reached_says_so(status, option):
    result = status(option)
    assert result.exit_code == 0
    assert "unreachable" in result.stdout


def test_watching_follows_a_run_to_its_end(tmp_path, told, live):
    def end():
        told(END)
        return {**LIVE, "state": "stopping"}

    live(LIVE, None, end)
    seen = list(control.watch("demo", str(tmp_path), every=0.0))
    assert [one["state"] for one in seen] == ["training", "no answer", "stopping", "finished"]
    assert seen[-1]["digest"] == "abc"


def test_a_run_that_has_just_ended_is_not_reported_as_unreachable(tmp_path, told, live):
    def end_and_go():
        told(END)
        raise SteeringError("run demo does not live any more")

    live(LIVE, end_and_go)
    states = [one["state"] for one in control.watch("demo", str(tmp_path), every=0.0)]
    assert states == ["training", "finished"]
    live(LIVE, SteeringError("it was killed"))
    told(BEGUN[0])  # it was resumed
    seen = list(control.watch("demo", str(tmp_path), every=0.0))
    assert [one["state"] for one in seen] == ["training", "unreachable"]
    assert seen[-1]["reason"] == "it was killed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_watching_with_its_status_and_leaves_the_table(
    status, live, monkeypatch, number
):
    monkeypatch.setattr(control, "sleep", lambda _: None)
    live(LIVE, {**LIVE, "step": 21}, Interrupted(number))
    result = status("--watch")
    assert result.exit_code == 128 + number
    assert "21 of 30" in result.stdout
    assert f"interrupted by {number.name}" in result.stderr
    assert "Traceback" not in result.stderr


def test_status_follows_on_a_terminal_and_reads_once_in_a_pipe(status, live, monkeypatch):
    monkeypatch.setattr(control, "sleep", lambda _: None)
    monkeypatch.setattr(control, "status", lambda *_: LIVE)
    assert "20 of 30" in status().stdout
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal, to rich
    live({**LIVE, "step": 25}, KeyboardInterrupt())
    assert "25 of 30" in status().stdout

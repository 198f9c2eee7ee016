"""`raytrain-plus chaos` on a task that keeps the promise, and on one that does not."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.elastic.protocol.faults import parse_faults
from raytrain_plus.observe import journal

PATIENCE = 400.0  # seconds

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]


def chaos(storage, task, *options):
    """Return the exit status, the text output, and the JSON."""
    arguments = ["chaos", f"tests.end_to_end.tasks:{task}", "--workers", "2", "--batch-size", "64"]
    result = CliRunner().invoke(
        app, [*arguments, "--steps", "24", "--storage", str(storage), *options, "--json"]
    )
    assert not isinstance(result.exception, AssertionError), result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    return result.exit_code, result.stderr, answer


def test_a_deterministic_task_survives_with_the_same_bits(storage):
    kinds = "kill,drain,slow"
    status, said, answer = chaos(
        storage, "Plain", "--runs", "2", "--seed", "5", "--kinds", kinds, "--keep"
    )
    assert status == 0, said
    assert (answer["equal"], answer["differs"], answer["failed"]) == (2, 0, 0)
    assert [one["seed"] for one in answer["schedules"]] == [5, 6]
    assert len(re.findall(r"^equal +seed \d: ", said, re.MULTILINE)) == 2
    assert "2 schedules: 2 equal, 0 differs, 0 failed" in said
    faults = [fault for one in answer["schedules"] for fault in one["faults"]]
    assert {fault["action"] for fault in faults} <= set(kinds.split(","))
    # The negative control: most faults did happen.
    assert answer["not_struck"] < len(faults)
    journals = {path.parent.name: path.read_text() for path in storage.glob("*/journal.jsonl")}
    assert len(journals) == 2
    assert sum('"event": "fault"' in journal for journal in journals.values()) == 1


def test_runs_ended_by_a_nan_gradient_are_resumed_to_the_same_bits(storage):
    options = ["--runs", "1", "--seed", "5", "--kinds", "nan_gradient", "--keep"]
    status, said, answer = chaos(storage, "Plain", *options)
    assert (status, answer["equal"], answer["not_struck"]) == (0, 1, 0), said
    (disturbed,) = storage.glob("*-5-5")
    events = journal.read(disturbed)
    assert len([event for event in events if event.get("action") == "nan_gradient"]) == 2
    ends = [event for event in events if event["event"] == "end"]
    assert [end["state"] for end in ends] == ["failed"] * 2 + ["finished"]
    for end, fault in zip(ends, answer["schedules"][0]["faults"], strict=False):
        assert f"is not finite at step {fault['step']}" in end["error"]
        assert end["step"] == fault["step"] - 1


def test_a_nondeterministic_task_is_found_and_its_schedule_is_printed(storage):
    status, said, answer = chaos(
        storage, "Clocked", "--runs", "1", "--kinds", "add,remove", "--seed", "3"
    )
    assert status == 1
    assert (answer["equal"], answer["differs"]) == (0, 1)
    (schedule,) = answer["schedules"]
    assert schedule["state"] == "differs"
    assert "loss at step" in schedule["reason"]
    printed = "\n".join(line for line in said.splitlines() if line.startswith(("- ", "# ")))
    assert "raytrain-plus train tests.end_to_end.tasks:Clocked" in printed
    assert parse_faults(yaml.safe_load(printed)) == parse_faults(schedule["faults"])
    assert len(list(storage.iterdir())) == 1  # the folder of the run that differs is kept
    assert str(storage) in said


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_the_results_so_far(tmp_path):
    """It runs in its own process, since the signal goes to its main thread."""
    arguments = ["chaos", "tests.end_to_end.tasks:Plain", "--workers", "2", "--batch-size", "64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "raytrain_plus", *arguments, "--storage", str(tmp_path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (disturbed := [*tmp_path.glob("chaos-*-0-*/journal.jsonl")]) or not any(
            event["event"] == "step" for event in journal.read(disturbed[0])
        ):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert json.loads(out)["interrupted"] is True
    assert "Traceback" not in err
    assert journal.read(disturbed[0])[-1]["state"] == "stopped"

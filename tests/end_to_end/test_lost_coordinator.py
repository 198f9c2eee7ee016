"""A run survives the death of its coordinator: workers go on, and are found again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import ray

from raytrain_plus.elastic.client import control
from raytrain_plus.observe import journal
from raytrain_plus.trainer import attach
from tests.end_to_end import driver
from tests.end_to_end.runs import (
    UNHURRIED,
    Script,
    at_step,
    await_events,
    coordinator,
    differences,
    flaws,
    train,
    undisturbed,
)
from tests.end_to_end.tasks import Momentum

ROOT = Path(__file__).parents[2]


def kill_coordinator(name):
    os.kill(ray.get(coordinator(name).status.remote())["coordinator_pid"], signal.SIGKILL)


def returned(times):
    return lambda events: sum(e["event"] == "coordinator_restart" for e in events) >= times


def test_a_killed_coordinator_comes_back_to_the_same_workers_and_the_same_bits(storage):
    script = Script(
        (at_step(20), kill_coordinator),
        (lambda events: returned(1)(events) and at_step(50)(events), kill_coordinator),
        (returned(2), lambda name: (storage / name / "hurry").touch()),
    )
    run = train(
        Momentum(),
        storage,
        logical_ranks=4,
        workers=(1, 2),
        wanted={1: 5},  # never reached: each step waits for its patience
        patience=0.1,
        director=script,
        hang_deadline=UNHURRIED["hang_deadline"],
        steps=150,
    )
    assert script.is_over
    assert differences(run, undisturbed(Momentum, 4, steps=150)) == []
    assert flaws(run, []) == []
    assert run.changed == set()
    assert run.of("worker", state="lost") == []
    assert [event["workers"] for event in run.of("coordinator_restart")] == [["w0", "w1"]] * 2


def test_a_run_goes_on_without_its_driver_and_a_newcomer_finds_the_data(storage):
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.end_to_end.driver", address, str(storage)]
    run = storage / driver.NAME
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        await_events(run, at_step(10), process)
    finally:
        process.kill()
        process.wait()
    before = [e for e in journal.read(run) if e.get("state") == "ready"]
    os.kill(before[0]["pid"], signal.SIGKILL)  # its replacement reads data from the driver
    status = control.status(str(run), "")
    assert status["state"] == "training"

    def hurry(events):
        if sum(e.get("state") == "ready" for e in events) > len(before):
            (run / "hurry").touch()

    seen = []
    result = attach(str(run), "", lambda events: seen.extend(events) or hurry(seen))
    reference = undisturbed(Momentum, driver.LOGICAL_RANKS, steps=driver.STEPS)
    assert result.metrics["digest"] == reference.summary["digest"]
    assert [e["step"] for e in seen if e["event"] == "step"] == list(range(1, driver.STEPS + 1))
    assert attach(str(run), "").return_value == result.return_value  # and again, from its journal

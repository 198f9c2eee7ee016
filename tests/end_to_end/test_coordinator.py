"""A run outlives its coordinator: workers go on, and are found again."""

import os
import signal

import ray

from tests.end_to_end.runs import (
    UNHURRIED,
    Script,
    at_step,
    coordinator,
    differences,
    flaws,
    train,
    undisturbed,
)
from tests.end_to_end.tasks import Momentum


def kill_coordinator(name):
    os.kill(ray.get(coordinator(name).status.remote())["coordinator_pid"], signal.SIGKILL)


def returned(times):
    return lambda events: sum(e["event"] == "returned" for e in events) >= times


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
        wanted={1: 5},  # never so many: each step waits for its patience
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
    assert [event["workers"] for event in run.of("returned")] == [["w0", "w1"]] * 2

"""The status of a run as text."""

import io

from rich.console import Console

from raytrain_plus.observe.status_table import status_table

LIVE = {
    "run": "demo",
    "state": "training",
    "step": 1200,
    "total_steps": 4000,
    "loss": 0.25,
    "metrics": {"accuracy": 0.91234},
    "samples_per_second": 12345.6,
    "generation": 4,
    "target": 3,
    "workers": ["w0", "w2"],
    "pids": {"w0": 10, "w2": 12},
    "checkpoint": {"step": 1000, "age_seconds": 125.0},
    "generations": [
        {"generation": 3, "step": 900, "workers": 3, "pause_seconds": 0.2,
         "causes": [{"kind": "joined", "worker": "w1"}]},
        {"generation": 4, "step": 1100, "workers": 2, "pause_seconds": 0.125,
         "causes": [{"kind": "lost", "worker": "w1"}]},
    ],
    "members": [
        {"worker": "w0", "node": "10.0.0.1", "pid": 10, "ranks": [0, 1, 2, 3],
         "seconds_per_rank": 0.0015, "phase": "computing"},
        {"worker": "w2", "node": "10.0.0.2", "pid": 12, "ranks": [7],
         "seconds_per_rank": None, "phase": "no answer"},
        {"worker": "w3", "node": None, "pid": None, "ranks": [],
         "seconds_per_rank": None, "phase": "starting"},
    ],
    "folder": "/runs/demo",
}  # fmt: skip
ENDED = {
    "run": "demo",
    "state": "finished",
    "step": 4000,
    "total_steps": 4000,
    "loss": 0.1,
    "metrics": {},
    "generation": 4,
    "digest": "abc123",
    "folder": "/runs/demo",
}


def lines(status, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(status_table(status))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_a_live_run_shows_its_progress():
    shown = lines(LIVE)
    assert "state training" in shown
    assert any(line.startswith("step 1,200 of 4,000 30%") for line in shown)
    for line in (
        "loss 0.250000",
        "accuracy 0.9123",
        "speed 12,346 samples/s",
        "workers 2 of 3 wanted",
        "generation 4",
        "checkpoint step 1,000, 2 min ago",
        "folder /runs/demo",
    ):
        assert line in shown


def test_each_worker_has_a_row():
    shown = lines(LIVE)
    head = shown.index("worker node pid logical ranks ms per rank phase")
    assert shown[head + 1 : head + 4] == [
        "w0 10.0.0.1 10 0 to 3 1.5 computing",
        "w2 10.0.0.2 12 7 - no answer",
        "w3 - - - - starting",
    ]


def test_the_last_generations_say_why_and_for_how_long():
    shown = lines(LIVE)
    head = shown.index("generation from step workers pause because")
    assert shown[head + 1 :] == ["3 900 3 0.20 s w1 joined", "4 1,100 2 0.12 s w1 lost"]


def test_an_ended_run_shows_the_status_from_its_journal():
    shown = lines(ENDED)
    assert "state finished" in shown
    assert "digest abc123" in shown
    assert not any("worker" in line or "checkpoint" in line for line in shown)


def test_the_reason_why_a_run_cannot_be_reached_follows_its_state():
    shown = lines({**ENDED, "state": "unreachable", "reason": "its cluster has gone"})
    assert shown[shown.index("state unreachable") + 1] == "its cluster has gone"


def test_a_run_before_its_first_step_shows_no_loss():
    shown = lines({**LIVE, "step": 0, "loss": None, "checkpoint": None, "generations": []})
    assert not any(line.startswith("loss") for line in shown)
    assert "checkpoint none yet" in shown
    assert any(line.startswith("step 0 of 4,000 0%") for line in shown)


def test_on_a_narrow_terminal_causes_and_folders_are_not_truncated():
    shown = "".join(lines(LIVE, width=60)).replace(" ", "")
    assert "/runs/demo" in shown
    assert "w1lost" in shown

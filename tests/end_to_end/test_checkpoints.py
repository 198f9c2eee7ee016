"""Checkpoints are written during training; a run goes on from them when all workers are lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain_plus import Fault
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.observe import journal
from tests.end_to_end import driver
from tests.end_to_end.runs import (
    UNHURRIED,
    Run,
    Script,
    at_step,
    await_events,
    differences,
    train,
    undisturbed,
)
from tests.end_to_end.tasks import Momentum

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


def whole(run):
    """Return the steps of the checkpoints that are written, in order."""
    return [e["step"] for e in run.of("checkpoint") if e.get("folder") and "metrics" in e]


def refused(events):
    return any(e.get("refused") for e in events)


def checkpointed(step):
    return lambda events: any(
        e["event"] == "checkpoint" and e.get("step") == step and "metrics" in e for e in events
    )


def damage_and_kill(folder, step):
    """Flip a bit of a checkpoint, and kill all workers."""
    path = folder / checkpointer.name_of(step) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    events = journal.read(folder)
    members = [e for e in events if e["event"] == "generation"][-1]["members"]
    for event in events:
        if event.get("state") == "ready" and event["worker"] in members:
            os.kill(event["pid"], signal.SIGKILL)


def test_when_all_workers_are_lost_the_run_goes_on_from_the_newest_complete_checkpoint(storage):
    run = train(
        Momentum(),
        storage,
        logical_ranks=4,
        workers=(1, 2),
        faults=[Fault(step=35, action="kill_all")],
        # Five workers never join: steps are slow until there is a checkpoint, and until the damage
        # is done.
        wanted={1: 2, 12: 5, 36: 2, 64: 5},
        director=Script(
            (checkpointed(60), lambda name: damage_and_kill(storage / name, 60)),
            (refused, lambda name: (storage / name / "hurry").touch()),
        ),
        name="all",
        patience=0.2,
        hang_deadline=UNHURRIED["hang_deadline"],
        checkpoint_every="20ba",
    )
    assert differences(run, undisturbed(Momentum, 4)) == []
    begun = [event["step"] for event in run.of("generation")]
    assert len(run.of("worker", state="lost")) == 4
    assert 20 in begun, "after the first loss it goes on from the checkpoint"
    assert 40 in begun, "the damaged one is refused, and the one before is used"
    (told,) = [e for e in run.of("checkpoint") if e.get("refused")]
    assert "damaged" in told["refused"]
    assert told["folder"].endswith("checkpoint_00000060")
    assert whole(run)[:2] == [20, 40]
    assert whole(run)[-2:] == [80, 100]
    left = sorted(path.name for path in (storage / "all").glob("checkpoint_[0-9]*"))
    assert left[-2:] == ["checkpoint_00000080", "checkpoint_00000100"]
    assert "checkpoint_00000020" not in left, "the newest two are kept"


@pytest.mark.slow
def test_when_the_whole_cluster_is_lost_the_run_is_resumed_by_other_workers(storage):
    command = [sys.executable, "-m", "tests.end_to_end.driver", "local", str(storage)]
    folder = storage / driver.NAME
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        await_events(folder, at_step(50), process)
    finally:
        process.kill()  # its cluster ends with it
        process.wait()
    (folder / "hurry").touch()
    run = train(
        Momentum(),
        storage,
        logical_ranks=driver.LOGICAL_RANKS,
        workers=(1, 1),
        wanted=driver.WANTED,
        patience=driver.PATIENCE,
        steps=driver.STEPS,
        name=driver.NAME,
        resume=True,
        checkpoint_every="20ba",
    )
    reference = undisturbed(Momentum, driver.LOGICAL_RANKS, steps=driver.STEPS)
    assert differences(run, reference) == []
    # The workers trained on for a moment after the kill, until they noticed it.
    second = [i for i, event in enumerate(run.events) if event["event"] == "run"][1]
    before = Run(run.events[:second])
    assert before.of("end") == []
    (resumed,) = (e["resumed_step"] for e in run.of("run") if "resumed_step" in e)
    # The kill may have come between a checkpoint's commit and its line in the journal.
    assert resumed in (whole(before)[-1], whole(before)[-1] + 20)


def test_an_unreachable_store_stops_training_only_if_configured(storage):
    lost = Fault(step=39, action="lose_store", seconds=0.9)
    options = {
        "logical_ranks": 4,
        "workers": (2, 2),
        "faults": [lost],
        "checkpoint_every": "20ba",
        "patience": 0.2,
        "wanted": {1: 2, 40: 5, 60: 1},
        "hang_deadline": UNHURRIED["hang_deadline"],
    }
    run = train(Momentum(), storage, **options)
    assert differences(run, undisturbed(Momentum, 4)) == []
    failures = [e for e in run.of("checkpoint") if e.get("error")]
    assert failures, "it is told"
    assert all("could not be reached" in e["error"] for e in failures)
    assert [e["failures"] for e in failures] == list(range(1, len(failures) + 1))
    assert 40 < whole(run)[1] < 60, "it is tried again before the next is due"
    limited = train(Momentum(), storage, **options, max_checkpoint_failures=1)
    assert "no checkpoint could be written 1 times in a row" in limited.error
    # Existing checkpoints are kept.
    assert checkpointer.verify(limited.summary["checkpoint"]).step >= 20

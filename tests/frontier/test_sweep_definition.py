"""A sweep that cannot run is refused before anything starts; its folder keeps all records."""

import dataclasses
import subprocess
import sys

import pytest
import torchmetrics

from raytrain_plus.cli.sweep import SweepLine, seconds_of
from raytrain_plus.frontier.agenda import BASELINE, Proposal
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.domain import Range
from raytrain_plus.frontier.errors import SweepError
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.points import FinishedTrial, Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace
from raytrain_plus.frontier.sweep import run_sweep
from raytrain_plus.task import Task

SPACE = RecipeSpace(
    baseline=Recipe(duration="64sp", batch_size=8),
    aspects={"EMA": {}, "LabelSmoothing": {"smoothing": Range(low=0.01, high=0.2)}},
)


class Measured(Task):
    """Reports accuracy, if it has evaluation data."""

    def metrics(self):
        return {"accuracy": torchmetrics.MeanMetric()}

    def evaluation_data(self):
        return "somewhere"


class Unmeasured(Measured):
    def evaluation_data(self):
        return None


def make(**changes):
    given = {
        "name": "small",
        "task": Measured(),
        "space": SPACE,
        "objective": Objective(metric="accuracy", mode="max"),
    }
    return Sweep(**{**given, **changes})


def begun(tmp_path, sweep):
    folder = SweepFolder(tmp_path / sweep.name)
    with folder.held():
        folder.write("session", sweep=sweep.described(), workers=1, budget=1.0)
    return folder


def run(tmp_path, sweep, **more):
    return run_sweep(sweep, storage=str(tmp_path), **{"budget": 60.0, "workers": 1, **more})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"least_workers": 0}, "least_workers is 0"),
        ({"least_workers": 8, "logical_ranks": 4}, "raise logical_ranks"),
        ({"factors": ("SAM",)}, "SAM.*EMA, LabelSmoothing"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(SweepError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"objective": Objective(metric="f1", mode="max")}, {}, "'f1'.*accuracy"),
        ({"task": Unmeasured()}, {}, "no evaluation data"),
        ({}, {"budget": 0.0}, "budget is 0"),
        ({"least_workers": 2}, {"workers": 1}, "1 workers and a trial needs 2"),
        ({}, {"resume": True}, "no sweep to resume"),
    ],
)
def test_a_sweep_that_cannot_be_run_says_so_before_ray_starts(tmp_path, changes, more, message):
    with pytest.raises(SweepError, match=message):
        run(tmp_path, make(**changes), **more)


def test_a_folder_holds_one_sweep(tmp_path):
    folder = begun(tmp_path, make())
    with pytest.raises(SweepError, match="--resume goes on"):
        run(tmp_path, make())
    space = SPACE.model_copy(update={"batch_sizes": (8, 16)})
    with pytest.raises(SweepError, match="another space"):
        run(tmp_path, make(space=space), resume=True)
    code = (
        "import sys; from pathlib import Path\n"
        "from raytrain_plus.frontier.folder import SweepFolder\n"
        f"with SweepFolder(Path({str(folder.path)!r})).held(): print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SweepError, match="another sweep is running"):
            run(tmp_path, make(), resume=True)
    finally:
        other.kill()  # after this, no process holds it
        other.communicate()
    with folder.held():
        pass


def test_a_folder_keeps_proposals_and_trials(tmp_path):
    folder = begun(tmp_path, make())
    proposal = Proposal(purpose=BASELINE, recipe=SPACE.recipe_with(("EMA",)), seed=3)
    name = folder.propose(proposal, ())
    other = folder.propose(dataclasses.replace(proposal, seed=4), (name,))
    assert name != other
    trial = FinishedTrial(
        name=name, purpose=BASELINE, recipe=proposal.recipe, seed=3, cost=1.0, quality=0.5,
        started=1.0, ended=2.0,
    )  # fmt: skip
    folder.finish(trial)
    again = SweepFolder(folder.path)
    assert again.proposals()[name] == proposal
    assert [t.name for t in again.finished()] == [name]
    assert again.new_run(name) == f"{name}.0"
    (again.runs / f"{name}.0").mkdir(parents=True)
    assert again.new_run(name) == f"{name}.1"
    text = SweepLine(make(), 60.0, console=_Nowhere()).text(again)
    assert "1 complete, 1 running" in text
    assert "best accuracy 0.5" in text


class _Nowhere:
    is_terminal = False

    def __getattr__(self, name):
        from rich.console import Console

        return getattr(Console(quiet=True), name)


def test_time_between_sessions_is_not_spent(tmp_path, monkeypatch):
    folder = begun(tmp_path, make())
    events = [
        {"event": "session", "time": 100.0}, {"event": "trial", "time": 130.0},
        {"event": "session", "time": 900.0}, {"event": "finished", "time": 905.0},
    ]  # fmt: skip
    monkeypatch.setattr(folder, "events", lambda: events)
    assert folder.spent() == pytest.approx(35.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_a_budget_is_a_time(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "30 m", "0s", "-1m", "1d"])
def test_an_invalid_time_is_refused(text):
    with pytest.raises(SweepError, match="no time above zero"):
        seconds_of(text)

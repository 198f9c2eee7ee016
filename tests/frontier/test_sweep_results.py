"""Reading a sweep's folder, and whether the sweep is running."""

import fcntl
import json

import pytest

from raytrain_plus.frontier.folder import write_trials
from raytrain_plus.frontier.points import Objective, PointError
from raytrain_plus.frontier.report.results import objective_of, read_sweep
from raytrain_plus.observe.journal import line_of
from tests.frontier import synthetic
from tests.frontier.synthetic import World


@pytest.fixture
def sweep():
    return synthetic.baseline_alone(World(less_is_better=True), (12000, 24000), (17, 18))


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        (("finished", "session_end"), "finished"),
        (("session_end",), "interrupted"),
        ((), "interrupted"),
        (("problem", "session_end"), "failed"),
    ],
)
def test_a_folder_shows_how_its_sweep_has_ended(tmp_path, sweep, ends, state):
    sweep = read_sweep(sweep.write(tmp_path / "s", *ends, under_way=2))
    assert sweep.state == state
    assert sweep.objective == Objective(metric=synthetic.METRIC, mode="min")
    assert sweep.trials == sweep.trials
    assert (sweep.name, sweep.task) == ("synthetic", "tasks:Synthetic")
    assert (sweep.logical_ranks, sweep.workers, sweep.budget) == (4, 2, 3600)
    assert sweep.under_way == 0
    assert sweep.problem == ("no more" if state == "failed" else "")


@pytest.mark.parametrize(("held", "state"), [(True, "running"), (False, "interrupted")])
def test_a_sweep_runs_while_a_process_holds_its_lock(tmp_path, sweep, held, state):
    folder = sweep.write(tmp_path / "s", under_way=2)
    with (folder / "sweep" / "lock").open("a") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        sweep = read_sweep(folder)
        assert (sweep.state, sweep.under_way) == (state, 2 if held else 0)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # reading has not locked the folder


def test_a_new_sweep_has_no_trials(tmp_path):
    sweep = read_sweep(synthetic.Sweep(World()).write(tmp_path / "s"))
    assert sweep.trials == []


def test_the_last_session_counts(tmp_path, sweep):
    folder = sweep.write(tmp_path / "s", "problem", "session_end")
    path = folder / "sweep" / "journal.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    first.pop("crc", None)
    later = [{**first, "workers": 8}, {"event": "finished", "time": 9e9}]
    path.write_bytes(path.read_bytes() + b"".join(map(line_of, later)))
    sweep = read_sweep(folder)
    assert (sweep.state, sweep.workers, sweep.problem) == ("finished", 8, "")


def test_a_bare_table_needs_an_objective(tmp_path, sweep):
    path = tmp_path / "trials.parquet"
    write_trials(sweep.trials, path)
    with pytest.raises(PointError, match="--metric"):
        read_sweep(path)
    sweep = read_sweep(path, objective_of("accuracy:min"), "tasks:Synthetic")
    assert sweep.objective.mode == "min"
    assert {t.name for t in sweep.trials} == {t.name for t in sweep.trials}


def test_a_folder_that_is_not_a_sweep_is_refused(tmp_path):
    with pytest.raises(PointError, match="there is no sweep at"):
        read_sweep(tmp_path / "gone")
    with pytest.raises(PointError, match="holds neither a sweep nor trials"):
        read_sweep(tmp_path, objective_of("accuracy"))
    for text in ("", ":min", "accuracy:most"):
        with pytest.raises(PointError, match="is not METRIC"):
            objective_of(text)

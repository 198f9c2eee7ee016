"""A run inside a trial of Ray Tune ends, with its actors, when Tune stops the trial."""

import time
from pathlib import Path

import pytest
import ray
import ray.tune

from raytrain_plus.names import NAMESPACE
from raytrain_plus.observe import journal
from tests.end_to_end.runs import cluster
from tests.end_to_end.tuned import train, trainer


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("reports", [True, False])
def test_a_trial_that_is_stopped_ends_its_run(reports, tmp_path):
    """Tune stops it by a condition on its results, or, if it reports nothing, by a time limit."""
    with cluster():
        started = time.time()
        ray.tune.Tuner(
            ray.tune.with_resources(train, {"CPU": 0.25}),
            param_space={"storage": str(tmp_path), "reports": reports},
            tune_config=ray.tune.TuneConfig(time_budget_s=None if reports else 40),
            run_config=ray.tune.RunConfig(
                storage_path=str(tmp_path / "tune"), stop={"training_iteration": 3}, verbose=0
            ),
        ).fit()
        stopped = time.time()
        until = time.monotonic() + 60  # on a busy machine; otherwise it takes a second or two
        while any(
            one["namespace"] == NAMESPACE for one in ray.util.list_named_actors(all_namespaces=True)
        ):
            assert time.monotonic() < until, "the run's actors live on"
            time.sleep(0.1)
        events = journal.read(tmp_path / "long")
        end = events[-1]
        assert (end["event"], end["state"]) == ("end", "stopped")
        assert started < end["time"] < stopped + 60
        steps = [event for event in events if event["event"] == "step"]
        assert len(steps) < 10_000_000
        assert len(steps) >= 3 or not reports


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 0])
def test_a_trainer_is_tuned_stopped_and_continued_after_a_failure(workers, tmp_path):
    """Of two learning rates the worse is stopped; the better fails once and goes on."""

    def length(config):
        return "80ba" if config["task_settings"]["rate"] == 0.1 else "10000000ba"

    def stops(_trial, result):
        return result["config"]["task_settings"]["rate"] != 0.1 and result["steps"] >= 8

    mark = tmp_path / "mark"
    mark.write_text("")
    with cluster():
        found = ray.tune.Tuner(
            trainer(workers, mark).as_trainable(),
            param_space={
                "task_settings": {"rate": ray.tune.grid_search([0.1, 1e-6])},
                "duration": ray.tune.sample_from(length),
            },
            tune_config=ray.tune.TuneConfig(metric="evaluation_loss", mode="min"),
            run_config=ray.tune.RunConfig(
                storage_path=str(tmp_path),
                name="tuned",
                failure_config=ray.tune.FailureConfig(max_failures=1),
                verbose=0,
                stop=stops,
            ),
        ).fit()
        until = time.monotonic() + 60
        while any(
            one["namespace"] == NAMESPACE for one in ray.util.list_named_actors(all_namespaces=True)
        ):
            assert time.monotonic() < until, "the runs' actors live on"
            time.sleep(0.1)
    assert not mark.exists()
    assert not found.errors
    best = found.get_best_result()
    assert best.config["task_settings"]["rate"] == 0.1
    # What was trained again after the failure is told again.
    assert sorted(set(best.metrics_dataframe["steps"])) == list(range(4, 81, 4))
    assert best.checkpoint is not None
    for one in found:
        (run,) = Path(one.path).glob("trial_*")
        kinds = [event for event in journal.read(run) if event["event"] in ("run", "end")]
        states = [event["state"] for event in kinds if event["event"] == "end"]
        assert states[-1] == ("finished" if one.path == best.path else "stopped")
        assert {event["run_id"] for event in kinds if event["event"] == "run"} == {
            kinds[0]["run_id"]
        }

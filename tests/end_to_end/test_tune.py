"""A run inside a trial of Ray Tune ends, with its actors, when Tune stops the trial."""

import time

import pytest
import ray
import ray.tune

from raytrain_plus.names import NAMESPACE
from raytrain_plus.observe import journal
from tests.end_to_end.runs import cluster
from tests.end_to_end.tuned import train


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

"""A sweep on real processes: killed and resumed, it loses no trial; it has the bits of runs."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.train import RunConfig, ScalingConfig

from raytrain_plus import ElasticConfig, ElasticTrainer, Fault, TrainingFailedError
from raytrain_plus.algorithms import LabelSmoothing
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.points import key_of
from raytrain_plus.observe import journal
from raytrain_plus.worker_pool.server import WorkerPoolError, start_worker_pool, stop_run
from tests.end_to_end.runs import PATIENCE, await_events, cluster
from tests.end_to_end.small_sweep import SWEEP, Rings
from tests.end_to_end.spoiling import Raises, Spoils
from tests.end_to_end.tasks import Momentum

FILE = Path(__file__).with_name("small_sweep.py")
ROOT = Path(__file__).parents[2]


def train(storage, name, *, worker_pool, task, seed=17, aspects=(), faults=(), steps=20):
    trainer = ElasticTrainer(
        task=task,
        batch_size=64,
        duration=f"{steps}ba",
        evaluate_every="10ba",
        seed=seed,
        logical_ranks=4,
        algorithms=aspects,
        faults=faults,
        scaling_config=ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(name=name, storage_path=str(storage)),
        elastic=ElasticConfig(worker_pool=worker_pool, checkpoint_every=None),
    )
    return trainer.fit().return_value


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_reused_workers_compute_the_same_as_new_ones(tmp_path):
    """After another task and after a kill. A process that cannot be reset is replaced."""
    with cluster():
        pool = start_worker_pool("pool", workers=2, coordinators=1, resources={"CPU": 0.25})

        def reused(name, task, **more):
            return train(tmp_path, name, worker_pool="pool", task=task, **more)

        first = reused("first", Momentum())
        between = reused("between", Rings(), seed=3, aspects=[LabelSmoothing(smoothing=0.1)])
        again = reused("again", Momentum())
        assert not ray.get(pool.status.remote())["replaced"]
        with pytest.raises(TrainingFailedError, match="a user's own error"):
            reused("raises", Raises())
        killed = reused("killed", Momentum(), faults=[Fault(step=5, action="kill")])
        led = reused("led", Momentum(), faults=[Fault(step=5, action="kill_coordinator")])
        spoilt = reused("spoilt", Spoils())
        after = reused("after", Momentum())
        status = ray.get(pool.status.remote())
        with pytest.raises(WorkerPoolError, match="num_cpus"):
            ElasticTrainer(
                task=Momentum(),
                batch_size=64,
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
                run_config=RunConfig(name="other", storage_path=str(tmp_path)),
                elastic=ElasticConfig(worker_pool="pool"),
            ).fit()
        new = train(tmp_path, "new", worker_pool=None, task=Momentum())
    digests = [run["digest"] for run in (first, again, killed, led, after, new)]
    assert len(set(digests)) == 1
    assert between["digest"] != first["digest"]  # the control
    events = journal.read(tmp_path / "killed")
    assert any(e["event"] == "worker" and e["state"] == "lost" for e in events)
    assert any(e["event"] == "coordinator_restart" for e in journal.read(tmp_path / "led"))
    assert spoilt["digest"] == first["digest"]
    assert all("spoilt/" in why and "other bits" in why for why in status["replaced"])
    assert status["replaced"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_stopped_gives_its_workers_back(tmp_path):
    """As Ray Tune stops a trial: at once, not at the run's next evaluation."""
    with cluster(), ThreadPoolExecutor(1) as thread:
        pool = start_worker_pool("pool", workers=2, coordinators=1, resources={"CPU": 0.25})
        run = thread.submit(
            train, tmp_path, "run", worker_pool="pool", task=Momentum(), steps=100_000
        )
        alive = SimpleNamespace(poll=lambda: run.result() if run.done() else None)
        await_events(
            tmp_path / "run", lambda events: any(e["event"] == "step" for e in events), alive
        )
        stop_run("pool", "run")
        summary = run.result(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while ray.get(pool.status.remote())["free"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert summary["state"] == "stopped"
    assert 0 < summary["steps"] < 100_000


def sweep(storage, *more):
    """Start the command with its own Ray."""
    command = [sys.executable, "-m", "raytrain_plus", "sweep", str(FILE), "--storage", str(storage)]
    return subprocess.Popen(
        [*command, "--budget", "10m", "--workers", "2", "--json", *more],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_sweep_continues_without_losses(tmp_path):
    """It survives the kill of a worker and its own kill."""
    folder = SweepFolder(tmp_path / SWEEP.name)
    killed = sweep(tmp_path)
    try:
        await_trials(folder, 1, killed)
        struck = kill_a_worker(folder)
        await_trials(folder, 4, killed)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    before = folder.finished()
    resumed = sweep(tmp_path, "--resume")
    out, error = resumed.communicate()
    assert resumed.returncode == 0, error
    summary = json.loads(out.splitlines()[-1])
    assert summary["state"] == "finished"
    assert any(event.get("state") == "lost" for event in journal.read(struck))
    assert_whole(SweepFolder(folder.path), before)


def await_trials(folder, count, process):
    """Wait until the given number of trials has ended."""
    await_events(
        folder.path / "sweep",
        lambda events: sum(event["event"] == "trial" for event in events) >= count,
        process,
    )


def kill_a_worker(folder):
    """Kill a worker of a running run; returns the run's folder."""
    while True:
        for run in folder.runs.iterdir():
            events = journal.read(run) if (run / journal.FILE_NAME).exists() else []
            pids = [e["pid"] for e in events if e["event"] == "worker" and e["state"] == "ready"]
            if pids and events[-1]["event"] == "step":
                os.kill(pids[0], signal.SIGKILL)
                return run


def assert_whole(folder, before):
    """Check that each proposal ended once; finished trials are unchanged and have a run."""
    finished = folder.finished()
    proposals = folder.proposals()
    assert {trial.name for trial in finished} == set(proposals)
    assert set(before_of(before)) <= set(before_of(finished))
    assert {"baseline", "factorial", "search", "tuning"} <= {t.purpose for t in finished}
    for trial in finished:
        assert trial.outcome in ("complete", "dominated"), trial.error
        if trial.outcome != "complete":
            continue
        run = max(folder.runs.glob(f"{trial.name}.*"))  # the last one, if a line was cut off
        events = journal.read(run)
        end = events[-1]
        assert end["event"] == "end"
        assert end["state"] == "finished"
        assert trial.quality == pytest.approx(end["metrics"]["accuracy"])
        assert trial.cost == pytest.approx(end["device_seconds"], abs=1e-3)


def before_of(trials):
    return [(t.name, key_of(t.recipe), t.seed, t.cost, repr(t.quality)) for t in trials]

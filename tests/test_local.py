"""A run with 0 workers: in this process, without Ray, and with the task's code in this thread."""

import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from torch import nn

from raytrain_plus import ElasticConfig, ElasticTrainer, Fault, Task, TrainingFailedError
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.client import control
from raytrain_plus.interrupts import RunInterrupted
from raytrain_plus.observe.journal import read

STEPS = 8


class Line(Task):
    """Learns y = 2x; `act` is called in each forward of training."""

    columns = {"x": (), "y": ()}  # noqa: RUF012 - a constant of the class
    target = "y"
    act = staticmethod(lambda: None)

    def model(self):
        return nn.Linear(1, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def forward(self, model, batch):
        type(self).act()
        return model(batch["x"].unsqueeze(1)).squeeze(1)

    def loss(self, outputs, batch):
        return (outputs - batch["y"]) ** 2


DATA = pa.table({"x": [i / 64 for i in range(64)], "y": [i / 32 for i in range(64)]}).cast(
    pa.schema({"x": pa.float32(), "y": pa.float32()})
)


def trainer(folder, task=None, *, workers=0, name="local", resume=False, **more):
    elastic = more.pop("elastic", ElasticConfig(checkpoint_every=None))
    return ElasticTrainer(
        task=task or Line(),
        data=DATA,
        batch_size=16,
        duration=f"{STEPS}ba",
        logical_ranks=4,
        scaling_config=ScalingConfig(num_workers=workers, **more.pop("scaling", {})),
        run_config=RunConfig(name=name, storage_path=str(folder)),
        elastic=elastic,
        resume=resume,
        **more,
    )


def doing(act):
    """Return a task that calls a function in each forward."""
    return type("Acting", (Line,), {"act": staticmethod(act)})()


def after(calls, act):
    """Return a function that acts once, in some call."""
    count = 0

    def counted():
        nonlocal count
        count += 1
        if count == calls:
            act()

    return counted


@pytest.fixture
def reference(tmp_path):
    return trainer(tmp_path, name="reference").fit().metrics


def test_the_tasks_code_runs_in_this_thread_and_ray_is_not_started(tmp_path, capsys):
    threads = set()
    result = trainer(tmp_path, doing(lambda: threads.add(threading.current_thread()))).fit()
    assert threads == {threading.current_thread()}
    assert not ray.is_initialized()
    assert (result.metrics["steps"], result.return_value["state"]) == (STEPS, "finished")
    assert (Path(result.checkpoint.path) / "model.safetensors").exists()
    (run,) = [event for event in read(tmp_path / "local") if event["event"] == "run"]
    assert run["local"] is True
    capsys.readouterr()


def test_a_breakpoint_stands_in_the_tasks_code(tmp_path, monkeypatch):
    stood = []

    def stop(*_, **__):
        stood.append((threading.current_thread(), sys._getframe(1).f_code.co_name))

    monkeypatch.setattr(sys, "breakpointhook", stop)
    trainer(tmp_path, doing(after(10, breakpoint))).fit()
    assert [thread for thread, _ in stood] == [threading.main_thread()]


def test_the_process_is_left_as_it_was(tmp_path):
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    streams, paths = (sys.stdout, sys.stderr), list(sys.path)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(tmp_path, doing(lambda: torch.manual_seed(1))).fit()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert (sys.stdout, sys.stderr) == streams
    assert sys.path == paths
    assert torch.equal(torch.rand(3), drawn)


def test_an_error_in_the_task_ends_the_run_with_its_traceback_and_its_frames(tmp_path):
    def fail():
        culprit = "seen by the debugger"
        raise OSError(culprit)

    # With workers an OSError would be tried on another machine.
    with pytest.raises(TrainingFailedError, match="in fail\n") as failed:
        trainer(tmp_path, doing(after(30, fail))).fit()
    assert isinstance(failed.value.__cause__, OSError)
    assert failed.value.summary["steps"] > 0
    assert failed.value.summary["checkpoint"]
    frames, trace = [], failed.value.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    assert frames[-1].f_locals["culprit"] == "seen by the debugger"


def test_an_error_before_the_first_step_is_told_the_same_way(tmp_path):
    def fail():
        raise ValueError("at once")

    with pytest.raises(TrainingFailedError, match="at once") as failed:
        trainer(tmp_path, doing(fail)).fit()
    assert isinstance(failed.value.__cause__, ValueError)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_signal_ends_the_run_after_the_step_and_it_can_be_resumed(tmp_path, reference):
    def seen(events):
        if any(event["event"] == "step" for event in events) and not told:
            told.append(True)
            interrupt()
        if any(event["event"] == "stop" for event in events):
            stops.set()

    told, stops = [], threading.Event()
    # A step in the middle waits until the signal has come through, which takes a moment.
    slow = doing(after(20, lambda: stops.wait(20)))
    slow.__class__.__module__ = Line.__module__
    with pytest.raises(RunInterrupted, match="its state is kept") as stopped:
        trainer(tmp_path, slow).fit(seen)
    steps = stopped.value.summary["steps"]
    assert 0 < steps < STEPS
    resumed = trainer(tmp_path, resume=True, accept_changed_code=True).fit()
    assert resumed.metrics["digest"] == reference["digest"]
    sessions = [event for event in read(tmp_path / "local") if event["event"] == "run"]
    assert sessions[1]["resumed_step"] == steps


def test_the_second_signal_ends_the_run_in_the_middle_of_a_step(tmp_path):
    def twice():
        interrupt()
        interrupt()
        reached.append(True)

    reached = []
    with pytest.raises(RunInterrupted, match="stopped by SIGINT"):
        trainer(tmp_path, doing(after(30, twice))).fit()
    assert not reached
    assert read(tmp_path / "local")[-1]["state"] == "stopped"


def test_quitting_the_debugger_ends_the_run_at_once(tmp_path):
    class BdbQuit(Exception):  # noqa: N818 - as the standard library names it
        pass

    def leave():
        raise BdbQuit

    with pytest.raises(RunInterrupted):
        trainer(tmp_path, doing(after(30, leave))).fit()


def test_an_error_of_the_watcher_stops_the_run_and_is_raised(tmp_path):
    def wrong(_events):
        raise KeyError("watcher")

    with pytest.raises(KeyError, match="watcher"):
        trainer(tmp_path).fit(wrong)
    assert read(tmp_path / "local")[-1]["event"] == "end"


def test_what_the_task_prints_is_shown_here_and_kept(tmp_path, capsys):
    trainer(tmp_path, doing(after(10, lambda: print("hello from forward")))).fit()  # noqa: T201
    printed = capsys.readouterr()
    assert printed.out.count("hello from forward") == 1
    assert "[w0]" not in printed.err
    assert "hello from forward\n" in (tmp_path / "local" / "logs" / "w0.log").read_text()


def test_progress_is_shown_without_being_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAYTRAIN_PLUS_PROGRESS_INTERVAL", "60")
    trainer(tmp_path).fit()
    assert f"local: finished after {STEPS} of {STEPS} steps  loss" in capsys.readouterr().err
    trainer(tmp_path, name="watched").fit(lambda _: None)
    assert "finished" not in capsys.readouterr().err  # the watcher shows what it likes


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"faults": [Fault(step=3, action="kill")]}, "faults cannot be used with 0 workers"),
        ({"elastic": ElasticConfig(spares=1)}, "spares cannot be used"),
        ({"elastic": ElasticConfig(worker_pool="pool")}, "worker_pool cannot be used"),
        ({"elastic": ElasticConfig(isa="avx2")}, "isa cannot be used"),
        ({"workers": (0, 3)}, "0 alone means a local run"),
    ],
)
def test_what_a_local_run_cannot_do_is_refused_by_name(tmp_path, more, told):
    with pytest.raises(ConfigError, match=told):
        trainer(tmp_path, **more)
    assert not (tmp_path / "local").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="torch finds none"):
        trainer(tmp_path, scaling={"use_gpu": True})


def test_another_process_cannot_steer_a_local_run_and_is_told_why(tmp_path):
    told = []

    def meddle():
        for steer in (control.stop, control.checkpoint):
            with pytest.raises(control.SteeringError, match="is a local run") as refused:
                steer("local", str(tmp_path))
            told.append(str(refused.value))
        seen = control.status("local", str(tmp_path))
        told.append(json.dumps(seen))

    assert trainer(tmp_path, doing(after(30, meddle))).fit().metrics["steps"] == STEPS
    assert len(told) == 3

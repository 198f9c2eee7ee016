"""Monitors log what is there, and change no bit."""

import json

import pytest
import torch

from raytrain_plus.algorithms import (
    GradientClipping,
    LearningRateMonitor,
    MemoryMonitor,
    NormMonitor,
    Profile,
)
from raytrain_plus.algorithms.naming import describe, make, parse_algorithm
from raytrain_plus.algorithms.registry import ALGORITHMS, MONITORS
from raytrain_plus.algorithms.weave import Weave
from raytrain_plus.configure import describe_task
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica
from tests.training.small_tasks import CLOCK, Noisy, Plain, loop_alone, run
from tests.training.wires import Network


def test_all_monitors_together_change_no_bit(tmp_path):
    monitors = [
        LearningRateMonitor(),
        NormMonitor(every=2),
        MemoryMonitor(every=2),
        Profile(steps=(2,), folder=str(tmp_path)),
    ]
    digests = set()
    for more in ([], monitors):
        loop = loop_alone(Noisy("AdamW"), algorithms=[GradientClipping(norm=0.1), *more])
        results = run(loop, 3)
        digests.add((loop.replica.digest(), results[-1].loss))
    assert len(digests) == 1
    names = [set(result.logged) for result in results]
    often = {"gradient_norm", "parameter_norm", "memory_gb", "learning_rate"}
    assert names == [often, {"learning_rate"}, often]
    assert results[0].logged["gradient_norm"] > 0.1  # before it was clipped
    assert results[0].logged["learning_rate"] == pytest.approx(0.01)
    assert 0.01 < results[0].logged["memory_gb"] < 100
    (trace,) = tmp_path.iterdir()
    assert trace.name.startswith("step_2.")
    named = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::addmm" in named


def test_a_step_computes_its_parts_as_without_monitors():
    class InForward(NormMonitor):
        def forward(self, _step):
            yield

    assert not Weave([NormMonitor(), LearningRateMonitor(), Profile(steps=(1,))]).advises_parts
    assert Weave([InForward()]).advises_parts
    assert Weave([InForward()]).observes
    clipping = Weave([GradientClipping(norm=1.0), NormMonitor()])  # the control
    assert (clipping.advises_parts, clipping.observes) == (True, False)


def test_the_norm_is_that_of_the_whole_gradient():
    loop = loop_alone(Plain(), algorithms=[NormMonitor(every=1)])
    seen = []
    loop.replica.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(
            torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]]).norm().item()
        )
    )
    results = run(loop, 2)
    assert [r.logged["gradient_norm"] for r in results] == pytest.approx(seen, rel=1e-6)


def test_each_group_has_its_rate():
    class Grouped(Plain):
        def optimizer(self, model):
            first, *others = model.parameters()
            return torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others}], lr=0.25)

    (result,) = run(loop_alone(Grouped(), algorithms=[LearningRateMonitor()]), 1)
    assert dict(result.logged) == {"learning_rate/0": 0.5, "learning_rate/1": 0.25}


def test_monitors_are_named_as_algorithms_and_are_no_part_of_the_identity():
    import ray.train

    made = parse_algorithm("Profile:steps=[3,4],folder=x")
    assert made == Profile(steps=(3, 4), folder="x") == make(describe(made))
    assert not MONITORS.keys() & ALGORITHMS.keys()
    scaling = ray.train.ScalingConfig()
    clipping = GradientClipping(norm=1.0)
    told = [describe_task(Plain(), {}, {}, [clipping, *more], scaling) for more in ((), (made,))]
    assert told[0] == told[1]
    assert "GradientClipping" in told[0]["algorithms"]  # the control


def test_a_trace_goes_into_the_folder_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    weave = Weave([Profile(steps=(1,))])
    replica = Replica.build(
        Plain(), 17, torch.device("cpu"), weave=weave, clock=CLOCK, folder=tmp_path / "run"
    )
    loop = TrainingLoop(Plain(), replica, weave)
    loop.begin_generation([range(4)], Network(1).wire(0))
    run(loop, 1)
    (trace,) = (tmp_path / "run" / "traces").iterdir()
    assert trace.name.startswith("step_1.")
    assert list((tmp_path / "elsewhere").iterdir()) == []

"""A replica that is made only for a comparison does not change the process."""

import contextlib
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from raytrain_plus.training import round_trip
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.process_state import process_kept
from tests.training.small_tasks import FEATURES, Plain, loop_alone, run

NET = None
BUILT = []


class Leaving(Plain):
    """A task whose model() changes the process, differently each time."""

    def model(self):
        global NET  # noqa: PLW0603 - what is tried
        NET = nn.Sequential(nn.Linear(FEATURES, 3))
        BUILT.append(1)
        type(self).newest = NET
        if len(BUILT) > 1:
            _set_everything()
        return NET

    def forward(self, model, batch):
        assert NET is model
        assert type(self).newest is model
        return NET(batch["x"])


def _set_everything():
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
    torch.set_flush_denormal(True)
    torch.backends.mkldnn.enabled = False
    torch.manual_seed(len(BUILT))
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    np.seterr(all="ignore")
    os.environ["LEFT_BY_A_TASK"] = "1"


def settings():
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        bytes(torch.get_rng_state().numpy().data),
        random.getstate(),
        repr(np.random.get_state()),  # noqa: NPY002
        np.geterr(),
        (torch.tensor([2.0**-1060], dtype=torch.float64) * 0.5).item(),
        "LEFT_BY_A_TASK" in os.environ,
    )


@pytest.fixture
def clean():
    """Undo the changes of the negative control."""
    with process_kept():
        yield
    BUILT.clear()


@pytest.mark.usefixtures("clean")
def test_the_second_build_of_a_rehearsal_changes_nothing(monkeypatch):
    loop = loop_alone(Leaving())
    before = settings()
    run(loop, 4)
    assert len(BUILT) == 2
    assert settings()[:6] == before[:6]
    assert settings()[9:] == before[9:]

    BUILT.clear()
    monkeypatch.setattr(round_trip, "SLOWEST", -1.0)
    other = loop_alone(Leaving())
    run(other, 4)
    assert len(BUILT) == 1
    assert loop.replica.digest() == other.replica.digest()


@pytest.mark.usefixtures("clean")
def test_items_appended_to_a_list_of_the_tasks_module_are_removed():
    task = Leaving()
    first = loop_alone(task)
    first.end_generation()
    loop = TrainingLoop(task, first.replica, first._weave, watch_task=True)
    with loop.buffers.attributes.undone():
        BUILT.append("second")
    assert BUILT == [1]


@pytest.mark.usefixtures("clean")
def test_without_restoring_the_second_build_changes_the_process(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(round_trip, "process_kept", contextlib.nullcontext)
    loop = loop_alone(Leaving())
    before = settings()
    with pytest.raises(AssertionError):
        run(loop, 4)
    assert settings()[:6] != before[:6]


@pytest.mark.usefixtures("clean")
def test_every_setting_is_restored():
    for seed in (torch.manual_seed, random.seed, np.random.seed):  # an earlier test may have left 0
        seed(12345)
    before = settings()
    with process_kept():
        _set_everything()
        changed = settings()
    assert all(one != other for one, other in zip(before, changed, strict=True))
    assert settings() == before

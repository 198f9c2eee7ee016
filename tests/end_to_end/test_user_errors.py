"""Errors in a user's model are reported with the user's lines, and the trained state is kept."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raytrain_plus import Fault
from tests.end_to_end.runs import at_once, differences, train, undisturbed
from tests.end_to_end.tasks import (
    Convolutions,
    Momentum,
    NotANumber,
    Odd,
    ShapeMismatch,
    Unrepeatable,
)

KEPT = 5  # steps before the mistake

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def mistaken(storage_of_module):
    """Return for each task the run with the error, and the run that continues after the fix."""

    def run(kind):
        options = {"logical_ranks": 4, "workers": (2, 2), "name": kind.__name__}
        first = train(kind(KEPT), storage_of_module, **options)
        model = load_file(Path(first.summary["checkpoint"]) / "model.safetensors")
        return first, model, train(Momentum(), storage_of_module, **options, resume=True)

    undisturbed(Momentum, 4)
    kinds = (ShapeMismatch, NotANumber)
    return dict(zip(kinds, at_once(*[partial(run, kind) for kind in kinds]), strict=True))


def test_a_shape_mismatch_is_shown_at_the_users_line(mistaken):
    run, *_ = mistaken[ShapeMismatch]
    first, second, *_, last = run.error.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "tasks.py" in second
    assert last.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")


def test_a_loss_that_is_not_a_number_is_reported_with_its_step(mistaken):
    run, *_ = mistaken[NotANumber]
    assert run.error.startswith("LossError: ")  # no line of the user is the cause
    assert "the loss is nan at step 6 (logical ranks [0, 1, 2, 3])" in run.error


@pytest.mark.parametrize("kind", [ShapeMismatch, NotANumber])
def test_journal_and_last_state_are_kept_and_the_run_continues_after_the_fix(kind, mistaken):
    run, tensors, mended = mistaken[kind]
    assert run.summary["state"] == "failed"
    assert [event["step"] for event in run.of("step")] == list(range(1, KEPT + 1))
    (end,) = run.of("end")
    assert end["state"] == "failed"
    assert end["error"] == run.error
    # The last state fits the plain model, without this package.
    model = Convolutions()
    model.load_state_dict(tensors)
    assert model.steps == KEPT
    assert not any(torch.isnan(tensor).any() for tensor in tensors.values())
    # It is the state of the last committed step, bit for bit.
    assert differences(mended, undisturbed(Momentum, 4)) == []
    assert mended.of("generation")[-1]["step"] == KEPT


def test_an_error_in_building_the_model_ends_the_run_at_once(storage):
    run = train(Odd(storage, "error", "error"), storage, logical_ranks=4, workers=(1, 2))
    first, second, *_ = run.error.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "tasks.py" in second
    assert "RuntimeError: this worker has no luck" in run.error
    assert run.summary["state"] == "failed"
    assert run.of("generation") == []


def test_a_task_that_cannot_be_repeated_is_reported(storage):
    kill_all = Fault(step=10, action="kill", phase="fetch")
    # Slowly, so that steps are known before they have to be computed again.
    slowly = {"wanted": {1: 2}, "patience": 0.1}
    run = train(Unrepeatable(), storage, logical_ranks=4, faults=[kill_all], **slowly)
    assert "was computed again and gave loss" in run.error
    assert "the task is not reproducible" in run.error

"""The same bits on every number of workers, and a check that notices the smallest difference."""

from functools import partial

import pytest
import torch

from raytrain_plus import Fault
from tests.end_to_end.runs import (
    STEPS,
    UNHURRIED,
    at_once,
    differences,
    flaws,
    train,
    undisturbed,
)
from tests.end_to_end.tasks import AdamW, Momentum, Nudge

CASES = [(Momentum, 4), (AdamW, 6)]  # the task, V
LEAVING = 60  # the step by which all workers have joined

pytestmark = pytest.mark.timeout(600)


def leaving(logical_ranks):
    """Return options by which a run of V workers loses one after the other, until one is left."""
    apart = (STEPS - LEAVING - 5) // logical_ranks
    steps = [LEAVING + apart * number for number in range(logical_ranks - 1)]
    return [Fault(step=step, action="remove") for step in steps]


def passage(task, logical_ranks, storage):
    """Return a run that passes through every number of workers."""
    return train(
        task(),
        storage,
        logical_ranks=logical_ranks,
        workers=(1, logical_ranks),
        faults=leaving(logical_ranks),
        wanted={1: logical_ranks, LEAVING: 1},
        **UNHURRIED,
    )


@pytest.fixture(scope="module")
def passages(storage_of_module):
    undone = [partial(undisturbed, *case) for case in CASES]
    done = [partial(passage, *case, storage_of_module) for case in CASES]
    runs = at_once(*undone, *done)
    return dict(zip(CASES, runs[len(CASES) :], strict=True))


@pytest.mark.parametrize(("task", "logical_ranks"), CASES)
def test_a_run_through_every_number_of_workers_has_the_bits_of_one_worker(
    task, logical_ranks, passages
):
    assert_passed(passages[task, logical_ranks], task, logical_ranks)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "logical_ranks"), [(Momentum, 8), (AdamW, 16)])
def test_a_run_through_many_workers_has_the_bits_of_one_worker(task, logical_ranks, storage):
    assert_passed(passage(task, logical_ranks, storage), task, logical_ranks)


def assert_passed(run, task, logical_ranks):
    assert differences(run, undisturbed(task, logical_ranks)) == []
    assert flaws(run, leaving(logical_ranks)) == []
    assert run.sizes >= set(range(1, logical_ranks + 1))


def test_as_many_workers_as_logical_ranks_have_the_bits_of_one_worker(storage):
    run = train(Momentum(), storage, logical_ranks=4, workers=(4, 4))
    reference = undisturbed(Momentum, 4)
    assert run.sizes == {4}
    assert differences(run, reference) == []
    kinds = {name: tensor.dtype for name, tensor in run.model.items()}
    assert kinds == {name: tensor.dtype for name, tensor in reference.model.items()}
    assert torch.int64 in kinds.values()
    assert all(torch.equal(run.model[name], reference.model[name]) for name in kinds)
    # One count per step, not per forward.
    assert int(run.model["norm.num_batches_tracked"]) == STEPS


def test_other_numbers_of_logical_ranks_have_other_bits(cluster):  # noqa: ARG001
    """This shows that the runs above could have differed."""
    four, eight = undisturbed(Momentum, 4), undisturbed(Momentum, 8)
    assert four.summary["digest"] != eight.summary["digest"]


def test_the_judge_notices_one_bit_of_one_weight(storage):
    """The states are compared: when such a bit first changes a loss depends on the kernels."""
    run = train(Momentum(), storage, logical_ranks=4, steps=30, aspects=[Nudge(step_number=30)])
    reference = undisturbed(Momentum, 4, 30)
    assert differences(run, reference) != []
    assert run.summary["digest"] != reference.summary["digest"]
    different = {
        name: int((tensor != reference.model[name]).sum())
        for name, tensor in run.model.items()
        if not torch.equal(tensor, reference.model[name])
    }
    assert different == {"first.weight": 1}


def test_the_judge_names_the_step_after_a_weight_was_doubled(storage):
    run = train(Momentum(), storage, logical_ranks=4, aspects=[Nudge(step_number=30, doubles=True)])
    (found,) = differences(run, undisturbed(Momentum, 4))
    assert "'step': 31" in found


def test_a_run_whose_states_are_not_compared_fails_when_one_of_two_is_off_by_one_bit(storage):
    nudge = Nudge(step_number=30, marker=storage / "nudged")
    run = train(
        Momentum(),
        storage,
        logical_ranks=4,
        workers=(2, 2),
        aspects=[nudge],
        check_every=0,
        audit_every=0,
    )
    assert "the replicas ended with different states" in run.error
    assert run.summary["state"] == "failed"

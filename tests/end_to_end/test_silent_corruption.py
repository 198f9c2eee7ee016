"""Flipped bits in memory and wrong arithmetic are found, and change no bit of the result."""

import pytest

from raytrain_plus import Fault
from tests.end_to_end.runs import UNHURRIED, differences, train, undisturbed
from tests.end_to_end.tasks import Momentum

RANKS = 4

pytestmark = pytest.mark.timeout(300)


def disturbed(storage, *faults, **options):
    return train(
        Momentum(),
        storage,
        logical_ranks=RANKS,
        workers=(1, 2),
        faults=faults,
        **{"wanted": {1: 2}, **UNHURRIED, **options},
    )


def test_a_flipped_bit_is_found_before_its_commit_and_wrong_arithmetic_is_withdrawn(storage):
    flip = Fault(step=15, action="flip", phase="forward", victim=1)
    wrong = Fault(step=50, action="miscompute", phase="forward", victim=0)
    run = disturbed(storage, flip, wrong, check_every=1, audit_every=4, checkpoint_every="20ba")
    assert differences(run, undisturbed(Momentum, RANKS)) == []
    flipped, computed = run.of("corruption")
    struck = {e["action"]: e["hit"] for e in run.of("fault")}
    assert flipped["accused"] == struck["flip"]
    assert flipped["step"] == flipped["trusted"] == 14  # it was not committed
    assert computed["accused"] == []
    assert computed["guilty"] == struck["miscompute"]
    assert len(computed["suspects"]) == 2
    assert computed["step"] <= 49 + 4
    assert 49 - 4 <= computed["trusted"] <= 49
    (withdrawn,) = run.of("withdrawn")
    assert withdrawn["step"] == computed["trusted"]
    assert {e["worker"] for e in run.of("worker", state="evicted")} == {
        *struck["flip"],
        *struck["miscompute"],
    }


@pytest.mark.slow
def test_with_rare_checks_steps_after_a_flipped_bit_are_computed_again(storage):
    flip = Fault(step=32, action="flip", phase="forward", victim=1)
    run = disturbed(
        storage,
        flip,
        check_every=5,
        audit_every=0,
        checkpoint_every="10ba",
        wanted={1: 2, 10: 5, 40: 1},  # five workers never join: there is time for each checkpoint
        patience=0.1,
    )
    assert differences(run, undisturbed(Momentum, RANKS)) == []
    (found,) = run.of("corruption")
    assert found["step"] == 35
    assert found["trusted"] == 30
    # With two workers it is unknown whose state is wrong: both go back, and no worker is evicted.
    assert (found["accused"], found["guilty"]) == ([], [])
    assert run.of("worker", state="evicted") == []
    assert [e["step"] for e in run.of("withdrawn")] == [30]
    assert run.of("generation")[-1]["step"] in (20, 30)
    assert run.changed == set()


@pytest.mark.slow
def test_a_bit_flipped_in_an_evaluation_or_in_a_healer_is_found(storage):
    evaluates = Fault(step=30, action="flip", phase="evaluate", victim=1)
    killed = Fault(step=50, action="kill", victim=1)
    heals = Fault(step=51, action="flip", phase="heal", victim=0)
    updates = Fault(step=70, action="flip", phase="update", workers=2)
    run = disturbed(
        storage,
        evaluates,
        killed,
        heals,
        updates,
        check_every=1,
        audit_every=0,
        checkpoint_every="10ba",
        wanted={1: 2, 50: 1, 52: 2},
    )
    assert differences(run, undisturbed(Momentum, RANKS)) == []
    evaluating, healing, updating = run.of("corruption")
    struck = {e["phase"]: e["hit"] for e in run.of("fault", action="flip")}
    assert evaluating["accused"] == struck["evaluate"]
    # And the worker that had received its state.
    assert set(struck["heal"]) < set(healing["accused"])
    assert len(struck["update"]) == 2
    assert updating["accused"] == []
    assert updating["trusted"] == updating["step"] - 1


@pytest.mark.slow
def test_without_checks_the_bits_change_unnoticed(storage):
    flip = Fault(step=15, action="flip", phase="forward", victim=1)
    run = disturbed(storage, flip, check_every=0, audit_every=0, steps=40)
    assert run.of("corruption") == []
    assert run.error or differences(run, undisturbed(Momentum, RANKS, steps=40)) != []

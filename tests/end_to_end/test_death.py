"""Workers die by SIGKILL in any phase: survivors go on from memory, and the bits stay the same."""

from functools import partial

import pytest

from raytrain_plus import Fault
from raytrain_plus.chaos.schedules import IN_EVALUATION, IN_REGROUPING, IN_STEP
from tests.end_to_end.runs import UNHURRIED, at_once, differences, flaws, train, undisturbed
from tests.end_to_end.tasks import Momentum, Plain, Wide

V = 6

pytestmark = pytest.mark.timeout(400)


def kill(step, phase, victim, workers=1):
    return Fault(step=step, action="kill", phase=phase, victim=victim, workers=workers)


ANYWHERE = [
    *[kill(step, phase, step) for step, phase in zip((6, 9, 12, 15, 18, 23), IN_STEP, strict=True)],
    kill(40, "evaluate", 0),
    kill(60, "gather", 1),
]
IN_SLICES = [kill(10, "slice", 0), kill(20, "slice", 1)]
REGROUPING = [
    # While the survivors of one death form a group, the next worker dies.
    kill(10, "exchange", 0),
    kill(10, "meet", 0),
    # The newcomer that replaces the third worker dies while it is being healed.
    kill(30, "backward", 2),
    kill(31, "heal", 2),
    # The first worker dies while it heals the newcomer that replaces the third.
    kill(50, "backward", 2),
    kill(51, "heal", 0),
    # A death during a resize.
    Fault(step=70, action="drain", victim=1),
    kill(70, "heal", 0),
]
MANY = [
    kill(10, "backward", 0, workers=2),
    kill(40, "exchange", 2, workers=3),
    kill(70, "update", 0, workers=4),
]


def trained(storage, faults, wanted, task=Plain, logical_ranks=V):
    return train(
        task(),
        storage,
        logical_ranks=logical_ranks,
        workers=(1, max(wanted.values())),
        faults=faults,
        wanted=wanted,
        **UNHURRIED,
    )


@pytest.fixture(scope="module")
def disturbed(storage_of_module):
    """Return the run of each list of faults."""
    run = partial(trained, storage_of_module)
    at_once(*[partial(undisturbed, *of) for of in ((Momentum, V), (Plain, V), (Wide, 4))])
    return at_once(
        partial(run, ANYWHERE, {1: 3, 6: 2}, Momentum),
        partial(run, IN_SLICES, {1: 3, 10: 1}, Wide, 4),
        partial(run, REGROUPING, {1: 3, 10: 1, 12: 3, 70: 1}),
    )


def assert_kept(run, faults, task=Plain, logical_ranks=V):
    assert differences(run, undisturbed(task, logical_ranks)) == []
    assert flaws(run, faults) == []


def generations_after(run, fault):
    """Return the generations that started after a fault."""
    struck = run.events.index(run.of("fault", step=fault.step, phase=fault.phase)[0])
    return [event for event in run.events[struck:] if event["event"] == "generation"]


def test_in_every_phase_of_a_step_or_an_evaluation(disturbed):
    run = disturbed[0]
    assert_kept(run, ANYWHERE, Momentum)
    assert {event["phase"] for event in run.of("fault")} == {*IN_STEP, *IN_EVALUATION}
    # Each fault hit a group, which went on without its victim from the same step.
    for fault in ANYWHERE:
        after = generations_after(run, fault)[0]
        assert after["step"] >= fault.step - 1
        assert "lost" in [cause["kind"] for cause in after["causes"]]
    # Survivors did not compute finished parts of the step again.
    salvaged = {event["step"]: event["salvaged"] for event in run.of("step") if "salvaged" in event}
    assert salvaged.keys() & {15, 18}  # killed in the exchange, and between its halves
    assert all(0 < ranks < V for ranks in salvaged.values())


def test_between_two_slices_of_an_exchange(disturbed):
    run = disturbed[1]
    assert_kept(run, IN_SLICES, Wide, 4)
    assert run.sizes >= {3, 2, 1}


def test_while_the_group_forms_again_or_heals_a_newcomer(disturbed):
    run = disturbed[2]
    assert_kept(run, REGROUPING)
    assert {e["phase"] for e in run.of("fault", action="kill")} >= set(IN_REGROUPING)
    (newcomer,) = run.of("fault", step=31)[0]["hit"]
    before = [e for e in run.of("generation") if e["step"] < 30]
    assert newcomer not in {name for e in before for name in e["members"]}
    # At least one worker survived each time.
    assert all(e["step"] > 0 for e in run.of("generation")[1:])


@pytest.mark.slow
def test_two_workers_all_but_one_and_all_workers_die_at_once(storage):
    run = trained(storage, MANY, {1: 4, 10: 1, 12: 4, 40: 1, 42: 4, 70: 1})
    two, all_but_one, all_workers = MANY
    assert_kept(run, MANY)
    assert [len(event["hit"]) for event in run.of("fault")] == [2, 3, 4]
    assert generations_after(run, two)[0]["step"] == 9
    assert generations_after(run, all_but_one)[0]["workers"] == 1
    # No worker had the state any more: it was computed again from a checkpoint, to the same bits.
    kept = {event["step"] for event in run.of("checkpoint") if "metrics" in event}
    assert generations_after(run, all_workers)[0]["step"] in {0, *kept}

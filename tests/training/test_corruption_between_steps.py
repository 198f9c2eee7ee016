"""A state that changes outside of steps: in a worker that heals others, and in an evaluation."""

import pytest

from raytrain_plus.algorithms import EMA
from tests.training.corrupted import FLIPS, Group, found


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("flipped", FLIPS)
def test_a_changed_state_is_found_in_the_healed_worker_and_its_healer(flipped, told):
    """The negative control: a worker that does not know the right state notices nothing."""
    group = Group(2, algorithms=(EMA(),), check_every=1)
    group.step()
    giver, taker = (member.loop for member in group.members)
    flipped(giver)
    taker.replica.load(
        {name: tensor.clone() for name, tensor in giver.replica.tensors().items()},
        giver.replica.scalars(),
    )
    if told:
        taker.guard.expect(giver.guard.noted)
    group.begin()
    assert found(group.step()) == ((0, 1) if told else (0,), False, ())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_state_that_is_received_completely_is_right(workers):
    group = Group(workers, algorithms=(EMA(),), check_every=1)
    group.step()
    giver, taker = group.members[0].loop, group.members[-1].loop
    noted = giver.guard.noted
    tensors = {name: tensor.clone() for name, tensor in giver.replica.tensors().items()}
    taker.replica.load(tensors, giver.replica.scalars())
    assert taker.guard.noted is None
    taker.guard.expect(noted)
    group.begin()
    assert found(group.step()) is None


@pytest.mark.parametrize("check_every", [1, 5, 0])
@pytest.mark.parametrize("flipped", FLIPS)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_forbidden_change_is_found_afterwards(workers, flipped, check_every):
    """As in an evaluation, at any step. Without the check, it is not found."""
    group = Group(workers, algorithms=(EMA(),), check_every=check_every)
    group.step()
    assert found(group.measure(lambda _: None)) is None
    victim = group.members[-1].loop
    accused = (workers - 1,), False, ()
    wanted = accused if check_every else None
    assert found(group.measure(lambda loop: flipped(loop) if loop is victim else None)) == wanted
    assert found(group.measure(lambda _: None)) == wanted  # no worker has healed it

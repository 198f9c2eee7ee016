"""Which member heals which, and which one loads a checkpoint, in all kinds of groups."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.elastic.policy import make_plan as make_plan_module
from raytrain_plus.elastic.policy.assignment import WorkerSpeed
from raytrain_plus.elastic.policy.make_plan import Member, Situation, make_plan
from raytrain_plus.elastic.protocol.faults import Fault
from tests.elastic.scripted_pool import make_ready

PLACE = "/runs/run/checkpoint_00000007"


def member(worker, step=0, *, warm=True):
    return Member(worker, make_ready(worker), step, warm=warm)


def plan_of(*members, previous=(), **situation):
    speeds = [WorkerSpeed(one.worker, 1.0) for one in members]
    described = {"logical_ranks": 8, "generation": 3, "previous": previous, **situation}
    return make_plan(speeds, members, Situation(**described))


def healing(plan):
    """Return which member heals which, by name."""
    names = [a.worker for a in plan.assignments]
    return {names[to]: names[source] for to, source in plan.healed_by.items()}


def test_a_member_that_is_behind_is_healed_by_one_that_is_ahead():
    plan = plan_of(member("w0", 4), member("w1", 5), member("w2", 5), member("w3", 0))
    assert (plan.step, plan.generation, plan.checkpoint) == (5, 3, None)
    assert healing(plan) == {"w0": "w1", "w3": "w2"}  # each by another member, which is faster
    assert plan.endpoints == tuple(make_ready(a.worker).endpoint for a in plan.assignments)


@given(st.integers(1, 40), st.integers(0, 300))
def test_no_member_heals_more_than_two_and_the_tree_is_flat(ahead, behind):
    sources, receivers = list(range(ahead)), list(range(ahead, ahead + behind))
    sender_of = make_plan_module.healing(sources, receivers)
    assert list(sender_of) == receivers
    healed = Counter(sender_of.values())
    assert max(healed.values(), default=0) <= (1 if behind <= ahead else 2)

    def depth(place):
        return 0 if place < ahead else 1 + depth(sender_of[place])

    longest = max(map(depth, receivers), default=0)
    assert ahead * (2**longest - 2) < max(1, behind)  # all levels before the last one are full


def test_members_with_equal_states_are_not_healed():
    assert healing(plan_of(member("w0", 5), member("w1", 5))) == {}


def test_the_newest_checkpoint_is_loaded_by_one_member_that_heals_the_others():
    plan = plan_of(member("w0"), member("w1"), member("w2"), checkpoint=(PLACE, 7))
    assert (plan.step, plan.checkpoint) == (7, PLACE)
    assert healing(plan) == {"w1": "w0", "w2": "w0"}


def test_a_checkpoint_that_is_not_newer_is_not_loaded():
    plan = plan_of(member("w0", 7), member("w1"), checkpoint=(PLACE, 7))
    assert (plan.step, plan.checkpoint) == (7, None)
    assert healing(plan) == {"w1": "w0"}


def test_a_distrusted_member_is_healed_even_by_a_newcomer():
    plan = plan_of(member("w0", -1), member("w1", 0))
    assert (plan.step, healing(plan)) == (0, {"w0": "w1"})


def test_if_steps_do_not_prove_equal_states_one_member_heals_all():
    plan = plan_of(member("w0", 5, warm=False), member("w1", 5), member("w2", 5), bitwise=False)
    assert healing(plan) == {"w0": "w1", "w2": "w1"}
    assert not plan.bitwise
    cold = plan_of(member("w0", warm=False), member("w1", warm=False), bitwise=False)
    assert healing(cold) == {"w1": "w0"}


def test_a_plan_ends_before_the_next_planned_change_and_contains_unannounced_faults():
    faults = [Fault(step=step, action="add") for step in (4, 9, 6)]
    strike = Fault(step=5, action="kill")
    plan = plan_of(member("w0", 4), faults=[*faults, strike])
    assert (plan.pause_at, plan.faults) == (6, [strike])
    assert plan_of(member("w0", 9), faults=faults).pause_at is None


def test_a_known_evaluation_is_not_repeated():
    assert plan_of(member("w0", 5), evaluated_step=5).evaluated
    assert not plan_of(member("w0", 5), evaluated_step=4).evaluated


# -- for any group

members = st.lists(st.tuples(st.integers(-1, 9), st.booleans()), min_size=1, max_size=8)
checkpoints = st.none() | st.tuples(st.just(PLACE), st.integers(0, 9))


@given(members, checkpoints, st.booleans(), st.randoms())
def test_after_healing_all_have_one_state_and_it_is_the_latest(states, checkpoint, bitwise, random):
    here = [member(f"w{i}", step, warm=warm) for i, (step, warm) in enumerate(states)]
    shuffled = random.sample(here, len(here))
    plan = plan_of(*here, bitwise=bitwise, checkpoint=checkpoint)
    again = make_plan(
        [WorkerSpeed(one.worker, 1.0) for one in here],
        shuffled,
        Situation(
            logical_ranks=8, generation=3, previous=(), bitwise=bitwise, checkpoint=checkpoint
        ),
    )
    assert again == plan
    held = {one.worker: one.step for one in here}
    latest = max(held.values())
    assert plan.step == max(latest, checkpoint[1] if checkpoint else -1)
    assert (plan.checkpoint is not None) == (plan.step > latest)
    by = healing(plan)
    sources = held.keys() - by.keys()
    for one in by:  # who sends the state on has it from a source
        senders = [one]
        while senders[-1] in by:
            senders.append(by[senders[-1]])
            assert len(senders) <= len(here)
        assert senders[-1] in sources
    if plan.checkpoint is not None or not bitwise:
        assert len(sources) == 1
    if plan.checkpoint is None:
        assert {held[worker] for worker in sources} == {latest}
        assert not bitwise or all(held[worker] < latest for worker in by)

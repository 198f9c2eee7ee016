"""Schedules follow from their seed, fit the run for which they are made, and can be replayed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.chaos.schedules import (
    IN_EVALUATION,
    IN_REGROUPING,
    IN_STEP,
    USUAL_KINDS,
    ScheduleError,
    chain,
    join,
    later,
    schedule,
)
from raytrain_plus.elastic.protocol.faults import ACTIONS, as_data, parse_faults


def completed(kinds):
    """Add the kinds that some kinds need."""
    pair = ["add", "remove"] if {"add", "remove"} & {*kinds} else []
    return [*kinds, *pair, *(["drain"] if {"hang_newcomer", "edit_task"} & {*kinds} else [])]


SETTINGS = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 6),
        "steps": st.integers(30, 200),
        "scenes": st.integers(1, 3),
        "kinds": st.lists(st.sampled_from(ACTIONS), min_size=1, unique=True).map(completed),
        "evaluations": st.lists(st.integers(1, 200), max_size=3),
    }
)
SEEDS = st.integers(0, 2**32)


@given(SEEDS, SETTINGS)
def test_a_schedule_follows_from_its_seed_and_keeps_to_its_kinds_and_steps(seed, settings):
    one = schedule(seed, **settings)
    assert one == schedule(seed, **settings)
    assert {fault.action for fault in one.faults} <= set(settings["kinds"])
    assert len(one.faults) >= settings["scenes"]
    assert all(1 <= fault.step <= settings["steps"] - 5 for fault in one.faults)
    phases = {fault.phase for fault in one.faults if fault.strikes}
    assert phases <= {*IN_STEP, *IN_REGROUPING, *IN_EVALUATION}
    assert all(fault.workers <= settings["workers"] for fault in one.faults)
    assert parse_faults(as_data(one.faults)) == list(one.faults)


@given(SEEDS, st.integers(2, 6))
def test_a_fault_on_a_group_that_forms_again_finds_a_group(seed, workers):
    """The group was complete before, and forms again: after a loss, or because a worker drains."""
    one = schedule(seed, workers=workers, steps=60, scenes=3)
    waited = sorted(one.wanted.items())
    for fault in one.faults:
        if fault.phase in IN_REGROUPING:
            before = [n for step, n in waited if step < fault.step - 1]
            after = next(n for step, n in waited if step > fault.step)
            assert before[-1] == after == workers
            partners = [f for f in one.faults if fault.step - 1 <= f.step <= fault.step]
            assert {f.action for f in partners} & {*USUAL_KINDS} - {"slow", "add", "remove"}


@given(SEEDS)
def test_a_group_of_one_gets_no_fault_while_it_forms_again(seed):
    one = schedule(seed, workers=1, steps=60, scenes=3)
    assert not [fault for fault in one.faults if fault.phase in IN_REGROUPING]


def test_schedules_use_all_allowed_faults_and_phases():
    drawn = [schedule(s, workers=4, steps=50, scenes=2, evaluations=(25,)) for s in range(600)]
    faults = [fault for one in drawn for fault in one.faults]
    assert {f.action for f in faults} == set(USUAL_KINDS)
    assert {f.phase for f in faults if f.strikes} == {*IN_STEP, *IN_REGROUPING, *IN_EVALUATION}
    assert {f.workers for f in faults} == {1, 2, 3, 4}
    assert len({one.faults for one in drawn}) > 590
    everything = [schedule(s, workers=4, steps=50, scenes=2, kinds=ACTIONS) for s in range(600)]
    assert {f.action for one in everything for f in one.faults} == set(ACTIONS)


def test_expensive_faults_are_rare():
    faults = [f for s in range(600) for f in schedule(s, workers=4, steps=50, scenes=2).faults]
    strikes = [f for f in faults if f.strikes]
    hangs = [f for f in strikes if f.action in ("stop", "spin", "stall")]
    no_worker_left = [f for f in strikes if f.action == "kill_all" or f.workers == 4]
    assert 0.05 < len(hangs) / len(strikes) < 0.2
    assert 0.01 < len(no_worker_left) / len(strikes) < 0.08


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kinds": ["kill", "hug"]}, ["no kind of fault hug", "miscompute"]),
        ({"kinds": []}, ["no kind is given", "kill"]),
        ({"kinds": ["kill", "add"]}, ["add and remove go together"]),
        ({"kinds": ["hang_newcomer"]}, ["hang_newcomer needs one", "drain, kill"]),
        ({"kinds": ["edit_task", "flip"]}, ["edit_task needs one", "drain, kill"]),
        ({"steps": 21}, ["2 scenes do not fit into 21 steps", "needs 22"]),
    ],
)
def test_impossible_schedules_are_refused(settings, words):
    with pytest.raises(ScheduleError) as refused:
        schedule(0, **{"workers": 3, "steps": 50, "scenes": 2, **settings})
    assert all(word in str(refused.value) for word in words)


@given(SEEDS, st.sampled_from(["kill", "drain"]), st.sampled_from(["hang_newcomer", "edit_task"]))
def test_a_newcomers_fault_is_followed_by_a_worker_that_leaves(seed, kind, of_newcomer):
    one = schedule(seed, workers=3, steps=60, scenes=3, kinds=[kind, of_newcomer])
    for fault in one.faults:
        if fault.action == of_newcomer:
            assert (fault.step + 1, kind) in [(f.step, f.action) for f in one.faults]


@given(SEEDS)
def test_a_lone_workers_newcomer_does_not_hang_because_the_run_would_wait_for_it(seed):
    one = schedule(seed, workers=1, steps=60, scenes=3)
    assert not {"hang_newcomer", "edit_task"} & {fault.action for fault in one.faults}


@given(SEEDS)
def test_few_newcomers_find_the_task_edited_so_the_run_does_not_end(seed):
    one = schedule(seed, workers=3, steps=60, scenes=1, kinds=["kill_all", "kill", "edit_task"])
    assert sum(fault.action == "edit_task" for fault in one.faults) < 3


def test_schedules_in_a_chain_keep_their_distance():
    one = schedule(1, workers=3, steps=50, scenes=2)
    two = schedule(2, workers=3, steps=50, scenes=2)
    both = chain([one, two], 50)
    assert both == join([one, later(two, 50)])
    assert both.faults[: len(one.faults)] == one.faults
    assert [f.step - 50 for f in both.faults[len(one.faults) :]] == [f.step for f in two.faults]
    assert {s: n for s, n in both.wanted.items() if s > 50} == later(two, 50).wanted

"""How far a run goes back after corruption: far enough, and no further than necessary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.elastic.policy.trust import GroupHistory, named
from raytrain_plus.elastic.protocol.messages import Corruption
from raytrain_plus.training.corruption import CorruptionError, Finding

PAIR = {"w0": range(2), "w1": range(2, 4)}
FIRST_RANK = lambda _, ranges: (0, len(ranges) - 1)  # noqa: E731 - the last worker audits rank 0


def found(step, accused=(), suspects=(), *, tie=False):
    return Corruption(step, tuple(accused), tuple(suspects), tie, "")


def history(*groups, check=1, audit=0, audited=FIRST_RANK):
    told = GroupHistory(check, audit, audited)
    for step, group in groups or [(0, PAIR)]:
        told.start_generation(step, group)
    return told


def cut(workers):
    return {worker: range(i, i + 1) for i, worker in enumerate(workers)}


@pytest.mark.parametrize(
    ("check", "what", "trusted"),
    [
        (1, found(10, ["w1"]), 10),  # it was found before it had an effect
        (5, found(10, ["w1"]), 5),
        (1, found(10, tie=True), 9),  # no state of that step is known to be right
        (5, found(10, tie=True), 5),
        (5, found(10, suspects=["w0", "w1"]), 10),  # both compute right now: the error is over
        (20, found(0, tie=True), 0),
    ],
)
def test_states_are_trusted_up_to_the_comparison_that_they_passed(check, what, trusted):
    assert history(check=check).trusted(what, []) == trusted


def test_states_are_compared_with_every_audit_too():
    assert history(check=7, audit=10).trusted(found(42, ["w1"]), []) == 40
    assert history(check=0, audit=10).trusted(found(40, ["w1"]), []) == 30
    assert history(check=10, audit=1).trusted(found(40, ["w1"]), []) == 40
    assert history(check=10, audit=1).trusted(found(40, tie=True), []) == 39


def test_a_wrong_worker_is_trusted_up_to_the_last_audit_that_it_passed():
    told = history(audit=10)
    assert told.trusted(found(40, suspects=["w0", "w1"]), ["w1"]) == 30
    assert told.trusted(found(10, suspects=["w0", "w1"]), ["w1"]) == 0


def test_an_audit_of_others_proves_nothing():
    three = cut(["w0", "w1", "w2"])
    in_turn = lambda step, _: [(0, 1), (1, 2), (2, 0)][step // 10 % 3]  # noqa: E731
    told = history((0, three), audit=10, audited=in_turn)
    what = found(40, suspects=["w0", "w1"])
    assert told.trusted(what, ["w0"]) == 30  # w1 computed rank 0, too
    assert told.trusted(what, ["w1"]) == 30  # it was the auditor
    assert told.trusted(what, ["w2"]) == 20
    assert told.trusted(what, ["w0", "w2"]) == 20


def test_only_the_steps_that_were_audited_count():
    # A tie is found at each step that is compared: at 45 - 10 no worker was audited.
    asked = []

    def audited(step, _):
        asked.append(step)
        return 0, 1

    told = history(audit=10, audited=audited)
    assert told.trusted(found(45, tie=True), ["w1"]) == 40
    assert asked == [40]


def test_a_worker_that_was_alone_audited_itself_which_proves_nothing():
    told = history((0, {"w0": range(4)}), (35, PAIR), audit=10, audited=lambda *_: (0, 0))
    what = found(40, suspects=["w0", "w1"])
    assert told.trusted(what, ["w0"]) == 0
    assert told.trusted(what, ["w1"]) == 35  # it was not there before


def test_without_audits_no_step_since_the_wrong_worker_joined_is_trusted():
    told = history((0, cut(["w0"])), (7, PAIR), check=1)
    assert told.trusted(found(9, tie=True), ["w1"]) == 7
    assert told.trusted(found(9, tie=True), ["w0"]) == 0


def test_groups_whose_steps_were_withdrawn_are_forgotten():
    told = history((0, cut(["w0"])), (7, PAIR), (5, cut(["w0", "w2"])))
    assert list(told.group_at(9)) == ["w0", "w2"]
    assert list(told.group_at(4)) == ["w0"]
    assert told.group_at(-1) == {}
    told.start_generation(12, PAIR)
    assert told.trusted(found(14, tie=True), ["w1"]) == 12  # what it did from 7 on is undone


def test_a_journals_groups_show_when_each_worker_joined():
    told = GroupHistory(1, 10, FIRST_RANK)
    told.recall(
        [
            {"event": "generation", "step": 0, "members": ["w0"]},
            {"event": "step", "step": 1},
            {"event": "generation", "step": 12, "members": ["w0", "w1"]},
        ]
    )
    told.start_generation(25, PAIR)  # by the restarted coordinator
    what = found(40, suspects=["w0", "w1"])
    assert told.trusted(what, ["w0"]) == 30
    assert told.trusted(found(30, suspects=["w0", "w1"]), ["w0"]) == 0
    assert told.trusted(found(30, suspects=["w0", "w1"]), ["w1"]) == 12


def test_places_are_given_their_names():
    error = CorruptionError(7, Finding((1,), (0, 2), tie=False, why="memory changed"))
    assert named(error, ["w3", "w4", "w9"]) == Corruption(
        7, ("w4",), ("w3", "w9"), tie=False, why="memory changed"
    )


# -- for any history

workers = st.lists(st.sampled_from("abcd"), min_size=1, unique=True)
groups = st.lists(st.tuples(st.integers(0, 60), workers), min_size=1, max_size=6)


@st.composite
def cases(draw):
    check, audit = draw(st.integers(1, 8)), draw(st.integers(0, 12))
    asked = []

    def audited(step, ranges):
        assert step % audit == 0
        asked.append(step)
        rank = step * 7 % len(ranges)
        return rank, (rank + 1) % len(ranges)

    told = GroupHistory(check, audit, audited)
    for step, names in sorted(draw(groups), key=lambda one: one[0]):
        told.start_generation(step, cut(names))
    step = draw(st.integers(0, 80)) * check
    accused, guilty = draw(st.lists(st.sampled_from("abcd"))), draw(st.lists(st.sampled_from("ab")))
    return told, found(step, accused, tie=draw(st.booleans())), guilty, audited


@given(cases())
def test_trust_ends_at_the_step_found_and_before_any_comparison_that_failed(case):
    told, what, guilty, _ = case
    trusted = told.trusted(what, guilty)
    assert 0 <= trusted <= what.step
    compared = [
        step
        for step in range(what.step)
        for every in (told.check_every, told.audit_every)
        if every and step % every == 0
    ]
    before = max(compared, default=0)
    if what.tie:
        assert trusted <= before
    if what.accused and before < what.step - 1:
        assert trusted <= before


@given(cases())
def test_more_guilty_workers_never_mean_more_trust(case):
    told, what, guilty, _ = case
    trusts = [told.trusted(what, guilty[:n]) for n in range(len(guilty) + 1)]
    assert trusts == sorted(trusts, reverse=True)


@given(cases())
def test_a_guilty_worker_passed_an_audit_or_was_not_there_before(case):
    told, what, guilty, audited = case
    clean = Corruption(what.step, (), (), tie=False, why="")
    for worker in guilty:
        trusted = told.trusted(clean, [worker])
        for step in range(trusted):  # what it computed before it is trusted, since it passed later
            if worker in told.group_at(step):
                group = list(told.group_at(trusted))
                rank, auditor = audited(trusted, [range(i, i + 1) for i in range(len(group))])
                assert len(group) > 1
                assert worker in (group[rank], group[auditor])
                break

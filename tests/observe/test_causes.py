"""Causes are values: each has a sentence, and the one that forced a pause is found."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.observe.causes import KINDS, Cause, causes_of, main_kind, sentence

WORKERS = st.text(max_size=20)
CAUSES = st.lists(st.builds(Cause, st.sampled_from(KINDS), WORKERS, WORKERS), max_size=5)


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (Cause("start"), "start"),
        (Cause("lost", "w1"), "w1 lost"),
        (Cause("hung", "w12"), "w12 hung"),
        (Cause("failed", "w3"), "w3 failed"),
        (Cause("joined", "w3"), "w3 joined"),
        (Cause("drained", "w0"), "w0 drained"),
        (Cause("scaled", detail="3"), "scaled to 3"),
        (Cause("rebalanced"), "rebalanced"),
        (Cause("corruption", "w2"), "w2 evicted"),
        (Cause("coordinator"), "the coordinator was restarted"),
        (Cause("other"), "regrouped"),
    ],
)
def test_each_cause_has_a_sentence(cause, said):
    assert str(cause) == said


def test_every_kind_has_a_sentence():
    assert len({str(Cause(kind, "w1", "2")) for kind in KINDS}) == len(KINDS)


def test_causes_are_listed_in_one_sentence():
    assert sentence([Cause("lost", "w1"), Cause("joined", "w3")]) == "w1 lost, w3 joined"


@pytest.mark.parametrize(
    ("kinds", "main"),
    [
        (("joined", "lost"), "lost"),
        (("scaled", "lost"), "lost"),
        (("scaled", "joined"), "scaled"),
        (("drained", "joined"), "drained"),
        (("coordinator", "lost"), "coordinator"),
        (("lost", "corruption"), "corruption"),
        (("rebalanced", "joined"), "rebalanced"),
        (("lost", "hung"), "hung"),
        ((), "other"),
    ],
)
def test_of_several_causes_the_one_that_forced_the_pause_counts(kinds, main):
    causes = [Cause(kind, "w1") for kind in kinds]
    assert main_kind(causes) == main_kind(causes[::-1]) == main


@given(CAUSES)
def test_causes_survive_the_journal(causes):
    event = json.loads(json.dumps({"causes": [cause.as_data() for cause in causes]}))
    assert causes_of(event) == causes

"""Causes become few classes, whatever the workers are called and however many there are."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import raytrain_plus.elastic
from raytrain_plus.observe.causes import CAUSES, class_of


@pytest.mark.parametrize(
    ("cause", "name"),
    [
        ("start", "start"),
        ("w1 lost", "lost"),
        ("w12 hung", "lost"),
        ("w3 failed", "lost"),
        ("2 taken away", "lost"),
        ("w3 joined", "joined"),
        ("w0 drained", "drained"),
        ("scaled to 3", "scaled"),
        ("add 1", "scaled"),
        ("remove 2", "scaled"),
        ("rebalanced", "rebalanced"),
        ("w2 expelled", "corruption"),
        ("the coordinator came back", "coordinator"),
        ("regrouped", "other"),
        ("", "other"),
    ],
)
def test_each_cause_has_its_class(cause, name):
    assert class_of(cause) == name


@pytest.mark.parametrize(
    ("cause", "name"),
    [
        ("w3 joined, w1 lost", "lost"),
        ("scaled to 2, w1 lost", "lost"),
        ("scaled to 3, w2 joined", "scaled"),
        ("w1 drained, w2 joined", "drained"),
        ("the coordinator came back, w1 lost", "coordinator"),
        ("w1 lost, w2 expelled", "corruption"),
        ("rebalanced, w4 joined", "rebalanced"),
    ],
)
def test_of_several_causes_the_one_that_forced_the_pause_counts(cause, name):
    assert class_of(cause) == name


@given(st.text())
def test_whatever_the_cause_the_classes_are_few(cause):
    assert class_of(cause) in CAUSES


@given(st.integers(0, 10**6), st.sampled_from(["lost", "joined", "drained"]))
def test_the_worker_does_not_matter(number, what):
    assert class_of(f"w{number} {what}") == what


def causes_in(source):
    """Return the sentences that a source gives as causes, with 1 for what it fills in."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            place = {"append": 0, "because": 0, "set_target": 1}.get(node.func.attr)
            target = ast.unparse(node.func.value)
            if place is not None and (node.func.attr != "append" or target == "self._causes"):
                found |= _sentence(node.args[place])
    return found


def _sentence(node):
    if isinstance(node, ast.Constant):
        return {node.value}
    if not isinstance(node, ast.JoinedStr):
        return set()  # a cause that was made elsewhere
    ends = [[""]]
    for part in node.values:
        if isinstance(part, ast.Constant):
            ends.append([part.value])
        elif isinstance(part.value, ast.IfExp):
            ends.append([part.value.body.value, part.value.orelse.value])
        else:
            named = ast.unparse(part.value).endswith("action")
            ends.append(["add", "remove"] if named else ["1"])
    made = [""]
    for choices in ends:
        made = [before + choice for before in made for choice in choices]
    return set(made)


def test_every_cause_that_the_coordinator_gives_has_a_class_of_its_own():
    """Whoever words a cause anew finds it here, not in a graph that says `other`."""
    folder = Path(raytrain_plus.elastic.__file__).parent
    found = set().union(*(causes_in(path.read_text()) for path in folder.rglob("*.py")))
    assert {"1 lost", "1 hung", "rebalanced", "scaled to 1", "add 1"} <= found  # they are seen
    assert [cause for cause in found if class_of(cause) == "other"] == []


def test_a_cause_that_is_worded_anew_is_found():
    """The negative control."""
    (cause,) = causes_in('self._causes.append(f"{seat.worker} went for a walk")')
    assert cause == "1 went for a walk"
    assert class_of(cause) == "other"

"""Faults are read strictly, hit the workers that they name, and happen when they should."""

from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain_plus.elastic.protocol.faults import (
    ACTIONS,
    Fault,
    FaultError,
    Phase,
    as_data,
    due_at,
    left,
    parse_faults,
    read_faults,
)

FILE = """
- {step: 3, action: kill}
- step: 5
  action: stop
  workers: 2
  phase: exchange
  victim: 0
- {step: 0, action: add, workers: 3}
"""


def test_a_file_of_faults_is_read(tmp_path):
    path = tmp_path / "faults.yaml"
    path.write_text(FILE)
    assert read_faults(path) == [
        Fault(step=3, action="kill", workers=1, phase="backward", victim=None),
        Fault(step=5, action="stop", workers=2, phase="exchange", victim=0),
        Fault(step=0, action="add", workers=3),
    ]
    path.write_text("")
    assert read_faults(path) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"step": 1}, ["valid list"]),
        (["kill"], ["0: ", "dictionary"]),
        ([{"step": 1}], ["0.action: ", "required"]),
        ([{"action": "kill"}], ["0.step: ", "required"]),
        ([{"step": -1, "action": "add"}], ["0.step: ", "greater than or equal to 0"]),
        ([{"step": "soon", "action": "add"}], ["0.step: ", "integer"]),
        ([{"step": 1, "action": "explode"}], ["0.action: ", "'drain'"]),
        ([{"step": 1, "action": "kill", "workers": 0}], ["0.workers: "]),
        ([{"step": 1, "action": "kill", "phase": "lunch"}], ["0.phase: ", "'backward'"]),
        ([{"step": 1, "action": "kill", "victim": -1}], ["0.victim: "]),
        ([{"step": 1, "action": "kill", "colour": "red"}], ["0.colour: ", "Unexpected"]),
        ([{"step": 0, "action": "kill"}], ["0: ", "kill strikes during a step, from 1, not at 0"]),
        ([{"step": 0, "action": "flip"}], ["0: ", "flip strikes during a step, from 1, not at 0"]),
        ([{"step": 1, "action": "slow", "seconds": 0}], ["0.seconds: ", "greater than 0"]),
        ([{"step": 1, "action": "slow", "seconds": float("inf")}], ["0.seconds: ", "finite"]),
        (
            [{"step": 1, "action": "kill", "seconds": 3}],
            ["0: ", "kill takes no seconds, only workers, phase, victim"],
        ),
        ([{"step": 1, "action": "add", "victim": 0}], ["0: ", "add takes no victim, only workers"]),
        ([{"step": 1, "action": "drain", "phase": "heal"}], ["0: ", "drain takes no phase"]),
        ([{"step": 1, "action": "kill_all", "workers": 2}], ["0: ", "kill_all takes no workers"]),
        (
            [{"step": 1, "action": "kill_coordinator", "workers": 2}],
            ["0: ", "kill_coordinator takes no workers, nothing but its step"],
        ),
        (
            [{"step": 1, "action": "stop_coordinator", "seconds": 2}],
            ["0: ", "stop_coordinator takes no seconds, nothing but its step"],
        ),
        (
            [{"step": 1, "action": "hang_newcomer", "workers": 2}],
            ["0: ", "hang_newcomer takes no workers, nothing but its step"],
        ),
        (
            [{"step": 1, "action": "edit_task", "seconds": 2}],
            ["0: ", "edit_task takes no seconds, nothing but its step"],
        ),
        (
            [{"step": 1, "action": "fill_disk", "phase": "update"}],
            ["0: ", "fill_disk takes no phase, only seconds"],
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(content, named):
    with pytest.raises(FaultError) as refused:
        parse_faults(content, "my.yaml")
    text = str(refused.value)
    assert text.startswith("my.yaml: a fault is {step: N, action: kill|stop|")
    assert all(action in text.splitlines()[0] for action in ACTIONS)
    assert all(part in text for part in named)
    assert len(text.splitlines()) == 2


def test_every_mistake_of_a_file_is_named():
    wrong = [
        {"step": 0, "action": "stop"},
        {"step": 2, "action": "kill"},
        {"step": -3, "action": "boom", "who": 1},
        {"step": 0, "action": "kill"},
    ]
    with pytest.raises(FaultError) as refused:
        parse_faults(wrong)
    places = [line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:]]
    assert sorted(places) == ["0", "2.action", "2.step", "2.who", "3"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for content in (None, b"[1, 2", b"\xff\xfe\x00"):
        path = tmp_path / "faults.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FaultError, match=r"faults\.yaml cannot be read"):
            read_faults(path)


def test_a_fault_made_by_hand_is_checked_as_well():
    with pytest.raises(ValidationError, match="from 1, not at 0"):
        Fault(step=0, action="kill")
    assert Fault(step=0, action="add").step == 0


@st.composite
def faults(draw, actions=ACTIONS):
    """Return any fault that is allowed."""
    action = draw(st.sampled_from(actions))
    chosen = {
        "workers": draw(st.integers(1, 9)),
        "victim": draw(st.none() | st.integers(0, 20)),
        "phase": draw(st.sampled_from(get_args(Phase))),
        "seconds": draw(st.none() | st.floats(0.1, 100)),
    }
    step = draw(st.integers(1, 50))
    fields = {name: value for name, value in chosen.items() if _takes(action, name)}
    return Fault(step=step, action=action, **fields)


def _takes(action, name):
    given = {"workers": 2, "victim": 1, "phase": "update", "seconds": 1.0}[name]
    try:
        Fault(step=1, action=action, **{name: given})
    except ValidationError:
        return False
    return True


DRAWN = 2934010202564854771
NAMED = (
    "kill",
    "stop",
    "terminate",
    "spin",
    "stall",
    "slow",
    "flip",
    "miscompute",
    "drain",
    "nan_gradient",
)


@given(st.lists(faults(), max_size=5))
def test_every_fault_goes_through_a_file_and_back(drawn):
    assert parse_faults(yaml.safe_load(yaml.safe_dump(as_data(drawn)))) == drawn


def test_every_action_accepts_only_its_own_fields():
    names = ("workers", "victim", "phase", "seconds")
    taken = {action: {name for name in names if _takes(action, name)} for action in ACTIONS}
    assert taken["kill"] == {"workers", "victim", "phase"}
    assert taken["slow"] == {"workers", "victim", "phase", "seconds"}
    assert taken["lose_store"] == {"phase", "seconds"}
    assert taken["drain"] == {"workers", "victim"}
    assert taken["add"] == {"workers"}
    assert taken["kill_coordinator"] == taken["stop_coordinator"] == set()
    assert taken["hang_newcomer"] == taken["edit_task"] == set()
    assert taken["fill_disk"] == {"seconds"}


@given(st.sampled_from(["kill_all", "lose_store"]), st.integers(1, 12))
def test_some_faults_hit_all_workers(action, size):
    assert Fault(step=1, action=action).victims(size) == list(range(size))


def test_a_faults_random_choices_depend_on_the_fault_and_its_victim_only():
    fault = Fault(step=7, action="flip", victim=0)
    drawn = fault.draw("w1")
    assert drawn == DRAWN  # fixed numbers: a schedule must mean the same in later versions
    assert drawn == Fault(step=7, action="flip", victim=0, phase="backward").draw("w1")
    others = [Fault(step=8, action="flip", victim=0), Fault(step=7, action="flip", victim=1)]
    assert len({drawn, fault.draw("w2"), *(other.draw("w1") for other in others)}) == 4


def test_a_lone_worker_gets_no_flip_in_its_update_because_it_could_not_be_noticed():
    flips = {phase: Fault(step=1, action="flip", phase=phase) for phase in get_args(Phase)}
    assert [phase for phase, flip in flips.items() if flip.victims(1) == []] == ["update"]
    assert flips["update"].victims(2) == [1]


@given(faults(NAMED), st.integers(1, 12))
def test_victims_are_the_given_number_of_neighbours(fault, size):
    victims = fault.victims(size)
    assert victims == sorted(set(victims))
    assert set(victims) <= set(range(size))
    if (fault.action, fault.phase, size) == ("flip", "update", 1):
        assert victims == []  # see the test before
        return
    assert len(victims) == min(fault.workers, size)
    if fault.victim is not None:
        assert fault.victim % size in victims
    elif fault.workers <= size:
        assert victims == list(range(size - fault.workers, size))


def test_victims_wrap_around_the_end():
    assert Fault(step=1, action="kill", workers=3, victim=3).victims(4) == [0, 1, 3]
    assert Fault(step=1, action="kill", victim=7).victims(4) == [3]


@pytest.mark.parametrize("phase", ["fetch", "forward", "exchange", "finish", "slice", "update"])
def test_an_unannounced_fault_is_due_in_its_phase_of_its_step_only(phase):
    fault = Fault(step=5, action="kill", phase=phase)
    due = [
        (p, step) for p in (phase, "backward", "meet") for step in range(10) if fault.due(p, step)
    ]
    assert due == [(phase, 4)]


@pytest.mark.parametrize("phase", ["meet", "heal", "evaluate", "gather"])
def test_a_fault_in_a_rare_phase_waits_for_that_phase(phase):
    fault = Fault(step=5, action="kill", phase=phase)
    assert [step for step in range(10) if fault.due(phase, step)] == [4, 5, 6, 7, 8, 9]
    assert not any(fault.due("backward", step) for step in range(10))


def test_planned_changes_are_due_from_their_step_on_and_unannounced_faults_never():
    faults = [Fault(step=s, action=a) for s, a in [(2, "add"), (1, "kill"), (3, "drain")]]
    assert due_at(faults, 1) == []
    assert due_at(faults, 2) == faults[:1]
    assert due_at(faults, 9) == [faults[0], faults[2]]


def test_which_faults_are_unannounced_and_which_are_planned():
    planned = {action for action in ACTIONS if not Fault(step=1, action=action).strikes}
    assert planned == {
        *("drain", "add", "remove"),
        *("kill_coordinator", "stop_coordinator", "hang_newcomer", "fill_disk"),
        "edit_task",
    }


@pytest.mark.parametrize("action", ["hang_newcomer", "edit_task"])
def test_a_newcomers_fault_happens_when_it_comes_and_the_group_pauses_for_it_before(action):
    fault = Fault(step=5, action=action)
    assert fault.waits_for_newcomer
    assert fault.pauses_after(4)
    assert not fault.pauses_after(5)
    assert due_at([fault], 9) == []


def test_faults_in_the_journal_do_not_happen_again():
    kill, flip = Fault(step=4, action="kill"), Fault(step=4, action="flip", phase="fetch")
    drain, lost = Fault(step=5, action="drain"), Fault(step=5, action="kill_coordinator")
    faults = [kill, kill, flip, drain, lost]
    events = [
        {"event": "step", "step": 4},
        {"event": "fault", "step": 4, "action": "kill", "phase": "backward", "hit": ["w1"]},
        {"event": "fault", "step": 4, "action": "flip", "phase": "update", "hit": ["w1"]},
        {"event": "fault", "step": 5, "action": "kill_coordinator", "hit": []},
    ]
    assert left(faults, events) == [kill, flip, drain]
    assert left(faults, []) == faults
    resumed = [*events, {"event": "run"}, events[1]]
    assert left(faults, resumed) == [kill, flip, drain, lost]

"""Disturbances are read strictly, hit whom they name, and strike when they should."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain_plus.elastic.faults import (
    Fault,
    FaultError,
    Strikes,
    due_at,
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
    ],
)
def test_a_mistake_is_named_with_its_place(content, named):
    with pytest.raises(FaultError) as refused:
        parse_faults(content, "my.yaml")
    text = str(refused.value)
    assert text.startswith("my.yaml: a fault is {step: N, action: kill|stop|drain|add|remove")
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


FAULTS = st.builds(
    Fault,
    step=st.integers(1, 50),
    action=st.sampled_from(["kill", "stop", "drain", "add", "remove"]),
    workers=st.integers(1, 9),
    victim=st.none() | st.integers(0, 20),
)


@given(FAULTS, st.integers(1, 12))
def test_victims_are_as_many_neighbours_as_asked_for(fault, size):
    victims = fault.victims(size)
    assert victims == sorted(set(victims))
    assert set(victims) <= set(range(size))
    assert len(victims) == min(fault.workers, size)
    if fault.victim is not None:
        assert fault.victim % size in victims
    elif fault.workers <= size:
        assert victims == list(range(size - fault.workers, size))


def test_victims_wrap_around_the_end():
    assert Fault(step=1, action="kill", workers=3, victim=3).victims(4) == [0, 1, 3]
    assert Fault(step=1, action="kill", victim=7).victims(4) == [3]


@pytest.mark.parametrize("phase", ["fetch", "forward", "exchange", "finish", "slice", "update"])
def test_a_strike_is_due_in_its_phase_of_its_step_only(phase):
    fault = Fault(step=5, action="kill", phase=phase)
    due = [
        (p, step) for p in (phase, "backward", "meet") for step in range(10) if fault.due(p, step)
    ]
    assert due == [(phase, 4)]


@pytest.mark.parametrize("phase", ["meet", "heal", "evaluate", "gather"])
def test_a_strike_in_a_rare_phase_waits_for_it(phase):
    fault = Fault(step=5, action="kill", phase=phase)
    assert [step for step in range(10) if fault.due(phase, step)] == [4, 5, 6, 7, 8, 9]
    assert not any(fault.due("backward", step) for step in range(10))


def test_planned_changes_are_due_from_their_step_on_and_strikes_never():
    faults = [Fault(step=s, action=a) for s, a in [(2, "add"), (1, "kill"), (3, "drain")]]
    assert due_at(faults, 1) == []
    assert due_at(faults, 2) == faults[:1]
    assert due_at(faults, 9) == [faults[0], faults[2]]


def test_only_kill_and_stop_strike_without_notice():
    actions = ["kill", "stop", "drain", "add", "remove"]
    assert [Fault(step=1, action=a).strikes for a in actions] == [True, True, False, False, False]


STRIKE = """
import sys
from pathlib import Path
from raytrain_plus.elastic.faults import Fault, Strikes
Strikes(Path(sys.argv[1])).hit("w3", Fault(step=4, action=sys.argv[2]))
print("still here")
"""


def test_a_strike_kills_the_process_that_it_hits_after_it_has_left_word(tmp_path):
    strikes = Strikes(tmp_path)
    assert strikes.new() == {}
    done = subprocess.run(
        [sys.executable, "-c", STRIKE, str(tmp_path), "kill"], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""
    assert strikes.new() == {Fault(step=4, action="kill"): ["w3"]}
    assert strikes.new() == {}  # told once
    assert len(Strikes(tmp_path).new()) == 1  # but again to a coordinator that comes back
    strikes.forget()
    assert Strikes(tmp_path).new() == {}  # and not to a run that goes on later


@pytest.mark.parametrize(("action", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_a_strike_is_a_signal_to_the_process_itself(monkeypatch, action, number):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *to: sent.append(to))
    Fault(step=1, action=action).strike()
    assert sent == [(os.getpid(), number)]


def test_strikes_are_told_with_everybody_whom_they_hit(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: None)
    strikes, workers = Strikes(tmp_path), Strikes(tmp_path)
    one, other = Fault(step=4, action="kill", workers=2), Fault(step=4, action="stop", victim=0)
    for worker, fault in [("w1", one), ("w0", other), ("w2", one)]:
        workers.hit(worker, fault)
    assert strikes.new() == {one: ["w1", "w2"], other: ["w0"]}

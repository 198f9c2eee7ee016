"""A run changes its state only by allowed transitions."""

import json
from itertools import product

import pytest

from raytrain_plus.elastic.protocol.run_state import ENDS, RunState, RunStateError
from raytrain_plus.observe.events import fields_of

LED = (RunState.STARTING, RunState.TRAINING, RunState.STOPPING)


def test_a_run_is_led_from_its_start_to_an_end():
    for end in ENDS:
        state = RunState.STARTING
        for after in (RunState.TRAINING, RunState.STOPPING, end):
            assert not state.is_over
            state = state.followed_by(after)
        assert state.is_over


@pytest.mark.parametrize(("before", "after"), product(LED, [*sorted(ENDS), RunState.REPLACED]))
def test_it_may_end_at_any_time(before, after):
    assert before.followed_by(after) is after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RunState.TRAINING, RunState.STARTING),
        (RunState.STOPPING, RunState.TRAINING),
        *product(sorted(ENDS), LED),
        (RunState.FINISHED, RunState.FAILED),
        (RunState.REPLACED, RunState.FINISHED),
        (RunState.TRAINING, RunState.UNREACHABLE),
    ],
)
def test_a_forbidden_transition_is_an_error_that_names_both_states(before, after):
    with pytest.raises(RunStateError, match=f"is {before} cannot be {after}"):
        before.followed_by(after)


@pytest.mark.parametrize("state", RunState)
def test_a_state_may_follow_itself(state):
    assert state.followed_by(state) is state


def test_a_state_is_text_in_json_and_an_end_may_be_written():
    assert json.dumps(RunState.NO_ANSWER) == '"no answer"'
    holds = fields_of("end")["state"].check.holds
    assert {state for state in RunState if holds(state)} == ENDS

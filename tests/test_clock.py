"""Lengths of training: a length in one unit is exact in every other unit."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raytrain_plus.clock import Clock, Duration, DurationError, Lengths, run_length

COUNTS = st.integers(1, 10**9)


def lengths(per_epoch, batch_size, tokens=0):
    return Lengths(steps_per_epoch=per_epoch, batch_size=batch_size, tokens_per_sample=tokens)


@pytest.mark.parametrize(
    ("text", "value", "unit", "steps"),
    [
        ("10ep", 10, "ep", 250),
        ("0.5ep", 0.5, "ep", 12),
        (" 2 ep ", 2, "ep", 50),
        ("500ba", 500, "ba", 500),
        ("20000sp", 20000, "sp", 625),
        ("33sp", 33, "sp", 1),
        ("1sp", 1, "sp", 1),  # a run has at least one step
        ("0.001ep", 0.001, "ep", 1),
        ("0.28ep", 0.28, "ep", 7),  # 0.28 * 25 is 7.000000000000001
        ("0.56ep", 0.56, "ep", 14),
        ("1.16ep", 1.16, "ep", 29),  # 1.16 * 25 is 28.999999999999996
    ],
)
def test_a_duration_is_a_number_and_a_unit(text, value, unit, steps):
    duration = Duration.parse(text)
    assert (duration.value, duration.unit) == (value, unit)
    assert run_length(text, lengths(25, 32)) == steps


@given(COUNTS, st.integers(1, 100_000))
@example(10**9, 49)  # a factor of 1 / 49 would make it one step less
def test_whole_units_give_whole_steps(count, size):
    assert Duration.parse(f"{count}ba").steps(lengths(size, size)) == count
    assert Duration.parse(f"{count * size}sp").steps(lengths(1, size)) == count
    assert Duration.parse(f"{count}ep").steps(lengths(size, 1)) == count * size
    assert Duration.parse(f"{count * size}tok").steps(lengths(1, 1, size)) == count


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(0, 10**4))
def test_an_incomplete_batch_is_not_a_step(count, size, more):
    more %= size
    assert Duration.parse(f"{count * size + more}sp").steps(lengths(1, size)) == count


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a number and a unit"),
        ("10", "not a number and a unit"),
        ("ten ep", "not a number and a unit"),
        ("-1ep", "not a number and a unit"),
        ("1e3ba", "not a number and a unit"),
        ("10epochs", "the units are ep (epochs), ba (batches (steps)), sp (samples)"),
        ("10hours", "write 10ep, 500ba, 20000sp, 1000000tok or 0.5dur"),
        ("1.5ba", "only epochs and dur may be a fraction"),
        ("0.5sp", "only epochs and dur may be a fraction"),
        ("1.01dur", "longer than the run"),
        (None, "not a number and a unit"),
        (10, "not a number and a unit"),
    ],
)
def test_an_invalid_duration_is_refused_with_the_valid_forms(text, says):
    with pytest.raises(DurationError, match=re.escape(says)) as refused:
        Duration.parse(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0ep", "must be above zero"),
        ("0ba", "must be above zero"),
        ("0.5dur", "cannot be the run's length"),
        ("100tok", "set the task's `tokens`"),
    ],
)
def test_a_run_has_a_countable_length(text, says):
    with pytest.raises(DurationError, match=re.escape(says)):
        run_length(text, lengths(10, 8))


def test_times_within_a_run_scale_with_it():
    assert [clock(total).step_of("0.25dur") for total in (4, 40, 42)] == [1, 10, 10]
    assert [clock(40).step_of(t) for t in ("0dur", "1dur", "2ep", "7ba", "64sp")] == [
        0,
        40,
        20,
        7,
        2,
    ]
    assert run_length("0.5dur", lengths(10, 8), 30) == 15  # between two evaluations


def clock(total, per_epoch=10, every=4):
    return Clock(total_steps=total, steps_per_epoch=per_epoch, batch_size=32, evaluate_every=every)


def test_progress_goes_from_zero_to_one():
    assert [clock(4).progress(step) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_an_epoch_begins_with_its_first_step():
    assert [clock(40).epoch(step) for step in (0, 9, 10, 19, 20)] == [0, 0, 1, 1, 2]


@given(st.integers(1, 200), st.integers(1, 250))
def test_evaluations_are_due_at_every_interval_and_at_the_end(total, every):
    due = [step for step in range(total + 1) if clock(total, every=every).evaluation_due(step)]
    expected = list(range(every, total + 1, every))
    assert due == (expected if total % every == 0 else [*expected, total])

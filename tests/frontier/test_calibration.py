"""Costs corrected for a machine that slows down and recovers."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raytrain_plus.frontier.calibration import Calibration
from raytrain_plus.frontier.points import PointError
from tests.frontier.spaces import SPACE
from tests.frontier.test_points import finished

RUNS = st.lists(
    st.tuples(st.floats(0, 1000), st.floats(1.0, 30.0)),
    min_size=2,
    max_size=6,
    unique_by=lambda p: p[0],
)


def calibrations(*pairs, length=2.0):
    """Return runs around some moments: (time, cost)."""
    return [
        finished(f"c{i}", cost=cost, started=time - length / 2, ended=time + length / 2)
        for i, (time, cost) in enumerate(pairs)
    ]


@given(RUNS, st.floats(-100, 1100), st.floats(0, 500))
@example([(0.0, 2.0), (1.0, 1.0), (2.0, 1.0)], 0.0, 5e-324)
def test_the_factor_lies_between_the_speeds(pairs, started, length):
    calibration = Calibration.of(calibrations(*pairs))
    factor = calibration.factor(started, started + length)
    assert min(calibration.speeds) - 1e-9 <= factor <= max(calibration.speeds) + 1e-9


@given(RUNS, st.floats(0.1, 10))
def test_only_changes_of_speed_count(pairs, times):
    """A constant slowness needs no correction."""
    calibration = Calibration.of(calibrations(*pairs))
    slower = Calibration.of(calibrations(*((time, cost * times) for time, cost in pairs)))
    assert slower.speeds == pytest.approx(calibration.speeds)


def test_a_trial_on_a_slow_machine_has_its_normal_cost():
    calibration = Calibration.of(calibrations((100.0, 10.0), (200.0, 20.0), (300.0, 10.0)))
    assert calibration.speeds == (1.0, 0.5, 1.0)
    slow = finished(cost=40.0, started=199.0, ended=201.0, parts={"compute": 30.0})
    corrected = calibration.correct(slow)
    assert corrected.cost == pytest.approx(40 * 0.5, rel=0.01)
    assert corrected.parts["compute"] == pytest.approx(30 * 0.5, rel=0.01)
    assert corrected.quality == slow.quality
    assert calibration.factor(100.0, 200.0) == pytest.approx(0.75)
    assert calibration.factor(100.0, 300.0) == pytest.approx(0.75)  # over both slopes
    assert calibration.factor(0.0, 50.0) == 1.0
    assert calibration.factor(200.0, 200.0) == 0.5
    assert calibration.spread == pytest.approx(1.0)
    assert str(calibration) == (
        "3 calibration runs: the machine took up to 100.0% more and 0.0% less than usual; costs "
        "are corrected for that"
    )


def test_a_steady_machine_corrects_nothing():
    calibration = Calibration.of(calibrations((100.0, 10.0), (200.0, 10.0)))
    trial = finished(cost=40.0)
    assert calibration.correct(trial) == trial
    assert calibration.spread == 0.0


@pytest.mark.parametrize("pairs", [[], [(100.0, 10.0)]])
def test_one_run_does_not_show_drift(pairs):
    calibration = Calibration.of(calibrations(*pairs))
    assert calibration.factor(0.0, 500.0) == 1.0
    assert "as measured" in str(calibration)


def test_the_order_of_the_runs_does_not_matter():
    runs = calibrations((100.0, 10.0), (200.0, 20.0), (300.0, 15.0))
    assert Calibration.of(runs[::-1]) == Calibration.of(runs)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seed": 9}, "several recipes or seeds"),
        ({"recipe": SPACE.baseline}, "several recipes or seeds"),
        ({"outcome": "failed", "quality": math.nan}, "other are not complete"),
    ],
)
def test_runs_that_do_other_work_are_refused(other, told):
    with pytest.raises(PointError, match=told):
        Calibration.of([*calibrations((100.0, 10.0)), finished("other", **other)])

"""A trial is stopped only when it certainly cannot be good."""

import math

from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.frontier.early_stopping import TrialProgress, why_stop_early


def curve(*qualities):
    count = len(qualities)
    return [
        TrialProgress(progress=(i + 1) / count, cost=10.0 * (i + 1) / count, quality=quality)
        for i, quality in enumerate(qualities)
    ]


CURVES = [curve(0.5, 0.7, 0.9), curve(0.4, 0.7, 0.8), curve(0.6, 0.8, 0.9)]  # at most 0.4 gained
POINTS = [(4.0, 0.9), (10.0, 0.95)]


def test_a_loss_of_nan_ends_a_trial():
    for loss in (math.nan, math.inf):
        assert "loss" in why_stop_early(TrialProgress(progress=0.1, cost=1.0, loss=loss), [], [])
    assert not why_stop_early(TrialProgress(progress=0.1, cost=1.0, loss=3.0), [], [])


def test_a_trial_that_cannot_catch_up_is_stopped_and_one_that_can_goes_on():
    can = TrialProgress(progress=1 / 3, cost=5.0, quality=0.35)  # 0.35 + 1.5 * 0.4 = 0.95
    cannot = TrialProgress(progress=1 / 3, cost=5.0, quality=0.2)
    assert not why_stop_early(can, CURVES, POINTS)
    assert "hardly" in why_stop_early(cannot, CURVES, POINTS)


def test_a_cheaper_trial_is_not_dominated_yet():
    assert not why_stop_early(TrialProgress(progress=1 / 3, cost=3.0, quality=0.0), CURVES, POINTS)


def test_no_trial_is_stopped_before_some_are_complete():
    bad = TrialProgress(progress=1 / 3, cost=5.0, quality=0.0)
    assert not why_stop_early(bad, CURVES[:2], POINTS)
    assert not why_stop_early(bad, CURVES, [])


@given(
    st.floats(0.05, 0.95), st.floats(0.0, 20.0), st.floats(-1.0, 1.0),
    st.floats(0.0, 0.5), st.floats(0.0, 10.0),
)  # fmt: skip
def test_a_better_and_cheaper_trial_is_not_stopped_if_a_worse_one_goes_on(p, c, q, more, less):
    one = TrialProgress(progress=p, cost=c, quality=q)
    better = TrialProgress(progress=p, cost=max(0.0, c - less), quality=q + more)
    if not why_stop_early(one, CURVES, POINTS):
        assert not why_stop_early(better, CURVES, POINTS)

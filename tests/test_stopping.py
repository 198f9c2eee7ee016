"""A run ends early when its values say so, at the same step on whatever worker decides."""

import math

import pytest

from raytrain_plus.stopping import EarlyStopping, StopAt, Stopping


@pytest.mark.parametrize(
    ("rule", "values", "stops_at"),
    [
        (EarlyStopping(metric="a", patience=2), [1, 2, 3, 3, 3], 5),
        (EarlyStopping(metric="a", patience=2), [1, 2, 1, 3, 2, 4], None),
        (EarlyStopping(metric="a", patience=2, mode="min"), [3, 2, 2, 2.5], 4),
        (EarlyStopping(metric="a", patience=1, min_change=0.5), [1.0, 1.4], 2),
        (EarlyStopping(metric="a", patience=1, min_change=0.3), [1.0, 1.4], None),
        (EarlyStopping(metric="a", patience=2), [math.nan, math.nan], 2),
        (EarlyStopping(metric="a", patience=3), [-5.0], None),
    ],
)
def test_a_metric_that_does_not_improve_stops_the_run(rule, values, stops_at):
    found = [n for n in range(1, len(values) + 1) if rule.reason(values[:n])]
    assert found[:1] == ([stops_at] if stops_at else [])


def test_a_bound_stops_the_run_and_nan_does_not():
    rule = StopAt(name="x", above=0.9, below=0.1)
    stops = [bool(rule.reason({"x": x})) for x in (0.1, 0.2, 0.9, math.nan)]
    assert stops == [True, False, True, False]
    assert rule.reason({}) == ""


def test_a_worker_that_joins_decides_as_one_that_was_there():
    rules = [EarlyStopping(metric="a", patience=2), StopAt(name="loss", below=0.5)]
    there = Stopping(rules, [], 0, {})
    evaluations, told = [], []
    for step in range(1, 13):
        loss = 1.0 if step < 12 else 0.4
        there.add_step(step, loss, {"x": 1.0})
        if step % 3 == 0:
            metrics = {"a": min(step, 6) / 10, "table": [1]}
            evaluations.append((step, metrics))
            there.add_evaluation(step, metrics)
        joined = Stopping(rules, evaluations, step, {"loss": loss, "x": 1.0})
        assert joined.reason() == there.reason()
        assert joined.is_evaluated == there.is_evaluated == (step % 3 == 0)
        told.append(bool(there.reason()))
    assert told == [False] * 11 + [True]
    assert "a has not improved for 2 evaluations; its best is 0.6" in there.reason()


def test_a_metric_that_an_evaluation_lacks_is_named():
    rules = [StopAt(name="x", below=0.1), EarlyStopping(metric="b/acuracy")]
    stopping = Stopping(rules, [], 0, {})
    assert stopping.unmeasured({"b/acuracy": None}) == ""
    why = "looks at 'b/acuracy', and the evaluation has measured a/loss, b/accuracy"
    assert why in stopping.unmeasured({"a/loss": 1.0, "b/accuracy": 0.5})


def test_rules_that_can_never_stop_are_refused():
    with pytest.raises(ValueError, match="needs a bound"):
        StopAt(name="x")
    with pytest.raises(ValueError, match="patience must be at least 1"):
        EarlyStopping(metric="x", patience=0)

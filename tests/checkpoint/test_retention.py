"""Retention keeps the requested number, and always the newest and the best."""

import math

from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.checkpoint.retention import Kept, Retention, surplus

METRIC = st.one_of(st.none(), st.integers(-5, 5), st.floats(), st.just("no number"))
KEPT = st.lists(st.tuples(st.integers(0, 50), METRIC), unique_by=lambda one: one[0]).map(
    lambda drawn: [
        Kept(f"c{step:02}", step, {} if value is None else {"score": value})
        for step, value in drawn
    ]
)
RETENTION = st.builds(
    Retention,
    st.one_of(st.none(), st.integers(1, 6)),
    st.sampled_from([None, "score"]),
    st.sampled_from(["max", "min"]),
)


def number(one):
    value = one.metrics.get("score")
    return value if isinstance(value, int | float) and not math.isnan(value) else None


@given(KEPT, RETENTION)
def test_the_newest_and_the_best_stay_within_the_given_number(kept, retention):
    names = surplus(kept, retention)
    assert len(set(names)) == len(names)
    assert set(names) <= {one.name for one in kept}
    left = [one for one in kept if one.name not in names]
    if retention.num_to_keep is None:
        assert not names
        return
    assert min(len(kept), retention.num_to_keep) <= len(left) <= max(2, retention.num_to_keep)
    if kept:
        assert max(one.step for one in kept) == max(one.step for one in left)
    scores = [number(one) for one in kept if number(one) is not None]
    if scores and retention.score_attribute:
        best = max(scores) if retention.score_order == "max" else min(scores)
        assert best in [number(one) for one in left]


@given(KEPT, RETENTION, st.randoms())
def test_the_order_in_which_they_are_listed_does_not_matter(kept, retention, order):
    shuffled = list(kept)
    order.shuffle(shuffled)
    assert surplus(shuffled, retention) == surplus(kept, retention)


@given(KEPT, RETENTION)
def test_deleted_checkpoints_are_worse_than_kept_ones(kept, retention):
    names = surplus(kept, retention)
    left = [one for one in kept if one.name not in names]
    newest = max(kept, key=lambda one: one.step, default=None)
    for gone in kept:
        for stays in left:
            if gone.name not in names or stays is newest:
                continue
            if retention.score_attribute is None:
                assert gone.step < stays.step
            elif number(stays) is None:
                assert number(gone) is None or math.isinf(number(gone))
            elif number(gone) is not None:
                worse = number(gone) <= number(stays)
                assert worse if retention.score_order == "max" else number(gone) >= number(stays)


def test_examples():
    losses = [Kept(f"c{i}", i, {"loss": loss}) for i, loss in enumerate([3.0, 1.0, 2.0, 4.0])]
    assert surplus(losses, Retention()) == []
    assert surplus(losses, Retention(2)) == ["c0", "c1"]
    assert surplus(losses, Retention(1)) == ["c0", "c1", "c2"]
    assert surplus(losses, Retention(1, "loss", "min")) == ["c0", "c2"]  # newest and best
    assert surplus(losses, Retention(3, "loss", "min")) == ["c0"]
    assert surplus(losses, Retention(3, "loss", "max")) == ["c1"]

"""The loop runs its join points in the order in which its docstring lists them."""

import re

import pytest
import torch

from raytrain_plus.algorithms import JOIN_POINTS, Aspect
from raytrain_plus.training.loop import TrainingLoop
from tests.algorithms.tiny import RANKS, TinyImages, alone, build, trained

BETWEEN_STEPS = ("evaluate", "checkpoint")  # the worker's, see tests/end_to_end/test_aspects.py


def listed():
    """Return (indentation, join point) of each docstring line that starts with a join point."""
    lines = re.findall(r"^( +)(\w+)\b", TrainingLoop.run_step.__doc__, re.MULTILINE)
    return [(len(indent), word) for indent, word in lines if word in JOIN_POINTS]


def recorder(record):
    """Return an aspect that records the start and the end of each join point."""

    def advice(point):
        def recorded(_, step):
            record.append((f"{point} begins", step.number, step.logical_rank))
            yield
            record.append((f"{point} ends", step.number, step.logical_rank))

        return recorded

    return type("Recorder", (Aspect,), {point: advice(point) for point in JOIN_POINTS})()


def nested(points):
    """Return the starts and ends for a list of (depth, name)."""
    order, open_points = [], []
    for depth, name in points:
        while open_points and open_points[-1][0] >= depth:
            order.append(f"{open_points.pop()[1]} ends")
        order.append(f"{name} begins")
        open_points.append((depth, name))
    return order + [f"{name} ends" for _, name in reversed(open_points)]


def test_the_docstring_lists_every_join_point_once():
    assert [name for _, name in listed()] == list(JOIN_POINTS)


def test_a_step_runs_its_join_points_in_the_listed_order():
    record = []
    loop, _ = trained(TinyImages(), [recorder(record)], steps=1)
    loop.end_generation()
    loop.replica.undo_fit()
    seen = [name for name, _, rank in record if rank in (-1, 0)]
    assert seen == nested([(d, n) for d, n in listed() if n not in BETWEEN_STEPS])


def test_the_docstring_in_another_order_is_noticed():
    """The negative control."""
    record = []
    trained(TinyImages(), [recorder(record)], steps=1)
    swapped = [(d, {"loss": "forward", "forward": "loss"}.get(n, n)) for d, n in listed()]
    assert [name for name, *_ in record if "loss" in name or "forward" in name][:4] != [
        name for name in nested(swapped) if "loss" in name or "forward" in name
    ]


def test_parts_follow_each_other_and_epochs_span_steps():
    record = []
    trained(TinyImages(), [recorder(record)], steps=7)
    batches = [(step, rank) for name, step, rank in record if name == "batch begins"]
    assert batches == [(step, rank) for step in range(7) for rank in range(RANKS)]
    epochs = [(name, step) for name, step, _ in record if name.startswith("epoch")]
    assert epochs == [("epoch begins", 0), ("epoch ends", 0), ("epoch begins", 5)]


def test_a_step_that_fails_ends_every_advice_and_leaves_the_state():
    class Fragile(Aspect):
        def batch(self, step):
            try:
                yield
            finally:
                undone.append((step.number, step.logical_rank))

        def backward(self, step):
            if step.number == 1 and step.logical_rank == 2:
                raise RuntimeError("lost")
            yield

    undone = []
    loop, _ = build(TinyImages(), [Fragile()])
    loop.begin_generation([range(RANKS)], alone())
    parts = [TinyImages.part(0, r) for r in range(RANKS)]
    loop.run_step(parts)
    before = loop.replica.digest()
    with pytest.raises(RuntimeError, match="lost"):
        loop.run_step(parts)
    assert undone[-1] == (1, 2)
    assert loop.replica.digest() == before
    assert not loop.replica.torn


def test_computing_another_batch_has_no_side_effects():
    class Curious(Aspect):
        def batch(self, step):
            if step.number == 1:
                part = {"image": step.batch["image"] * 3, "label": step.batch["label"]}
                first, again = step.compute(part), step.compute(part)
                assert torch.equal(first, again)
                assert step.losses is None
            yield

    plain, _ = trained(TinyImages())
    curious, _ = trained(TinyImages(), [Curious()])
    assert curious.replica.digest() == plain.replica.digest()

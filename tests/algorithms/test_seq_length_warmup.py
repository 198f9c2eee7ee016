"""Sequence length warm-up: lengths grow linearly to the whole length, and then stay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.algorithms import AspectError, Step, Training, Weave
from raytrain_plus.algorithms.seq_length_warmup import SeqLengthWarmup, sequence_length, truncate
from raytrain_plus.clock import Clock
from tests.algorithms.tiny import CONTEXT, PART, RANKS, TinyImages, TinyTokens, build, trained

CLOCK = Clock(total_steps=20, steps_per_epoch=5, batch_size=4, evaluate_every=5)


def step_at(number, batch, tokens="tokens"):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = Step(Training(model=model, optimizer=optimizer, clock=CLOCK, seed=1), number)
    step.batch, step.tokens = batch, tokens
    return step


def test_lengths_grow_linearly_and_are_rounded_down():
    lengths = [sequence_length(s, 10, 65, start=5, multiple=8) for s in range(13)]
    assert lengths == [5, 8, 16, 16, 24, 32, 40, 40, 48, 56, 65, 65, 65]


@given(
    st.integers(0, 300),
    st.integers(0, 200),
    st.integers(2, 500),
    st.integers(2, 100),
    st.integers(1, 64),
)
def test_lengths_never_shrink_and_stay_in_bounds(step, warmup_steps, whole, start, multiple):
    length = sequence_length(step, warmup_steps, whole, start=start, multiple=multiple)
    later = sequence_length(step + 1, warmup_steps, whole, start=start, multiple=multiple)
    assert min(start, whole) <= length <= later <= whole
    assert length in (start, whole) or length % multiple == 0
    if step >= warmup_steps:
        assert length == whole
    elif start < whole:
        line = start + (whole - start) * step / warmup_steps
        assert length == start or line - multiple - 1e-6 <= length <= line + 1e-6


def test_truncating_keeps_the_start_of_named_columns():
    batch = {"a": torch.arange(12).reshape(2, 6), "b": torch.arange(12).reshape(2, 6)}
    cut = truncate(batch, ["a"], 2)
    assert torch.equal(cut["a"], torch.tensor([[0, 1], [6, 7]]))
    assert set(cut) == {"a"}
    assert batch["a"].shape == batch["b"].shape == (2, 6)


@pytest.mark.parametrize(("number", "length"), [(0, 4), (4, 16), (9, 36), (10, None), (19, None)])
def test_the_aspect_cuts_until_the_warm_up_ends(number, length):
    whole = torch.randint(0, 9, (3, 40))
    kept = whole.clone()
    step = step_at(number, {"tokens": whole, "other": whole})
    weave = Weave([SeqLengthWarmup(duration="0.5dur", start=4, multiple=4)])
    with weave.around("batch", step):
        if length is None:
            assert step.batch["tokens"] is whole
        else:
            assert torch.equal(step.batch["tokens"], kept[:, :length])
        assert step.batch["other"] is whole
    cost = weave.costs["SeqLengthWarmup"]
    assert (cost.acted, cost.idle) == ((0, 1) if length is None else (1, 0))
    assert torch.equal(whole, kept)


def test_named_columns_are_cut_together():
    batch = {"ids": torch.zeros(2, 32), "mask": torch.ones(2, 32, 3), "label": torch.zeros(2, 32)}
    step = step_at(0, batch, tokens=None)
    with Weave([SeqLengthWarmup(columns=("ids", "mask"), start=6)]).around("batch", step):
        assert step.batch["ids"].shape == (2, 6)
        assert step.batch["mask"].shape == (2, 6, 3)
        assert step.batch["label"].shape == (2, 32)


def test_sequences_no_longer_than_the_start_are_left_unchanged():
    whole = torch.zeros(2, 8)
    step = step_at(0, {"tokens": whole})
    weave = Weave([SeqLengthWarmup(start=8)])
    with weave.around("batch", step):
        assert step.batch["tokens"] is whole
    assert weave.costs["SeqLengthWarmup"].idle == 1


@pytest.mark.parametrize(
    ("columns", "tokens"),
    [((), None), (("absent",), None), (("label",), None), (("tokens", "shorter"), None)],
)
def test_columns_that_cannot_be_cut_are_an_error_that_shows_the_batch(columns, tokens):
    batch = {"tokens": torch.zeros(2, 9), "shorter": torch.zeros(2, 7), "label": torch.zeros(2)}
    step = step_at(0, batch, tokens=tokens)
    with (
        pytest.raises(AspectError, match=r"'shorter': \(2, 7\)"),
        Weave([SeqLengthWarmup(columns=columns)]).around("batch", step),
    ):
        pass


def test_a_task_without_tokens_is_an_error():
    with pytest.raises(AspectError, match="set the task's `tokens`"):
        trained(TinyImages(), [SeqLengthWarmup()], steps=1)


@pytest.mark.parametrize(
    "settings", [{"duration": "soon"}, {"duration": "2dur"}, {"start": 1}, {"multiple": 0}]
)
def test_a_setting_out_of_bounds_is_an_error(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SeqLengthWarmup(**settings)


def test_training_counts_only_the_tokens_that_were_used():
    aspect = SeqLengthWarmup(duration="2ba", start=3, multiple=1)
    loop, losses = trained(TinyTokens(), [aspect], steps=3)
    whole, plain = trained(TinyTokens(), steps=3)
    assert loop.replica.tokens == PART * RANKS * (3 + 6 + CONTEXT + 1)
    assert whole.replica.tokens == PART * RANKS * 3 * (CONTEXT + 1)
    assert losses != plain


def test_the_aspect_trains_as_cutting_by_hand_does():
    class Cut(TinyTokens):
        @staticmethod
        def part(step, rank):
            part = TinyTokens.part(step, rank)
            length = sequence_length(step, 6, CONTEXT + 1, start=3, multiple=2)
            return truncate(part, ["tokens"], length)

    aspect = SeqLengthWarmup(duration="0.5dur", start=3, multiple=2)
    assert trained(TinyTokens(), [aspect], 4)[1] == trained(Cut(), (), 4)[1]


def test_nothing_is_cut_in_evaluation():
    _, weave = build(TinyTokens(), [SeqLengthWarmup()])
    assert weave.advises("batch")
    assert not weave.advises("evaluate")
    assert not weave.advises("forward")

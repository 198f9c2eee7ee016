"""A task's `collate` makes batches of rows of any length, as a function of the rows."""

import random

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.group import RANKS, Group, verdict
from raytrain_plus import configure
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import evaluation_parts, load_step_part
from raytrain_plus.task import Task, TaskError

WORDS, ROWS = 11, 60


def sentences():
    generator = np.random.default_rng(3)
    rows = [generator.integers(1, WORDS, generator.integers(1, 9)).tolist() for _ in range(ROWS)]
    return pa.table({"tokens": rows, "label": [len(row) % 2 for row in rows]})


class Padded(Task):
    """Classifies sentences, which are padded with 0."""

    def model(self):
        return nn.Sequential(nn.Embedding(WORDS, 6, padding_idx=0), nn.Linear(6, 2))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.05)

    def collate(self, rows):
        tokens = pad_sequence([row["tokens"] for row in rows], batch_first=True)
        return {
            "tokens": tokens,
            "mask": (tokens != 0).float(),
            "label": torch.stack([row["label"] for row in rows]),
        }

    def forward(self, model, batch):
        outputs = model(batch["tokens"]) * batch["mask"][..., None]
        return outputs.sum(1) / batch["mask"].sum(1, keepdim=True)

    def loss(self, outputs, batch):
        return functional.cross_entropy(outputs, batch["label"], reduction="none")


def opened(task=None, table=None):
    return configure.open_for(task or Padded(), sentences() if table is None else table, "data")


def test_parts_are_padded_to_their_own_longest_row():
    source = opened()
    order = source.order(RANKS, 17, 3)
    widths = set()
    for step in range(5):
        made = load_step_part(source, order, step, 1, part_rows=3, steps=5)
        assert (made["mask"].sum(1) > 0).all()
        assert made["mask"].sum(1).max() == made["tokens"].shape[1]
        widths.add(made["tokens"].shape[1])
    assert len(widths) > 1
    seen = [part["label"] for part in evaluation_parts(source, source.plain_order(2), 7, 1)]
    assert sum(map(len, seen)) == ROWS // 2


def test_a_padded_run_has_equal_bits_anywhere():
    source = opened()
    order = source.order(RANKS, 17, 3)

    def part(step, rank):
        return load_step_part(source, order, step, rank, part_rows=3, steps=5)

    assert verdict(lambda: Group(Padded, part), steps=2) == "equal"


def collating(function):
    return type("Case", (Padded,), {"collate": function})()


def shuffled(_, rows):
    return Padded().collate(random.sample(list(rows), len(rows)))


def dropping(self, rows):
    made = Padded.collate(self, rows)
    made["tokens"] += torch.rand(made["tokens"].shape).round().long()
    return made


class Counting(Padded):
    calls = 0

    def collate(self, rows):
        Counting.calls += 1
        return {**super().collate(rows), "calls": torch.full((len(rows),), Counting.calls)}


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (collating(shuffled), r"task.collate\(\) draws random numbers, .* draw them in forward"),
        (collating(dropping), r"task.collate\(\) draws random numbers"),
        (Counting(), r"makes another column 'calls' of the same rows"),
    ],
)
def test_a_collate_that_is_no_function_of_its_rows_is_refused(task, said):
    with pytest.raises(TaskError, match=said):
        configure.probe(opened(task), 4)
    configure.probe(opened(), 4)  # the negative control


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda *_: None, r"collate\(\) returns nothing for 1 rows, the first of them row 1"),
        (lambda *_: {}, r"returns dict \{\} for"),
        (lambda *_: {"tokens": torch.ones(7)}, r"column 'tokens', which is of 7 rows"),
        (lambda *_: {"tokens": 3}, r"column 'tokens', which is no list and no tensor of rows"),
        (lambda _, rows: {"tokens": rows[7]}, r"collate\(\) fails on 1 rows.*IndexError"),
    ],
)
def test_a_collate_that_returns_something_else_is_refused_with_its_rows(function, said):
    with pytest.raises(DataError, match=said):
        opened(collating(function))


def test_columns_are_those_that_collate_makes():
    class Checked(Padded):
        columns = ("tokens", "label")
        tokens = "tokens"

    task = Checked()
    counted = configure.clock(
        opened(task),
        task,
        duration="480tok",
        evaluate_every="1ep",
        batch_size=6,
        logical_ranks=2,
    )
    lengths = [len(row) for row in sentences()["tokens"].to_pylist()]
    assert counted.tokens_per_sample == pytest.approx(sum(lengths) / ROWS)  # without padding

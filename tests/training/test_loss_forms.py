"""Losses per token, means over a part, and what an evaluation averages."""

import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.group import RANKS, Group, verdict
from raytrain_plus.algorithms import AspectError
from raytrain_plus.algorithms.selective_backprop import SelectiveBackprop
from raytrain_plus.task import Task, TaskError
from raytrain_plus.training.evaluation import measures_anything
from raytrain_plus.training.losses import per_sample
from tests.training.small_tasks import CLASSES, FEATURES, PART, Plain, loop_alone, part, run
from tests.training.test_evaluation import SPREADS, evaluate

LENGTH = 4


class Tokens(Plain):
    """A class for each token; tokens with the label -100 are padding."""

    def model(self):
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, LENGTH * CLASSES))

    def forward(self, model, batch):
        return model(batch["x"]).view(-1, LENGTH, CLASSES)

    def loss(self, outputs, batch):
        losses = functional.cross_entropy(outputs.mT, batch["label"], reduction="none")
        return losses, batch["label"] != self.ignore_index


def tokens(step, rank):
    """Return a part with padding; logical rank 2 has only that in the first row, 3 in all rows."""
    made = part(step, rank)
    generator = torch.Generator().manual_seed(step * 100 + rank)
    label = torch.randint(0, CLASSES, (PART, LENGTH), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = -100
    label[: {2: 1, 3: PART}.get(rank, 0)] = -100
    return {**made, "label": label}


def whole(batches):
    return {name: torch.cat([one[name] for one in batches]) for name in batches[0]}


def after_one_step(task, batches):
    """Train one step on one worker; return the loss and the weights."""
    loop = loop_alone(task)
    result = loop.run_step(batches)
    return result.loss, [p.detach().clone() for p in loop.replica.model.parameters()]


def by_hand(task, mean):
    """Train one step with plain PyTorch on a mean over the whole batch."""
    model = loop_alone(task).replica.model
    optimizer = task.optimizer(model)
    loss = mean(model)
    loss.backward()
    optimizer.step()
    return loss.item(), list(model.parameters())


def test_a_loss_per_token_is_the_mean_over_all_tokens_of_the_batch():
    batches = [tokens(0, rank) for rank in range(RANKS)]
    batch = {name: torch.cat([one[name] for one in batches]) for name in batches[0]}
    loss, weights = after_one_step(Tokens(), [dict(one) for one in batches])

    def mean(model):
        return functional.cross_entropy(Tokens().forward(model, batch).mT, batch["label"])

    expected, theirs = by_hand(Tokens(), mean)
    assert loss == pytest.approx(expected, rel=1e-6)
    for one, other in zip(weights, theirs, strict=True):
        torch.testing.assert_close(one, other)

    class PerSample(Tokens):
        def loss(self, outputs, batch):
            losses, counts = super().loss(outputs, batch)
            return losses.sum(1) / counts.sum(1).clamp(min=1)

    assert after_one_step(PerSample(), batches)[0] != pytest.approx(expected, rel=1e-2)  # control
    assert verdict(lambda: Group(Tokens, tokens), steps=2) == "equal"


class Mean(Plain):
    def loss(self, outputs, batch):
        return functional.cross_entropy(outputs, batch["label"])


def test_a_mean_counts_as_the_samples_of_its_part():
    batches = [part(0, rank) for rank in range(RANKS)]
    loss, weights = after_one_step(Mean(), [dict(one) for one in batches])
    expected, theirs = after_one_step(Plain(), batches)
    assert loss == pytest.approx(expected, rel=1e-6)
    for one, other in zip(weights, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert verdict(lambda: Group(Mean, part), steps=2) == "equal"


class MeanOfTokens(Tokens):
    """As models of transformers return it: the mean over the part's tokens."""

    def loss(self, outputs, batch):
        counts = (batch["label"] != -100).sum()
        mean = functional.cross_entropy(outputs.mT, batch["label"], reduction="sum")
        return mean / counts.clamp(min=1), counts


def test_a_mean_with_a_weight_counts_as_that_weight():
    batches = [tokens(0, rank) for rank in range(RANKS)]
    loss, _ = after_one_step(MeanOfTokens(), [dict(one) for one in batches])
    assert loss == pytest.approx(after_one_step(Tokens(), batches)[0], rel=1e-6)
    assert verdict(lambda: Group(MeanOfTokens, tokens), steps=1) == "equal"


class Contrastive(Plain):
    """Compares the samples of a part with each other."""

    def loss(self, outputs, batch):
        del batch
        scores = functional.normalize(outputs) @ functional.normalize(outputs.flip(1)).T
        return functional.cross_entropy(scores, torch.arange(len(scores)))


def test_a_contrastive_loss_depends_on_logical_ranks_and_never_on_workers():
    assert verdict(lambda: Group(Contrastive, part), steps=2) == "equal"
    rows = {name: torch.cat([part(0, rank)[name] for rank in range(RANKS)]) for name in part(0, 0)}
    halves = [{name: column.chunk(2)[i] for name, column in rows.items()} for i in range(2)]
    four = loop_alone(Contrastive()).run_step([part(0, rank) for rank in range(RANKS)])
    two = loop_alone(Contrastive(), ranks=2).run_step(halves)
    assert two.loss != pytest.approx(four.loss, rel=1e-3)


def test_samples_cannot_be_chosen_by_one_number():
    for how in ("reuse", "score"):
        loop = loop_alone(Mean(), algorithms=[SelectiveBackprop(how=how, start="0dur")])
        with pytest.raises(AspectError, match="SelectiveBackprop chooses samples by their losses"):
            run(loop, 1)


def test_weights_of_narrow_types_are_summed_exactly():
    losses = torch.rand(2, 999)
    _, weights = per_sample((losses, torch.ones(2, 999, dtype=torch.bfloat16)), {"x": losses})
    assert weights.tolist() == [999, 999]


# -- evaluation


class Measuring(Task):
    """Measures the loss and other means of a table with columns `x` and `label`."""

    columns = ("x", "label")

    def model(self):
        return nn.Identity()

    def forward(self, model, batch):
        return model(batch["x"])

    def loss(self, outputs, batch):
        return (outputs - batch["label"]) ** 2, batch["label"] % 3


class Several(Measuring):
    evaluate_loss = True

    def measure(self, outputs, batch):
        return {
            "count": 1,
            "val/x": outputs,
            "mean": outputs.mean(),
            "odd": (outputs, batch["label"] % 2),
            "right": batch["label"] > 4,
        }


def rows(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    label = torch.arange(n, dtype=torch.float32)
    return x, label, pa.table({"x": x.numpy(), "label": label.numpy()})


@pytest.mark.parametrize("n", [7, 64])
def test_an_evaluation_averages_over_all_samples_with_equal_bits_anywhere(n):
    x, label, table = rows(n)
    found = [
        values
        for spread in SPREADS
        if spread[-1].stop == 4
        for values in evaluate(Several(), table, spread)
    ]
    assert all(values == found[0] for values in found)
    weights = label % 3
    expected = {
        "evaluation_loss": (((x - label) ** 2) * weights).sum() / weights.sum(),
        "count": 1.0,
        "val/x": x.mean(),
        "mean": x.mean(),
        "odd": x[1::2].mean(),
        "right": (label > 4).float().mean(),
    }
    assert found[0] == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-5)


def test_the_loss_is_measured_where_nothing_else_is():
    table = rows(9)[2]

    def names(**attributes):
        return sorted(evaluate(type("Case", (Measuring,), attributes)(), table, SPREADS[1])[0])

    measure = Several.measure
    assert names() == ["evaluation_loss"]
    assert not measures_anything(type("Silent", (Measuring,), {"evaluate_loss": False})())
    assert "evaluation_loss" not in names(measure=measure)
    assert "evaluation_loss" in names(measure=measure, evaluate_loss=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda x: x[1:], r"task.measure\(\)\['x'\] must return one number per sample"),
        (lambda _: "much", r"gave a str"),
    ],
)
def test_what_cannot_be_averaged_is_refused(value, said):
    class Wrong(Measuring):
        def measure(self, outputs, batch):
            del batch
            return {"x": value(outputs)}

    with pytest.raises(TaskError, match=said):
        evaluate(Wrong(), rows(9)[2], SPREADS[1])

"""Samples count by their weights, and parameters without a gradient count as zero."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import Aspect, SelectiveBackprop
from raytrain_plus.seeds import seed_for
from raytrain_plus.task import Task
from raytrain_plus.training.loop import LossError
from tests.training.small_tasks import (
    CLASSES,
    FEATURES,
    PART,
    SEED,
    Branching,
    Plain,
    everything,
    loop_alone,
    make_loop,
    parameters,
    part,
    run,
)
from tests.training.wires import Network, bits

RANKS = 4


def weighting(weights):
    """Return an aspect that gives each sample a weight."""

    def loss(_, step):
        yield
        step.weights = weights(step)

    return type("Weighting", (Aspect,), {"loss": loss})()


def test_samples_count_by_their_weights():
    def weights(step):
        kept = torch.zeros(PART)
        kept[: step.logical_rank] = 2.0  # none of rank 0, one of rank 1, and so on
        return kept

    loop = loop_alone(Plain(), algorithms=[weighting(weights)])
    start = [p.detach().clone() for p in parameters(loop)]
    result = run(loop, 1)[0]

    torch.manual_seed(seed_for(SEED, "model"))
    model = Plain().model()
    kept = [{k: v[:rank] for k, v in part(0, rank).items()} for rank in range(RANKS)]
    batch = {key: torch.cat([p[key] for p in kept]) for key in kept[0]}
    loss = functional.cross_entropy(model(batch["x"]), batch["label"])
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for p, before, plain in zip(parameters(loop), start, model.parameters(), strict=True):
        torch.testing.assert_close(p, before - 0.1 * 1.9 * plain.grad)  # Nesterov's first step

    unweighted = run(loop_alone(Plain()), 1)[0]
    assert unweighted.loss != pytest.approx(loss.item(), rel=1e-3)


def test_weights_of_one_equal_no_weights():
    weighted = loop_alone(Plain(), algorithms=[weighting(lambda _: torch.ones(PART))])
    plain = loop_alone(Plain())
    assert run(weighted, 2)[1].loss == run(plain, 2)[1].loss
    assert weighted.replica.digest() == plain.replica.digest()


def test_a_step_without_any_weight_is_an_error():
    loop = loop_alone(Plain(), algorithms=[weighting(lambda _: torch.zeros(PART))])
    before = everything(loop)
    with pytest.raises(
        LossError, match=r"no sample counts in step 1: .*state after step 0 is kept"
    ):
        run(loop, 1)
    assert everything(loop) == before


class Tokens(Plain):
    """Samples of three to eight tokens, some of which do not count."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def model(self):
        return nn.Linear(FEATURES, 8 * CLASSES)

    def parts(self, outputs, batch):
        """Return each token's loss, zero if it does not count, and which tokens count."""
        label = (batch["label"][:, None] + torch.arange(8)) % CLASSES
        label[(torch.arange(8) >= 3 + (batch["x"][:, :1] * 8).long() % 6)] = -100
        label[batch["x"][:, 1] > 0.8] = -100  # a sample without any token
        losses = functional.cross_entropy(
            outputs.view(-1, 8, CLASSES).transpose(1, 2), label, reduction="none"
        )
        return losses, label != -100

    def loss(self, outputs, batch):
        losses, counts = self.parts(outputs, batch)
        tokens = counts.sum(1)
        means = losses.sum(1) / tokens.clamp(min=1)
        return {"mean": means, "weighted": (means, tokens), "halves": (means, tokens.half())}[
            self.form
        ]


def mean_over_tokens():
    """Return the first step's loss and gradients in plain PyTorch."""
    torch.manual_seed(seed_for(SEED, "model"))
    task = Tokens("mean")
    model = task.model()
    batches = [part(0, rank) for rank in range(RANKS)]
    batch = {key: torch.cat([one[key] for one in batches]) for key in batches[0]}
    losses, counts = task.parts(model(batch["x"]), batch)
    assert 0 in counts.sum(1)
    assert len(counts.sum(1).unique()) > 3
    loss = losses[counts].mean()
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("form", ["weighted", "halves"])
def test_a_task_can_average_over_tokens(form):
    loop = loop_alone(Tokens(form))
    start = [p.detach().clone() for p in parameters(loop)]
    expected, gradients = mean_over_tokens()
    assert run(loop, 1)[0].loss == pytest.approx(expected, rel=1e-5)
    for p, before, gradient in zip(parameters(loop), start, gradients, strict=True):
        torch.testing.assert_close(p, before - 0.1 * 1.9 * gradient)  # Nesterov's first step
    unweighted = run(loop_alone(Tokens("mean")), 1)[0].loss
    assert unweighted != pytest.approx(expected, rel=1e-3)  # the control


@pytest.mark.parametrize("workers", [[4], [1, 3], [2, 2], [1, 1, 1, 1]])
@pytest.mark.parametrize(
    "algorithms",
    [
        [],
        [SelectiveBackprop(start="0ba", how="reuse")],
        [SelectiveBackprop(start="0ba", how="score")],
    ],
    ids=["plain", "reuse", "score"],
)
def test_weights_of_the_task_give_equal_bits_on_any_number_of_workers(workers, algorithms):
    alone = loop_alone(Tokens("weighted"), algorithms=algorithms)
    expected = [result.loss for result in run(alone, 3)]
    starts = [0, *itertools.accumulate(workers)]
    ranges = [range(*pair) for pair in itertools.pairwise(starts)]
    network = Network(len(workers))
    loops = [
        make_loop(Tokens("weighted"), ranges, network.wire(i), algorithms=algorithms)
        for i in range(len(workers))
    ]
    losses = network.run(
        lambda wire: [r.loss for r in run(loops[wire.index], 3, ranges[wire.index])]
    )
    assert losses == [expected] * len(workers)
    assert {loop.replica.digest() for loop in loops} == {alone.replica.digest()}


def test_an_aspects_weights_multiply_the_tasks():
    def weights(step):
        return step.weights * torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0])

    loop = loop_alone(Tokens("weighted"), algorithms=[weighting(weights)])
    total, count = 0.0, 0.0
    torch.manual_seed(seed_for(SEED, "model"))
    task = Tokens("weighted")
    model = task.model()
    for rank in range(RANKS):
        batch = part(0, rank)
        losses, tokens = task.loss(model(batch["x"]), batch)
        both = tokens * torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0])
        total, count = total + (losses * both).sum().item(), count + both.sum().item()
    assert run(loop, 1)[0].loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("how", ["reuse", "score"])
def test_samples_of_weight_zero_are_selected_only_if_no_others_are_left(how):
    """Two of five are kept, and two of five have a label."""

    class Rare(Plain):
        def loss(self, outputs, batch):
            losses = super().loss(outputs, batch)
            counts = torch.zeros(len(losses))
            counts[batch["x"][:, 0].topk(2 if len(losses) == PART else len(losses)).indices] = 1.0
            return losses, counts

    selects = SelectiveBackprop(start="0ba", keep=0.4, beta=0.0, how=how)
    with_all = run(loop_alone(Rare()), 1)[0].loss
    assert run(loop_alone(Rare(), algorithms=[selects]), 1)[0].loss == with_all


def test_parameters_without_a_gradient_count_as_zero():
    used = [bool(part(0, rank)["x"].abs().max() > 4) for rank in range(RANKS)]
    assert set(used) == {True, False}
    loop = loop_alone(Branching())
    model = loop.replica.model
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    total = torch.zeros_like(model.sometimes.weight)
    for rank in range(RANKS):
        batch = part(0, rank)
        loss = loop._task.loss(loop._task.forward(model, batch), batch).sum()
        (found,) = torch.autograd.grad(loss, [model.sometimes.weight], allow_unused=True)
        total += 0 if found is None else found
    run(loop, 1)
    expected = start["sometimes.weight"] - 0.1 * 1.9 * total / (RANKS * PART)
    torch.testing.assert_close(model.sometimes.weight, expected)
    assert bits(model.never.weight) == bits(start["never.weight"])
    assert bits(model.base.weight) != bits(start["base.weight"])


class Bags(Task):
    """Rows with any number of tokens."""

    tokens = "ids"

    def model(self):
        return nn.EmbeddingBag(9, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def forward(self, model, batch):
        return torch.cat([model(ids[None]) for ids in batch["ids"]])

    def loss(self, outputs, batch):
        return outputs[:, 0] ** 2, torch.tensor(
            [1.0 if len(ids) < 4 else 0.0 for ids in batch["ids"]]
        )


def test_tokens_of_rows_of_any_length_are_counted_as_they_are_trained_on():
    loop = loop_alone(Bags(), ranks=2)
    lengths = [[1, 3, 5], [2, 2, 4]]  # the last token of each row does not count
    loop.run_step([{"ids": [torch.arange(n) for n in part]} for part in lengths])
    assert (loop.replica.samples, loop.replica.tokens) == (4, 8)

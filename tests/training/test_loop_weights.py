"""Samples count as much as they weigh, and parameters that get no gradient count as zero."""

import pytest
import torch
from small_tasks import PART, SEED, Branching, Plain, everything, loop_alone, parameters, part, run
from torch.nn import functional
from wires import bits

from raytrain_plus.algorithms import Aspect
from raytrain_plus.seeds import seed_for
from raytrain_plus.training.loop import LossError

RANKS = 4


def weighting(weights):
    """Return an aspect that gives each sample a weight."""

    def loss(_, step):
        yield
        step.weights = weights(step)

    return type("Weighting", (Aspect,), {"loss": loss})()


def test_samples_count_as_much_as_they_weigh():
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


def test_all_weights_one_are_no_weights():
    weighted = loop_alone(Plain(), algorithms=[weighting(lambda _: torch.ones(PART))])
    plain = loop_alone(Plain())
    assert run(weighted, 2)[1].loss == run(plain, 2)[1].loss
    assert weighted.replica.digest() == plain.replica.digest()


def test_a_step_in_which_nothing_counts_is_an_error():
    loop = loop_alone(Plain(), algorithms=[weighting(lambda _: torch.zeros(PART))])
    before = everything(loop)
    with pytest.raises(LossError, match="loss is nan at step 1"):
        run(loop, 1)
    assert everything(loop) == before


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

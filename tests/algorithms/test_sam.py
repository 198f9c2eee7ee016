"""SAM: the gradient at the worst weights nearby; the weights are restored."""

import copy

import pydantic
import pytest
import torch
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.sam import SAM, perturbed
from raytrain_plus.seeds import seed_for, seed_global_generators
from tests.algorithms.tiny import PART, RANKS, SEED, TinyImages, alone, build, trained


def begun(*aspects):
    loop, weave = build(TinyImages(), aspects)
    loop.begin_generation([range(RANKS)], alone())
    return loop, weave


def by_hand(rho, step=0, second_seed=None):
    """Do the first step by the paper's algorithm, in plain PyTorch."""
    model = begun()[0].replica.model.train()
    optimizer = TinyImages().optimizer(model)
    sums = [torch.zeros_like(p) for p in model.parameters()]
    losses = 0.0
    for rank in range(RANKS):
        near, batch = copy.deepcopy(model), TinyImages.part(step, rank)

        def loss(near=near, batch=batch):
            return functional.cross_entropy(near(batch["image"]), batch["label"], reduction="sum")

        seed = seed_for(SEED, "step", step, rank)
        seed_global_generators(seed)
        gradients = torch.autograd.grad(loss(), list(near.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(near.parameters(), gradients, strict=True):
                parameter.add_(rho * gradient / norm)
        for module in near.modules():  # the second pass starts from the same statistics
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        seed_global_generators(seed if second_seed is None else second_seed)
        worst = loss()
        losses += worst.item()
        for total, gradient in zip(
            sums, torch.autograd.grad(worst, list(near.parameters())), strict=True
        ):
            total.add_(gradient)
    for parameter, total in zip(model.parameters(), sums, strict=True):
        parameter.grad = total / (PART * RANKS)
    optimizer.step()
    return [p.detach() for p in model.parameters()], losses / (PART * RANKS)


def close(left, right):
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(left, right, strict=True))


def test_a_step_is_that_of_the_paper_with_the_same_dropout_in_both_passes():
    loop, losses = trained(TinyImages(), [SAM(rho=0.5)], steps=1)
    ours = list(loop.replica.model.parameters())
    theirs, loss = by_hand(0.5)
    assert close(ours, theirs)
    assert losses == pytest.approx([loss], rel=1e-4)
    # The controls: other masks in the second pass, no perturbation.
    assert not close(ours, by_hand(0.5, second_seed=3)[0])
    assert not close(ours, by_hand(0.0)[0])


def test_both_passes_draw_the_same_dropout():
    masks = []

    class Watch(Aspect):
        def fit(self, step):
            step.model.dropout.register_forward_hook(
                lambda _, given, out: masks.append((out == 0) & (given[0] != 0))
            )
            yield

    trained(TinyImages(), [SAM(), Watch()], steps=1)
    assert len(masks) == 2 * RANKS
    assert all(torch.equal(a, b) for a, b in zip(masks[::2], masks[1::2], strict=True))
    assert not torch.equal(masks[0], masks[2])  # the control: ranks differ


def test_only_every_interval_th_step_is_perturbed():
    _, plain = trained(TinyImages(), steps=2)
    loop, weave = begun(SAM(rho=0.5, interval=2))
    for number in range(4):
        loop.run_step([TinyImages.part(number, r) for r in range(RANKS)])
        cost = weave.spent()["SAM"]
        assert (cost["acted"], cost["idle"]) == ((RANKS, 0) if number % 2 == 0 else (0, RANKS))
    assert trained(TinyImages(), [SAM(rho=0.5)], steps=2)[1][0] > plain[0]


def test_a_radius_of_zero_has_no_effect():
    plain, _ = trained(TinyImages())
    none, _ = trained(TinyImages(), [SAM(rho=0)])
    some, _ = trained(TinyImages(), [SAM(rho=0.05)])
    assert none.replica.digest() == plain.replica.digest() != some.replica.digest()


def test_a_step_that_fails_leaves_the_weights():
    class Fragile(Aspect):
        def backward(self, step):
            if step.number == 1 and step.logical_rank == 2:
                raise RuntimeError("lost")
            yield

    loop, _ = begun(SAM(), Fragile())
    loop.run_step([TinyImages.part(0, r) for r in range(RANKS)])
    before = loop.replica.digest()
    with pytest.raises(RuntimeError, match="lost"):
        loop.run_step([TinyImages.part(1, r) for r in range(RANKS)])
    assert loop.replica.digest() == before


def test_the_move_has_the_given_length_and_direction_and_is_undone():
    generator = torch.Generator().manual_seed(2)
    parameters = [torch.randn(shape, generator=generator) for shape in [(3, 4), (5,), (2,)]]
    gradients = [torch.randn((3, 4), generator=generator), None, torch.tensor([3.0, -1.0])]
    before = [p.clone() for p in parameters]
    with perturbed(parameters, gradients, 0.3):
        moves = [p - b for p, b in zip(parameters, before, strict=True)]
        assert torch.equal(moves[1], torch.zeros(5))
        length = torch.cat([m.flatten() for m in moves]).norm()
        assert length == pytest.approx(0.3, rel=1e-5)
        ratio = moves[0] / gradients[0]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-5)
        assert ratio.mean() > 0
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_a_gradient_of_zero_moves_nothing():
    parameter = torch.ones(3)
    with perturbed([parameter], [torch.zeros(3)], 0.1):
        assert torch.equal(parameter, torch.ones(3))


@pytest.mark.parametrize("wrong", [{"rho": -1}, {"interval": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        SAM(**wrong)

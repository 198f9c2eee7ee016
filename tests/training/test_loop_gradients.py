"""Parameters that no logical rank uses stay; a gradient that is not finite is not applied."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import GradientClipping
from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.seeds import seed_for
from raytrain_plus.training import exchange, reduction, step_header
from raytrain_plus.training.loop import GradientError
from tests.training.small_tasks import (
    CLASSES,
    FEATURES,
    PART,
    SEED,
    Plain,
    everything,
    loop_alone,
    make_loop,
)
from tests.training.small_tasks import part as batch_of
from tests.training.wires import Network, bits

RANKS = 6
COUNTS = (1, 2, 3, 6)


class Experts(Plain):
    """One layer is never used, one of three in turn, one by a single logical rank only."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.never = nn.Linear(FEATURES, CLASSES), nn.Linear(2, 2)
            self.experts = nn.ModuleList(nn.Linear(FEATURES, CLASSES) for _ in range(3))
            self.rare = nn.Linear(FEATURES, CLASSES)
            self.register_buffer("steps", torch.tensor(0))

        def forward(self, x, *, rare):
            k = int(self.steps) % 3
            self.steps += 1
            out = self.used(x) + self.experts[k](x)
            return out + self.rare(x) if rare else out

    def model(self):
        return self.Model()

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)

    def forward(self, model, batch):
        return model(batch["x"], rare=bool(batch["rare"]))


def part(step, rank):
    """Return a part; the rare layer is used by the last logical rank of every other step."""
    return batch_of(step, rank) | {"rare": torch.tensor(rank == RANKS - 1 and step % 2 == 1)}


def train(task, workers, steps, algorithms=()):
    """Return the loops of some workers after some steps."""
    ranges = [a.ranks for a in assign(RANKS, [WorkerSpeed(f"w{i}") for i in range(workers)])]
    network = Network(workers)
    loops = [
        make_loop(task, ranges, network.wire(i), algorithms=algorithms) for i in range(workers)
    ]

    def one(wire):
        torch.set_num_threads(1)
        for step in range(steps):
            loops[wire.index].run_step([part(step, r) for r in ranges[wire.index]])

    network.run(one)
    for loop in loops:
        loop.end_generation()
    return loops


def by_hand(task, steps):
    """Train with plain PyTorch: one forward for each part, one update for all."""
    torch.manual_seed(seed_for(SEED, "model"))
    model = task.model()
    optimizer = task.optimizer(model)
    for step in range(steps):
        optimizer.zero_grad()
        for rank in range(RANKS):
            model.steps.fill_(step)
            batch = part(step, rank)
            losses = functional.cross_entropy(
                task.forward(model, batch), batch["label"], reduction="sum"
            )
            (losses / (RANKS * PART)).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("cut", ["one bucket", "many buckets", "during the backward"])
def test_a_parameter_that_no_rank_uses_is_left_unchanged(cut, monkeypatch):
    if cut != "one bucket":
        monkeypatch.setattr(reduction, "_BUCKET_BYTES", 1)
    if cut == "during the backward":
        monkeypatch.setattr(exchange, "_OVERLAP_BYTES", 0)
    model, optimizer = by_hand(Experts(), 5)
    digests = set()
    for workers in COUNTS:
        loops = train(Experts(), workers, 5)
        digests |= {loop.replica.digest() for loop in loops}
        replica = loops[0].replica
        theirs = dict(model.named_parameters())
        for name, ours in replica.parameters.items():
            torch.testing.assert_close(ours, theirs[name])
            steps = replica.optimizer.state.get(ours, {}).get("step")
            assert steps == optimizer.state.get(theirs[name], {}).get("step"), name
        torch.manual_seed(seed_for(SEED, "model"))
        assert bits(replica.model.never.weight) == bits(Experts().model().never.weight)
    assert len(digests) == 1


def test_zero_gradients_instead_of_none_would_change_unused_parameters(monkeypatch):
    """The negative control: decay and momentum move a parameter whose gradient is zero."""
    whole = reduction.Reduction.send

    def send(self, b, partials, present):
        whole(self, b, partials, [True] * len(present))

    monkeypatch.setattr(reduction.Reduction, "send", send)
    moved = train(Experts(), 1, 1)[0].replica.model.never.weight
    torch.manual_seed(seed_for(SEED, "model"))
    assert bits(moved) != bits(Experts().model().never.weight)


class Rooted(Plain):
    """One part has a gradient that is not finite, once; all losses are finite."""

    def __init__(self):
        super().__init__("AdamW")

    def forward(self, model, batch):
        outputs = model(batch["x"])
        if bits(batch["x"]) == bits(batch_of(2, 4)["x"]):
            outputs = outputs + 0 * (model[2].weight * 0).sum().sqrt()
        return outputs


@pytest.mark.parametrize("algorithms", [(), (GradientClipping(norm=0.1),)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_gradient_that_is_not_finite_is_not_applied(workers, algorithms):
    ranges = [a.ranks for a in assign(RANKS, [WorkerSpeed(f"w{i}") for i in range(workers)])]
    network = Network(workers)
    task = Rooted()
    loops = [
        make_loop(task, ranges, network.wire(i), algorithms=algorithms) for i in range(workers)
    ]

    def one(wire):
        torch.set_num_threads(1)
        loop = loops[wire.index]
        for step in range(2):
            loop.run_step([batch_of(step, r) for r in ranges[wire.index]])
        before = everything(loop)
        with pytest.raises(GradientError, match=r"'2.weight' is not finite at step 3.*2 is kept"):
            loop.run_step([batch_of(2, r) for r in ranges[wire.index]])
        assert everything(loop) == before

    network.run(one)
    assert len({loop.replica.digest() for loop in loops}) == 1


def test_without_the_check_the_weights_are_lost(monkeypatch):
    """The negative control."""
    loop = loop_alone(Rooted(), RANKS)
    monkeypatch.setattr(loop, "_check_gradients", lambda _: None)
    for step in range(3):
        loop.run_step([batch_of(step, r) for r in range(RANKS)])
    assert loop.replica.model[2].weight.isnan().any()


def test_an_overflowing_check_sum_is_not_an_overflowing_gradient():
    like = [torch.zeros(100)]
    network = Network(1)
    one = reduction.Reduction(like, [], [range(1)], network.wire(0))
    rows = np.ones((1, step_header.HEADER_WIDTH))
    reduced = one.run([[torch.full((100,), 3e37)]], rows, b"")
    assert not reduced.finite
    assert reduced.gradients[0].isfinite().all()

    loop = loop_alone(Plain(), 1)
    loop._check_gradients(reduced._replace(gradients=[*map(torch.zeros_like, loop._parameters)]))
    assert one.run([[torch.full((100,), 3e35)]], rows, b"").finite  # the control

"""Rotary tables that transformers caches by length give one function on any number of workers."""

import copy

import pytest
import torch

from raytrain_plus.algorithms import Weave
from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.seeds import seed_for
from raytrain_plus.task import Task
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.purity import check_function
from raytrain_plus.training.state import Replica
from tests.algorithms.side import import_transformers
from tests.training.small_tasks import CLOCK, SEED
from tests.training.wires import Network

transformers = import_transformers()

RANKS, ROWS, CONTEXT = 4, 2, 8
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


class Rotary(Task):
    """A tiny Llama whose sequences are sometimes longer than its context."""

    def __init__(self, kind="dynamic"):
        self.kind = kind

    def model(self):
        return transformers.LlamaModel(
            transformers.LlamaConfig(
                **SIZES,
                max_position_embeddings=CONTEXT,
                rope_scaling={"rope_type": self.kind, "factor": 4.0},
            )
        )

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def forward(self, model, batch):
        return model(input_ids=batch["ids"]).last_hidden_state

    def loss(self, outputs, batch):
        return (outputs * batch["ids"][..., None]).square().mean((1, 2)) / 100


def batch_of(step, rank):
    length = (5, 20, 12, 30)[(step + rank) % 4]
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {"ids": torch.randint(0, 50, (ROWS, length), generator=generator)}


def train(workers, task, *, steps=3):
    ranges = [a.ranks for a in assign(RANKS, [WorkerSpeed(f"w{i}") for i in range(workers)])]
    network = Network(workers)
    loops = []
    for index in range(workers):
        replica = Replica.build(task, SEED, torch.device("cpu"), clock=CLOCK)
        loop = TrainingLoop(task, replica, Weave(()))
        check_function(loop, lambda: batch_of(0, 1))
        loop.begin_generation(ranges, network.wire(index))
        loops.append(loop)

    def one(wire):
        torch.set_num_threads(1)
        mine = ranges[wire.index]
        return [
            loops[wire.index].run_step([batch_of(s, r) for r in mine]).loss for s in range(steps)
        ]

    losses = network.run(one)[0]
    for loop in loops:
        loop.end_generation()
    return loops, losses


def by_hand(task, *, steps=3, fresh=True):
    """Train with plain PyTorch; each part has the tables of a new model."""
    torch.manual_seed(seed_for(SEED, "model"))
    model = task.model()
    optimizer = task.optimizer(model)
    tables = copy.deepcopy(model.rotary_emb)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for rank in range(RANKS):
            if fresh:
                model.rotary_emb = copy.deepcopy(tables)
            batch = batch_of(step, rank)
            loss = task.loss(task.forward(model, batch), batch).sum() / (RANKS * ROWS)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses


@pytest.mark.parametrize("kind", ["dynamic", "linear", "default"])
def test_a_llama_trains_the_same_function_on_any_number_of_workers(kind):
    task = Rotary(kind)
    if kind == "default":
        task.model = lambda: transformers.LlamaModel(transformers.LlamaConfig(**SIZES))
    expected = by_hand(task)
    digests = set()
    for workers in (1, 2, 3):
        loops, losses = train(workers, task)
        assert losses == pytest.approx(expected, rel=1e-5)
        digests |= {loop.replica.digest() for loop in loops}
        model = loops[0].replica.model
        assert torch.equal(model.rotary_emb.inv_freq, task.model().rotary_emb.inv_freq)
    assert len(digests) == 1
    seen_before = by_hand(task, fresh=False)  # the control: there is a table to restore
    assert (seen_before == expected) == (kind != "dynamic")

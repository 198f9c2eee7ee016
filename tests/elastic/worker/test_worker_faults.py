"""A fault does to a worker what its action says, and nothing else."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raytrain_plus.checkpoint.upload import Uploads
from raytrain_plus.elastic.worker import fault_injection as module
from raytrain_plus.elastic.worker.fault_injection import WorkerFaults
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.store import Store
from raytrain_plus.task import Task
from raytrain_plus.training.state import Replica


class Model(nn.Module):
    """Weights of several types and shapes, one of them empty."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Parameter(torch.ones(3, 2))
        self.narrow = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        self.single = nn.Parameter(torch.ones(()))
        self.nothing = nn.Parameter(torch.ones(0, 2))
        self.register_buffer("mean", torch.ones(4))


@dataclass(frozen=True)
class Frozen(Task):
    """A task whose attributes cannot be set."""

    def model(self):
        return Model()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, outputs, batch):
        return outputs - batch


def replica_of(task):
    return Replica.build(task, 17, torch.device("cpu"))


def bits_in(replica):
    """Return all bits of a replica's state, as one integer for each tensor."""
    return {
        name: int.from_bytes(t.detach().reshape(-1).view(torch.uint8).numpy().tobytes(), "little")
        for name, t in replica.tensors().items()
    }


@given(st.integers(0, 2**64 - 1))
def test_one_bit_of_one_weight_flips_and_flips_back(draw):
    replica = replica_of(Frozen())
    victim = WorkerFaults(Frozen(), replica, uploads=None)
    before = bits_in(replica)
    victim.flip_bit(draw)
    changes = {n: bits ^ before[n] for n, bits in bits_in(replica).items() if bits != before[n]}
    ((name, difference),) = changes.items()
    assert difference.bit_count() == 1
    assert name in ("model/wide", "model/narrow", "model/single")
    victim.flip_bit(draw)
    assert bits_in(replica) == before


def test_a_bit_that_flips_in_the_middle_of_a_step_is_not_noticed_by_autograd():
    replica = replica_of(Frozen())
    (weight,) = (p for p in replica.parameters.values() if p.shape == (3, 2))
    loss = sum(p.square().sum() for p in replica.parameters.values())
    for draw in range(8):
        WorkerFaults(Frozen(), replica, uploads=None).flip_bit(draw)
    loss.backward()
    assert not torch.equal(weight.grad, torch.full((3, 2), 2.0))  # but it counts


def test_every_bit_of_every_weight_can_be_hit():
    replica = replica_of(Frozen())
    victim, before, hit = WorkerFaults(Frozen(), replica, uploads=None), bits_in(replica), set()
    for draw in range(3 * 24 * 8):
        victim.flip_bit(draw)
        hit.update((n, bits ^ before[n]) for n, bits in bits_in(replica).items())
        victim.flip_bit(draw)
    assert len({(name, bit) for name, bit in hit if bit}) == 8 * (6 * 4 + 5 * 2 + 4)


def test_wrong_arithmetic_is_slightly_wrong_and_affects_no_other_task():
    task, other = Frozen(), Frozen()
    outputs, batch = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0])
    WorkerFaults(task, replica_of(task), uploads=None).miscompute()
    wrong, right = task.loss(outputs, batch), other.loss(outputs, batch)
    assert not torch.equal(wrong, right)
    assert torch.allclose(wrong, right, rtol=1e-2)


@dataclass(frozen=True)
class Weighted(Frozen):
    """Counts some samples more than others."""

    def loss(self, outputs, batch):
        return outputs - batch, batch


@pytest.mark.parametrize("kind", [Frozen, Weighted])
def test_the_next_gradient_is_nan_with_a_finite_loss_and_later_ones_are_right(kind):
    task, batch = kind(), torch.tensor([1.0, 2.0])
    WorkerFaults(task, replica_of(task), uploads=None).spoil_gradient()

    def computed(outputs):
        loss = task.loss(outputs, batch)
        return loss if kind is Frozen else loss[0]

    assert torch.equal(computed(torch.tensor([3.0, 5.0])), torch.tensor([2.0, 3.0]))  # evaluation
    gradients = []
    for _ in range(3):
        outputs = torch.tensor([3.0, 5.0], requires_grad=True)
        losses = computed(outputs)
        assert torch.equal(losses, torch.tensor([2.0, 3.0]))
        losses.sum().backward()
        gradients.append(outputs.grad)
    assert gradients[0].isnan().all()
    assert all(torch.equal(gradient, torch.ones(2)) for gradient in gradients[1:])


def test_a_store_is_out_of_reach_for_some_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    store = Store(tmp_path, {"auto_mkdir": True})
    uploads = Uploads(store, (), lambda _: None)
    WorkerFaults(Frozen(), replica_of(Frozen()), uploads).lose_store(5.0)
    with pytest.raises(StoreError, match=f"file://{tmp_path} could not be reached"):
        uploads.store.inside("checkpoint_00000001")
    now[0] += 5.0
    inside = uploads.store.inside("checkpoint_00000001")
    assert inside.url == store.inside("checkpoint_00000001").url
    assert inside.options == store.options
    inside.write("file", b"content")
    assert (tmp_path / "checkpoint_00000001" / "file").read_bytes() == b"content"

"""A failed step changes nothing: state, buffers and gradients are those before it."""

from functools import partial

import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import GradientClipping
from raytrain_plus.task import TaskError
from raytrain_plus.training import exchange, reduction
from raytrain_plus.training.loop import LossError
from tests.training.small_tasks import (
    PART,
    Normed,
    Plain,
    everything,
    loop_alone,
    make_loop,
    parameters,
    run,
)
from tests.training.wires import Network


class FailError(RuntimeError):
    pass


class Failing(Plain):
    """Fails in one place, once; some parameters have no optimizer that clears their gradients."""

    def __init__(self, place, rank=2):
        super().__init__("AdamW")
        self.place, self.rank, self.calls, self.armed = place, rank, 0, False

    def model(self):
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    def optimizer(self, model):
        return torch.optim.AdamW([*model[0].parameters(), *model[1].parameters()], lr=0.1)

    def fail(self, place):
        if self.armed and place == self.place and self.calls == self.rank:
            raise FailError(place)

    def forward(self, model, batch):
        hidden = model[:3](batch["x"])
        if self.armed and self.place == "backward" and self.calls == self.rank:
            hidden = FailingBackward.apply(hidden)  # the last layer has its gradients already
        outputs = model[3](hidden)
        self.fail("forward")
        return outputs

    def loss(self, outputs, batch):
        self.fail("loss")
        if self.armed and self.place == "nan" and self.calls == self.rank:
            outputs = outputs * torch.nan
        losses = super().loss(outputs, batch)
        if self.armed and self.place == "shape":
            losses = losses[1:]
        self.calls += 1
        return losses

    def schedule(self, progress):
        if self.armed and self.place == "schedule":
            raise FailError
        return 1.0 - progress


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx, grad):  # noqa: ARG004
        raise FailError("backward")


PHASES = ("enter forward", "enter backward", "enter exchange", "enter finish", "enter update")
PLACES = ("forward", "loss", "backward", "nan", "shape", "schedule", *PHASES)


def failing_loop(place, rank=2, make=loop_alone):
    """Return a task that fails, when armed, at its part `rank`; and its loop."""
    task = Failing(place, rank)

    def enter(phase):
        if task.armed and "enter " + phase == place and task.calls >= task.rank:
            raise FailError(place)

    return task, make(task, algorithms=[GradientClipping(norm=0.1)], enter=enter)


@pytest.mark.parametrize("place", PLACES)
def test_a_failed_step_changes_no_state(place):
    task, loop = failing_loop(place)
    run(loop, 2)
    before, digest = everything(loop), loop.replica.digest()
    assert not any(p.grad is not None for p in parameters(loop))
    task.armed, task.calls = True, 0
    with pytest.raises((FailError, LossError, TaskError)):
        run(loop, 1)
    assert everything(loop) == before
    assert loop.replica.digest() == digest

    task.armed = False
    undisturbed = failing_loop("nowhere")[1]
    run(undisturbed, 4)
    run(loop, 2)
    assert loop.replica.digest() == undisturbed.replica.digest()


def test_a_failed_step_changes_buffers_until_they_are_restored(monkeypatch):
    """The negative control: without restoring, the check above fails."""
    task, loop = failing_loop("loss")
    run(loop, 1)
    before = everything(loop)
    task.armed, task.calls, task.rank = True, 0, 0
    monkeypatch.setattr(loop.buffers, "restore", lambda: None)
    with pytest.raises(FailError):
        run(loop, 1)
    assert everything(loop) != before


def test_a_peer_lost_during_the_exchange_changes_no_state():
    network = Network(2)
    loop = make_loop(Normed(), [range(2), range(2, 4)], network.wire(0))
    before = everything(loop)
    network.cut()
    with pytest.raises(RuntimeError, match="waited for 1"):
        run(loop, 1, range(2))
    assert everything(loop) == before


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "place", ["forward", "loss", "backward", "enter backward", "enter exchange", "enter finish"]
)
def test_a_failure_of_one_worker_changes_no_workers_state(place, overlap, monkeypatch):
    if overlap:
        monkeypatch.setattr(exchange, "_OVERLAP_BYTES", 0)
        monkeypatch.setattr(reduction, "_BUCKET_BYTES", 1)
    ranges = [range(2), range(2, 4)]
    network = Network(2)
    workers = [
        failing_loop(place, rank=1, make=partial(make_loop, ranges=ranges, wire=network.wire(i)))
        for i in range(2)
    ]

    def train(wire, steps):
        run(workers[wire.index][1], steps, ranges[wire.index])

    network.run(partial(train, steps=2))
    before = [everything(loop) for _, loop in workers]
    task = workers[1][0]
    task.armed, task.calls = True, 0
    with pytest.raises(FailError):
        network.run(partial(train, steps=1))
    assert [everything(loop) for _, loop in workers] == before

    task.armed = False
    network = Network(2)
    for i, (_, loop) in enumerate(workers):
        loop.begin_generation(ranges, network.wire(i))
    network.run(partial(train, steps=2))
    undisturbed = failing_loop("nowhere")[1]
    run(undisturbed, 4)
    assert {loop.replica.digest() for _, loop in workers} == {undisturbed.replica.digest()}
    for _, loop in workers:
        loop.end_generation()


def test_a_failed_update_leaves_the_replica_marked_as_torn():
    loop = loop_alone(Plain())
    run(loop, 1)
    assert not loop.replica.torn

    def fail():
        raise FailError

    loop.replica.optimizer.step = fail
    with pytest.raises(FailError):
        run(loop, 1)
    assert loop.replica.torn
    assert loop.replica.step == 1


def test_a_loss_that_is_not_finite_names_step_and_ranks():
    task, loop = failing_loop("nan")
    run(loop, 2)
    task.armed, task.calls = True, 0
    message = r"loss is nan at step 3 \(logical ranks \[2\]\).*clip.*state after step 2 is kept"
    with pytest.raises(LossError, match=message):
        run(loop, 1)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (lambda losses: losses[:, None], rf"shape \({PART}, 1\).*take losses.squeeze\(1\)"),
        (lambda losses: losses[:, None].expand(-1, 4), r"take losses.mean\(1\), or return weights"),
        (lambda losses: losses[:, None, None].expand(-1, 4, 2), r"take losses.mean\(\(1, 2\)\)"),
        (lambda losses: losses.repeat(3), rf"shape \({3 * PART},\).*losses.view\({PART}, -1\)"),
        (lambda losses: losses[1:], rf"shape \({PART - 1},\).*keep one number for each"),
        (lambda losses: losses.tolist(), rf"gave a list of {PART}.*torch.stack"),
        (lambda losses: {"loss": losses}, "gave a dict of 1"),
        (lambda losses: losses.sum().item(), "gave a float: .*do not take item"),
        (lambda _: None, "gave None: does it end with `return`"),
        (lambda losses: losses.long(), "type torch.int64: losses are floating-point"),
        (lambda losses: losses.detach(), "do not depend on any trainable parameter"),
        (lambda losses: (losses,) * 3, "gave a tuple of 3"),
        (lambda losses: (losses.mean(), losses), "depend on no parameter"),
        (lambda losses: (losses[:, None], losses.detach()), r"as weights .*\(5, 1\)"),
        (lambda losses: (losses, 3.0), rf"weights a tensor of shape \({PART},\), and gave a float"),
        (lambda losses: (losses, losses[1:]), rf"one of shape \({PART - 1},\) and type"),
        (lambda losses: (losses, losses), "depend on no parameter.*detach"),
        (lambda losses: (losses, torch.arange(PART) - 1), "not negative, and weight 0 is -1"),
        (lambda losses: (losses, losses.detach() * torch.nan), "weight 0 is nan"),
        (lambda losses: (losses, torch.ones(PART, device="meta")), "on cpu as the losses.*on meta"),
    ],
)
def test_a_loss_of_another_shape_or_type_is_refused(losses, said):
    class Wrong(Plain):
        def loss(self, outputs, batch):
            return losses(super().loss(outputs, batch))

    loop = loop_alone(Wrong())
    before = everything(loop)
    with pytest.raises(TaskError, match=rf"task.loss\(\).*{said}"):
        run(loop, 1)
    assert everything(loop) == before

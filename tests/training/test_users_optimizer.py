"""The optimizer that a task returns is checked before anything is trained."""

import pytest
import torch
from torch.optim import lr_scheduler

from raytrain_plus.task import TaskError
from raytrain_plus.training.state import Replica
from raytrain_plus.training.users_optimizer import check_schedule
from tests.training.small_tasks import Plain, loop_alone, run

CPU = torch.device("cpu")


class Returns(Plain):
    """A task whose optimizer is made by a function of SGD and the task."""

    def __init__(self, make):
        self.make = make

    def optimizer(self, model):
        return self.make(self, torch.optim.SGD(model.parameters(), lr=1.0))


def cosine(_, optimizer):
    lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return optimizer


def one_cycle(task, optimizer):
    task.scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=12)
    return optimizer


def on_plateau(task, optimizer):
    task.plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
    return optimizer


def warmed(_, optimizer):
    optimizer.param_groups[0] |= {"lr": 0.01, "initial_lr": 1.0}
    return optimizer


class Inside(torch.optim.SGD):
    """An optimizer around another, whose learning rate a scheduler sets."""

    def __init__(self, inner):
        super().__init__(inner.param_groups[0]["params"], lr=0.1)
        self.inner = inner
        lr_scheduler.StepLR(inner, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cosine, r"SGD is set by a torch scheduler.*return it .*\(optimizer, scheduler\)"),
        (one_cycle, r"SGD is set by a torch scheduler"),
        (on_plateau, r"SGD is set by ReduceLROnPlateau \(task.plateau\)"),
        (warmed, r"group 0 of the optimizer holds initial_lr=1.0 and lr=0.01"),
        (lambda *_: None, r"returned None"),
        (lambda _, o: Inside(o), r"SGD is set by a torch scheduler"),
        (
            lambda _, o: torch.optim.LBFGS(o.param_groups[0]["params"]),
            r"LBFGS needs a closure that computes the loss",
        ),
    ],
)
def test_a_schedule_that_would_be_ignored_is_refused_at_once(make, message):
    task = Returns(make)
    with pytest.raises(TaskError, match=message):
        check_schedule(task, Replica.build(task, 17, CPU).optimizer)


def test_a_scheduler_that_is_made_later_is_refused_after_the_first_update():
    loop = loop_alone(Returns(lambda _, o: o))
    lr_scheduler.StepLR(loop.replica.optimizer, 3)
    with pytest.raises(TaskError, match="is set by a torch scheduler"):
        run(loop, 1)


def test_a_plain_optimizer_is_accepted():
    """The negative control."""
    task = Returns(lambda _, o: o)
    optimizer = Replica.build(task, 17, CPU).optimizer
    check_schedule(task, optimizer)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_learning_rate_tensor_is_scaled_in_place():
    rate = torch.tensor(0.5)
    replica = Replica.build(
        Returns(lambda _, o: torch.optim.SGD(o.param_groups[0]["params"], lr=rate)), 17, CPU
    )
    for factor in (0.5, 0.5, 0.25):
        replica.set_learning_rate(factor)
        assert replica.optimizer.param_groups[0]["lr"] is rate
        assert rate.item() == 0.5 * factor


def test_a_schedule_for_an_optimizer_without_a_learning_rate_is_refused():
    class NoRate(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": None})

    replica = Replica.build(Returns(lambda _, o: NoRate(o.param_groups[0]["params"])), 17, CPU)
    replica.set_learning_rate(1.0)
    with pytest.raises(TaskError, match="NoRate has no learning rate"):
        replica.set_learning_rate(0.5)

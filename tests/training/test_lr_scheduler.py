"""A torch scheduler that a task returns steps as in plain PyTorch, on any number of workers."""

import pytest
import torch
from torch.optim import lr_scheduler

from benchmarks.group import Group, verdict
from raytrain_plus.task import TaskError
from raytrain_plus.training import lr_scheduler as ours
from raytrain_plus.training.building import check_optimizer_early
from tests.training.small_tasks import CLOCK, Plain, loop_alone, part, run


class Scheduled(Plain):
    """SGD with a scheduler; `form` is how the two are returned."""

    make = staticmethod(lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.5))
    form = staticmethod(lambda optimizer, scheduler: (optimizer, scheduler))

    def optimizer(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return self.form(optimizer, self.make(optimizer))


def scheduled(make=Scheduled.make, form=Scheduled.form):
    return type("Case", (Scheduled,), {"make": staticmethod(make), "form": staticmethod(form)})


class Shrinking:
    """A factor that follows from the number of its own calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, epoch):  # noqa: ARG002
        self.calls += 1
        return 0.9**self.calls


def sequential(optimizer):
    parts = [
        lr_scheduler.LinearLR(optimizer, total_iters=2),
        lr_scheduler.CosineAnnealingLR(optimizer, 6),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])


def chained(optimizer):
    parts = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts)


KINDS = {
    "StepLR": Scheduled.make,
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=12),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=2),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
}


@pytest.mark.filterwarnings("error:.*lr_scheduler.step.*", "error:.*overridden after.*")
@pytest.mark.parametrize("kind", KINDS)
def test_it_steps_as_in_plain_pytorch_with_equal_bits_anywhere(kind):
    task = scheduled(KINDS[kind])
    group = Group(task, part)
    rates = []
    for _ in range(5):
        group.run(1)
        rates.append(group.replica.optimizer.param_groups[0]["lr"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    scheduler, expected = task.make(optimizer), []
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates == expected
    assert len(set(rates)) > 1
    assert verdict(lambda: Group(task, part), steps=2) == "equal"


def test_the_digest_covers_the_scheduler():
    loops = [loop_alone(Scheduled()) for _ in range(2)]
    for loop in loops:
        run(loop, 1)
    assert loops[0].replica.digest() == loops[1].replica.digest()
    loops[0].replica.scheduling.scheduler.last_epoch += 1
    assert loops[0].replica.digest() != loops[1].replica.digest()


def test_a_scheduler_whose_state_is_not_carried_gives_other_bits(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(ours, "ATTRIBUTE", "_optimizer_hidden")  # this prefix is not carried
    assert verdict(lambda: Group(Scheduled, part), steps=2) != "equal"


def test_a_factor_that_remembers_is_refused():
    task = scheduled(lambda o: lr_scheduler.LambdaLR(o, Shrinking()))
    with pytest.raises(TaskError, match=r"differs in another worker .*: groups/0/lr"):
        run(loop_alone(task()), 3)


@pytest.mark.parametrize(
    ("form", "every"),
    [
        (lambda o, s: (o, s), 1),
        (lambda o, s: ([o], [s]), 1),
        (lambda o, s: {"optimizer": o, "lr_scheduler": s}, 1),
        (lambda o, s: (o, {"scheduler": s, "frequency": 3}), 3),
        (lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "epoch"}}, 10),
        (lambda o, s: ([o], [{"scheduler": s, "interval": "epoch", "frequency": 2}]), 20),
        (lambda o, _: o, None),
        (lambda o, _: [o], None),
        (lambda o, _: {"optimizer": o}, None),
        (lambda o, _: ([o], []), None),
    ],
)
def test_it_is_returned_in_the_forms_of_lightning(form, every):
    def make(optimizer):
        return lr_scheduler.ExponentialLR(optimizer, 0.5) if every else None

    loop = loop_alone(scheduled(make, form)(), ranks=1)
    stepped, before = [], 0
    for _ in range(2 * CLOCK.steps_per_epoch):
        (result,) = run(loop, 1, ranks=range(1))
        count = 0 if every is None else loop.replica.scheduling.scheduler.last_epoch
        stepped += [result.step] * (count - before)
        before = count
    assert stepped == ([] if every is None else list(range(every, 21, every)))


class WithSchedule(Scheduled):
    def schedule(self, progress):
        return 1 - progress


def plateau(optimizer):
    return lr_scheduler.ReduceLROnPlateau(optimizer)


def of_another(_):
    return lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), 2)


def with_settings(**settings):
    return scheduled(form=lambda o, s: (o, {"scheduler": s, **settings}))


WRONG = {
    "schedule": (WithSchedule, r"defines schedule\(progress\), and optimizer\(\) returns a StepLR"),
    "plateau": (scheduled(plateau), "ReduceLROnPlateau that follows a metric.*task.schedule"),
    "monitor": (with_settings(monitor="loss"), "StepLR that follows a metric"),
    "interval": (with_settings(interval="batch"), "interval is 'batch', and must be 'step' or"),
    "frequency": (with_settings(frequency=0), "frequency is 0, and must be at least 1"),
    "key": (with_settings(strict=True), "keys strict, which are not supported"),
    "other": (scheduled(of_another), "StepLR that .* is of another optimizer"),
    "none": (scheduled(lambda _: object(), lambda o, s: {"optimizer": o, "lr_scheduler": s}), "no"),
    "two": (scheduled(form=lambda o, s: ([o], [s, s])), "2 schedulers: return one.*SequentialLR"),
    "GAN": (
        scheduled(form=lambda o, _: (o, o)),
        r"2 optimizers \(SGD, SGD\).*\(a GAN\), train one",
    ),
    "GAN of Lightning": (
        scheduled(form=lambda o, _: ({"optimizer": o}, {"optimizer": o})),
        r"2 optimizers \(SGD, SGD\)",
    ),
    "LBFGS": (
        type("Closure", (Plain,), {"optimizer": lambda _, m: torch.optim.LBFGS(m.parameters())}),
        "LBFGS needs a closure",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_named_before_any_worker_starts(name):
    task, said = WRONG[name]
    with pytest.raises(TaskError, match=said):
        check_optimizer_early(task())
    with pytest.raises(TaskError, match=said):  # as in a worker, for a task that needs its model
        loop_alone(task())


def test_a_task_that_needs_its_own_model_is_checked_later():
    """The negative control: a stand-in for the model proves nothing against a task."""

    class Needs(Plain):
        def optimizer(self, model):
            return torch.optim.SGD(model[2].parameters(), lr=0.1)

    state = torch.get_rng_state()
    check_optimizer_early(Needs())
    check_optimizer_early(Plain())
    assert torch.equal(torch.get_rng_state(), state)

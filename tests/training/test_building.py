"""The objects that a task builds are checked; each error names what was returned."""

import warnings

import pytest
import torch
from torch import nn

from raytrain_plus.task import TaskError, TaskWarning
from raytrain_plus.training.building import build_model, build_optimizer, gradient_hooks
from tests.training.small_tasks import Plain, loop_alone, run


def building(**given):
    return type("Changed", (Plain,), given)()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            lambda _: None,
            r"task.model\(\) returned None \(does it end with `return`\?\), not an nn",
        ),
        (lambda _: nn.Linear, r"returned the class Linear \(call it\), not an nn.Module"),
        (lambda _: (nn.Linear(6, 3), 1), "returned a tuple, not an nn.Module"),
        (lambda _: nn.DataParallel(nn.Linear(6, 3)), "returned a DataParallel: .* module inside"),
        (
            lambda _: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)),
            r"whose '0.weight' has no shape yet.* call the model once on an example in model\(\)",
        ),
        (lambda _: nn.Linear(6, 3, device="meta"), "'weight' is on the device 'meta'"),
    ],
)
def test_a_model_of_another_type_is_refused(model, said):
    with pytest.raises(TaskError, match=said):
        build_model(building(model=model))


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda _, __: None, r"task.optimizer\(\) returned None .*not a torch.optim.Optimizer"),
        (lambda _, model: {"optim": made(model)}, "mapping with the keys optim: return the"),
        (lambda _, model: (made(model), made(model)), r"2 optimizers \(SGD, SGD\).*a GAN"),
        (lambda _, __: torch.optim.SGD, r"returned the class SGD \(call it\)"),
        (
            lambda _, model: torch.optim.lr_scheduler.ConstantLR(made(model)),
            "returned a ConstantLR, not a torch.optim.Optimizer",
        ),
        (
            lambda _, __: made(nn.Linear(7, 2)),
            r"no parameter of the model, of shape \(2, 7\): build it from the parameters",
        ),
    ],
)
def test_an_optimizer_that_does_not_belong_to_the_model_is_refused(optimizer, said):
    with pytest.raises(TaskError, match=said):
        build_optimizer(building(optimizer=optimizer), nn.Linear(6, 3))


def made(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (None, r"task.schedule\(0\) returned None .* and must return a number"),
        ("fast", r"task.schedule\(0\) returned a str"),
        ((1, 2), r"task.schedule\(0\) returned a tuple"),
        (float("nan"), "returned nan, and must return a finite number"),
        (-0.5, "returned -0.5, .* not negative"),
    ],
)
def test_a_factor_that_is_not_a_number_is_refused_before_the_update(factor, said):
    loop = loop_alone(building(schedule=lambda _, __: factor))
    before = loop.replica.digest()
    with pytest.raises(TaskError, match=said):
        run(loop, 1)
    assert loop.replica.digest() == before
    assert not loop.replica.torn


@pytest.mark.parametrize("factor", [1, torch.tensor(0.5), torch.ones(1), True])
def test_a_factor_may_be_any_single_number(factor):
    loop = loop_alone(building(schedule=lambda _, __: factor))
    run(loop, 1)
    assert loop.replica.optimizer.param_groups[0]["lr"] == 0.1 * float(factor)


def hooked(model):
    model[0].weight.register_hook(lambda gradient: gradient.clamp(-1, 1))
    model[0].bias.register_post_accumulate_grad_hook(lambda _: None)
    model[2].register_full_backward_hook(lambda *_: None)
    model[1].register_full_backward_pre_hook(lambda *_: None)
    model.register_full_backward_hook(lambda *_: None)
    return model


def test_hooks_on_gradients_get_a_warning_by_name():
    model = Plain().model()
    assert gradient_hooks(hooked(model)) == [
        "parameter '0.weight'",
        "parameter '0.bias'",
        "the model",
        "module '1'",
        "module '2'",
    ]
    with pytest.warns(TaskWarning, match="'0.weight', parameter '0.bias', the model and 2 more: a"):
        build_optimizer(Plain(), model)


def test_hooks_on_outputs_get_no_warning():
    """The control: these hooks see the same as in plain PyTorch."""
    model = Plain().model()
    model[0].register_forward_hook(lambda *_: None)
    model[1].register_forward_pre_hook(lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TaskWarning)
        build_optimizer(Plain(), model)


def test_a_hook_sees_the_gradient_of_the_sum_over_a_logical_ranks_part():
    """docs/guide/tasks.md: the gradients of the hook, divided by the batch, add up to the mean."""
    seen = []

    def model(_):
        made = nn.Linear(6, 3)
        made.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
        return made

    with pytest.warns(TaskWarning):
        loop = loop_alone(building(model=model))
    weight = loop.replica.model.weight
    before = weight.detach().clone()
    run(loop, 1)
    assert len(seen) == 4
    update = 0.1 * 1.9 * sum(seen) / 20  # Nesterov's first step, a batch of 20
    torch.testing.assert_close(weight.detach(), before - update)

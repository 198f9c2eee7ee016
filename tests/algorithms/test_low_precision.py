"""Low precision: products in bfloat16; other code gets float32."""

from typing import NamedTuple

import pydantic
import pytest
import torch
from torch import nn

from raytrain_plus.algorithms import Step, Training, Weave
from raytrain_plus.algorithms.low_precision import LowPrecision, in_float32, low_precision
from tests.algorithms.tiny import CLOCK, TinyImages, TinyTokens, build, trained


class Two(NamedTuple):
    a: torch.Tensor
    b: object


class Outputs(dict):
    """An object like the outputs of some libraries."""


def step_of(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Step(Training(model=model, optimizer=optimizer, clock=CLOCK, seed=1), 0)


def test_a_product_has_rounded_factors():
    model, x = nn.Linear(64, 8, bias=False), torch.randn(5, 64)
    with low_precision(model):
        y = model(x)
    assert y.dtype == torch.bfloat16
    exact = x.bfloat16().double() @ model.weight.bfloat16().double().T
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=1e-3)
    assert not torch.allclose(y.float(), model(x), rtol=1e-5, atol=1e-6)  # the control


def test_the_aspect_is_the_context_around_forward_and_loss():
    model, x = nn.Linear(64, 8), torch.randn(5, 64)
    with low_precision(model):
        expected = model(x)
    step, weave = step_of(model), Weave([LowPrecision()])
    with weave.around("forward", step):
        step.outputs = model(x)
    assert step.outputs.dtype == torch.float32
    assert torch.equal(step.outputs, expected.float())
    with weave.around("loss", step):
        step.losses = (step.outputs @ torch.ones(8, 8)).mean(1)
        assert step.losses.dtype == torch.bfloat16
    assert step.losses.dtype == torch.float32
    for point in ("batch", "backward", "update", "step"):
        with weave.around(point, step):
            assert model(x).dtype == torch.float32


@pytest.mark.parametrize("evaluation", [True, False])
def test_evaluations_use_low_precision_only_if_asked(evaluation):
    model = nn.Linear(4, 4)
    weave = Weave([LowPrecision(evaluation=evaluation)])
    with weave.around("evaluate", step_of(model)), torch.no_grad():
        dtype = model(torch.ones(1, 4)).dtype
    assert dtype == (torch.bfloat16 if evaluation else torch.float32)
    assert weave.spent()["LowPrecision"]["acted"] == int(evaluation)


@pytest.mark.parametrize("point", ["forward", "loss", "evaluate"])
def test_a_failure_leaves_the_precision_as_it_was(point):
    step = step_of(nn.Linear(4, 4))
    with pytest.raises(KeyError), Weave([LowPrecision()]).around(point, step):  # noqa: PT012
        assert torch.is_autocast_enabled("cpu")
        raise KeyError
    assert not torch.is_autocast_enabled("cpu")


def test_outputs_of_every_structure_are_converted():
    low, whole = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)
    found = in_float32(Outputs(a=[low, whole], b=Two(low, (low, "text")), c=None))
    assert type(found) is Outputs
    assert [v.dtype for v in found["a"]] == [torch.float32, torch.int64]
    assert isinstance(found["b"], Two)
    assert found["b"].a.dtype == found["b"].b[0].dtype == torch.float32
    assert (found["b"].b[1], found["c"]) == ("text", None)


@pytest.mark.parametrize("task", [TinyImages, TinyTokens])
def test_training_stays_near_float32_and_parameters_stay_float32(task):
    loop, losses = trained(task(), [LowPrecision()])
    _, exact = trained(task())
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.02)
    assert losses == trained(task(), [LowPrecision()])[1]
    floating = [t.dtype for t in loop.replica.tensors().values() if t.is_floating_point()]
    assert set(floating) == {torch.float32}


def test_other_types_are_refused_with_the_reason():
    with pytest.raises(pydantic.ValidationError, match="float16' needs its losses scaled"):
        LowPrecision(dtype="float16")
    with pytest.raises(pydantic.ValidationError, match="use bfloat16"):
        LowPrecision(dtype="int8")
    build(TinyImages(), [LowPrecision(dtype="bfloat16")])

"""An error about numbers that are not finite names the module in which they stop being so."""

import pytest
import torch
from torch import nn

from raytrain_plus.training.loop import GradientError, LossError
from tests.training.small_tasks import CLASSES, FEATURES, Plain, everything, loop_alone, part, run


class Breaks(nn.Module):
    """Returns what `function` makes of its input in one part of step 2."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Breaking(Plain):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.bad = part(1, 2)["x"]

    def model(self):
        layers = [nn.Linear(FEATURES, 8), Breaks(self.function), nn.Linear(8, CLASSES)]
        return nn.Sequential(*layers)

    def forward(self, model, batch):
        out = model[0](batch["x"])
        return model[2](model[1](out) if torch.equal(batch["x"], self.bad) else out)


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (
            lambda x: x / 0,
            LossError,
            r"The first output that is not finite is that of '1' \(Breaks",
        ),
        (
            lambda x: (x - x).sqrt() + x,
            GradientError,
            r"In the backward, the gradient is not finite from the output of '0' \(Linear\) on",
        ),
    ],
)
def test_the_module_is_named_and_the_state_stays(function, error, said):
    loop = loop_alone(Breaking(function))
    run(loop, 1)
    before = everything(loop)
    with pytest.raises(error, match=said):
        run(loop, 1)
    assert everything(loop) == before


def test_data_that_is_not_finite_is_named():
    loop = loop_alone(Plain())
    batches = [part(0, rank) for rank in range(4)]
    batches[3]["x"][1, 2] = torch.nan
    with pytest.raises(LossError, match=r"logical ranks \[3\].*The data of 'x' is not finite"):
        loop.run_step(batches)


def test_a_healthy_step_has_no_hooks():
    """The control: nothing is watched before a step has failed."""
    loop = loop_alone(Breaking(lambda x: x))
    seen = []
    model = loop.replica.model
    model[0].register_forward_pre_hook(lambda *_: seen.append(len(model[1]._forward_hooks)))
    run(loop, 2)
    assert seen == [0] * len(seen) != []

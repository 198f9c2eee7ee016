"""Label smoothing: the loss equals PyTorch's, and the labels are restored afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import LabelSmoothing, Step, Training, Weave
from raytrain_plus.algorithms.label_smoothing import smooth_labels
from raytrain_plus.clock import Clock

CLOCK = Clock(total_steps=10, steps_per_epoch=5, batch_size=8, evaluate_every=5)


def draw(n, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((n, classes), generator=generator)
    return logits, torch.randint(0, classes, (n,), generator=generator)


@given(st.integers(1, 20), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**32))
def test_the_loss_is_that_of_pytorch(n, classes, smoothing, seed):
    logits, labels = draw(n, classes, seed)
    smooth = smooth_labels(labels, logits, smoothing)
    ours = functional.cross_entropy(logits, smooth, reduction="none")
    theirs = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(smooth.sum(1), torch.ones(n))


def test_smoothing_changes_the_loss():
    """The control: the test above does not compare two losses without smoothing."""
    logits, labels = draw(6, 4)
    soft = functional.cross_entropy(logits, smooth_labels(labels, logits, 0.3))
    assert not torch.isclose(soft, functional.cross_entropy(logits, labels))
    assert torch.equal(smooth_labels(labels, logits, 0.0), functional.one_hot(labels, 4).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_probabilities_have_the_dtype_of_the_logits(dtype):
    logits, labels = draw(5, 3)
    for kind in (torch.int64, torch.int32, torch.uint8):
        smooth = smooth_labels(labels.to(kind), logits.to(dtype), 0.1)
        assert (smooth.dtype, smooth.shape) == (dtype, (5, 3))


@pytest.mark.parametrize("target", ["label", "digit"])
def test_the_aspect_smooths_the_labels_for_the_loss_only(target):
    logits, labels = draw(6, 4)
    model = nn.Linear(1, 1)
    step = Step(
        Training(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            clock=CLOCK,
            seed=17,
            target=target,
        ),
        0,
    )
    step.batch, step.outputs = {target: labels, "other": logits}, logits
    weave = Weave([LabelSmoothing(smoothing=0.3)])
    with weave.around("loss", step):
        assert torch.equal(step.batch[target], smooth_labels(labels, logits, 0.3))
        assert step.batch["other"] is logits
    assert step.batch[target] is labels
    with weave.around("backward", step):
        assert step.batch[target] is labels

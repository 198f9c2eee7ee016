"""Labels to ignore stay ignored if labels are smoothed, mixed, or selected by their losses."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import (
    AspectError,
    CutMix,
    LabelSmoothing,
    MixUp,
    SelectiveBackprop,
    Step,
    Training,
    Weave,
)
from raytrain_plus.algorithms.labels import (
    Mixing,
    labels_that_count,
    logits_of,
    mix_labels,
    soft_labels,
)
from raytrain_plus.clock import Clock
from raytrain_plus.task import Task
from raytrain_plus.training.loop import LossError, TrainingLoop
from raytrain_plus.training.state import Replica
from tests.training.wires import Network

CLOCK = Clock(total_steps=10, steps_per_epoch=5, batch_size=8, evaluate_every=5)
LOGITS = torch.randn((6, 3), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, -100, 2, 1, -100, 2])
MIXING = Mixing(torch.tensor([1, 0, 3, 2, 4, 4]), torch.tensor([0.9, 0.7, 0.6, 0.8, 0.5, 0.75]))


def step_of(labels, outputs=LOGITS, ignore_index=-100):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    training = Training(
        model=model, optimizer=optimizer, clock=CLOCK, seed=17, ignore_index=ignore_index
    )
    step = Step(training, 0)
    step.batch, step.outputs = {"image": torch.rand((6, 1, 4, 4)), "label": labels}, outputs
    return step


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("ignore_index", "kind"), [(-100, torch.int64), (-1, torch.int16), (255, torch.uint8)]
)
def test_smoothed_labels_are_those_of_pytorch(smoothing, ignore_index, kind):
    labels = LABELS.where(LABELS >= 0, ignore_index)
    step = step_of(labels.to(kind), ignore_index=ignore_index)
    with Weave([LabelSmoothing(smoothing=smoothing)]).around("loss", step):
        ours = functional.cross_entropy(LOGITS, step.batch["label"], reduction="none")
    theirs = functional.cross_entropy(
        LOGITS, labels, reduction="none", label_smoothing=smoothing, ignore_index=ignore_index
    )
    torch.testing.assert_close(ours, theirs)
    assert ours[1] == ours[4] == 0
    assert torch.equal(step.batch["label"], labels.to(kind))


def mixed_loss(labels, smoothing=0.0):
    """Return the mean of the losses of both labels; each label may be ignored."""
    options = {"reduction": "none", "label_smoothing": smoothing}
    own = functional.cross_entropy(LOGITS, labels, **options)
    other = functional.cross_entropy(LOGITS, labels[MIXING.partners], **options)
    return MIXING.own * own + (1 - MIXING.own) * other


def test_a_label_to_ignore_adds_nothing_to_a_mixture():
    soft = mix_labels(LABELS, MIXING, LOGITS)
    ours = functional.cross_entropy(LOGITS, soft, reduction="none")
    torch.testing.assert_close(ours, mixed_loss(LABELS))
    assert ours[4] == 0  # both labels are ignored
    assert ours[0] > 0


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_labels_are_mixed_and_smoothed_in_either_order_of_nesting(kind):
    """LabelSmoothing is outside of one method and inside of the other."""
    step = step_of(LABELS)
    step.notes[kind.__name__] = MIXING
    for _ in range(2):  # the first time leaves nothing behind
        with Weave([kind(), LabelSmoothing(smoothing=0.2)]).around("loss", step):
            soft = step.batch["label"]
            ours = functional.cross_entropy(LOGITS, soft, reduction="none")
        torch.testing.assert_close(ours, mixed_loss(LABELS, 0.2))
        assert labels_that_count(soft).tolist() == [True] * 4 + [False, True]
        assert torch.equal(step.batch["label"], LABELS)


def test_labels_that_count_are_found_in_indices_of_any_shape():
    assert labels_that_count(LABELS).tolist() == [True, False, True, True, False, True]
    assert labels_that_count(LABELS.view(2, 3), 2).tolist() == [
        [True, True, False],
        [True, True, False],
    ]
    assert (
        labels_that_count(soft_labels(LABELS, LOGITS)).tolist()
        == labels_that_count(LABELS).tolist()
    )


@pytest.mark.parametrize("kind", ["mapping", "object"])
def test_logits_are_found_in_outputs_that_name_them(kind):
    outputs = {"mapping": {"logits": LOGITS, "loss": 0}, "object": SimpleNamespace(logits=LOGITS)}
    step = step_of(LABELS, outputs[kind])
    assert logits_of(step) is LOGITS
    step.notes["MixUp"] = MIXING
    with Weave([MixUp()]).around("loss", step):
        assert torch.equal(step.batch["label"], mix_labels(LABELS, MIXING, LOGITS))


@pytest.mark.parametrize("outputs", [(LOGITS,), {"scores": LOGITS}, LOGITS[:, 0], None])
@pytest.mark.parametrize("aspect", [LabelSmoothing(), MixUp(), CutMix()])
def test_outputs_without_logits_are_refused_alike(outputs, aspect):
    step = step_of(LABELS, outputs)
    step.notes[aspect.name] = MIXING
    said = r"soft labels need outputs of shape \(n, classes\)"
    with pytest.raises(AspectError, match=said), Weave([aspect]).around("loss", step):
        pass


@pytest.mark.parametrize("aspect", [LabelSmoothing(), MixUp(), CutMix()])
def test_a_missing_target_is_refused_by_name(aspect):
    step = step_of(LABELS)
    step.notes[aspect.name] = MIXING
    del step.batch["label"]
    said = "labels are in the column 'label', and the batch has no such column"
    with pytest.raises(AspectError, match=said), Weave([aspect]).around("loss", step):
        pass


class Ignoring(Task):
    """Some samples have no label; the mean is over those that have one."""

    share = 0.5

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, outputs, batch):
        losses = functional.cross_entropy(outputs, batch["label"], reduction="none")
        return losses, labels_that_count(batch["label"])


def part(number, rank, share):
    generator = torch.Generator().manual_seed(100 * number + rank)
    label = torch.randint(0, 3, (8,), generator=generator)
    ignored = torch.rand(8, generator=generator) < share
    ignored[3] &= share == 1 or rank == 0
    return {
        "image": torch.rand((8, 1, 4, 4), generator=generator),
        "label": label.where(~ignored, -100),
    }


def first_loss(aspects, share=0.5):
    weave = Weave(aspects)
    replica = Replica.build(Ignoring(), 17, torch.device("cpu"), weave=weave, clock=CLOCK)
    loop = TrainingLoop(Ignoring(), replica, weave)
    loop.begin_generation([range(2)], Network(1).wire(0))
    results = [loop.run_step([part(n, rank, share) for rank in range(2)]) for n in range(3)]
    batch = [part(0, rank, share) for rank in range(2)]
    return results[0].loss, {key: torch.cat([one[key] for one in batch]) for key in batch[0]}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_mean_is_over_labels_that_count(smoothing):
    loss, batch = first_loss([LabelSmoothing(smoothing=smoothing)])
    plain = Replica.build(Ignoring(), 17, torch.device("cpu")).model(batch["image"])
    expected = functional.cross_entropy(plain, batch["label"], label_smoothing=smoothing)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "aspects",
    [
        [MixUp()],
        [CutMix()],
        [SelectiveBackprop(start="0ba", interval=1, how="score")],
        [SelectiveBackprop(start="0ba", interval=1, how="reuse")],
        [MixUp(), LabelSmoothing(), SelectiveBackprop(start="0ba", interval=1, how="score")],
        [CutMix(), LabelSmoothing(), SelectiveBackprop(start="0ba", interval=1, how="reuse")],
    ],
    ids=lambda aspects: " ".join(one.name for one in aspects),
)
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_it_trains_with_labels_to_ignore(aspects, share):
    assert 0 < first_loss(aspects, share)[0] < 5


def test_a_step_without_any_label_is_an_error():
    with pytest.raises(LossError, match="no sample counts in step 1"):
        first_loss([LabelSmoothing()], share=1.0)

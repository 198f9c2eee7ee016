"""Metrics of several logical ranks are merged as if one process had seen all samples."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics import (
    CatMetric,
    MeanMetric,
    Metric,
    MetricCollection,
    MetricTracker,
    SpearmanCorrCoef,
    SumMetric,
)
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
)
from torchmetrics.wrappers import (
    BootStrapper,
    ClasswiseWrapper,
    MinMaxMetric,
    MultioutputWrapper,
    Running,
)

from raytrain_plus.task import Task, TaskError
from raytrain_plus.training.metrics import gathered, merged, metrics_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Metric `.*` will save all"),
    pytest.mark.filterwarnings("ignore:.*variance of predictions"),
]

ROOT = Path(__file__).parents[2]


class Measuring(Task):
    def __init__(self, given):
        self.given = given

    def metrics(self):
        return self.given


def made(metric):
    return metrics_of(Measuring({"m": metric}))["m"]


def over(make, samples, ranks):
    """Return the metric's value when some number of logical ranks share the samples."""
    template = made(make())
    states = []
    for share in range(ranks):
        own = [one for i, one in enumerate(samples) if i * ranks // len(samples) == share]
        if own:
            copy = made(make())
            torch.manual_seed(share)
            for outputs, target in own:
                copy.update(outputs, target)
            states.append(gathered("m", copy, template))
    return merged("m", made(make()), states).compute()


def alone(make, samples):
    metric = make()
    for outputs, target in samples:
        metric.update(outputs, target)
    return metric.compute()


def classes(n=24):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(5, 3, generator=generator),
            torch.randint(0, 3, (5,), generator=generator),
        )
        for _ in range(n)
    ]


def numbers(n=24):
    generator = torch.Generator().manual_seed(4)
    draw = functools.partial(torch.randn, 5, generator=generator)
    return [(draw(), draw()) for _ in range(n)]


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.allclose(torch.as_tensor(one), torch.as_tensor(other), atol=1e-6)


class Nested(Metric):
    """Holds metrics in a list, a mapping and an attribute, as users' metrics do."""

    def __init__(self):
        super().__init__()
        self.several = [MulticlassAccuracy(3), MulticlassPrecision(3)]
        self.named = {"f1": MinMaxMetric(MulticlassF1Score(3))}
        self.one = MulticlassConfusionMatrix(3)

    def update(self, outputs, target):
        for metric in (*self.several, *self.named.values(), self.one):
            metric.update(outputs, target)

    def compute(self):
        return [metric.compute() for metric in (*self.several, *self.named.values(), self.one)]


class Stacked(Metric):
    """A state that is merged by a function of all logical ranks' states."""

    def __init__(self):
        super().__init__()
        self.add_state("parts", torch.zeros(2), dist_reduce_fx=lambda stacked: stacked.sum(0))
        self.add_state("rows", [], dist_reduce_fx=None)

    def update(self, outputs, target):
        self.parts = self.parts + torch.tensor([outputs.sum(), float(len(target))])
        self.rows.append(outputs)

    def compute(self):
        return {"mean": self.parts[0] / self.parts[1], "rows": torch.cat(self.rows)}


OF_CLASSES = {
    "collection": lambda: MetricCollection(
        {
            "precision": MulticlassPrecision(3),
            "f1": MulticlassF1Score(3),
            "a": MulticlassAccuracy(3),
        }
    ),
    "groups": lambda: MetricCollection(
        [MulticlassPrecision(3), MulticlassF1Score(3)],
        compute_groups=[["MulticlassPrecision", "MulticlassF1Score"]],
        prefix="val_",
    ),
    "min and max": lambda: MinMaxMetric(MulticlassAccuracy(3)),
    "by class": lambda: ClasswiseWrapper(MulticlassAccuracy(3, average=None)),
    "a collection of wrappers": lambda: MetricCollection(
        {"c": ClasswiseWrapper(MulticlassAccuracy(3, average=None)), "p": MulticlassPrecision(3)}
    ),
    "a sum of metrics": lambda: MulticlassAccuracy(3) + 2 * MulticlassF1Score(3),
    "metrics in lists": Nested,
}
OF_NUMBERS = {
    "pearson": torchmetrics.PearsonCorrCoef,  # merges means and variances itself
    "concordance": torchmetrics.ConcordanceCorrCoef,
    "spearman": SpearmanCorrCoef,
    "squared error": torchmetrics.MeanSquaredError,
    "r2": torchmetrics.R2Score,
    "signal to noise": functools.partial(torchmetrics.image.PeakSignalNoiseRatio, data_range=6.0),
    "a function": Stacked,
    "kendall": torchmetrics.KendallRankCorrCoef,
}


@pytest.mark.parametrize("ranks", [1, 2, 5, 24, 40])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_metrics_that_hold_metrics_are_those_of_one_process(name, ranks):
    make = OF_CLASSES[name]
    assert equal(over(make, classes(), ranks), alone(make, classes()))
    assert not equal(over(make, classes(7), ranks), alone(make, classes()))  # the control


@pytest.mark.parametrize("ranks", [1, 2, 5, 24, 40])
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_metrics_whose_states_are_merged_in_other_ways_are_those_of_one_process(name, ranks):
    make = OF_NUMBERS[name]
    assert equal(over(make, numbers(), ranks), alone(make, numbers()))
    assert not equal(over(make, numbers(7), ranks), alone(make, numbers()))  # the control


def test_several_outputs_are_measured_separately():
    samples = [
        (torch.stack([a, b], 1), torch.stack([b, a * b], 1))
        for (a, b) in [(x, y) for x, y in numbers()]
    ]

    def make():
        return MultioutputWrapper(torchmetrics.MeanSquaredError(), 2)

    assert equal(over(make, samples, 5), alone(make, samples))


def test_bootstrapped_copies_are_merged_each_with_its_own():
    def make():
        return BootStrapper(MulticlassAccuracy(3), num_bootstraps=4, raw=True)

    values = over(make, classes(), 3)
    assert values["raw"].shape == (4,)
    assert values["raw"].std() > 0
    assert equal(values["mean"], values["raw"].mean())


def test_a_collection_may_replace_the_mapping():
    collection = MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)], prefix="val_")
    assert sorted(metrics_of(Measuring(collection))) == [
        "val_MulticlassAccuracy",
        "val_MulticlassF1Score",
    ]


class Sloppy(Metric):
    """Counts outside of its states."""

    def __init__(self, start):
        super().__init__()
        self.rows = start

    def update(self, outputs, target):
        del outputs
        self.rows = self.rows + ([len(target)] if isinstance(self.rows, list) else len(target))

    def compute(self):
        return self.rows


@pytest.mark.parametrize("start", [0, [], torch.tensor(0)])
def test_values_kept_outside_of_states_are_refused_by_name(start):
    samples = [*numbers(3), (torch.zeros(2), torch.zeros(2))]
    with pytest.raises(TaskError, match=r"metric 'm' \(Sloppy\) gathers in its attribute 'rows'"):
        over(lambda: Sloppy(start), samples, 2)


class Noting(SumMetric):
    """Sets an attribute once, to the kind of samples: the same on all logical ranks."""

    kind = None

    def update(self, outputs, target):
        self.kind, self.dtype_seen = f"{target.ndim} dimensions", target.dtype
        super().update(outputs)

    def compute(self):
        assert self.dtype_seen is torch.float32
        return {self.kind: super().compute()}


def test_attributes_that_update_sets_equally_on_all_ranks_are_kept():
    assert over(Noting, numbers(), 5).keys() == {"1 dimensions"}


class Late(Metric):
    def update(self, *_):
        self.add_state("late", torch.tensor(0.0), dist_reduce_fx="sum")

    def compute(self):
        return self.late


def test_states_made_in_update_are_refused_by_name():
    with pytest.raises(TaskError, match=r"metric 'm' \(Late\) makes its states in update"):
        over(Late, numbers(), 2)


class OfOneProcess(Metric):
    def __init__(self, reduce):
        super().__init__()
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx=reduce)

    def update(self, outputs, target): ...

    def compute(self): ...


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (OfOneProcess("mean"), r"metric 'm' .* state 'mean' has dist_reduce_fx='mean'"),
        (OfOneProcess(None), r"metric 'm' .* state 'mean' has dist_reduce_fx=None"),
        (MinMaxMetric(OfOneProcess("mean")), r"\(OfOneProcess\) cannot be merged"),
        (nn.functional.cross_entropy, r"metric 'm' is a function, and must be a torchmetrics"),
        (MulticlassAccuracy, r"metric 'm' is a ABCMeta, and must be"),
        (MetricTracker(MulticlassAccuracy(3)), r"metric 'm' is a MetricTracker"),
        (Running(SumMetric()), r"metric 'm' \(Running\) measures the last updates only"),
        (None, r"metric 'm' is None"),
    ],
)
def test_metrics_that_cannot_be_merged_exactly_are_refused_by_name(given, said):
    with pytest.raises(TaskError, match=said):
        metrics_of(Measuring({"fine": CatMetric(), "m": given}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([MeanMetric()], r"task.metrics\(\) returned a list, and must return a mapping"),
        (MeanMetric(), r"task.metrics\(\) returned a MeanMetric, and must"),
        (None, r"task.metrics\(\) returned None, and must"),
        ({"a/b": MeanMetric()}, r"names a metric 'a/b': .* has no slash$"),
        ({"": MeanMetric()}, r"names a metric ''"),
        ({1: MeanMetric()}, r"names a metric 1"),
    ],
)
def test_metrics_that_are_not_a_mapping_are_refused(given, said):
    with pytest.raises(TaskError, match=said):
        metrics_of(Measuring(given))


def test_a_class_that_looks_like_one_of_torchmetrics_is_merged_without_importing_it():
    code = (
        "import sys, torch\n"
        "from raytrain_plus.training.metrics import gathered, merged, metrics_of\n"
        "from tests.end_to_end.tasks import Momentum\n"
        "states = []\n"
        "for right in (1, 2):\n"
        "    metric = metrics_of(Momentum())['accuracy']\n"
        "    metric.update(torch.eye(4), torch.tensor([0, right, 3, 3]))\n"
        "    states.append(gathered('accuracy', metric, metrics_of(Momentum())['accuracy']))\n"
        "whole = merged('accuracy', metrics_of(Momentum())['accuracy'], states)\n"
        "print(whole.compute().item(), whole.update_count, 'torchmetrics' in sys.modules)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert said.stdout.split() == ["0.625", "2", "False"]

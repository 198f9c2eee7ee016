"""An evaluation counts each sample once, and is equal on every number of workers."""

import itertools
import random
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import CatMetric, Metric, SpearmanCorrCoef, SumMetric
from torchmetrics.classification import BinaryPrecisionRecallCurve, MulticlassAccuracy

from raytrain_plus.algorithms import Aspect, Step, Training, Weave
from raytrain_plus.clock import Clock
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.order import Order
from raytrain_plus.task import Task, TaskError
from raytrain_plus.training.evaluation import Evaluation, _plain

pytestmark = pytest.mark.filterwarnings("ignore:Metric `.*` will save all")

SEED, ROWS = 17, 8
CLOCK = Clock(total_steps=10, steps_per_epoch=5, batch_size=8, evaluate_every=5)


class GatheredError(Exception):
    """Ends a worker's first pass, of which only the sent bytes are used."""


class Collect:
    """A worker's transport that only collects the bytes to gather."""

    device = torch.device("cpu")

    def __init__(self, index):
        self.index = index

    def all_gather_bytes(self, payload):
        raise GatheredError(payload)


class Deliver(Collect):
    """The same worker's transport, with the bytes of all workers."""

    def __init__(self, index, payloads):
        super().__init__(index)
        self.payloads = payloads

    def all_gather_bytes(self, payload):
        assert payload == self.payloads[self.index]
        return self.payloads


class Summing(Task):
    """The model doubles its input; metrics see each row's number."""

    columns = ("x", "label")

    def __init__(self, **metrics):
        self.made = metrics

    def model(self):
        return nn.Identity()

    def forward(self, model, batch):
        return 2 * model(batch["x"])

    def metrics(self):
        return {name: make() for name, make in self.made.items()}

    def update_metric(self, metric, outputs, batch):
        if isinstance(metric, (SumMetric, CatMetric)):
            metric.update(outputs)
        else:
            super().update_metric(metric, outputs, batch)


def numbers(rows):
    x = np.random.default_rng(3).standard_normal(rows).astype(np.float32)
    return pa.table({"x": x, "label": np.arange(rows, dtype=np.float32)})


def evaluate(task, table, ranges, algorithms=(), entered=None):
    """Evaluate on some workers; return each worker's result."""
    source = open_source(table, None)
    ranks = ranges[-1].stop
    order = Order(rows=source.rows, lanes=ranks, seed=SEED, window=source.window, shuffle=False)
    evaluation = Evaluation(task, source, order, ROWS, SEED)
    model = task.model()
    idle = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    step = Step(Training(model=model, optimizer=idle, clock=CLOCK, seed=SEED), 4)
    weave = Weave(algorithms)
    enter = (lambda _: None) if entered is None else entered.append
    payloads = []
    for index in range(len(ranges)):
        with pytest.raises(GatheredError) as collected:
            evaluation.run(step, weave, ranges, Collect(index), enter)
        payloads.append(collected.value.args[0])
    return [
        evaluation.run(step, weave, ranges, Deliver(index, payloads), enter)
        for index in range(len(ranges))
    ]


def cut(ranks, *cuts):
    return [range(start, stop) for start, stop in itertools.pairwise([0, *cuts, ranks])]


SPREADS = [cut(1), cut(4), cut(4, 1), cut(4, 1, 2, 3), cut(5, 3), cut(6, 2, 5)]


@pytest.mark.parametrize("ranges", SPREADS)
@pytest.mark.parametrize("rows", [1, 3, 31, 64, 67])
def test_every_sample_is_seen_once_and_in_order(ranges, rows):
    table = numbers(rows)
    expected = [2 * x for x in table["x"].to_pylist()]
    task = Summing(seen=CatMetric, correlation=SpearmanCorrCoef)
    for values in evaluate(task, table, ranges):
        assert np.atleast_1d(values["seen"]).tolist() == expected


def test_a_row_that_is_counted_twice_is_noticed():
    """The negative control of the check above."""

    class Repeating(Summing):
        def update_metric(self, metric, outputs, batch):
            short = ROWS - len(batch["x"])
            metric.update(torch.cat([outputs, outputs[:1].expand(short)]))

    values = evaluate(Repeating(seen=CatMetric), numbers(31), cut(4))[0]
    assert len(values["seen"]) == 32


class Classes(Summing):
    def forward(self, model, batch):
        return model(batch["x"])


def classes(rows):
    draw = np.random.default_rng(1)
    x = draw.standard_normal((rows, 3)).astype(np.float32)
    label = draw.integers(0, 3, rows)
    return pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(x), "label": label})


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.integers(1, 6), st.sets(st.integers(1, 5), max_size=3))
def test_merged_metrics_are_those_of_one_process(rows, ranks, cuts):
    table = classes(rows)
    ranges = cut(ranks, *sorted(c for c in cuts if c < ranks))
    task = Classes(
        accuracy=lambda: MulticlassAccuracy(3, average="micro"),
        per_class=lambda: MulticlassAccuracy(3, average="none"),
    )
    alone = task.metrics()
    x = torch.from_numpy(table["x"].combine_chunks().to_numpy_ndarray().copy())
    label = torch.from_numpy(table["label"].to_numpy().copy())
    for metric in alone.values():
        metric.update(x, label)
    expected = {name: metric.compute().tolist() for name, metric in alone.items()}
    for values in evaluate(task, table, ranges):
        assert values == expected


def test_another_prediction_gives_another_value():
    """The control: the test above does not compare constants."""
    task = Classes(accuracy=lambda: MulticlassAccuracy(3, average="micro"))
    values = [evaluate(task, classes(rows), cut(3))[0] for rows in (20, 50)]
    assert values[0] != values[1]


@pytest.mark.parametrize("ranges", SPREADS)
def test_metrics_that_keep_all_samples_are_merged(ranges):
    table = numbers(45)
    x, label = torch.tensor(table["x"].to_pylist()), torch.tensor(table["label"].to_pylist())
    alone = SpearmanCorrCoef()
    alone.update(2 * x, label)
    for values in evaluate(Summing(correlation=SpearmanCorrCoef), table, ranges):
        assert values["correlation"] == pytest.approx(alone.compute().item())


def test_metrics_may_keep_the_same_tensors():
    """Two metrics that keep the labels share one tensor, but a file of tensors must not."""

    class Labels(Summing):
        def update_metric(self, metric, outputs, batch):
            if isinstance(metric, CatMetric):
                metric.update(batch["label"])
                metric.update(batch["label"][:1])
            else:
                super().update_metric(metric, outputs, batch)

    task = Labels(first=CatMetric, second=CatMetric, correlation=SpearmanCorrCoef)
    values = evaluate(task, numbers(20), cut(2, 1))[0]
    assert values["first"] == values["second"]
    assert len(values["first"]) == 20 + 4


class Tolerant(Metric):
    """Keeps the smallest and the largest value."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("low", torch.tensor(torch.inf), dist_reduce_fx="min")
        self.add_state("high", torch.tensor(-torch.inf), dist_reduce_fx="max")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs, target):
        self.low = torch.minimum(self.low, outputs.min())
        self.high = torch.maximum(self.high, outputs.max())
        self.count += len(target)

    def compute(self):
        return {"range": (self.low, self.high), "count": self.count}


@pytest.mark.parametrize("ranges", SPREADS)
def test_values_are_numbers_lists_and_mappings_of_them(ranges):
    table = numbers(45)
    x = [2 * value for value in table["x"].to_pylist()]
    values = evaluate(Summing(extremes=Tolerant), table, ranges)[-1]
    assert values == {"extremes": {"range": [min(x), max(x)], "count": 45}}


def test_curves_are_nested_lists():
    task = Summing(curve=BinaryPrecisionRecallCurve)
    task.update_metric = lambda metric, outputs, batch: metric.update(
        outputs.sigmoid(), (batch["label"] % 2).long()
    )
    precision, recall, thresholds = evaluate(task, numbers(20), cut(2, 1))[0]["curve"]
    assert len(precision) == len(recall) == len(thresholds) + 1
    assert precision[-1] == 1.0


@dataclass
class Outputs:
    rows: torch.Tensor
    codes: torch.Tensor


SHAPES = {
    "a list for each row": lambda x: [torch.zeros(ROWS, 4) + one for one in x],
    "a mapping": lambda x: {"rows": x, "codes": torch.arange(float(ROWS))},
    "a dataclass": lambda x: Outputs(x, torch.arange(float(ROWS))),
    "two tokens a row, flat": lambda x: x.repeat_interleave(2, 0),
    "time first": lambda x: x.expand(ROWS, 3, len(x)),
}


def described(outputs):
    """Return the structure of outputs, with the shapes of all tensors."""
    if isinstance(outputs, torch.Tensor):
        return tuple(outputs.shape)
    if isinstance(outputs, Outputs):
        return described(vars(outputs))
    if isinstance(outputs, dict):
        return {key: described(value) for key, value in outputs.items()}
    return [described(one) for one in outputs]


@pytest.mark.parametrize("shape", SHAPES)
def test_metrics_get_the_forwards_outputs_of_any_structure(shape):
    """19 rows: two parts of 8 and one of 3, in which other tensors happen to have 8 rows."""
    seen = []

    class Structured(Summing):
        def forward(self, model, batch):
            return SHAPES[shape](model(batch["x"]))

        def update_metric(self, metric, outputs, batch):
            seen.append((described(outputs), len(batch["label"])))
            metric.update(batch["x"])

    values = evaluate(Structured(seen=CatMetric), numbers(19), cut(1))[0]
    assert len(values["seen"]) == 19
    assert seen[:3] == [(described(SHAPES[shape](torch.zeros(n))), n) for n in (8, 8, 3)]


def test_every_part_is_made_by_one_worker_and_has_the_same_size_on_any_number_of_them():
    sizes = []

    class Watching(Summing):
        def forward(self, model, batch):
            sizes.append(len(batch["x"]))
            return model(batch["x"])

    for ranges in (cut(3), cut(3, 1), cut(3, 1, 2)):
        sizes.clear()
        evaluate(Watching(seen=CatMetric), numbers(30), ranges)
        assert sizes == [ROWS, 2] * (3 * 2)  # two passes over three lanes of ten rows


class Across(Summing):
    """Each row's output depends on all rows of its part."""

    def model(self):
        return nn.BatchNorm1d(1, track_running_stats=False)

    def forward(self, model, batch):
        return model(batch["x"][:, None])[:, 0]


def test_a_model_that_computes_across_rows_gives_the_same_as_plain_pytorch():
    """Five rows in one lane; they must not be divided or padded."""
    table = numbers(5)
    x = torch.tensor(table["x"].to_pylist())
    task = Across(seen=CatMetric)
    expected = task.forward(task.model().eval(), {"x": x})
    values = evaluate(task, table, cut(1))[0]["seen"]
    assert values == expected.tolist()
    padded = torch.cat([x, x[:1].expand(ROWS - 5)])
    assert values != task.forward(task.model().eval(), {"x": padded})[:5].tolist()  # the control


@pytest.mark.parametrize("rows", [21, 64, 66])
def test_a_model_that_computes_across_rows_gives_the_same_on_any_number_of_workers(rows):
    task = Across(seen=CatMetric)
    alone = evaluate(task, numbers(rows), cut(4))[0]
    for ranges in (cut(4, 1), cut(4, 1, 2, 3), cut(4, 3)):
        assert evaluate(task, numbers(rows), ranges) == [alone] * len(ranges)


def test_buffers_changed_by_a_forward_do_not_reach_the_next_logical_rank():
    class Counting(Summing):
        def model(self):
            model = nn.Identity()
            model.register_buffer("calls", torch.tensor(0.0))
            return model

        def forward(self, model, batch):
            model.calls += 1
            return batch["x"] * 0 + model.calls

    task = Counting(seen=CatMetric)
    alone = evaluate(task, numbers(50), cut(4))[0]
    assert max(alone["seen"]) == 2  # of its own lane
    for ranges in (cut(4, 1), cut(4, 1, 2, 3)):
        assert evaluate(task, numbers(50), ranges) == [alone] * len(ranges)


def test_random_numbers_in_an_evaluation_do_not_depend_on_the_worker():
    class Drawing(Summing):
        def forward(self, model, batch):
            return model(batch["x"]) + torch.rand(len(batch["x"]))

    task = Drawing(seen=CatMetric)
    alone = evaluate(task, numbers(50), cut(4))[0]
    for ranges in (cut(4, 1), cut(4, 1, 2, 3)):
        assert evaluate(task, numbers(50), ranges) == [alone] * len(ranges)
    assert alone != evaluate(task, numbers(50), cut(5))[0]


def test_the_model_is_in_evaluation_mode_within_advice_and_without_gradients():
    log = []

    class Noting(Aspect):
        def evaluate(self, step):
            assert step.number == 4
            log.append("before")
            yield
            log.append("after")

    class Modes(Summing):
        def forward(self, model, batch):
            log.append((model.training, torch.is_grad_enabled()))
            return model(batch["x"])

    entered = []
    values = evaluate(Modes(seen=CatMetric), numbers(10), cut(1), [Noting()], entered)
    assert len(values[0]["seen"]) == 10
    assert log == 2 * ["before", (False, False), (False, False), "after"]
    assert entered == 2 * ["evaluate", "evaluate", "gather"]


def test_a_task_that_measures_nothing_evaluates_nothing():
    def load(step):
        raise AssertionError(step)

    task = Summing()
    task.evaluate_loss = False
    source = open_source(numbers(5), None)
    order = Order(rows=source.rows, lanes=2, seed=SEED, shuffle=False)
    assert Evaluation(task, source, order, ROWS, SEED).run(None, load, cut(2), Collect(0)) == {}


def test_nan_and_infinity_become_null_in_json():
    value = {"a": torch.tensor([1.0, float("nan")]), "b": (float("inf"), 2), 3: np.float32(0.5)}
    assert _plain("m", value) == {"a": [1.0, None], "b": [None, 2], "3": 0.5}


def test_a_value_that_json_cannot_hold_is_refused_by_name():
    with pytest.raises(TaskError, match="metric 'm' returned a Order"):
        _plain("m", {"a": Order(rows=np.array([1]), lanes=1, seed=1)})


class Remembering(Summing):
    """Its evaluation depends on the Python state that earlier forwards have left."""

    def __init__(self):
        super().__init__(seen=CatMetric)
        self.random = random.Random(3)
        self.seen = []

    def forward(self, model, batch):
        self.seen.append(len(self.seen))
        drawn = int(self.random.random() * 100) + sum(self.seen)
        return super().forward(model, batch) * 0 + drawn


def test_python_state_changed_by_a_forward_does_not_reach_the_next_logical_rank():
    told = [evaluate(Remembering(), numbers(50), cut(4, *cuts))[0] for cuts in ([], [1], [1, 2, 3])]
    assert told[0] == told[1] == told[2]
    assert len(set(told[0]["seen"])) > 1  # the parts of one logical rank differ


class Scaling(Summing):
    """Changes a weight when it is evaluated."""

    def model(self):
        model = nn.Identity()
        model.weight = nn.Parameter(torch.ones(1))
        return model

    def forward(self, model, batch):
        model.weight.mul_(0.5)
        return super().forward(model, batch)


def test_a_forward_that_changes_a_weight_in_an_evaluation_is_refused():
    with pytest.raises(TaskError, match="evaluation changes parameter 'weight'"):
        evaluate(Scaling(seen=CatMetric), numbers(50), cut(4))

"""Evaluation: every sample exactly once, the same bits on any number of workers.

Each logical rank feeds metrics of its own. Every worker merges them in the order of logical ranks
(`metrics.py`).

Besides metrics, an evaluation averages values over all samples: the loss, and what `task.measure`
returns. Each logical rank adds up its weighted values and their weights, in float64. The sums are
added in the order of logical ranks.

The rows of a logical rank are computed in parts of one size, and the last part has the rows that
are left. Nothing is padded, so outputs may have any form and the model may compute across rows. The
result does not depend on the number of workers, because the rows of each part, and so their number,
follow from the data and the number of logical ranks alone.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from raytrain_plus.algorithms import EvaluatedSet, Step, Weave
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.streams.loader import evaluation_parts, load_part, to_device
from raytrain_plus.streams.order import Order
from raytrain_plus.streams.source import Source
from raytrain_plus.task import Batch, Task, TaskError
from raytrain_plus.training.buffers import Buffers
from raytrain_plus.training.losses import total
from raytrain_plus.training.metrics import gathered, merged, metrics_of
from raytrain_plus.training.weights import Weights

Values = dict[str, Any]
LOSS = "evaluation_loss"
_MEANS = "!means"  # no name of a metric


def named_sets(data: Any) -> dict[str, Any]:
    """Return evaluation data as sets by name; a single one has the empty name."""
    if data is None:
        return {}
    return dict(data) if isinstance(data, Mapping) else {"": data}


def measures_loss(task: Task) -> bool:
    """Say whether an evaluation measures the task's loss."""
    if task.evaluate_loss is None:
        return not metrics_of(task) and type(task).measure is Task.measure
    return task.evaluate_loss


def measures_anything(task: Task) -> bool:
    """Say whether an evaluation of a task has any result."""
    own = type(task).measure is not Task.measure
    return own or measures_loss(task) or bool(metrics_of(task))


def named_in(set_name: str, name: str) -> str:
    """Return the name of a metric of one of several evaluation sets."""
    if not set_name:
        return name
    return f"{set_name}/loss" if name == LOSS else f"{set_name}/{name}"


class Gather(Protocol):
    """Brings every worker's bytes to every worker, in the order of the generation."""

    index: int
    device: torch.device

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return all workers' bytes."""


class Evaluation:
    """Measures a task's metrics on its evaluation data.

    Args:
        task: the user's task.
        source: the evaluation data, or one set of it.
        order: its order, not shuffled.
        part_rows: samples in one forward; the last of a logical rank has those that are left.
        seed: the run's seed.

    Raises:
        TaskError: the task's metrics cannot be used.
    """

    def __init__(self, task: Task, source: Source, order: Order, part_rows: int, seed: int) -> None:
        self._task = task
        self.source = source
        self._order = order
        self._part_rows = part_rows
        self._seed = seed
        self._metrics = metrics_of(task)
        self._with_loss = measures_loss(task)
        self._with_means = self._with_loss or type(task).measure is not Task.measure

    def run(
        self,
        step: Step,
        weave: Weave,
        ranges: Sequence[range],
        wire: Gather,
        enter: Callable[[str], None] = lambda _: None,
        set_name: str = "",
    ) -> Values:
        """Return the value of each metric and mean: a number, or lists and mappings of numbers.

        What advice records is then in `step.evaluation.shown`.

        Args:
            step: the step after which it is evaluated.
            weave: the run's aspects.
            ranges: the logical ranks of each worker.
            wire: to the other workers.
            enter: called with the name of each phase as it begins.
            set_name: the name of this set.
        """
        if not (self._metrics or self._with_means):
            return {}
        step.evaluation = EvaluatedSet(
            name=set_name,
            task=self._task,
            rows=self.source.total_rows,
            labels=self.source.labels,
            seed=self._seed,
            load=partial(self._load, wire.device, enter),
        )
        try:
            states = self.measure(step, weave, ranges[wire.index], wire.device, enter)
        finally:
            self.source.release()
        enter("gather")
        return self.values(step.number, wire.all_gather_bytes(states))

    def measure(
        self,
        step: Step,
        weave: Weave,
        ranks: range,
        device: torch.device,
        enter: Callable[[str], None] = lambda _: None,
    ) -> bytes:
        """Return what some logical ranks measure, for `values`."""
        step.model.eval()
        states: dict[str, Tensor] = {}
        with weave.around("evaluate", step), torch.no_grad():
            buffers, weights = Buffers(step.model, self._task), Weights(step.model)
            if step.evaluation is not None:
                step.evaluation.apart = partial(self._apart, step, buffers, weights)

            def forward(batch: Batch) -> tuple[Any, dict[str, Tensor]]:
                # What metrics leave in the task stays there.
                buffers.attributes.snapshot()
                with weights.unchanged_by("the forward of an evaluation"):
                    outputs = self._task.forward(step.model, batch)
                    sums = self._sums(outputs, batch)
                buffers.attributes.note()
                return outputs, sums

            for rank in ranks:
                step.model.eval()
                try:
                    states |= self._measure(step, rank, device, enter, forward)
                finally:  # what a forward changes must not reach the next logical rank
                    buffers.restore()
        return safetensors.torch.save(states)

    def values(self, step: int, payloads: Sequence[bytes]) -> Values:
        """Return the value of each metric and mean.

        Args:
            step: the step after which it is evaluated.
            payloads: what `measure` has returned for all logical ranks, in any order.
        """
        told: dict[str, Tensor] = {}
        for payload in payloads:
            told |= safetensors.torch.load(payload)
        values = {name: self._value(step, name, told) for name in sorted(self._metrics)}
        return {**values, **self._means(told)}

    def _load(
        self, device: torch.device, enter: Callable[[str], None], first: int, stop: int
    ) -> Batch:
        enter("evaluate")
        return to_device(
            load_part(self.source, self.source.plain_order(1), 0, 0, first, stop), device
        )

    def _apart(
        self, step: Step, buffers: Buffers, weights: Weights, call: Callable[[], Any]
    ) -> Any:
        """Call a function that computes with the model, and put back what it changes."""
        step.model.eval()
        seed_global_generators(seed_for(self._seed, "samples", step.number))
        buffers.attributes.snapshot()
        try:
            with torch.no_grad(), weights.unchanged_by("what an aspect computes in an evaluation"):
                return call()
        finally:
            buffers.restore()

    def _measure(
        self,
        step: Step,
        rank: int,
        device: torch.device,
        enter: Callable[[str], None],
        forward: Callable[[Batch], tuple[Any, dict[str, Tensor]]],
    ) -> dict[str, Tensor]:
        metrics = {name: copy.deepcopy(m).to(device) for name, m in self._metrics.items()}
        seed_global_generators(seed_for(self._seed, "evaluate", step.number, rank))
        updates = 0
        means: dict[str, Tensor] = {}
        for part in evaluation_parts(self.source, self._order, self._part_rows, rank):
            enter("evaluate")
            batch = to_device(part, device)
            outputs, sums = forward(batch)
            for name, pair in sums.items():
                means[name] = means[name] + pair if name in means else pair
            for metric in metrics.values():
                self._task.update_metric(metric, outputs, batch)  # type: ignore[arg-type]
            updates += 1
        if not updates:
            return {}
        states = {
            f"{name}/{rank}/{key}": value
            for name, metric in metrics.items()
            for key, value in gathered(name, metric, self._metrics[name]).items()
        }
        return states | {f"{_MEANS}/{rank}/{name}": pair for name, pair in means.items()}

    def _sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return what a part adds to each mean: its weighted values and weights, shape (2,)."""
        sums: dict[str, Tensor] = {}
        if self._with_loss:
            sums[LOSS] = total(self._task.loss(outputs, batch), batch, "task.loss()")
        if self._with_means:
            for name, value in self._task.measure(outputs, batch).items():
                if name in self._metrics or name in sums:
                    raise TaskError(
                        f"task.measure() returned {name!r}, which is the name of a metric as well: "
                        "give it another name"
                    )
                sums[name] = total(value, batch, f"task.measure()[{name!r}]")
        return sums

    def _means(self, told: Mapping[str, Tensor]) -> Values:
        sums: dict[str, dict[int, Tensor]] = {}
        for full, pair in told.items():
            kind, rank, name = full.split("/", 2)
            if kind == _MEANS:
                sums.setdefault(name, {})[int(rank)] = pair
        means: Values = {}
        for name in sorted(sums):
            whole = torch.zeros(2, dtype=torch.float64)
            for _, pair in sorted(sums[name].items()):
                whole = whole + pair
            means[name] = _plain(name, whole[0] / whole[1])
        return means

    def _value(self, step: int, name: str, told: dict[str, Tensor]) -> Any:
        of_ranks: dict[int, dict[str, Tensor]] = {}
        for full, value in told.items():
            metric, rank, key = full.split("/", 2)
            if metric == name:
                of_ranks.setdefault(int(rank), {})[key] = value
        ranks = [of_ranks[rank] for rank in sorted(of_ranks)]
        whole = merged(name, copy.deepcopy(self._metrics[name]), ranks)
        # Some draw samples when they compute; all workers must draw the same.
        seed_global_generators(seed_for(self._seed, "metrics", step))
        return _plain(name, whole.compute())


def _plain(name: str, value: Any) -> Any:
    """Return a value that JSON can hold; NaN and infinity become None, since JSON has neither."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _plain(name, value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(name, one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TaskError(
        f"compute() of metric {name!r} returned a {type(value).__name__}, and must return a "
        "number, a tensor, or lists or mappings of them"
    )

"""Evaluation: every sample exactly once, the same bits on any number of workers.

Each logical rank feeds metrics of its own; they are merged in the order of logical ranks, on every
worker alike.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from raytrain_plus.algorithms import Step, Weave
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.streams.loader import evaluation_parts, to_device
from raytrain_plus.streams.order import Order
from raytrain_plus.streams.source import Source
from raytrain_plus.task import Task, TaskError

if TYPE_CHECKING:
    from torchmetrics import Metric

Values = dict[str, Any]


class Gather(Protocol):
    """What brings every worker's bytes to every worker, in the order of the generation."""

    index: int
    device: torch.device

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return all workers' bytes."""


class Evaluation:
    """Measures a task's metrics on its evaluation data.

    Args:
        task: the user's task.
        source: the evaluation data.
        order: its order, not shuffled.
        part_rows: samples in one forward, always; the last is padded.
        seed: the run's seed.
    """

    def __init__(self, task: Task, source: Source, order: Order, part_rows: int, seed: int) -> None:
        self._task = task
        self.source = source
        self._order = order
        self._part_rows = part_rows
        self._seed = seed
        self._metrics = task.metrics()

    def run(
        self,
        step: Step,
        weave: Weave,
        ranges: Sequence[range],
        wire: Gather,
        enter: Callable[[str], None] = lambda _: None,
    ) -> Values:
        """Return the value of each metric: a number, or lists and mappings of numbers."""
        if not self._metrics:
            return {}
        step.model.eval()
        states: dict[str, Tensor] = {}
        try:
            with weave.around("evaluate", step), torch.no_grad():
                for rank in ranges[wire.index]:
                    states |= self._measure(step, rank, wire.device, enter)
        finally:
            self.source.release()
        enter("gather")
        gathered: dict[str, Tensor] = {}
        for payload in wire.all_gather_bytes(safetensors.torch.save(states)):
            gathered |= safetensors.torch.load(payload)
        return {name: self._merged(name, gathered) for name in sorted(self._metrics)}

    def _measure(
        self, step: Step, rank: int, device: torch.device, enter: Callable[[str], None]
    ) -> dict[str, Tensor]:
        metrics = {name: copy.deepcopy(m).to(device) for name, m in self._metrics.items()}
        seed_global_generators(seed_for(self._seed, "evaluate", step.number, rank))
        updates = 0
        for part, valid in evaluation_parts(self.source, self._order, self._part_rows, rank):
            enter("evaluate")
            batch = to_device(part, device)
            outputs = _first_rows(self._task.forward(step.model, batch), valid, self._part_rows)
            seen = {name: values[:valid] for name, values in batch.items()}
            for metric in metrics.values():
                self._task.update_metric(metric, outputs, seen)
            updates += 1
        if not updates:
            return {}
        return {
            f"{name}/{rank}/{key}": value
            for name, metric in metrics.items()
            for key, value in _state(metric).items()
        }

    def _merged(self, name: str, gathered: dict[str, Tensor]) -> Any:
        prefix = f"{name}/"
        ranks = sorted({int(key.split("/")[1]) for key in gathered if key.startswith(prefix)})
        merged: Metric | None = None
        for rank in ranks:
            start = f"{name}/{rank}/"
            state = {k.removeprefix(start): v for k, v in gathered.items() if k.startswith(start)}
            metric = _with_state(copy.deepcopy(self._metrics[name]), state)
            if merged is not None:
                metric.merge_state(merged)  # puts what it is given before what it has
            merged = metric
        assert merged is not None  # there is at least one sample
        return _plain(merged.compute())


def check_metrics(task: Task) -> None:
    """Refuse metrics that cannot be merged exactly.

    Raises:
        TaskError: a metric is none of torchmetrics, or says of itself that its states cannot be
            merged.
    """
    for name, metric in task.metrics().items():
        # What is averaged or stacked forgets how many samples each worker's share stands for.
        lossy = [
            key
            for key, reduce in getattr(metric, "_reductions", {}).items()
            if getattr(reduce, "__name__", "") == "dim_zero_mean"
            or (reduce is None and isinstance(metric._defaults[key], Tensor))  # noqa: SLF001
        ]
        whole = getattr(metric, "full_state_update", None) is False
        if lossy or not whole or "/" in name:
            raise TaskError(
                f"metric {name!r} ({type(metric).__name__}) cannot be merged over workers: use a "
                "torchmetrics.Metric with full_state_update=False whose states are summed, "
                "concatenated, or the least or greatest, under a name without a slash"
            )


def _first_rows(values: Any, valid: int, rows: int) -> Any:
    """Cut padding off everything that has one entry per row."""
    if valid == rows:
        return values
    if isinstance(values, Tensor):
        return values[:valid] if values.ndim and len(values) == rows else values
    if isinstance(values, dict):
        cut = {k: _first_rows(v, valid, rows) for k, v in values.items()}
        return cut if type(values) is dict else type(values)(**cut)
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(_first_rows(v, valid, rows) for v in values))
    if isinstance(values, (list, tuple)):
        return type(values)(_first_rows(v, valid, rows) for v in values)
    return values


def _plain(value: Any) -> Any:
    """Return what JSON can hold; it has no word for what is not a number, nor for infinity."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _state(metric: "Metric") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in metric.metric_state.items():
        if isinstance(value, Tensor):
            found[key] = value.cpu().contiguous().clone()
        else:
            # Copies: metrics may keep one and the same tensor, which safetensors refuses to write.
            found |= {f"{key}#{i:06d}": v.cpu().contiguous().clone() for i, v in enumerate(value)}
    found["#updates"] = torch.tensor(metric.update_count)
    return found


def _with_state(metric: "Metric", state: dict[str, Tensor]) -> "Metric":
    for key, default in metric.metric_state.items():
        if isinstance(default, Tensor):
            setattr(metric, key, state[key])
        else:
            items = sorted(k for k in state if k.startswith(f"{key}#"))
            setattr(metric, key, [state[k] for k in items])
    metric._update_count = int(state["#updates"])  # noqa: SLF001 - no public way to set it
    return metric

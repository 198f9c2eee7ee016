"""A run's data, as each of its workers opens it."""

from typing import Any

import ray

from raytrain_plus.elastic.messages import RunSpec
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.order import Ordering
from raytrain_plus.streams.source import Source
from raytrain_plus.task import Task
from raytrain_plus.training.evaluation import Evaluation


def open_data(spec: RunSpec, task: Task) -> tuple[Source, Ordering]:
    """Open the training data and its order."""
    source = open_source(resolve(spec.data), _columns(task), hash_data=spec.hash_data)
    return source, source.order(spec.logical_ranks, spec.seed, spec.part_rows)


def open_evaluation(spec: RunSpec, task: Task) -> Evaluation | None:
    """Open the evaluation data, if there is any."""
    if spec.evaluation_data is None:
        return None
    data = resolve(spec.evaluation_data)
    source = open_source(data, _columns(task), hash_data=spec.hash_data)
    order = source.plain_order(spec.logical_ranks)
    return Evaluation(task, source, order, spec.evaluation_rows, spec.seed)


def resolve(data: Any) -> Any:
    """Return what a reference into Ray's store stands for; anything else as it is."""
    return ray.get(data) if isinstance(data, ray.ObjectRef) else data


def _columns(task: Task) -> list[str] | None:
    return None if task.columns is None else list(task.columns)

"""A run's data, as each of its workers opens it."""

import socket
import warnings
from typing import Any

import ray

from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.streams.columns import DataError, LeftOutWarning
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.order import Ordering
from raytrain_plus.streams.source import Source, closed_on_error
from raytrain_plus.streams.stream import Stream
from raytrain_plus.task import Task
from raytrain_plus.training.evaluation import Evaluation


def open_data(spec: RunSpec, task: Task) -> tuple[Source, Ordering]:
    """Open the training data and its order.

    Raises:
        DataError: it cannot be read, or is other data than the driver has opened.
    """
    source = _open(spec.data, spec, task)
    with closed_on_error(source):
        _check_same(source, spec.identity.get("data content"), spec.data, spec)
        order = source.order(spec.logical_ranks, spec.seed, spec.part_rows)
    return source, order


def open_evaluation(spec: RunSpec, task: Task) -> Evaluation | None:
    """Open the evaluation data, if there is any.

    Raises:
        DataError: as for `open_data`.
    """
    if spec.evaluation_data is None:
        return None
    source = _open(spec.evaluation_data, spec, task)
    with closed_on_error(source):
        _check_same(source, spec.identity.get("evaluation data"), spec.evaluation_data, spec)
        order = source.plain_order(spec.logical_ranks)
        return Evaluation(task, source, order, spec.evaluation_rows, spec.seed)


def _open(data: Any, spec: RunSpec, task: Task) -> Source:
    columns = None if task.columns is None else list(task.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)  # the driver shows it
        return open_source(resolve(data), columns, hash_data=spec.hash_data)


def _check_same(source: Source, meant: str | None, data: Any, spec: RunSpec) -> None:
    """Check that a name means the same data here as on the driver."""
    is_table = not isinstance(data, str | Stream | Mixture) or (
        isinstance(data, str) and data.startswith(f"{spec.folder}/")
    )
    if is_table or meant is None or source.identity == meant:
        return
    place = data if isinstance(data, str) else getattr(data, "url", "a mixture")
    raise DataError(
        f"the data at {place} on node {socket.gethostname()} is other data than that which the run "
        "was started with: it has changed, or another file has that name there. All nodes must "
        "see the same data"
    )


def resolve(data: Any) -> Any:
    """Return the value of a reference into Ray's store; any other value as it is."""
    return ray.get(data) if isinstance(data, ray.ObjectRef) else data

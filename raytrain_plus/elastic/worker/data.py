"""A run's data, as each of its workers opens it."""

import contextlib
import socket
import warnings
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray

from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.storage.staging import StoredFile
from raytrain_plus.streams.columns import DataError, LeftOutWarning
from raytrain_plus.streams.order import Ordering
from raytrain_plus.streams.source import Source, closed_on_error
from raytrain_plus.task import Task, collate_of
from raytrain_plus.training.evaluation import Evaluation, named_sets
from raytrain_plus.user_data import open_users_data


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


def open_evaluations(
    spec: RunSpec, task: Task, closing: contextlib.ExitStack
) -> dict[str, Evaluation]:
    """Open the sets of evaluation data by name; a single set has the empty name.

    Args:
        spec: the run.
        task: its task.
        closing: closes the sources.

    Raises:
        DataError: as for `open_data`.
    """
    opened = {}
    for name, data in named_sets(spec.evaluation_data).items():
        source = _open(data, spec, task)
        with closed_on_error(source):
            meant = spec.identity.get(f"evaluation data {name}".rstrip())
            _check_same(source, meant, data, spec)
            order = source.plain_order(spec.logical_ranks)
            opened[name] = Evaluation(task, source, order, spec.evaluation_rows, spec.seed)
        closing.callback(source.close)
    return opened


def told(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the identities of evaluation data, for a worker's fingerprint."""
    said = [f"{name} {one.source.identity}".lstrip() for name, one in evaluations.items()]
    return ", ".join(said) or "none"


def _open(data: Any, spec: RunSpec, task: Task) -> Source:
    columns = None if task.columns is None else list(task.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)  # the driver shows it
        source = open_users_data(resolve(data), columns, hash_data=spec.hash_data)
    source.collate = collate_of(task)
    return source


def _check_same(source: Source, meant: str | None, data: Any, spec: RunSpec) -> None:
    """Check that a name means the same data here as on the driver."""
    is_table = isinstance(data, ray.ObjectRef | pa.Table | StoredFile) or (
        isinstance(data, str) and data.startswith(f"{spec.folder}/")
    )
    if is_table or meant is None or source.identity == meant:
        return
    place = data if isinstance(data, str) else getattr(data, "url", source.shards[0].where)
    raise DataError(
        f"the data at {place} on node {socket.gethostname()} is other data than that which the run "
        "was started with: it has changed, or another file has that name there. All nodes must "
        "see the same data"
    )


def resolve(data: Any) -> Any:
    """Return what a reference into Ray's store or to a run's file stands for; else the value."""
    if isinstance(data, StoredFile):
        return str(data.fetch())
    return ray.get(data) if isinstance(data, ray.ObjectRef) else data

"""From what a task predicts to columns of a Parquet file."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raytrain_plus.task import Batch, TaskError

PREDICTION = "prediction"
"""The column of a prediction that has no name."""


def predicted_columns(predicted: Any, rows: int, what: str) -> dict[str, pa.Array]:
    """Return the columns of what `task.predict` has returned for one batch.

    Args:
        predicted: column name -> tensor of shape (rows, ...) or list; or one of them alone.
        rows: of the batch.
        what: the rows, for the errors.

    Raises:
        TaskError: it has another form.
    """
    named = predicted if isinstance(predicted, Mapping) else {PREDICTION: predicted}
    if not named:
        raise TaskError(f"task.predict() returned no column for {what}")
    return {str(name): _column(str(name), value, rows, what) for name, value in named.items()}


def batch_columns(batch: Batch) -> dict[str, pa.Array]:
    """Return a batch of stored rows as columns."""
    return {name: _array(value) for name, value in batch.items()}


def _column(name: str, value: Any, rows: int, what: str) -> pa.Array:
    said = f"task.predict() returned column {name!r}" if name != PREDICTION else "task.predict()"
    verb = "as" if name != PREDICTION else "returned"
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    is_rows = isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
    if not is_rows:
        raise TaskError(
            f"{said} {verb} a {type(value).__name__} for {what}, and must return a tensor of shape "
            "(rows, ...), a list of one value per row, or a mapping from column names to these: "
            "override predict(model, batch)"
        )
    if len(value) != rows:
        raise TaskError(f"{said} {verb} {len(value)} rows for {what}, which are {rows}")
    try:
        return _array(value)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise TaskError(f"{said} {verb} values that no Parquet file holds: {error}") from error


def _array(value: Tensor | list[Any]) -> pa.Array:
    if isinstance(value, Tensor):
        return _of_tensor(value)
    return pa.array([_plain(one) for one in value])


def _of_tensor(tensor: Tensor) -> pa.Array:
    """Return a row for each element of the first dimension: a number, or fixed-size lists."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.itemsize < 4:
        tensor = tensor.float()
    if 0 in tensor.shape[1:]:
        raise ValueError(f"its rows have the shape {tuple(tensor.shape[1:])}, which holds nothing")
    array = pa.array(tensor.contiguous().reshape(-1).numpy())
    for size in reversed(tensor.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.float() if value.is_floating_point() else value).tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list) else value

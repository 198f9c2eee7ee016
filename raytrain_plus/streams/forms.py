"""What other libraries hold in memory, as a form that `open_source` reads.

Frames of pandas and polars and tensors of a `TensorDataset` become a pyarrow table. A library is
looked for by the name of an object's class, so none of them is imported here.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_plus.streams.columns import DataError, listed
from raytrain_plus.streams.map_dataset import MapDataset, names_of_elements

_TRAINING = "train"


def plain_form(data: Any) -> Any:
    """Return data as a table, a dataset by rows, a path or URL, a list of these, or a stream.

    Args:
        data: what a user gives. Data of a form that is known already is returned as it is.

    Raises:
        DataError: it cannot be read by row numbers, or Arrow cannot hold it.
    """
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if _is(data, "pandas", "DataFrame"):
        return _from_pandas(data)
    if _is(data, "polars", "DataFrame"):
        return _converted(data.to_arrow, "the polars frame")
    if _is(data, "datasets.dataset_dict", "DatasetDict"):
        return _one_split(data)
    if _is(data, "torch", "TensorDataset") or _is(data, "torch", "Subset"):
        table = _of_tensors(data)
        return MapDataset(data) if table is None else table
    _refuse(data)
    if is_hugging_face(data):
        return data if data.cache_files or data.format["type"] == "custom" else _table_in(data)
    if is_ray_dataset(data):
        return data
    if isinstance(data, list | tuple):
        return _files(data)
    is_rows = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    known = (str, os.PathLike, bytes, Mapping, pa.Table, MapDataset)
    return MapDataset(data) if is_rows and not isinstance(data, known) else data


def is_hugging_face(data: Any) -> bool:
    """Say whether data is a `datasets.Dataset`."""
    return _is(data, "datasets.arrow_dataset", "Dataset")


def is_ray_dataset(data: Any) -> bool:
    """Say whether data is a `ray.data.Dataset`."""
    return _is(data, "ray.data", "Dataset")


def _is(data: Any, library: str, *names: str) -> bool:
    """Say whether an object's class, or one that it is derived from, is one of a library's."""
    return any(
        kind.__name__ in names and f"{kind.__module__}.".startswith(f"{library}.")
        for kind in type(data).__mro__
    )


def _refuse(data: Any) -> None:
    """Refuse what has no row numbers, by its name and with what to do."""
    if any(
        _is(data, f"datasets.{module}", name)
        for module, name in (
            ("iterable_dataset", "IterableDataset"),
            ("dataset_dict", "IterableDatasetDict"),
        )
    ):
        raise DataError(
            f"{type(data).__name__} of Hugging Face streams its rows, which have no numbers: load "
            "it with streaming=False; or give its Parquet files, "
            "Stream('hf://datasets/OWNER/NAME', split='train'); or write its rows with a "
            "StreamWriter."
        )
    if _is(data, "torch", "IterableDataset"):
        raise DataError(
            f"{type(data).__name__} is an IterableDataset, whose rows have no numbers: they can "
            "neither be shuffled nor be found again after a resize. Write its rows once: `with "
            "StreamWriter(PLACE) as writer: writer.write(row)` for each; or give a dataset with "
            "`__len__` and `__getitem__`."
        )
    if _is(data, "torch", "DataLoader"):
        raise DataError(
            "data is a DataLoader, which makes batches of its own: give its dataset, "
            "`data=loader.dataset`, and `batch_size` and `collate` to the trainer and the task."
        )
    if _is(data, "polars", "LazyFrame"):
        raise DataError("data is a LazyFrame of polars, a query: give its rows, `frame.collect()`.")
    for library in ("pandas", "polars"):
        if _is(data, library, "Series"):
            raise DataError(
                f"data is a Series of {library}, one column without a name: give a DataFrame."
            )


def _from_pandas(frame: Any) -> pa.Table:
    twice = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if twice:
        raise DataError(f"the pandas frame has more than one column {listed(twice)}: rename one.")
    return _converted(lambda: pa.Table.from_pandas(frame), "the pandas frame")


def _converted(convert: Any, what: str) -> pa.Table:
    try:
        return convert()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"{what} cannot be read: {'; '.join(map(str, error.args))}. Give each column one name "
            "and values of one kind."
        ) from error


def _table_in(dataset: Any) -> pa.Table:
    """Return the rows of a `datasets.Dataset` that is in memory."""
    table = dataset.with_format("arrow", columns=dataset.format["columns"])[:]
    return table.replace_schema_metadata(dataset.features.arrow_schema.metadata)


def _one_split(splits: Mapping[str, Any]) -> Any:
    """Return the training split of a DatasetDict, or its only one."""
    if _TRAINING in splits:
        return splits[_TRAINING]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise DataError(
        f"the DatasetDict has the splits {listed(splits)}, none of them {_TRAINING!r}: give one of "
        "them, `data=splits[NAME]`."
    )


def _of_tensors(dataset: Any) -> pa.Table | None:
    """Return the rows of a TensorDataset, or of a Subset of one; None for any other Subset."""
    if _is(dataset, "torch", "Subset"):
        table = _of_tensors(dataset.dataset)
        return None if table is None else table.take(pa.array(list(dataset.indices), pa.int64()))
    tensors = getattr(dataset, "tensors", None)
    names = None if tensors is None else names_of_elements(len(tensors))
    if tensors is None or names is None:
        return None
    columns = {}
    try:
        for name, tensor in zip(names, tensors, strict=True):
            values = np.ascontiguousarray(tensor.numpy(force=True))
            is_scalar = values.ndim == 1
            columns[name] = (
                pa.array(values)
                if is_scalar
                else pa.FixedShapeTensorArray.from_numpy_ndarray(values)
            )
    except (pa.ArrowException, TypeError, ValueError):  # such as bfloat16
        return None
    return pa.table(columns)


def _files(data: Sequence[Any]) -> list[str]:
    """Return a list of paths and URLs."""
    if not data:
        raise DataError("data is an empty list: name some files.")
    for one in data:
        if not isinstance(one, str | os.PathLike):
            raise DataError(
                f"data is a list that holds a {type(one).__name__}; a list names files, by paths "
                "or URLs. Give rows as a table: pyarrow.Table.from_pylist(rows)."
            )
    return [os.fspath(one) for one in data]

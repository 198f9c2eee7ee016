"""The data that a user gives, as the run's processes get it.

Frames become tables, and a `ray.data.Dataset` becomes a stream. A name such as `module:function` is
called in each process, so that a large dataset need not travel.
"""

import dataclasses
import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raytrain_plus.storage.locations import local_path
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.forms import is_ray_dataset, plain_form
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.ray_data import written_stream
from raytrain_plus.streams.source import Source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.task import import_named

_CODE = re.compile(r"(?:[\w./~ -]+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")


def is_code(data: Any) -> bool:
    """Say whether data is the name of a function, `module:function` or `file.py:function`."""
    return isinstance(data, str) and _CODE.fullmatch(data) is not None and not Path(data).exists()


def travelling(data: Any, root: str, options: Mapping[str, Any] | None = None) -> Any:
    """Return data in the form in which it goes to workers, with absolute paths.

    Args:
        data: what a user gives.
        root: a folder or URL that all nodes see, for what must be written first.
        options: for the store of that URL.

    Raises:
        DataError: it cannot be read by row numbers.
    """
    if is_code(data):
        module, _, attribute = data.rpartition(":")
        return (
            f"{Path(module).expanduser().resolve()}:{attribute}" if module.endswith(".py") else data
        )
    data = plain_form(data)
    if is_ray_dataset(data):
        return written_stream(data, f"{root.rstrip('/')}/ray_data", options)
    if isinstance(data, list):
        return [_absolute(one) for one in data]
    if isinstance(data, Mixture):
        streams = {name: travelling(stream, root, options) for name, stream in data.streams.items()}
        return dataclasses.replace(data, streams=streams)
    if isinstance(data, Stream):
        return dataclasses.replace(data, url=_absolute(data.url))
    return _absolute(data)


def evaluation_sets(data: Any) -> Any:
    """Return evaluation data; of a mapping of Hugging Face's splits, all but the training split."""
    is_splits = type(data).__name__ == "DatasetDict" and isinstance(data, Mapping)
    if is_splits and len(data) > 1:
        return {name: one for name, one in data.items() if name != "train"}
    return data


def open_users_data(
    data: Any, columns: Sequence[str] | None = None, *, hash_data: bool = False
) -> Source:
    """Open data as `open_source`, also by the name of a function that returns it.

    Raises:
        DataError: as `open_source`; or the function fails, or returns nothing.
        TaskError: the function cannot be imported.
    """
    return open_source(_made(data), columns, hash_data=hash_data)


def _made(data: Any) -> Any:
    """Return data that `open_source` reads: what a function returns if its name is given.

    Raises:
        DataError: the function fails, or returns nothing.
        TaskError: it cannot be imported.
    """
    if not is_code(data):
        return data
    found = import_named(data, "data")
    if not callable(found):
        return found
    try:
        made = found()
    except Exception as error:
        raise DataError(
            f"data {data!r}: {getattr(found, '__name__', found)}() fails:\n"
            + traceback.format_exc().rstrip()
        ) from error
    if made is None or is_code(made):
        raise DataError(f"data {data!r} returns {made!r}, which is no data.")
    return made


def code_in(data: Any) -> list[Callable[..., Any]]:
    """Return the user's code in data, on which the rows depend.

    Raises:
        TaskError: a name cannot be imported.
    """
    if is_code(data):
        return [import_named(data, "data")]
    streams = data.streams.values() if isinstance(data, Mixture) else [data]
    transforms = [getattr(one, "transform", None) for one in streams]
    datasets = [getattr(one, "dataset", None) for one in streams]
    return [one for one in [*transforms, *datasets] if one is not None]


def _absolute(data: Any) -> Any:
    """Return data with an absolute path, which is valid in every worker's working directory."""
    if isinstance(data, str | os.PathLike) and (path := local_path(data)) is not None:
        return str(path)
    return data

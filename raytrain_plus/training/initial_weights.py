"""Weights from which a model starts: from a safetensors file, or from a folder that has some.

A folder is one that `save_pretrained` has written (`model.safetensors`, or shards with an index),
or a checkpoint of another run. Names are those of the model's `state_dict()`.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raytrain_plus.task import TaskError, TaskWarning

INDEX_SUFFIX = ".index.json"
"""At the end of a file's name: the index of several files that hold its tensors."""

_FILE = "model.safetensors"
_NAMED = 5  # of many names


def files_at(place: str) -> list[Path]:
    """Return the files that hold the weights at a place.

    Raises:
        TaskError: there are none.
    """
    path = Path(place)
    index = index_at(path)
    if index is not None:
        return [index.with_name(name) for name in sorted({*_files_of_tensors(index).values()})]
    if path.is_file():
        return [path]
    if (path / _FILE).is_file():
        return [path / _FILE]
    raise TaskError(
        f"initial weights {place}: there is no such file, and no folder with {_FILE} or "
        f"{_FILE}{INDEX_SUFFIX}: give a safetensors file, a folder of save_pretrained, or a run's "
        "checkpoint"
    )


def index_at(path: Path) -> Path | None:
    """Return the index of the weights at a place; None if they are in one file, or not there."""
    if path.is_file():
        return path if path.name.endswith(INDEX_SUFFIX) else None
    if (path / _FILE).is_file():
        return None
    for index in (path / f"{_FILE}{INDEX_SUFFIX}", path.with_name(f"{path.name}{INDEX_SUFFIX}")):
        if index.is_file():
            return index
    return None


def _files_of_tensors(index: Path) -> dict[str, str]:
    """Return the name of the file of each tensor, from an index.

    Raises:
        TaskError: it is damaged, or names a file that is not there.
    """
    try:
        told = {str(n): str(f) for n, f in json.loads(index.read_text())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TaskError(f"initial weights {index} is no index of weights: {error!r}") from error
    for name, file in told.items():
        if Path(file).name != file or not index.with_name(file).is_file():
            raise TaskError(
                f"initial weights {index}: {name} is in {file!r}, which is no file next to it"
            )
    return told


def hash_of(place: str) -> str:
    """Return the SHA-256 of the weights at a place.

    Raises:
        TaskError: there are none.
    """
    hashed = hashlib.sha256()
    for path in files_at(place):
        with path.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()


@torch.no_grad()
def load_into(model: nn.Module, place: str, *, partial: bool) -> None:
    """Load weights into a model.

    Args:
        model: the model.
        place: a file or a folder, see above.
        partial: load what fits, and warn of the rest by name. Default: all must fit.

    Raises:
        TaskError: there are no weights, they cannot be read, or they do not fit.
    """
    index = index_at(Path(place))
    files = {} if index is None else _files_of_tensors(index)
    given: dict[str, Tensor] = {}
    for path in files_at(place):
        try:
            found = safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise TaskError(f"initial weights {path} cannot be read: {error}") from error
        _check_indexed(path, found, files)
        given |= found
    own = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    fitting = [name for name in given if name in own and given[name].shape == own[name].shape]
    loaded = {own[name].data_ptr() for name in fitting}
    told = _differences(own, given, loaded)
    if told and not (partial and fitting):
        raise TaskError(
            f"initial weights {place} do not fit the model: {'; '.join(told)}"
            + ("" if partial else ". To load what fits, set partial_weights (--partial-weights)")
        )
    for name in fitting:
        own[name].data.copy_(given[name])
    if told:
        warnings.warn(
            f"initial weights {place} fit in {len(fitting)} tensors only: {'; '.join(told)}",
            TaskWarning,
            stacklevel=2,
        )


def _check_indexed(path: Path, found: Mapping[str, Tensor], files: Mapping[str, str]) -> None:
    """Check that a file has all tensors that the index says are in it."""
    for name, file in files.items():
        if file == path.name and name not in found:
            raise TaskError(f"initial weights {path} has no {name}, which its index says is in it")


def _differences(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], loaded: set[int]
) -> list[str]:
    """Say which names are missing or unexpected, and which have other shapes."""
    missing = [n for n, t in own.items() if n not in given and t.data_ptr() not in loaded]
    unexpected = [name for name in given if name not in own]
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return [f"{_some(names)} {kind}" for kind, names in kinds.items() if names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"

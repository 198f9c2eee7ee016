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

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMED = 5  # of many names


def files_at(place: str) -> list[Path]:
    """Return the files that hold the weights at a place.

    Raises:
        TaskError: there are none.
    """
    path = Path(place)
    if path.is_file():
        return [path]
    if (path / _FILE).is_file():
        return [path / _FILE]
    if (path / _INDEX).is_file():
        shards = json.loads((path / _INDEX).read_text())["weight_map"].values()
        return [path / name for name in sorted({Path(shard).name for shard in shards})]
    raise TaskError(
        f"initial weights {place}: there is no such file, and no folder with {_FILE} or {_INDEX}: "
        "give a safetensors file, a folder of save_pretrained, or a run's checkpoint"
    )


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
    given: dict[str, Tensor] = {}
    for path in files_at(place):
        try:
            given |= safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise TaskError(f"initial weights {path} cannot be read: {error}") from error
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

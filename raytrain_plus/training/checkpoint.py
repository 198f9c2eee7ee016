"""A replica's state on disk: plain safetensors and a JSON manifest, visible when it is complete."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.naming import Described, describe
from raytrain_plus.training.state import Replica

_MANIFEST = "manifest.json"
_MODEL, _REST = "model.safetensors", "rest.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged, or of another model."""


def save(folder: Path, replica: Replica, run: str, aspects: Sequence[Aspect] = ()) -> str:
    """Write a checkpoint; returns the digest of the state.

    `model.safetensors` is the model's `state_dict()` and, unless an aspect has added parameters
    (`export.py` takes them away where that is possible), loads into the plain model;
    `rest.safetensors` and the manifest hold the rest. The folder appears at once, by a rename,
    when all of it is on disk.

    Raises:
        CheckpointError: an update failed half-way, so that there is no state to keep.
        OSError: the folder cannot be written.
    """
    if replica.torn:
        raise CheckpointError(
            f"the update after step {replica.step} failed half-way; its state is not kept"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    plain = {name: t for name, t in replica.model.state_dict().items() if isinstance(t, Tensor)}
    rest = {n: t for n, t in replica.tensors().items() if n.removeprefix("model/") not in plain}
    sizes = {}
    for file, tensors in ((_MODEL, plain), (_REST, rest)):
        # Each name gets a copy: safetensors refuses tied weights, which share their memory.
        data = safetensors.torch.save({n: t.cpu().contiguous().clone() for n, t in tensors.items()})
        sizes[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _write(temporary / file, data)
    digest = replica.digest()
    manifest: dict[str, Any] = {
        "format": 1,
        "run": run,
        "algorithms": [describe(aspect) for aspect in aspects],
        "digest": digest,
        "files": sizes,
        "scalars": replica.scalars(),
    }
    manifest["sha256"] = _content_sha256(manifest)
    _write(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return digest


def load(folder: Path, replica: Replica) -> None:
    """Fill a replica from a checkpoint.

    Raises:
        CheckpointError: it is incomplete, damaged, or of another model.
    """
    manifest = _read_manifest(folder)
    tensors: dict[str, Tensor] = {}
    try:
        for file, expected in manifest["files"].items():
            data = (folder / file).read_bytes()
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise CheckpointError(
                    f"checkpoint file {folder / file} is damaged (sha256 differs)"
                )
            prefix = "model/" if file == _MODEL else ""
            tensors |= {f"{prefix}{n}": t for n, t in safetensors.torch.load(data).items()}
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} is incomplete: {error}") from error
    tied = {f"model/{name}" for name in replica.model.state_dict()} - replica.tensors().keys()
    try:
        replica.load({n: t for n, t in tensors.items() if n not in tied}, manifest["scalars"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {folder} does not fit: {error}") from error


def algorithms_of(folder: Path) -> list[Described]:
    """Return the aspects with which a checkpoint was trained.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    return [Described(*one) for one in _read_manifest(folder)["algorithms"]]


def step_of(folder: Path) -> int:
    """Return the committed steps of a checkpoint.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    return int(_read_manifest(folder)["scalars"]["step"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
        whole = manifest["sha256"] == _content_sha256(manifest)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} is incomplete: {error}") from error
    if not whole:
        raise CheckpointError(f"checkpoint file {folder / _MANIFEST} is damaged (sha256 differs)")
    return manifest


def _content_sha256(manifest: dict[str, Any]) -> str:
    """Return the sha256 over what a manifest says beside it: a learning rate may rot, too."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

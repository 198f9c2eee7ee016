"""Checkpoints: a replica's state in a store, plain files and a manifest that makes them visible.

Between two steps every worker takes a `Snapshot`. In the background each writes its share of the
files (`write_share`), and when all are there, one process writes the manifest (`commit`). Until
then there is no checkpoint, only leftovers. A reader starts from the manifest and uses no file
whose size or sha256 differs from what the manifest says.

The place of a checkpoint is the path or URL of its folder, or the folder's `Store`.
"""

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.naming import Described, describe
from raytrain_plus.checkpoint.files import (
    INDEX,
    CheckpointFile,
    Layout,
    Limits,
    Piece,
    is_of_model,
)
from raytrain_plus.checkpoint.manifest import MANIFEST, Manifest
from raytrain_plus.checkpoint.retention import Kept
from raytrain_plus.checkpoint.snapshot import CheckpointError, Snapshot, layout_of
from raytrain_plus.storage.errors import ExistsError, StoreError
from raytrain_plus.storage.store import Store
from raytrain_plus.training.state import Replica, digest_of
from raytrain_plus.training.tensor_file import FOR_TORCH, decode, encode

__all__ = ["CheckpointError", "Place", "Snapshot", "commit", "load", "newest_whole", "save"]

Place: TypeAlias = Store | Path | str

# The prefix of the folders in which workers keep a last state when the storage cannot be written.
RESCUED = "raytrain_plus-state-"
_MOST_MANIFEST = 64 << 20  # bytes; each tensor of an optimizer takes about 100
_NAME = re.compile(r"checkpoint_([0-9]{8,18})")


def name_of(step: int) -> str:
    """Return the name of the folder in which a step's checkpoint is kept."""
    return f"checkpoint_{step:08d}"


def is_named(folder: str) -> bool:
    """Say whether a folder is named like a checkpoint."""
    return _NAME.fullmatch(folder) is not None


# -- writing


def write_share(
    place: Place,
    snapshot: Snapshot,
    layout: Layout,
    writer: int = 0,
    cancelled: threading.Event | None = None,
) -> list[CheckpointFile]:
    """Write one worker's files of a checkpoint, which stays invisible.

    The files of the model hold its `state_dict()`. They load into the plain model, unless an aspect
    has added parameters (`export.py` removes them if that is possible).

    Args:
        place: where the checkpoint is to be.
        snapshot: the state, or this writer's part of it; it must not be reused before this function
            returns.
        layout: all files of the checkpoint.
        writer: this writer's number in the layout.
        cancelled: when it is set, no further file is begun.

    Raises:
        StoreError: a file cannot be written within the store's deadline.
        InterruptedReadError: `cancelled` was set.
        ValueError: a tensor is of a dtype that safetensors does not know.
    """
    store, written = _at(place), []
    for piece in layout.shares[writer]:
        content = _content_of(snapshot, piece)
        store.write(piece.file, content, cancelled=cancelled)
        written.append(_entry(piece.file, content))
    if layout.index is not None and writer == 0:
        store.write(INDEX, layout.index, cancelled=cancelled)
        written.append(_entry(INDEX, [memoryview(layout.index)]))
    return written


def _content_of(snapshot: Snapshot, piece: Piece) -> Sequence[memoryview]:
    if is_of_model(piece.file):
        return encode({name: snapshot.model[name] for name in piece.names}, FOR_TORCH)
    return encode({name: snapshot.tensors[name] for name in piece.names})


def _entry(file: str, content: Sequence[memoryview]) -> CheckpointFile:
    hashed, size = hashlib.sha256(), 0
    for part in content:
        hashed.update(part)
        size += part.nbytes
    return CheckpointFile(file, size, hashed.hexdigest())


def describe_state(snapshot: Snapshot, aspects: Sequence[Aspect] = ()) -> dict[str, Any]:
    """Return what one worker adds to a manifest's header: digest, scalars and algorithms."""
    return {
        "digest": snapshot.digest(),
        "scalars": snapshot.scalars,
        "algorithms": [describe(aspect) for aspect in aspects],
    }


def commit(place: Place, header: Mapping[str, Any], files: Sequence[CheckpointFile]) -> None:
    """Make a checkpoint visible whose files are all written; of two writers at once, one wins.

    A damaged checkpoint of the same name is replaced.

    Args:
        place: where the checkpoint is.
        header: `run`, what `describe_state` returned, and if known `run_id`,
            `identity`, `environment` and `metrics`.
        files: what `write_share` returned on all workers.

    Raises:
        CheckpointError: another whole checkpoint has this name.
        StoreError: the store cannot be written.
    """
    store = _at(place)
    files = sorted(CheckpointFile(*entry) for entry in files)
    content = Manifest(**header, files=files).dump()
    try:
        store.create(MANIFEST, content)
    except ExistsError as error:
        theirs = _whole(store)
        if theirs is None:
            store.write(MANIFEST, content)
        elif theirs.digest != header["digest"] or theirs.objection(
            header["run"], header.get("run_id", "")
        ):
            raise CheckpointError(
                f"checkpoint {_where(store)} was committed by another writer, with another state: "
                "does the run exist twice?"
            ) from error
        else:  # ours, whose answer was lost, or the same state in other shares
            files = list(theirs.files)
    with contextlib.suppress(StoreError):  # files of attempts that were given up
        for file in store.sizes().keys() - {MANIFEST, *(entry.file for entry in files)}:
            store.delete(file)


def save(
    place: Place,
    replica: Replica,
    run: str,
    aspects: Sequence[Aspect] = (),
    limits: Limits | None = None,
) -> str:
    """Write a whole checkpoint in one call; returns the digest of the state.

    Args:
        place: where the checkpoint is to be.
        replica: the state.
        run: the run's name.
        aspects: with which it was trained.
        limits: the sizes of the files. Default: see `Limits`.

    Raises:
        CheckpointError: an update has failed, so that there is no state to keep.
        StoreError: the place cannot be written.
    """
    snapshot = Snapshot.of(replica)
    files = write_share(place, snapshot, layout_of(snapshot, 1, limits))
    state = describe_state(snapshot, aspects)
    commit(place, {"run": run, **state}, files)
    return str(state["digest"])


# -- reading


def read_header(place: Place) -> Manifest:
    """Return the manifest of a checkpoint, after checking that all files have their size.

    Raises:
        CheckpointError: there is no checkpoint, or it is incomplete or damaged.
        StoreError: the store cannot be read.
    """
    store = _at(place)
    sizes = store.sizes()
    if MANIFEST not in sizes:
        raise CheckpointError(f"checkpoint {_where(store)} is incomplete: it has no {MANIFEST}")
    if sizes[MANIFEST] > _MOST_MANIFEST:
        raise CheckpointError(
            f"checkpoint file {_where(store, MANIFEST)} is damaged: it has {sizes[MANIFEST]} bytes"
        )
    manifest = Manifest.parse(store.read(MANIFEST), _where(store, MANIFEST))
    for entry in manifest.files:
        found = sizes.get(entry.file)
        if found != entry.bytes:
            has = "is missing" if found is None else f"has {found} of {entry.bytes} bytes"
            raise CheckpointError(f"checkpoint {_where(store)} is incomplete: {entry.file} {has}")
    return manifest


def load(place: Place, replica: Replica, run_id: str = "") -> None:
    """Fill a replica from a checkpoint, which is checked before anything is changed.

    Args:
        place: where the checkpoint is.
        replica: the replica to fill.
        run_id: the run that it must be of. Default: any.

    Raises:
        CheckpointError: it is incomplete, damaged, or of another model or run.
        StoreError: the store cannot be read.
    """
    store = _at(place)
    manifest = read_header(store)
    objection = manifest.objection(None, run_id)
    if objection:
        raise CheckpointError(f"checkpoint {_where(store)} cannot be used: {objection}")
    tensors: dict[str, Tensor] = {}
    for entry in manifest.files:
        content = _content(store, entry)
        if entry.file == INDEX:  # for other programs: the files themselves name their tensors
            continue
        prefix = "model/" if is_of_model(entry.file) else ""
        try:
            found = decode(content)
        except ValueError as error:
            where = _where(store, entry.file)
            raise CheckpointError(f"checkpoint file {where} is no safetensors: {error}") from error
        tensors |= {f"{prefix}{name}": tensor for name, tensor in found.items()}
    tied = {f"model/{name}" for name in replica.model.state_dict()} - replica.tensors().keys()
    state = {name: tensor for name, tensor in tensors.items() if name not in tied}
    try:
        replica.check(state)
        if digest_of(state, manifest.scalars) != manifest.digest:
            raise ValueError("its files do not hold the state that its manifest describes")
        replica.load(state, manifest.scalars)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        said = str(error) or type(error).__name__
        raise CheckpointError(f"checkpoint {_where(store)} does not fit: {said}") from error


def newest_whole(
    store: Store, run: str | None = None, run_id: str = ""
) -> tuple[str | None, dict[str, str]]:
    """Find the newest checkpoint that is whole, by reading all of it.

    Args:
        store: the folder that holds the checkpoints.
        run: the name of the run that it must be of. Default: any.
        run_id: the id of that run, if it is known.

    Returns:
        Its name, None if there is none, and why newer ones were refused, by name.

    Raises:
        StoreError: the store cannot be read.
    """
    refused: dict[str, str] = {}
    for name in names(store):
        place = store.inside(name)
        try:
            if not place.sizes():  # some stores keep a folder from which all is deleted
                continue
            objection = verify(place).objection(run, run_id)
            if not objection:
                return name, refused
            refused[name] = objection
        except CheckpointError as error:
            refused[name] = str(error)
        except StoreError as error:
            if not store.is_local:  # the store fails, not this checkpoint
                raise
            refused[name] = str(error)
    return None, refused


def verify(place: Place) -> Manifest:
    """Read and check all of a checkpoint; returns its manifest.

    Raises:
        CheckpointError: it is incomplete or damaged.
        StoreError: the store cannot be read.
    """
    store = _at(place)
    manifest = read_header(store)
    for entry in manifest.files:
        _check(store, entry)
    return manifest


def kept(store: Store, run_id: str = "") -> list[Kept]:
    """Return the checkpoints that are visible and complete, newest first; content is not read.

    Args:
        store: the folder that holds the checkpoints.
        run_id: the run that they must be of. Default: any.

    Raises:
        StoreError: the store cannot be read.
    """
    found = []
    for name in names(store):
        with contextlib.suppress(CheckpointError):
            manifest = read_header(store.inside(name))
            if not manifest.objection(None, run_id):
                found.append(Kept(name, manifest.step, manifest.metrics))
    return found


def algorithms_of(place: Place) -> list[Described]:
    """Return the aspects with which a checkpoint was trained.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    return list(read_header(place).algorithms)


def step_of(place: Place) -> int:
    """Return the committed steps of a checkpoint.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    return read_header(place).step


# -- deleting


def names(store: Store) -> list[str]:
    """Return the folders that are named like checkpoints, visible or not, newest first."""
    found = [(int(match[1]), match[0]) for f in store.folders() if (match := _NAME.fullmatch(f))]
    return [name for _, name in sorted(found, reverse=True)]


def remove(place: Place, run_id: str = "") -> None:
    """Delete a checkpoint, the manifest first, so that it is never half visible.

    Args:
        place: where it is.
        run_id: the run that it must be of; a checkpoint of another run is kept. Default: any.

    Raises:
        StoreError: something cannot be deleted. The rest is invisible, or the whole checkpoint.
    """
    store = _at(place)
    if run_id:
        with contextlib.suppress(CheckpointError):
            if read_header(store).objection(None, run_id):
                return
    store.delete(MANIFEST)
    store.clear()


def remove_leftovers(store: Store, under_way: Collection[str] = ()) -> list[str]:
    """Delete folders of checkpoints that have no manifest; returns their names.

    Args:
        store: the folder that holds the checkpoints.
        under_way: names of checkpoints that are being written.

    Raises:
        StoreError: something cannot be listed or deleted.
    """
    removed = []
    for name in names(store):
        place = store.inside(name)
        if name not in under_way and MANIFEST not in (found := place.sizes()):
            place.clear()
            removed += [name] if found else []
    return removed


def _at(place: Place) -> Store:
    return place if isinstance(place, Store) else Store(place)


def _where(store: Store, file: str = "") -> str:
    """Return the path or URL of a store or file, for an error."""
    if store.is_local:
        return str(store.local_path / file)
    return store.where(file) if file else store.url


def _whole(store: Store) -> Manifest | None:
    try:
        return verify(store)
    except CheckpointError:
        return None


def _content(store: Store, entry: CheckpointFile) -> bytearray:
    """Return a file's bytes, after comparing their hash."""
    content = bytearray(entry.bytes)

    def keep(start: int, part: bytes) -> None:
        content[start : start + len(part)] = part

    _check(store, entry, keep)
    return content


def _check(
    store: Store, entry: CheckpointFile, keep: Callable[[int, bytes], None] = lambda *_: None
) -> None:
    """Compare the hash of a file, of which a part at a time is in memory.

    Args:
        store: where it is.
        entry: what the manifest says of it.
        keep: called with each part and where it begins. Default: nothing is kept.
    """
    for _ in range(1 if store.is_local else 2):  # damage in transit is gone at the next read
        hashed, done = hashlib.sha256(), 0
        for part in store.read_parts(entry.file, entry.bytes):
            keep(done, part)
            hashed.update(part)
            done += len(part)
        if hashed.hexdigest() == entry.sha256:
            return
    where = _where(store, entry.file)
    raise CheckpointError(f"checkpoint file {where} is damaged (sha256 differs)")

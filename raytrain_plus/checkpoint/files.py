"""How a state is divided into files, and which workers write them. Pure, and equal on all workers.

The model is one file, or several of at most 5 GB with an index, as Hugging Face writes them. The
other tensors (`rest`) are cut into files of at least 64 MB. At most 256 workers write, on as many
nodes as there are. So a small state has one writer, and a checkpoint of 10,000 workers is no more
work for the coordinator than one of 256.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MODEL_FILE = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors")


class CheckpointFile(NamedTuple):
    """One file of a checkpoint.

    Attributes:
        file: its name.
        bytes: its size.
        sha256: of its content, in hex.
    """

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Limits:
    """How large the files of a checkpoint are, and how many workers write them.

    Attributes:
        model_bytes: of tensors in one file of the model; a larger tensor has a file of its own.
            Default: 5 GB, as in the library huggingface_hub.
        least_bytes: that a worker writes at least, except for the last file. Default: 64 MB.
        writers: how many workers write at most. Default: 256.
    """

    model_bytes: int = 5 * 10**9
    least_bytes: int = 64 * 10**6
    writers: int = 256


class Piece(NamedTuple):
    """The tensors of one file.

    Attributes:
        file: its name.
        names: of the tensors: those of the model's `state_dict()`, or those of the state.
        bytes: of the tensors.
    """

    file: str
    names: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Layout:
    """All files of a checkpoint, by the worker that writes them.

    Attributes:
        shares: for each writer its files. The first writer also writes the index, if there is one.
        index: the content of `model.safetensors.index.json`; None if the model is one file.
    """

    shares: tuple[tuple[Piece, ...], ...]
    index: bytes | None


def is_of_model(file: str) -> bool:
    """Say whether a file of a checkpoint holds tensors of the model's `state_dict()`."""
    return _MODEL_FILE.fullmatch(file) is not None


def lay_out(
    model: Mapping[str, int],
    rest: Mapping[str, int],
    workers: int,
    limits: Limits | None = None,
) -> Layout:
    """Divide a state into files, and the files among writers.

    A file's content follows from its name and the sizes of the tensors, whatever the number of
    workers. So a late writer of an attempt that was given up overwrites no file of another attempt
    with other tensors.

    Args:
        model: bytes of the tensors in the model's `state_dict()` by name, in its order.
        rest: bytes of all other tensors by name.
        workers: of the group.
        limits: sizes and numbers. Default: see `Limits`.

    Raises:
        ValueError: there is no worker.
    """
    if workers < 1:
        raise ValueError(f"a checkpoint is written by {workers} workers; there must be at least 1")
    limits = limits or Limits()
    pieces = shards(model, limits.model_bytes)
    index = index_of(pieces) if len(pieces) > 1 else None
    least, rest_bytes = max(1, limits.least_bytes), sum(rest.values())
    total = sum(piece.bytes for piece in pieces) + rest_bytes
    most = min(limits.writers, workers)
    # A file for each writer that has none of the model, or an even part for each.
    even = max(most - len(pieces), rest_bytes * most // max(1, total))
    pieces += _rest_pieces(rest, min(rest_bytes // least, even))
    writers = max(1, min(most, total // least, len(pieces)))
    shares: list[list[Piece]] = [[] for _ in range(writers)]
    loads = [0] * writers
    for piece in sorted(pieces, key=lambda piece: (-piece.bytes, piece.file)):
        least = loads.index(min(loads))
        loads[least] += piece.bytes
        shares[least].append(piece)
    return Layout(tuple(tuple(sorted(share)) for share in shares), index)


def places_of(writers: int, nodes: Sequence[str]) -> tuple[int, ...]:
    """Return the places in a group of those that write: one on each node, then a second, and so on.

    Args:
        writers: how many write, at most as many as there are workers.
        nodes: the node of each worker, in the order of the group.
    """
    seen: Counter[str] = Counter()
    turns = []
    for place, node in enumerate(nodes):
        turns.append((seen[node], place))
        seen[node] += 1
    return tuple(place for _, place in sorted(turns)[:writers])


def shards(model: Mapping[str, int], limit: int, name: str = MODEL) -> list[Piece]:
    """Divide a model into files as Hugging Face does: in order, each as full as the limit allows.

    Args:
        model: bytes of its tensors by name, in the order of its `state_dict()`.
        limit: bytes in one file; a larger tensor has a file of its own.
        name: of the file if one is enough. Others are numbered from 1.
    """
    cut: list[list[str]] = [[]]
    size = 0
    for tensor, count in model.items():
        if cut[-1] and size + count > limit:
            cut.append([])
            size = 0
        cut[-1].append(tensor)
        size += count
    stem = name.removesuffix(".safetensors")
    return [
        Piece(
            name if len(cut) == 1 else f"{stem}-{number:05d}-of-{len(cut):05d}.safetensors",
            tuple(names),
            sum(model[one] for one in names),
        )
        for number, names in enumerate(cut, 1)
    ]


def index_of(pieces: Sequence[Piece]) -> bytes:
    """Return the index of a model in several files, which names the file of each tensor."""
    where = {name: piece.file for piece in pieces for name in piece.names}
    total = sum(piece.bytes for piece in pieces)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return json.dumps(content, indent=2).encode() + b"\n"


def _rest_pieces(rest: Mapping[str, int], count: int) -> list[Piece]:
    """Cut the tensors outside of the model into at most `count` files, in the order of their names.

    Each has at least the mean, except for the last, and exceeds it by less than one tensor.
    """
    if not rest:
        return []
    count = max(1, count)
    while len(cut := _cut(rest, count)) < count:  # until the number of files names the cut
        count = len(cut)
    return [
        Piece(f"rest-{number:05d}-of-{count:05d}.safetensors", names, sum(rest[n] for n in names))
        for number, names in enumerate(cut, 1)
    ]


def _cut(sizes: Mapping[str, int], count: int) -> list[tuple[str, ...]]:
    """Cut tensors into at most `count` parts, each of at least the mean except for the last."""
    total = sum(sizes.values())
    cut: list[list[str]] = [[]]
    size = 0
    for name in sorted(sizes):
        if size and size * count >= total and len(cut) < count:
            cut.append([])
            size = 0
        cut[-1].append(name)
        size += sizes[name]
    return [tuple(names) for names in cut]

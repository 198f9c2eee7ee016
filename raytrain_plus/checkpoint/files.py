"""How a state is divided into files, so that every worker writes its share."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from raytrain_plus.checkpoint.snapshot import Snapshot

MODEL = "model.safetensors"


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


def share_out(model_bytes: int, rest: Mapping[str, int], shares: int) -> list[list[str]]:
    """Assign the tensors outside of the model to the workers. Pure, and equal on every worker.

    The first worker writes the model, which is one file, and gets less of the rest, or nothing.
    The tensors are assigned largest first, each to the share with the fewest bytes. So no share is
    above the mean by more than one tensor, unless the model alone is larger than that.

    Args:
        model_bytes: size of the model's tensors.
        rest: sizes of the others by name.
        shares: how many workers write.

    Returns:
        For each share the names of its tensors, sorted.

    Raises:
        ValueError: there is no share.
    """
    if shares < 1:
        raise ValueError(f"a checkpoint is written in {shares} shares; there must be at least one")
    loads = [model_bytes] + [0] * (shares - 1)
    cut: list[list[str]] = [[] for _ in loads]
    for name in sorted(rest, key=lambda name: (-rest[name], name)):
        least = loads.index(min(loads))
        loads[least] += rest[name]
        cut[least].append(name)
    return [sorted(names) for names in cut]


def files_of(snapshot: Snapshot, share: int, shares: int) -> dict[str, dict[str, Tensor]]:
    """Return the files of one share: their names, and the tensors in each.

    The names contain the number of shares. So a late writer of an attempt that was given up never
    overwrites a file of the next attempt, which may have another number of workers.
    """
    rest = snapshot.rest
    sizes = {name: tensor.nbytes for name, tensor in rest.items()}
    model_bytes = sum(tensor.nbytes for tensor in snapshot.model.values())
    mine = share_out(model_bytes, sizes, shares)[share]
    files = {MODEL: snapshot.model} if share == 0 else {}
    if mine:
        files[f"rest-{share:05d}-of-{shares:05d}.safetensors"] = {name: rest[name] for name in mine}
    return files

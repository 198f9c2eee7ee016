"""From a checkpoint to a plain model, without what aspects have changed in it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from raytrain_plus.algorithms import Aspect, Weave
from raytrain_plus.algorithms.naming import make
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.files import Limits, index_of, shards
from raytrain_plus.storage import atomic_files
from raytrain_plus.task import Task
from raytrain_plus.training.initial_weights import INDEX_SUFFIX
from raytrain_plus.training.modes import to_evaluation
from raytrain_plus.training.state import Replica
from raytrain_plus.training.tensor_file import FOR_TORCH, encode


def export(
    task: Task, folder: checkpointer.Place, algorithms: Sequence[Aspect] | None = None
) -> nn.Module:
    """Return the model of a checkpoint as the task makes it, on the CPU, in evaluation mode.

    Every aspect undoes its changes of the model: averages replace the weights, factors are
    multiplied, exchanged layers come back. A method that has added something which the plain model
    has no place for (a gate, for example) is undone as well. Its card says that the exported
    function is then a different one.

    Args:
        task: the task of the run.
        folder: the checkpoint's folder, as a path or URL or the Store of it.
        algorithms: the run's aspects. Default: those that the checkpoint names.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, or of another model.
        AspectError: the checkpoint names an aspect that is not of this library and whose module is
            not imported. Nothing that a checkpoint names is ever imported.
    """
    if algorithms is None:
        algorithms = [make(described) for described in checkpointer.algorithms_of(folder)]
    replica = Replica.build(task, 0, torch.device("cpu"), weave=Weave(algorithms))
    checkpointer.load(folder, replica)
    to_evaluation(replica.optimizer)
    return replica.undo_fit().eval()


def write(model: nn.Module, path: Path, limit: int = Limits.model_bytes) -> list[Path]:
    """Write a model's `state_dict()` as safetensors; each file appears at once.

    A model of more than `limit` bytes is in several files next to `path`, with numbers in their
    names, and an index, as Hugging Face writes them. The index is written last. What an earlier
    export of the other form has left under the same name is deleted.

    Args:
        model: the model.
        path: the file. Its index is `path` with `.index.json` at its end.
        limit: bytes of tensors in one file; a larger tensor has a file of its own. Default: 5 GB.

    Returns:
        The files, the index last if there is one.

    Raises:
        OSError: one cannot be written.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    pieces = shards({name: tensor.nbytes for name, tensor in state.items()}, limit, path.name)
    index = path.with_name(f"{path.name}{INDEX_SUFFIX}")
    written = [path.with_name(piece.file) for piece in pieces]
    for file, piece in zip(written, pieces, strict=True):
        atomic_files.write(file, encode({name: state[name] for name in piece.names}, FOR_TORCH))
    if len(pieces) > 1:
        atomic_files.write(index, index_of(pieces))
        path.unlink(missing_ok=True)
        return [*written, index]
    index.unlink(missing_ok=True)
    return written

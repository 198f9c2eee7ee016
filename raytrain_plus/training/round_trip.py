"""A rehearsal: a newcomer loads the state, through the format of a checkpoint, once for real.

In a run's second update, when the optimizer has its state, a second replica is built from the task,
as a newcomer builds its own. It loads the state through the content of the files and the manifest,
and then takes the same update. Both replicas must be equal to the bit before and after it. If they
differ, something is kept where nothing can carry it (a global, a closure), and the run ends before
anything can be lost.

In that one update the rehearsal takes the time to build a model, and the memory of a model with its
optimizer and gradients. It is left out if the state is above `LARGEST` bytes or if the model took
more than `SLOWEST` seconds to build. Then only the structure of the state is checked.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import safetensors.torch
from torch import Tensor

from raytrain_plus.task import TaskError
from raytrain_plus.training.process_state import generators, process_kept, set_generators
from raytrain_plus.training.same_bits import same_bits
from raytrain_plus.training.state import Replica
from raytrain_plus.training.tensor_file import encode

LARGEST = 512 << 20
SLOWEST = 10.0


def rehearsed(replica: Replica, build: Callable[[], Replica]) -> AbstractContextManager[None]:
    """Return the context for an optimizer's step. A newcomer takes the run's second step as well.

    Args:
        replica: whose optimizer takes a step.
        build: makes another replica from the task.

    Raises:
        TaskError: the newcomer's state differs, before or after the step, by name.
    """
    if replica.step != 1 or replica.loads or replica.build_seconds > SLOWEST:
        return nullcontext()
    return _rehearsed(replica, build)


@contextmanager
def _rehearsed(replica: Replica, build: Callable[[], Replica]) -> Iterator[None]:
    tensors = replica.tensors()
    before = generators()
    newcomer = None
    if sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST:
        with process_kept():
            newcomer = _newcomer(replica, build)
    if newcomer is not None:
        _take_over(newcomer, replica)
    yield
    if newcomer is not None:
        with process_kept():
            set_generators(before)
            newcomer.update()
        _compare(newcomer, replica, "after one more step")


def _newcomer(replica: Replica, build: Callable[[], Replica]) -> Replica | None:
    """Build a second replica with the first one's gradients; None if the task makes only one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            newcomer = build()
    except Exception:  # noqa: BLE001 - the task's; its first replica trains all the same
        return None
    memory = {t.untyped_storage().data_ptr() for t in replica.tensors().values() if t.numel()}
    theirs = [t for t in newcomer.tensors().values() if t.numel()]
    if any(t.untyped_storage().data_ptr() in memory for t in theirs):
        return None
    own = dict(newcomer.model.named_parameters())
    for name, parameter in replica.model.named_parameters():
        if name in own and parameter.grad is not None:
            own[name].grad = parameter.grad.clone()
    return newcomer


def _take_over(newcomer: Replica, replica: Replica) -> None:
    tensors, scalars = replica.tensors(), replica.scalars()
    try:
        newcomer.load(_Filed(tensors), json.loads(json.dumps(scalars)))
    except ValueError as error:
        raise TaskError(f"{_of(replica)} cannot be given to another worker: {error}") from error
    _compare(newcomer, replica, "as it takes the state over")


def _compare(newcomer: Replica, replica: Replica, when: str) -> None:
    """Compare parameters, optimizer and aspects."""
    buffers = {f"model/{name}" for name, _ in replica.model.named_buffers()}
    ours, theirs = replica.tensors(), newcomer.tensors()
    names = sorted((ours.keys() | theirs.keys()) - buffers)
    differing = [
        name
        for name in names
        if name not in ours or name not in theirs or not same_bits(ours[name], theirs[name])
    ]
    scalars, others = replica.scalars(), newcomer.scalars()
    for key in ("groups", "optimizer"):
        differing += _differences(scalars[key], others[key], key)
    if differing:
        raise TaskError(
            f"{_of(replica)} differs in another worker {when}: {differing[0]}. What step() uses "
            "must be in its state, its parameter groups or its attributes, and not in globals, "
            "classes or closures"
        )


def _differences(ours: Any, theirs: Any, path: str) -> list[str]:
    """Return the first place in which two pieces of plain data differ."""
    if type(ours) is type(theirs) is dict and ours.keys() == theirs.keys():
        pairs = [(f"{path}/{key}", ours[key], theirs[key]) for key in ours]
    elif type(ours) is type(theirs) is list and len(ours) == len(theirs):
        pairs = [
            (f"{path}/{i}", one, other)
            for i, (one, other) in enumerate(zip(ours, theirs, strict=True))
        ]
    else:
        same = json.dumps(ours) == json.dumps(theirs)
        return [] if same else [f"{path} ({str(ours)[:60]} and {str(theirs)[:60]})"]
    for place, one, other in pairs:
        if found := _differences(one, other, place):
            return found
    return []


def _of(replica: Replica) -> str:
    return f"the state of the optimizer {type(replica.optimizer).__name__}"


class _Filed(Mapping[str, Tensor]):
    """Tensors as they come back from a checkpoint's file, one at a time."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        content = b"".join(encode({name: self._tensors[name]}))
        found: Tensor = safetensors.torch.load(content)[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

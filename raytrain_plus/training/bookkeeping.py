"""Bookkeeping: plain values that a forward or a loss changes each time, and that change no result.

A counter, a mean of recent losses, a time stamp. It is carried like an integer buffer, so that what
a part finds there is a function of the step and the logical rank, and never of the worker: every
logical rank starts from the same values; those that logical rank 0 leaves are everyone's after the
step; checkpoints hold them and newcomers receive them. A counter that changes what is computed at
some step therefore does so on any number of workers alike.

Where an object keeps whole numbers only, they count every logical rank: after a step each has moved
by the number of logical ranks times what logical rank 0 has added, and within a step each logical
rank starts further by what was added in the step before. Other values would not fit such counts (a
mean is a sum divided by one), so an object that keeps any is left as logical rank 0 leaves it.
"""

import json
import math
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from raytrain_plus.task import TaskError, TaskWarning
from raytrain_plus.training.attributes import ABSENT, Attributes, Slot
from raytrain_plus.training.state import Replica

FIRST_ROOM = 1 << 10  # bytes that travel with each step for bookkeeping that begins later
ROOM = 16 << 10  # bytes of a task that has any
_DEEPEST = 4


class NotPlainError(TypeError):
    """A value that no JSON text holds."""


def encode(value: Any, depth: int = 0) -> Any:
    """Return what JSON holds of numbers, strings, None, and containers of them.

    Raises:
        NotPlainError: there is something else in it.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, np.generic):
        return encode(value.item(), depth)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": float(value).hex()}
    if depth > _DEEPEST or (depth and type(value) not in (list, tuple, dict, set, deque)):
        raise NotPlainError(type(value).__name__)
    if type(value) is list:
        return [encode(item, depth + 1) for item in value]
    if type(value) is tuple:
        return {"tuple": [encode(item, depth + 1) for item in value]}
    if isinstance(value, deque):
        return {"deque": [encode(item, depth + 1) for item in value], "most": value.maxlen}
    if isinstance(value, set):
        return {"set": sorted((encode(item, depth + 1) for item in value), key=json.dumps)}
    if isinstance(value, dict):
        return {"dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    raise NotPlainError(type(value).__name__)


def decode(said: Any) -> Any:
    """Return the value that `encode` has encoded."""
    if isinstance(said, list):
        return [decode(item) for item in said]
    if not isinstance(said, dict):
        return said
    if "float" in said:
        return float.fromhex(said["float"])
    if "tuple" in said:
        return tuple(map(decode, said["tuple"]))
    if "deque" in said:
        return deque(map(decode, said["deque"]), said["most"])
    if "set" in said:
        return set(map(decode, said["set"]))
    return {decode(key): decode(value) for key, value in said["dict"]}


def fill(value: Any, said: Any) -> Any:
    """Return the value that was encoded: a container of the same kind as `value` in its place."""
    new = decode(said)
    if isinstance(value, list) and isinstance(new, list):
        value[:] = new
    elif isinstance(value, deque) and isinstance(new, deque) and value.maxlen == new.maxlen:
        value.clear()
        value.extend(new)
    elif (isinstance(value, dict) and isinstance(new, dict)) or (
        isinstance(value, set) and isinstance(new, set)
    ):
        value.clear()
        value.update(new)
    else:
        return new
    return value


def after_step(before: Any, left: Any, ranks: int) -> tuple[Any, int]:
    """Return a count after a step, and what each logical rank has added.

    Args:
        before: from what the step began.
        left: what logical rank 0 has left.
        ranks: the number of logical ranks.
    """
    added = left - before
    return before + ranks * added, added


class Bookkeeping:
    """The bookkeeping of one replica's task and model.

    Args:
        replica: holds the values between two steps, as part of its state.
        attributes: those that are watched.
    """

    def __init__(self, replica: Replica, attributes: Attributes) -> None:
        self._replica = replica
        self._attributes = attributes
        self._slots: dict[str, Slot] = {}
        self._loads = replica.loads
        self._told: set[str] = set()

    # -- what is bookkeeping

    def encoded(self, slots: Iterable[Slot]) -> dict[Slot, Any]:
        """Return the present values of those of some attributes that can be bookkeeping."""
        found = {}
        for slot in slots:
            with suppress(NotPlainError):
                found[slot] = encode(slot.get())
        return found

    def keep(self, values: Mapping[Slot, Any]) -> None:
        """Take attributes for bookkeeping, and set them to some values within a part."""
        self._slots |= {slot.name: slot for slot in values}
        self.put(values)

    def put(self, values: Mapping[Slot, Any]) -> None:
        """Set attributes to values within a part."""
        for slot, value in values.items():
            slot.put(fill(slot.get(), value))
        if values:
            self._attributes.note()

    def settle(self, values: Mapping[Slot, Any]) -> None:
        """Set attributes to values between two parts."""
        for slot, value in values.items():
            self._attributes.settle(slot, fill(slot.get(), value))
        self._attributes.begin()

    @property
    def slots(self) -> list[Slot]:
        """The attributes that this process has found to be bookkeeping."""
        return [*self._slots.values()]

    def admit(self) -> None:
        """Make what was found at the start part of the state, at its present value."""
        self._replica.bookkeeping = {
            name: [encode(slot.get()), 0]
            for name, slot in sorted(self._slots.items())
            if slot.get() is not ABSENT
        }

    # -- a step

    @property
    def room(self) -> int:
        """How many bytes travel with the next step: the same on every worker."""
        return ROOM if self._replica.bookkeeping else FIRST_ROOM

    def begin_step(self) -> None:
        """Set all values, if another state has been taken over."""
        if self._loads != self._replica.loads:
            self._loads = self._replica.loads
            self._settle()

    def begin_part(self, rank: int) -> None:
        """Set the counts from which a logical rank starts; all else was put back."""
        counts = [
            (n, value + rank * by) for n, (value, by) in self._replica.bookkeeping.items() if by
        ]
        for name, value in counts:
            self._needed(name).put(value)
        if counts:
            self._attributes.note()

    def told(self) -> bytes:
        """Return what the part of logical rank 0 has left, for `commit`."""
        names = {*self._slots, *self._replica.bookkeeping}
        left: dict[str, Any] = {}
        for name in sorted(names):
            slot = self._slot(name)
            if slot is not None and slot.get() is not ABSENT:
                left[name] = encode(slot.get())
        while len(text := json.dumps(left).encode()) > self.room:
            largest = max(left, key=lambda name: len(json.dumps(left[name])))
            del left[largest]
            self._warn(largest)
        return text if left else b""

    def commit(self, told: bytes, ranks: int) -> None:
        """Set the values that end the step: the same on every worker.

        Args:
            told: by the worker of logical rank 0.
            ranks: the number of logical ranks.

        Raises:
            TaskError: an attribute is not there on this worker.
        """
        text = told.rstrip(b"\0")
        if not text:
            return
        left: dict[str, Any] = json.loads(text)
        before = {
            name: value for name, (value, _) in self._replica.bookkeeping.items() if name in left
        }
        before |= {name: self._present(name) for name in left if name not in before}
        others = {
            _owner(name)
            for name in left
            if type(left[name]) is not int or type(before[name]) is not int
        }
        for name, value in left.items():
            counts = _owner(name) not in others
            kept = after_step(before[name], value, ranks) if counts else (value, 0)
            self._replica.bookkeeping[name] = [*kept]
        self._settle()

    # -- inside

    def _settle(self) -> None:
        kept = self._replica.bookkeeping
        self.settle({self._needed(name): value for name, (value, _) in kept.items()})

    def _present(self, name: str) -> Any:
        value = self._needed(name).get()
        return None if value is ABSENT else encode(value)

    def _needed(self, name: str) -> Slot:
        slot = self._slot(name)
        if slot is None:
            raise TaskError(
                f"the forward changes {name} on one worker, and another does not have it: set it "
                "up in the task's constructor or in model()"
            )
        return slot

    def _slot(self, name: str) -> Slot | None:
        if name not in self._slots:
            found = self._attributes.find(*_parts(name))
            if found is None:
                return None
            self._slots[name] = found
        return self._slots[name]

    def _warn(self, name: str) -> None:
        if name not in self._told:
            self._told.add(name)
            warnings.warn(
                f"{name} is more than the {self.room} bytes that are carried from step to step of "
                "all that a forward or loss keeps in Python: it stays what it was a step before. "
                "Keep fewer values (collections.deque(maxlen=...))",
                TaskWarning,
                stacklevel=2,
            )


def _parts(name: str) -> tuple[str, str]:
    """Return an attribute's own name, and what it is an attribute of."""
    key, _, where = name.partition(" of ")
    return key[1:-1], where


def _owner(name: str) -> str:
    return _parts(name)[1]

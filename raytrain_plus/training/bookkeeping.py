"""Bookkeeping: plain values that a forward or a loss changes each time, and that change no result.

Examples are a counter, a mean of recent losses, a time stamp. Bookkeeping is carried like an
integer buffer. What a part finds there depends on the step and the logical rank, and never on the
worker: every logical rank starts from the same values, and after the step all workers have the
values that logical rank 0 has left. Checkpoints hold them and newcomers receive them. So a counter
that changes what is computed from some step on does so on any number of workers alike.

If an object keeps whole numbers only, they count every logical rank. After a step each number has
moved by the number of logical ranks times what logical rank 0 has added. Within a step each logical
rank starts further by what was added in the step before. Other values would not fit such counts (a
mean is a sum divided by a count), so an object that keeps any other value is left as logical rank 0
leaves it.
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
    """A value that JSON cannot hold."""


def to_json(value: Any, depth: int = 0) -> Any:
    """Return what JSON holds of numbers, strings, None, and containers of them.

    Raises:
        NotPlainError: there is something else in it.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, np.generic):
        return to_json(value.item(), depth)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": float(value).hex()}
    if depth > _DEEPEST or (depth and type(value) not in (list, tuple, dict, set, deque)):
        raise NotPlainError(type(value).__name__)
    if type(value) is list:
        return [to_json(item, depth + 1) for item in value]
    if type(value) is tuple:
        return {"tuple": [to_json(item, depth + 1) for item in value]}
    if isinstance(value, deque):
        return {"deque": [to_json(item, depth + 1) for item in value], "most": value.maxlen}
    if isinstance(value, set):
        return {"set": sorted((to_json(item, depth + 1) for item in value), key=json.dumps)}
    if isinstance(value, dict):
        return {"dict": [[to_json(k, depth + 1), to_json(v, depth + 1)] for k, v in value.items()]}
    raise NotPlainError(type(value).__name__)


def from_json(encoded: Any) -> Any:
    """Return the value that `to_json` has encoded."""
    if isinstance(encoded, list):
        return [from_json(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if "float" in encoded:
        return float.fromhex(encoded["float"])
    if "tuple" in encoded:
        return tuple(map(from_json, encoded["tuple"]))
    if "deque" in encoded:
        return deque(map(from_json, encoded["deque"]), encoded["most"])
    if "set" in encoded:
        return set(map(from_json, encoded["set"]))
    return {from_json(key): from_json(value) for key, value in encoded["dict"]}


def fill(value: Any, encoded: Any) -> Any:
    """Return the value that was encoded: a container of the same kind as `value` in its place."""
    new = from_json(encoded)
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
        self._warned: set[str] = set()

    # -- what is bookkeeping

    def encoded(self, slots: Iterable[Slot]) -> dict[Slot, Any]:
        """Return the present values of those of some attributes that can be bookkeeping."""
        found = {}
        for slot in slots:
            with suppress(NotPlainError):
                found[slot] = to_json(slot.get())
        return found

    def keep(self, values: Mapping[Slot, Any]) -> None:
        """Treat attributes as bookkeeping, and set them to some values within a part."""
        self._slots |= {slot.name: slot for slot in values}
        self.set_in_part(values)

    def set_in_part(self, values: Mapping[Slot, Any]) -> None:
        """Set attributes to values within a part."""
        for slot, value in values.items():
            slot.put(fill(slot.get(), value))
        if values:
            self._attributes.note()

    def set_between_parts(self, values: Mapping[Slot, Any]) -> None:
        """Set attributes to values between two parts."""
        for slot, value in values.items():
            self._attributes.set(slot, fill(slot.get(), value))
        self._attributes.snapshot()

    @property
    def slots(self) -> list[Slot]:
        """The attributes that this process has found to be bookkeeping."""
        return [*self._slots.values()]

    def admit(self) -> None:
        """Add the bookkeeping that was found at the start to the state, at its present values."""
        self._replica.bookkeeping = {
            name: [to_json(slot.get()), 0]
            for name, slot in sorted(self._slots.items())
            if slot.get() is not ABSENT
        }

    # -- a step

    @property
    def room(self) -> int:
        """How many bytes travel with the next step: the same on every worker."""
        return ROOM if self._replica.bookkeeping else FIRST_ROOM

    def begin_step(self) -> None:
        """Set all values, if another state has been loaded."""
        if self._loads != self._replica.loads:
            self._loads = self._replica.loads
            self._set_all()

    def begin_part(self, rank: int) -> None:
        """Set the counts from which a logical rank starts. Everything else was put back."""
        kept = self._replica.bookkeeping
        counts = [(n, value + rank * by) for n, (value, by) in kept.items() if by] if kept else []
        for name, value in counts:
            self._needed(name).put(value)
        if counts:
            self._attributes.note()

    def message(self) -> bytes:
        """Return the values that the part of logical rank 0 has left, as bytes for `commit`."""
        names = {*self._slots, *self._replica.bookkeeping}
        if not names:
            return b""
        left: dict[str, Any] = {}
        for name in sorted(names):
            slot = self._slot(name)
            if slot is not None and slot.get() is not ABSENT:
                left[name] = to_json(slot.get())
        while len(text := json.dumps(left).encode()) > self.room:
            largest = max(left, key=lambda name: len(json.dumps(left[name])))
            del left[largest]
            self._warn(largest)
        return text if left else b""

    def commit(self, message: bytes, ranks: int) -> None:
        """Set the values that end the step: the same on every worker.

        Args:
            message: from the worker of logical rank 0.
            ranks: the number of logical ranks.

        Raises:
            TaskError: an attribute is not there on this worker.
        """
        text = message.rstrip(b"\0")
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
        self._set_all()

    # -- inside

    def _set_all(self) -> None:
        kept = self._replica.bookkeeping
        self.set_between_parts({self._needed(name): value for name, (value, _) in kept.items()})

    def _present(self, name: str) -> Any:
        value = self._needed(name).get()
        return None if value is ABSENT else to_json(value)

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
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f"{name} does not fit into the {self.room} bytes that are carried from step to "
                "step of what a forward or loss keeps in Python: it keeps its value of the step "
                "before. Keep fewer values (collections.deque(maxlen=...))",
                TaskWarning,
                stacklevel=2,
            )


def _parts(name: str) -> tuple[str, str]:
    """Return an attribute's own name, and what it is an attribute of."""
    key, _, where = name.partition(" of ")
    return key[1:-1], where


def _owner(name: str) -> str:
    return _parts(name)[1]

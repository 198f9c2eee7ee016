"""Python-side state: what a task and its model hold in addition to parameters and buffers.

Checkpoints and other workers do not have this state, and it depends on the parts that a worker has
computed. So everything that a forward changes there is put back after each part. That is right for
caches and last values, which are functions of the input. `purity.py` refuses everything else by its
name. What is set up at first use and does not depend on the input stays.

These are watched: the attributes of all modules and of the task, the attributes of plain objects
that they hold, class attributes and globals of the user's own modules, and the content of lists,
dictionaries, sets, tensors, arrays and generators. Each check compares identities, which takes a
few hundredths of a microsecond per attribute. Content is compared by a cheap token in each check,
and completely at the start.
"""

import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raytrain_plus.training.same_bits import same_bits
from raytrain_plus.user_code import is_users_module

Place = tuple[int, str]  # of an attribute: which mapping holds it, and its name

_MACHINERY = {*vars(nn.Module()), "_compiled_call_impl", "_forward_hooks_always_called"}
ABSENT: Any = object()
_FEW = 64  # entries of a container up to which each is looked at
_SMALL = 1 << 12  # bytes of an array up to which a look compares them
_DEEPEST = 4
_MOST = 50_000  # attributes that are watched; more would cost too much
_PLAIN = (int, float, complex, str, bytes, type(None))
_NUMPY = (np.random.Generator, np.random.RandomState)
_CONTAINERS = (list, dict, set, deque)
_CONTENT = (*_CONTAINERS, Tensor, np.ndarray, random.Random, torch.Generator, *_NUMPY)
_IGNORED = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    nn.Parameter,
    torch.optim.Optimizer,
)


@dataclass(frozen=True, eq=False)
class Slot:
    """One attribute.

    Attributes:
        where: the object that has it, as an error names it.
        module: the module that it belongs to, or None.
        owner: the mapping that holds it; a class for class attributes.
        key: its name.
    """

    where: str
    module: nn.Module | None
    owner: Any
    key: str

    @property
    def name(self) -> str:
        """Its name in errors, the same on every worker."""
        return f"{self.key!r} of {self.where}"

    @property
    def place(self) -> Place:
        """Which mapping holds it, and its name there."""
        return id(self.owner), self.key

    def get(self) -> Any:
        """Return its value."""
        get, key = self.getter()
        return get(key, ABSENT)

    def getter(self) -> tuple[Callable[..., Any], str]:
        """Return a function and its argument that give the value, now and later."""
        held = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        return held.get, self.key

    def put(self, value: Any) -> None:
        """Set its value; ABSENT deletes it."""
        if isinstance(self.owner, dict):
            if value is ABSENT:
                self.owner.pop(self.key, None)
            else:
                self.owner[self.key] = value
        elif value is ABSENT:
            delattr(self.owner, self.key)
        else:
            setattr(self.owner, self.key, value)


class Content:
    """Something that can change in place, and the attribute in which it was found."""

    def __init__(self, slot: Slot, value: Any) -> None:
        self.slot = slot
        self.value = value
        self.look = self.token()
        self.saved = copy_of(value)

    def token(self) -> Any:
        """Return a cheap value that differs after most changes."""
        return _token(self.value)

    def put_back(self) -> bool:
        """Put the saved content back; returns False if that is not possible."""
        value, saved = self.value, self.saved
        if isinstance(value, Tensor):
            if saved is None or saved.shape != value.shape:
                return False
            value.detach().copy_(saved)
        elif isinstance(value, np.ndarray):
            value[...] = saved
        elif isinstance(value, dict):
            value.clear()
            value.update(saved)
        elif isinstance(value, set):
            value.clear()
            value |= saved
        elif isinstance(value, (list, deque)):
            value.clear()
            value.extend(saved)
        else:
            _set_state(value, saved)
        self.look = self.token()
        return True


class Attributes:
    """Watches the Python-side state of some objects, and puts it back.

    Args:
        model: whose modules are watched.
        task: the user's task. If it is given, it is watched as well, with the classes and globals
            of the user's modules.

    Attributes:
        fresh: attributes that have changed for the first time since this list was emptied.
        is_held: whether nothing is put back at present.
    """

    def __init__(self, model: nn.Module, task: object | None = None) -> None:
        self._slots: list[Slot] = []
        self._contents: list[Content] = []
        self._owners: list[tuple[str, nn.Module | None, dict[str, Any]]] = []
        self._seen: set[int] = set()
        self.fresh: list[Slot] = []
        self._known: set[Place] = set()
        self._undo: dict[int, Any] = {}
        self._added: list[Slot] = []
        self._touched: list[Content] = []
        self.is_held = False
        self._adopted: set[Place] = set()
        self._names: set[str] = set()
        self._find(model, task)
        self._watched = {slot.place for slot in self._slots}
        self._getters = [slot.getter() for slot in self._slots]
        self._values = [slot.get() for slot in self._slots]
        self._sizes = self._present_sizes()

    # -- what a part does

    def snapshot(self) -> None:
        """Record the present values, to which the changes of a forward are put back.

        An aspect's advice may have set attributes since the last part.
        """
        now = [get(key, ABSENT) for get, key in self._getters]
        if not all(map(is_, now, self._values)):
            for i, value in enumerate(now):
                if i not in self._undo:
                    self._values[i] = value
        for content in self._contents:
            token = content.token()
            if token != content.look and content not in self._touched:
                content.look, content.saved = token, copy_of(content.value)
        self._sizes = self._present_sizes()

    def note(self) -> None:
        """Note what has changed since the snapshot: each change once, with the value before it."""
        now = [get(key, ABSENT) for get, key in self._getters]
        if not all(map(is_, now, self._values)):
            for i, value in enumerate(now):
                self._note_slot(i, value)
        for content in self._contents:
            if content not in self._touched and content.token() != content.look:
                self._touched.append(content)
                self._is_fresh(content.slot)
        sizes = self._present_sizes()
        if sizes != self._sizes:
            for place, (size, before) in enumerate(zip(sizes, self._sizes, strict=True)):
                if size != before:
                    self._note_added(place)

    def put_back(self) -> list[Slot]:
        """Put back what was noted; returns the attributes that cannot be put back."""
        if self.is_held or not (self._undo or self._added or self._touched):
            return []
        for i, value in self._undo.items():
            slot = self._slots[i]
            if self._is_adopted(slot):
                self._values[i] = slot.get()
            else:
                slot.put(value)
        for slot in self._added:
            if self._is_adopted(slot):
                self._watch(slot)
            else:
                slot.put(ABSENT)
        failed = [content.slot for content in self._touched if not content.put_back()]
        self._undo, self._added, self._touched = {}, [], []
        return failed

    def adopt(self, places: Iterable[Place]) -> None:
        """Keep some attributes as they are at the next `put_back`.

        They were set up at first use and do not depend on the input.

        Args:
            places: among those that `describe` names.
        """
        self._adopted = {*places}

    def set(self, slot: Slot, value: Any) -> None:
        """Set an attribute between two parts; the next part starts from this value."""
        slot.put(value)
        if slot.place not in self._watched:
            self._watch(slot)
            return
        held = [content for content in self._contents if content.slot.place == slot.place]
        if held:
            self._contents = [c for c in self._contents if c.slot.place != slot.place]
            self._seen -= {id(content.value) for content in held}
        self._look_into(slot, value, 0)

    def find(self, key: str, where: str) -> Slot | None:
        """Return the attribute of a name; None if the object that would have it is not there."""
        for slot in self._slots:
            if slot.key == key and slot.where == where:
                return slot
        for place, module, owner in self._owners:
            if place == where:
                return Slot(where, module, owner, key)
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put nothing back inside this context."""
        self.is_held = True
        try:
            yield
        finally:
            self.is_held = False

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Put back everything that changes inside this context, between two parts."""
        self.snapshot()
        fresh, known = [*self.fresh], {*self._known}
        try:
            yield
        finally:
            self.note()
            self.put_back()
            self.fresh, self._known = fresh, known

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Start another forward inside this part from the values before it, and leave no trace."""
        noted = [(self._slots[i], self._slots[i].get()) for i in self._undo]
        noted += [(slot, slot.get()) for slot in self._added]
        self.put_back()
        try:
            yield
        finally:
            self.note()
            self.put_back()
            for slot, value in noted:
                slot.put(value)
            self.note()

    # -- what a check asks

    @property
    def changed(self) -> list[Slot]:
        """The attributes that are noted as changed."""
        found = [self._slots[i] for i in self._undo] + self._added
        return found + [content.slot for content in self._touched if content.slot not in found]

    def look_closely(self) -> None:
        """Note what has changed, comparing all content."""
        self.note()
        for content in self._contents:
            if content not in self._touched and not same(content.saved, copy_of(content.value)):
                self._touched.append(content)
                self._is_fresh(content.slot)

    def describe(self) -> dict[Place, Any]:
        """Return a copy of everything that is noted as changed, by its place."""
        found: dict[Place, Any] = {}
        for slot in [*(self._slots[i] for i in self._undo), *self._added]:
            found[slot.place] = deep_copy_of(slot.get())
        for content in self._touched:
            found[id(content.value), ""] = deep_copy_of(content.value)
        return found

    def slot_of(self, place: Place) -> Slot:
        """Return the attribute at a place that `describe` named."""
        for slot in [*(self._slots[i] for i in self._undo), *self._added]:
            if slot.place == place:
                return slot
        return next(c.slot for c in self._touched if id(c.value) == place[0])

    def drop_copies(self) -> None:
        """Drop the copies of large content that has not changed. A later change is refused."""
        for content in self._contents:
            large = isinstance(content.value, (Tensor, np.ndarray))
            if large and content not in self._touched:
                content.saved = None

    # -- inside

    def _is_adopted(self, slot: Slot) -> bool:
        if slot.place not in self._adopted:
            return False
        self._adopted.remove(slot.place)
        return True

    def _watch(self, slot: Slot) -> None:
        """Watch an attribute that was not there at the start, from its present value on."""
        self._slots.append(slot)
        self._watched.add(slot.place)
        self._values.append(slot.get())
        self._getters.append(slot.getter())
        self._look_into(slot, self._values[-1], 0)
        self._sizes = self._present_sizes()

    def _note_slot(self, i: int, value: Any) -> None:
        before = self._values[i]
        if (before is None or before is ABSENT) and _is_opaque(value):
            self._values[i] = value
            return
        if value is not before and i not in self._undo and not _equal(before, value):
            self._undo[i] = before
            self._is_fresh(self._slots[i])

    def _note_added(self, place: int) -> None:
        where, module, owner = self._owners[place]
        known = {slot.key for slot in self._slots if slot.owner is owner}
        noted = {slot.key for slot in self._added if slot.owner is owner}
        for key in [*owner]:
            if key not in known and key not in noted and key not in _MACHINERY:
                slot = Slot(where, module, owner, key)
                if _is_opaque(owner[key]):
                    self._watch(slot)
                else:
                    self._added.append(slot)
                    self._is_fresh(slot)

    def _present_sizes(self) -> list[int]:
        return [len(owner) for _, _, owner in self._owners]

    def _is_fresh(self, slot: Slot) -> None:
        if slot.place not in self._known:
            self._known.add(slot.place)
            self.fresh.append(slot)

    def _find(self, model: nn.Module, task: object | None) -> None:
        for name, module in model.named_modules():
            kind = type(module).__name__
            where = f"module {name!r} ({kind})" if name else f"the model ({kind})"
            self._add_owner(where, module, vars(module), 0)
        if task is None:
            return
        self._add_owner(f"the task ({type(task).__name__})", None, vars(task), 0)
        things: list[object] = [*model.modules(), task]
        for kind_ in dict.fromkeys(base for thing in things for base in type(thing).__mro__):
            if is_users_module(kind_.__module__):
                self._add_class(kind_)
        modules = dict.fromkeys(type(thing).__module__ for thing in things)
        for name in modules:
            if is_users_module(name) and name in sys.modules:
                self._add_globals(name)

    def _add_owner(
        self, where: str, module: nn.Module | None, owner: dict[str, Any], depth: int
    ) -> None:
        if id(owner) in self._seen or len(self._slots) > _MOST:
            return
        self._seen.add(id(owner))
        where = self._unique(where)
        self._owners.append((where, module, owner))
        machinery = _MACHINERY if module is not None and depth == 0 else ()
        for key, value in [*owner.items()]:
            if key not in machinery and not isinstance(value, (nn.Module, nn.Parameter)):
                slot = Slot(where, module, owner, key)
                self._slots.append(slot)
                self._look_into(slot, value, depth)

    def _unique(self, where: str) -> str:
        """Return a name that is not taken yet, the same on every worker: two meters in a list."""
        name, times = where, 1
        while name in self._names:
            times += 1
            name = f"{where} ({times})"
        self._names.add(name)
        return name

    def _add_class(self, kind: type) -> None:
        where = self._unique(f"class {kind.__name__}")
        for key, value in [*vars(kind).items()]:
            watched = isinstance(value, (*_PLAIN, *_CONTENT, tuple))
            if watched and not key.startswith("__") and not key.startswith("_abc"):
                slot = Slot(where, None, kind, key)
                self._slots.append(slot)
                self._look_into(slot, value, 0)

    def _add_globals(self, name: str) -> None:
        owner = vars(sys.modules[name])
        for key, value in [*owner.items()]:
            if isinstance(value, (*_PLAIN, *_CONTENT, tuple)) and not key.startswith("__"):
                slot = Slot(f"Python module {name!r}", None, owner, key)
                self._slots.append(slot)
                self._look_into(slot, value, 0)

    def _look_into(self, slot: Slot, value: Any, depth: int) -> None:
        """Watch the content of what an attribute holds."""
        if isinstance(value, (*_PLAIN, *_IGNORED, nn.Module)) or id(value) in self._seen:
            return
        if depth > _DEEPEST or len(self._contents) > _MOST:
            return
        if isinstance(value, _CONTENT):
            self._seen.add(id(value))
            self._contents.append(Content(slot, value))
        if isinstance(value, (*_CONTAINERS, tuple)):
            inside = value.values() if isinstance(value, dict) else value
            for item in [*inside][: _FEW * _FEW]:
                self._look_into(slot, item, depth + 1)
        elif not isinstance(value, _CONTENT) and _is_plain_object(value):
            where = f"{type(value).__name__} in {slot.key!r} of {slot.where}"
            self._add_owner(where, slot.module, vars(value), depth + 1)


def copy_of(value: Any) -> Any:
    """Return what can be put back: a copy of content, one level deep; or a generator's state."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (np.ndarray, *_CONTAINERS)):
        return value.copy()
    return _state_of(value)


def deep_copy_of(value: Any, depth: int = 0) -> Any:
    """Return a copy that can be compared with `same`, as deep as content is watched."""
    if isinstance(value, _PLAIN) or value is ABSENT:
        return value
    if depth > _DEEPEST:
        return repr(type(value))
    if isinstance(value, dict):
        return {key: deep_copy_of(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [deep_copy_of(item, depth + 1) for item in value]
    if isinstance(value, _CONTENT):
        return copy_of(value)
    if not _is_plain_object(value):
        return repr(type(value))
    return {key: deep_copy_of(item, depth + 1) for key, item in vars(value).items()}


def same(left: Any, right: Any) -> bool:
    """Say whether two copies are equal to the bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return same_bits(left, right)
    if isinstance(left, np.ndarray):
        return bool(left.dtype == right.dtype and left.tobytes() == right.tobytes())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(v, right[k]) for k, v in left.items())
    if isinstance(left, (list, tuple, deque)):
        return len(left) == len(right) and all(map(same, left, right))
    return left is right or _equal(left, right)


def _is_opaque(value: Any) -> bool:
    """Say whether an object is one whose content is not watched: a tokenizer, say."""
    return value is not ABSENT and not isinstance(value, (*_PLAIN, *_CONTENT, tuple, frozenset))


def _is_plain_object(value: Any) -> bool:
    """Say whether an object is one whose attributes are looked at: a configuration, say."""
    if isinstance(value, (*_IGNORED, nn.Module)) or type(value).__module__.startswith("torch."):
        return False
    return isinstance(getattr(value, "__dict__", None), dict)


def _equal(left: Any, right: Any) -> bool:
    """Say whether two values that cannot change in place are equal."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (int, float, complex, str, bytes, frozenset, set, torch.Size, torch.dtype)):
        return bool(left == right or (left != left and right != right))  # noqa: PLR0124 - NaN
    if isinstance(left, tuple):
        return len(left) == len(right) and all(a is b or _equal(a, b) for a, b in zip(left, right))  # noqa: B905
    return False


def _token(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value._version, value.data_ptr() if value.layout == torch.strided else 0  # noqa: SLF001
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.nbytes <= _SMALL else value.shape
    if isinstance(value, dict):
        return (len(value), *map(id, value.values())) if len(value) <= _FEW else len(value)
    if isinstance(value, set):
        return frozenset(value) if len(value) <= _FEW else len(value)
    if isinstance(value, (list, deque)):
        return (*map(id, value),) if len(value) <= _FEW else len(value)
    return _state_of(value)


def _state_of(generator: Any) -> Any:
    """Return a generator's state in a form that can be compared."""
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().numpy().data)
    if isinstance(generator, random.Random):
        has_state = not isinstance(generator, random.SystemRandom)
        return generator.getstate() if has_state else None
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return repr(generator.get_state(legacy=False)["state"])
    return None


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))

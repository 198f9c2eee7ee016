"""Python values as tensors and plain data, and back: equal types, equal bits, no pickle.

What JSON holds exactly is itself: None, bools, whole numbers, finite floats, strings and lists.
Everything else is a dictionary with a tag:

    {"tensor": name}              a tensor, which travels apart under this name
    {"parameter": name}           a parameter or buffer of the model
    {"view": [name, ...]}         memory of one, seen in another way
    {"id": name}                  as a key: the `id` of one; likewise its address
    {"tuple": [...]}              likewise set, frozenset, deque, OrderedDict, defaultdict, dict
    {"dict": [[key, value]]}      in order, with keys of any kind
    {"float": bits}               not finite; likewise complex, bytes, numpy, size, dtype, device
    {"same": place}               the object that is at another place as well
    {"object": [type, attributes]}  filled in place; no object is ever created
    {"generator": [type, state]}  of random numbers; likewise
    {"constant": type}            anything else that exists from the start, and stays

`decoding.py` makes nothing but values of these types: what it reads may come from anywhere.
"""

import bisect
import collections
import dataclasses
import enum
import inspect
import json
import math
import random
import struct
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raytrain_plus.task import TaskError

Encoded: TypeAlias = Any
"""What JSON holds exactly."""

SAFETENSORS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes that a checkpoint's files hold, and the format's names of them."""

PLAIN = (type(None), bool, int, str)
_CODE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    type(torch.add),
)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator)
_HIDDEN = "_optimizer_", "_zero_grad_profile_name"  # torch's own hooks of an optimizer
_WIDEST = 64  # the memory that a tensor's strides may span, as a multiple of its elements


def is_code(value: object) -> bool:
    """Say whether a value is a function, class or module, which holds no state of its own."""
    return isinstance(value, _CODE)


class Encoder:
    """Encodes the values of one object, each shared object once.

    Args:
        model: the model's tensors by name.
        device: the model's.
        packages: whose objects are looked into; others are constants.
        owner: whose values these are, for the errors.
        known: from an earlier encoder: the objects and constants that may be there. Default: any.

    Attributes:
        tensors: what is to travel, by name.
        known: the objects and constants that were found, from their place to their type.
    """

    def __init__(
        self,
        model: Mapping[str, Tensor],
        device: torch.device,
        packages: set[str],
        owner: str,
        known: Mapping[str, str] | None = None,
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.known: dict[str, str] = {}
        self._names = {id(tensor): name for name, tensor in model.items()}
        self._memory = _memory_of(model)
        self._device = device
        self._packages = packages
        self._owner = owner
        self._allowed = known
        self._places: dict[int, str] = {}
        self._taken: set[str] = set()
        self._tensor_names: set[str] = set()
        self._encoded: dict[int, Encoded] = {}
        self._alive: list[object] = []
        self._sources: dict[str, Tensor] = {}

    def note(self, value: object, path: str) -> str:
        """Record the place of an object and return it: the path, with marks if it was taken."""
        place = free(path, self._taken)
        self._places[id(value)] = place
        self._alive.append(value)
        return place

    def sources(self) -> dict[str, Tensor]:
        """Return, for each of `tensors`, the object that it was made from."""
        return self._sources

    def encode(self, value: Any, path: str) -> Encoded:
        """Encode a value.

        Raises:
            TaskError: it cannot be carried.
        """
        kind = type(value)
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if kind in PLAIN:
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if kind in _SIMPLE:
            tag, encode = _SIMPLE[kind]
            return {tag: encode(self, value, path)}
        if isinstance(value, np.generic) and value.dtype.kind in "biufc":
            return {"numpy": [value.dtype.str, value.tobytes().hex()]}
        if id(value) in self._places:
            return {"same": self._places[id(value)]}
        if kind in _CONTAINERS:
            self.note(value, path)
            return _CONTAINERS[kind](self, value, path)
        if kind in _GENERATORS:
            self._check(value, self.note(value, path), path)
            return {"generator": [kind_of(value), self.encode(_drawn(value), path)]}
        if is_walked(value, self._packages):
            self._check(value, self.note(value, path), path)
            fields = [
                [name, self.encode(held, f"{path}/{name}")] for name, held in attributes_of(value)
            ]
            return {"object": [kind_of(value), fields]}
        self._check(value, free(path, self._taken), path)
        return {"constant": kind_of(value)}

    def each(self, values: Sequence[Any], path: str) -> list[Encoded]:
        """Encode some values."""
        return [self.encode(value, f"{path}/{place}") for place, value in enumerate(values)]

    def pairs(self, values: Mapping[Any, Any], path: str) -> list[Encoded]:
        """Encode a mapping, in its order."""
        found = []
        for key, value in values.items():
            if isinstance(key, Tensor) and id(key) not in self._names:
                raise self._refusal("something under a tensor that is no parameter", path)
            encoded = self.key(key, f"{path} (key)")
            found.append([encoded, self.encode(value, f"{path}/{told_key(encoded)}")])
        return found

    def key(self, value: Any, path: str) -> Encoded:
        """Encode the key of a mapping, which may be the identity or address of a model's tensor."""
        if type(value) is int and value in self._names:
            return {"id": self._names[value]}
        if type(value) is int and (own := _at_address(self._memory, value)) is not None:
            return {"address": [own[0], value - own[1]]}
        if type(value) is tuple:
            return {"tuple": [self.key(one, f"{path}/{at}") for at, one in enumerate(value)]}
        return self.encode(value, path)

    def _tensor(self, value: Tensor, path: str) -> Encoded:
        if (known := self._names.get(id(value))) is not None:
            return {"parameter": known}
        if (before := self._encoded.get(id(value))) is not None:
            return before
        if (why := _unfit(value)) is not None:
            raise self._refusal(why, path)
        own = _at_address(self._memory, value.data_ptr()) if value.numel() else None
        if own is not None and own[2] == value.dtype:
            offset = (value.data_ptr() - own[1]) // value.element_size()
            return {"view": [own[0], offset, list(value.shape), list(value.stride())]}
        name = free(path, self._tensor_names)
        self.tensors[name] = value.detach()
        self._sources[name] = value
        encoded: Encoded = {"tensor": name}
        if not value.is_contiguous():
            encoded["strides"] = list(value.stride())
        if value.device.type != self._device.type:
            encoded["device"] = value.device.type
        if isinstance(value, nn.Parameter):
            encoded["requires_grad"] = value.requires_grad
        self._encoded[id(value)] = encoded
        self._alive.append(value)
        return encoded

    def _check(self, value: object, place: str, path: str) -> None:
        self.known[place] = kind_of(value)
        if self._allowed is not None and self._allowed.get(place) != kind_of(value):
            raise self._refusal(f"an object of type {kind_of(value)}", path)

    def _refusal(self, what: str, path: str) -> TaskError:
        return TaskError(
            f"{self._owner} keeps {what} {_told(path)}, which cannot be carried to another worker "
            "and to a checkpoint: keep tensors of a usual kind, numbers, strings, and lists, "
            "tuples and dictionaries of them"
        )


def attributes_of(value: object) -> list[tuple[str, Any]]:
    """Return an object's own attributes, without functions and torch's hooks of an optimizer."""
    return [
        (name, held)
        for name, held in vars(value).items()
        if not name.startswith(_HIDDEN) and not is_code(held)
    ]


def told_key(encoded: Encoded) -> str:
    """Return how a path names a key, the same on all workers."""
    if isinstance(encoded, dict) and "parameter" in encoded:
        return str(encoded["parameter"])
    return encoded if isinstance(encoded, str) else json.dumps(encoded)


def is_walked(value: object, packages: set[str]) -> bool:
    """Say whether an object's attributes are state.

    Those of an optimizer, a scheduler, a dataclass and of the user's objects are.
    """
    if is_code(value) or isinstance(value, nn.Module | enum.Enum) or not hasattr(value, "__dict__"):
        return False
    package = type(value).__module__.partition(".")[0]
    is_state = isinstance(value, Optimizer | LRScheduler) or dataclasses.is_dataclass(value)
    return is_state or package in packages


def free(path: str, taken: set[str]) -> str:
    """Return a path that is not taken, by marks at its end, and take it."""
    while path in taken:
        path += "'"
    taken.add(path)
    return path


def kind_of(value: object) -> str:
    """Return the full name of a value's type, and of a class itself."""
    kind = value if inspect.isclass(value) else type(value)
    said = f"{kind.__module__}.{kind.__qualname__}"
    return f"{said}.{value.name}" if isinstance(value, enum.Enum) else said


Memory: TypeAlias = tuple[list[int], list[tuple[str, int, int, torch.dtype]]]


def _memory_of(model: Mapping[str, Tensor]) -> Memory:
    """Return where the model's tensors lie, in order: their names, begin, end and dtype."""
    held = sorted(
        (t.data_ptr(), name, t.data_ptr() + t.nbytes, t.dtype)
        for name, t in model.items()
        if t.layout == torch.strided and t.numel()
    )
    return [begin for begin, *_ in held], [(name, b, end, dtype) for b, name, end, dtype in held]


def _at_address(memory: Memory, address: int) -> tuple[str, int, torch.dtype] | None:
    """Return the tensor whose memory holds an address: its name, its start and its dtype."""
    place = bisect.bisect_right(memory[0], address) - 1
    if place < 0:
        return None
    name, begin, end, dtype = memory[1][place]
    return (name, begin, dtype) if address < end else None


def _unfit(value: Tensor) -> str | None:
    """Say why a tensor cannot be carried; None if it can."""
    if type(value) not in (Tensor, nn.Parameter):
        return f"a tensor of the class {kind_of(value)}"
    if value.layout != torch.strided:
        return f"a tensor of layout {value.layout}"
    if value.dtype not in SAFETENSORS:
        return f"a tensor of {value.dtype}, which no checkpoint file holds,"
    if value.device.type == "meta":
        return "a tensor on the meta device"
    if not value.is_contiguous() and not fits(value, value.stride()):
        return "a tensor that is a view with repeated or far elements (use .clone())"
    return None


def fits(tensor: Tensor, strides: Sequence[int]) -> bool:
    """Say whether a tensor can have some strides: no element shared, and none far away."""
    if len(strides) != tensor.dim() or any(type(s) is not int or s < 0 for s in strides):
        return False
    reach = 0
    sizes = sorted((s, n) for s, n in zip(strides, tensor.shape, strict=True) if n > 1)
    for stride, size in sizes:
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return reach < _WIDEST * max(1, tensor.numel())


def _drawn(generator: Any) -> Any:
    """Return the state of a generator of random numbers."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state


def _told(path: str) -> str:
    root, _, rest = path.partition("/")
    if root == "optimizer groups":
        place, _, key = rest.partition("/")
        return f"in parameter group {place} under {key!r}"
    if root == "optimizer itself":
        return f"in its attribute {rest!r}"
    return f"in its state_dict() under {rest!r}" if "dict" in root else f"in its state {rest!r}"


def _set(encoder: Encoder, value: Any, path: str) -> list[Encoded]:
    members = [encoder.key(one, f"{path}/{one!r}") for one in value]
    return sorted(members, key=json.dumps)


_SIMPLE: dict[type, tuple[str, Callable[[Encoder, Any, str], Encoded]]] = {
    tuple: ("tuple", lambda encoder, value, path: encoder.each(value, path)),
    set: ("set", _set),
    frozenset: ("frozenset", _set),
    torch.Size: ("size", lambda _, value, __: list(value)),
    torch.dtype: ("dtype", lambda _, value, __: str(value)),
    torch.device: ("device", lambda _, value, __: str(value)),
    bytes: ("bytes", lambda _, value, __: value.hex()),
    complex: ("complex", lambda _, value, __: struct.pack(">dd", value.real, value.imag).hex()),
    np.ndarray: ("array", lambda encoder, v, path: encoder.encode(torch.from_numpy(v), path)),
}
_CONTAINERS: dict[type, Callable[[Encoder, Any, str], Encoded]] = {
    list: lambda encoder, value, path: encoder.each(value, path),
    dict: lambda encoder, value, path: {"dict": encoder.pairs(value, path)},
    collections.OrderedDict: lambda e, value, path: {"OrderedDict": e.pairs(value, path)},
    collections.defaultdict: lambda encoder, value, path: {
        "defaultdict": [
            getattr(value.default_factory, "__name__", None),
            encoder.pairs(value, path),
        ]
    },
    collections.deque: lambda encoder, value, path: {
        "deque": [value.maxlen, encoder.each(list(value), path)]
    },
}

"""Back from plain data and tensors to Python values: what `encoding.py` describes, read.

Only values of the types that are named there are made, and nothing is imported: the data may come
from anywhere.
"""

import collections
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from raytrain_plus.training.encoding import (
    PLAIN,
    SAFETENSORS,
    Encoded,
    attributes_of,
    fits,
    free,
    is_walked,
    kind_of,
    told_key,
)

_DTYPES = {str(dtype): dtype for dtype in SAFETENSORS}
_FACTORIES: dict[str, Callable[[], Any]] = {f.__name__: f for f in (dict, list, int, float)}


class Decoder:
    """Decodes what an `Encoder` has made, into the objects that exist already.

    Args:
        tensors: those that were carried, by name.
        model: the model's tensors by name.
        device: the model's.
        packages: as the encoder had them.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        model: Mapping[str, Tensor],
        device: torch.device,
        packages: set[str],
    ) -> None:
        self._tensors = tensors
        self._model = model
        self._device = device
        self._packages = packages
        self._places: dict[str, Any] = {}
        self._taken: set[str] = set()
        self._made: dict[str, Tensor] = {}
        self._used = {id(tensor) for tensor in model.values()}

    def note(self, value: object, path: str) -> None:
        """Record the place of an object, as the encoder has."""
        self._places[free(path, self._taken)] = value

    def set_attribute(self, owner: object, name: str, encoded: Encoded, path: str) -> None:
        """Give an object an attribute."""
        held = vars(owner)
        held[name] = self.decode(encoded, held.get(name), path)

    def decode(self, encoded: Encoded, current: Any, path: str) -> Any:
        """Decode a value.

        Args:
            encoded: what `Encoder.encode` returned.
            current: what stands there now, which is filled and returned if it is of that kind.
            path: where, as the encoder named it.

        Raises:
            ValueError: no such value can be made, or another object is there.
            KeyError, TypeError, IndexError, AttributeError, RuntimeError: it is damaged.
        """
        if type(encoded) in PLAIN or type(encoded) is float:
            return encoded
        if type(encoded) is list:
            return self._list(encoded, current, path)
        if "tensor" in encoded:
            return self._tensor(encoded, current)
        ((tag, content),) = encoded.items()
        if tag in self._fillers:
            return self._fillers[tag](self, content, current, path)
        if tag not in _MAKERS:
            raise ValueError(f"{path} is of the unknown kind {tag!r}")
        return _MAKERS[tag](self, content, path)

    def each(self, encoded: Sequence[Encoded], current: Sequence[Any], path: str) -> list[Any]:
        """Decode some values."""
        before = [*current, *[None] * (len(encoded) - len(current))]
        return [
            self.decode(one, before[place], f"{path}/{place}") for place, one in enumerate(encoded)
        ]

    def _list(self, encoded: Sequence[Encoded], current: Any, path: str) -> list[Any]:
        found = current if type(current) is list else []
        self.note(found, path)
        found[:] = self.each(encoded, found, path)
        return found

    def _deque(self, encoded: Sequence[Any], current: Any, path: str) -> Any:
        most, values = encoded
        fits = type(current) is collections.deque and current.maxlen == most
        found = current if fits else collections.deque(maxlen=most)
        self.note(found, path)
        held = self.each(values, list(found), path)
        found.clear()
        found.extend(held)
        return found

    def _tuple(self, encoded: Sequence[Encoded], current: Any, path: str) -> tuple[Any, ...]:
        return tuple(self.each(encoded, current if type(current) is tuple else (), path))

    def _named(self, name: str, *_: Any) -> Tensor:
        return self._model[name]

    def _view(self, content: Any, *_: Any) -> Tensor:
        name, offset, shape, strides = content
        whole = self._model[name].detach()
        return whole.as_strided(shape, strides, whole.storage_offset() + offset)

    def _id(self, name: str, *_: Any) -> int:
        return id(self._model[name])

    def _address(self, content: Any, *_: Any) -> int:
        name, offset = content
        return int(self._model[name].data_ptr() + offset)

    def _same(self, place: str, *_: Any) -> Any:
        return self._places[place]

    def _dict(self, pairs: Any, current: Any, path: str) -> Any:
        return self._mapping(pairs, current if type(current) is dict else {}, path)

    def _ordered(self, pairs: Any, current: Any, path: str) -> Any:
        fits = type(current) is collections.OrderedDict
        return self._mapping(pairs, current if fits else collections.OrderedDict(), path)

    def _default(self, content: Any, current: Any, path: str) -> Any:
        factory, pairs = content
        if type(current) is not collections.defaultdict:
            current = collections.defaultdict(_FACTORIES.get(str(factory)))
        return self._mapping(pairs, current, path)

    def _mapping(self, pairs: Any, found: Any, path: str) -> Any:
        self.note(found, path)
        held = []
        for key, value in pairs:
            plain = self.decode(key, None, f"{path} (key)")
            current = dict.get(found, plain)
            held.append((plain, self.decode(value, current, f"{path}/{told_key(key)}")))
        found.clear()
        found.update(held)
        return found

    def _tensor(self, encoded: Mapping[str, Any], current: Any) -> Tensor:
        name = encoded["tensor"]
        if name in self._made:
            return self._made[name]
        given = self._tensors[name]
        if encoded.get("device", "cpu") != "cpu":
            raise ValueError(f"tensor {name} is on the device {encoded['device']!r}")
        device = torch.device("cpu") if "device" in encoded else self._device
        strides = tuple(encoded.get("strides") or _contiguous(given.shape))
        if not fits(given, strides):
            raise ValueError(f"tensor {name} has strides {strides}, which fit no such tensor")
        parameter = encoded.get("requires_grad")
        wanted = (given.shape, given.dtype, device.type, strides, parameter is not None)
        if _described(current) == wanted and id(current) not in self._used:
            found: Tensor = current
        else:
            found = torch.empty_strided(given.shape, strides, dtype=given.dtype, device=device)
            if parameter is not None:
                found = nn.Parameter(found, requires_grad=parameter)
        found.detach().copy_(given)
        self._used.add(id(found))
        self._made[name] = found
        return found

    def _object(self, content: Any, current: Any, path: str) -> Any:
        kind, fields = content
        self._match(kind, current, path)
        if not is_walked(current, self._packages):
            raise ValueError(f"{path} is another kind of object")
        self.note(current, path)
        given = {name for name, _ in fields}
        for name, _ in attributes_of(current):
            if name not in given:
                del vars(current)[name]
        for name, value in fields:
            self.set_attribute(current, name, value, f"{path}/{name}")
        return current

    def _generator(self, content: Any, current: Any, path: str) -> Any:
        kind, drawn = content
        self._match(kind, current, path)
        self.note(current, path)
        state = self.decode(drawn, None, path)
        if isinstance(current, torch.Generator):
            current.set_state(state)
        elif isinstance(current, random.Random):
            current.setstate(state)
        else:
            current.bit_generator.state = state
        return current

    def _constant(self, kind: str, current: Any, path: str) -> Any:
        free(path, self._taken)
        self._match(kind, current, path)
        return current

    def _match(self, kind: str, current: Any, path: str) -> None:
        if kind_of(current) != kind:
            raise ValueError(f"{path} is a {kind} there and a {kind_of(current)} here")

    # Not bound to an object, which would be a cycle that keeps all tensors until it is collected.
    _fillers: ClassVar[dict[str, Callable[["Decoder", Any, Any, str], Any]]] = {
        "parameter": _named,
        "view": _view,
        "id": _id,
        "address": _address,
        "same": _same,
        "constant": _constant,
        "object": _object,
        "generator": _generator,
        "tuple": _tuple,
        "dict": _dict,
        "OrderedDict": _ordered,
        "defaultdict": _default,
        "deque": _deque,
    }


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return (*reversed(strides),)


def _described(value: object) -> tuple[Any, ...] | None:
    if type(value) not in (Tensor, nn.Parameter):
        return None
    assert isinstance(value, Tensor)
    if value.layout != torch.strided:
        return None
    parameter = isinstance(value, nn.Parameter)
    return value.shape, value.dtype, value.device.type, value.stride(), parameter


def _numpy_scalar(_: Decoder, content: Any, __: str) -> Any:
    dtype = np.dtype(content[0])
    if dtype.kind not in "biufc":
        raise ValueError(f"a NumPy number of dtype {dtype} is not read")
    return np.frombuffer(bytes.fromhex(content[1]), dtype)[0]


_MAKERS: dict[str, Callable[[Decoder, Any, str], Any]] = {
    "set": lambda decoder, content, path: set(decoder.each(content, (), path)),
    "frozenset": lambda decoder, content, path: frozenset(decoder.each(content, (), path)),
    "size": lambda _, content, __: torch.Size(content),
    "dtype": lambda _, content, __: _DTYPES[content],
    "device": lambda _, content, __: torch.device(content),
    "bytes": lambda _, content, __: bytes.fromhex(content),
    "complex": lambda _, content, __: complex(*struct.unpack(">dd", bytes.fromhex(content))),
    "float": lambda _, content, __: struct.unpack(">d", bytes.fromhex(content))[0],
    "numpy": _numpy_scalar,
    "array": lambda decoder, content, path: decoder.decode(content, None, path).numpy(),
}

"""A cheap description of a structure of Python values, to notice that the structure has changed.

An optimizer's state is a structure of containers and tensors. Its values change with each update,
and its structure rarely does. If two looks have equal facts, then `encoding.py` makes the same of
both, except for the values of tensors. A look keeps no object alive but its tensors.
"""

import collections
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_plus.training.encoding import PLAIN, is_code

_VALUES = (torch.dtype, torch.device, torch.Size, complex, bytes)
_SEQUENCES = (list, tuple)
_MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict)


class UnknownKindError(TypeError):
    """A value of a kind whose changes a look does not see."""


class Look:
    """One look at a structure.

    Attributes:
        facts: equal for equal structures. Objects are told apart by their identity.
        tensors: those that were found, in order.
    """

    def __init__(self) -> None:
        self.facts: list[Any] = []
        self.tensors: list[Tensor] = []
        self._seen: set[int] = set()

    def at(self, value: Any) -> None:
        """Look at a value and at all that it holds.

        Raises:
            UnknownKindError: there is something that must be encoded to see its changes.
        """
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            self._at_tensor(value)
        elif kind in PLAIN:
            self.facts += (kind, value)
        elif kind is float:
            self.facts.append(value.hex())  # tells the two zeros apart, and NaN is equal to itself
        elif kind in _SEQUENCES:
            if self._is_new(value):
                for item in value:
                    self.at(item)
        elif kind in _MAPPINGS:
            self._at_mapping(value)
        elif isinstance(value, _VALUES):
            self.facts += (kind, value)
        elif is_code(value):
            self.facts.append(id(value))
        else:
            raise UnknownKindError(kind.__name__)

    def at_settings(self, settings: dict[str, Any]) -> None:
        """Look at a mapping whose plain values (`is_plain`) may change."""
        self.facts += (id(settings), len(settings))
        for key, value in settings.items():
            self.facts += (key, type(value))
            if not is_plain(value):
                self.at(value)

    def _at_tensor(self, value: Tensor) -> None:
        if value.layout is not torch.strided:
            raise UnknownKindError(str(value.layout))
        self.tensors.append(value)
        self.facts += (
            id(value),
            type(value),
            value.data_ptr(),
            value.dtype,
            value.shape,
            value.stride(),
            value.requires_grad,
        )

    def _at_mapping(self, value: Any) -> None:
        if not self._is_new(value):
            return
        if type(value) is collections.defaultdict:
            self.facts.append(id(value.default_factory))
        for key, item in value.items():
            if type(key) is str:
                self.facts.append(key)
            else:
                self.at(key)
            self.at(item)

    def _is_new(self, container: Any) -> bool:
        self.facts += (id(container), type(container), len(container))
        if id(container) in self._seen:
            return False
        self._seen.add(id(container))
        return True


def is_plain(value: Any) -> bool:
    """Say whether a value is its own encoding."""
    return type(value) in PLAIN or (type(value) is float and value - value == 0)

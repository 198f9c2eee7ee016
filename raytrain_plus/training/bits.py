"""Sums of bits: one fast pass says whether tensors are unchanged, or equal to those elsewhere.

The bits of each element are read as an integer of its width, and those of a tensor are added with
wrap-around. Neither the order nor the layout in memory matters, and one flipped bit always changes
the sum. Each tensor's sum is multiplied by an odd number made from its name. So values that change
places change the sum as well, and no single bit is lost.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_FEW = 512  # elements; tensors up to here are put together first: a call costs more than they do
_WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASK = (1 << 64) - 1


class BitSum:
    """The sum of the bits of some tensors; views of them are made once.

    Args:
        tensors: by name. They may change in place, but must keep their memory.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        kinds: dict[tuple[torch.dtype, torch.device], _Kind] = {}
        self._copies: list[tuple[Tensor, Tensor]] = []  # of what has gaps or shares elements
        for name, given in tensors.items():
            tensor = given.detach()
            bits = _as_integers(tensor)
            if bits is None:
                self._copies.append((tensor.contiguous(), tensor))
                bits = _as_integers(self._copies[-1][0])
                assert bits is not None
            if bits.numel():
                kind = kinds.setdefault((bits.dtype, bits.device), _Kind(bits.dtype))
                kind.add(bits, _odd_number(name))
        self._kinds = [kinds[key] for key in sorted(kinds, key=str)]
        for kind in self._kinds:
            kind.close()

    @torch.no_grad()
    def compute(self) -> int:
        """Return the sum, at least 0 and below 2**64."""
        for copy, tensor in self._copies:
            copy.copy_(tensor)
        return sum(kind.compute() * _odd_number(str(kind.dtype)) for kind in self._kinds) & _MASK


def bit_sum(tensors: Sequence[Tensor]) -> int:
    """Return the sum of the bits of some tensors, each weighted by its place."""
    return BitSum({str(i): tensor for i, tensor in enumerate(tensors)}).compute()


def hash_of(text: str) -> int:
    """Return a hash of a text, at least 0 and below 2**64."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@functools.cache
def _odd_number(name: str) -> int:
    return hash_of(name) | 1


class _Kind:
    """Tensors whose elements are equally wide, and that are on one device."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        # The sum has the width of the elements, which is the fast way; one byte would be too few.
        self._width = torch.int64 if dtype == torch.int8 else dtype
        self._few: list[Tensor] = []
        self._many: list[Tensor] = []
        self._few_weights: list[int] = []
        self._many_weights: list[int] = []

    def add(self, bits: Tensor, weight: int) -> None:
        few = bits.numel() <= _FEW
        (self._few if few else self._many).append(bits)
        (self._few_weights if few else self._many_weights).append(weight)

    def close(self) -> None:
        device = (self._few or self._many)[0].device
        few, many = (
            torch.tensor([_signed(w) for w in weights], dtype=torch.int64, device=device)
            for weights in (self._few_weights, self._many_weights)
        )
        lengths = torch.tensor([bits.numel() for bits in self._few], device=device)
        self._per_element = few.repeat_interleave(lengths.long()).to(self._width)
        self._per_tensor = many.to(self._width)

    def compute(self) -> int:
        parts = []
        if self._few:
            parts.append((torch.cat(self._few), self._per_element))
        if self._many:
            sums = [torch.sum(bits, 0, dtype=self._width) for bits in self._many]
            parts.append((torch.stack(sums), self._per_tensor))
        return sum(
            int((values * weights).sum(dtype=self._width).item()) for values, weights in parts
        )


def _as_integers(tensor: Tensor) -> Tensor | None:
    """View a tensor's elements as integers, in the order in which they lie densely in memory."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(order)
    if not dense.is_contiguous():
        return None
    return dense.view(-1).view(_WIDTHS[tensor.element_size()])


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number

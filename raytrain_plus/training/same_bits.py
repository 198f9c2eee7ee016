"""Whether two tensors are equal to the bit: NaN equals itself, and -0.0 differs from 0.0."""

from typing import Any

import torch
from torch import Tensor


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors have equal shapes, dtypes, layouts and elements, bit by bit.

    They may lie on different devices.
    """
    if one.dtype != other.dtype or one.layout != other.layout:
        return False
    if one.layout != torch.jagged and one.shape != other.shape:  # a ragged size has no number
        return False
    return all(map(_equal, _stored(one.detach()), _stored(other.detach())))


def _stored(tensor: Any) -> list[Tensor]:  # each layout has methods that Tensor does not declare
    """Return the dense tensors of which a tensor consists."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # noqa: SLF001 - as they are, not coalesced
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.layout == torch.jagged:
        return [tensor.values(), tensor.offsets()]
    return [tensor if tensor.layout == torch.strided else tensor.to_dense()]


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    rows = [
        t.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        for t in (one, other)
    ]
    return torch.equal(rows[0], rows[1].to(rows[0].device))

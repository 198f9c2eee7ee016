"""Tensors as the content of a safetensors file, without a copy of them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raytrain_plus.training.encoding import SAFETENSORS
from raytrain_plus.training.state import tensor_memory

FOR_TORCH = {"format": "pt"}
"""The metadata that Hugging Face's readers expect in a model's file."""

_DTYPES = {name: dtype for dtype, name in SAFETENSORS.items()}
_METADATA = "__metadata__"
_MOST_HEADER = 100_000_000  # bytes, as in the library


def encode(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Sequence[memoryview]:
    """Return the content of a safetensors file as blocks of memory: a header, then the tensors.

    The library's own `save` copies everything while it holds the interpreter's lock, and training
    would wait for that. Tensors that share memory are written once for each name.

    Args:
        tensors: by name.
        metadata: of the file. Default: none.

    Raises:
        ValueError: the format does not have the dtype of a tensor.
    """
    # As the library does it: large elements first, so that each tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in SAFETENSORS:
            raise ValueError(f"{name} is of dtype {tensor.dtype}, which no safetensors holds")
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": SAFETENSORS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = memoryview(len(text).to_bytes(8, "little") + text)
    return [start, *(tensor_memory(tensors[name]) for name in order)]


def decode(content: bytearray) -> dict[str, Tensor]:
    """Return the tensors in the content of a safetensors file, as views of its memory.

    The library's `load` copies each tensor.

    Args:
        content: the file. It must not change while a tensor is used.

    Raises:
        ValueError: it is no such file.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(_MOST_HEADER, len(content) - 8):
        raise ValueError("its header is longer than the file, or than any header may be")
    try:
        header = json.loads(bytes(content[8 : 8 + size]))
        header.pop(_METADATA, None)
        entries = {str(name): _entry(told) for name, told in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header cannot be read: {error!r}") from error
    end = 0
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda one: one[1][2:]):
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name!r} lies at other bytes than its shape needs")
        end = stop
    if 8 + size + end != len(content):
        raise ValueError(f"it has {len(content)} bytes, and its header names {8 + size + end}")
    memory = torch.frombuffer(content, dtype=torch.uint8)
    return {
        name: _view(memory[8 + size + begin : 8 + size + stop], dtype, shape)
        for name, (dtype, shape, begin, stop) in entries.items()
    }


def _entry(told: Mapping[str, Any]) -> tuple[torch.dtype, list[int], int, int]:
    shape, (begin, stop) = list(told["shape"]), told["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, begin, stop)):
        raise ValueError(f"sizes must be whole numbers from 0: {shape}, {begin}, {stop}")
    return _DTYPES[told["dtype"]], shape, begin, stop


def _view(memory: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    if memory.numel() == 0:
        return torch.empty(shape, dtype=dtype)
    if memory.data_ptr() % dtype.itemsize or memory.storage_offset() % dtype.itemsize:
        memory = memory.clone()  # written by a program that does not align tensors
    return memory.view(dtype).reshape(shape)

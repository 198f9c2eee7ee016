"""Tensors as the content of a safetensors file, without a copy of them."""

import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from raytrain_plus.training.encoding import SAFETENSORS
from raytrain_plus.training.state import tensor_memory


def encode(tensors: Mapping[str, Tensor]) -> Sequence[memoryview]:
    """Return the content of a safetensors file as blocks of memory: a header, then the tensors.

    The library's own `save` copies everything while it holds the interpreter's lock, and training
    would wait for that. Tensors that share memory are written once for each name.

    Raises:
        ValueError: the format does not have the dtype of a tensor.
    """
    # As the library does it: large elements first, so that each tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, offset = {}, 0
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

"""One flipped bit anywhere changes a sum of bits; the layout of a tensor in memory does not."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from raytrain_plus.training.bits import BitSum, bit_sum

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64,
    torch.complex128, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
SHAPES = [(), (0,), (1,), (3,), (7, 5), (4, 3, 3, 3), (513,), (2, 300)]


def flip(tensor, byte, bit):
    """Flip one bit of a tensor's memory without torch."""
    tensor.detach().reshape(-1).view(torch.uint8).numpy()[byte] ^= 1 << bit


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_flipped_bit_changes_the_sum_and_flipping_it_back_restores_it(data):
    shapes = data.draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=6))
    tensors = {}
    for i, shape in enumerate(shapes):
        dtype = data.draw(st.sampled_from(DTYPES))
        tensors[f"tensor {i}"] = (torch.randn(shape) * 9).to(dtype)
    total = BitSum(tensors)
    before = total.compute()
    assert 0 <= before < 1 << 64
    assert BitSum(dict(reversed(tensors.items()))).compute() == before
    sizes = [t.numel() * t.element_size() for t in tensors.values()]
    if not sum(sizes):
        return
    chosen = data.draw(st.sampled_from([i for i, size in enumerate(sizes) if size]))
    tensor = tensors[f"tensor {chosen}"]
    byte = data.draw(st.integers(0, sizes[chosen] - 1))
    bit = 0 if tensor.dtype == torch.bool else data.draw(st.integers(0, 7))
    flip(tensor, byte, bit)
    assert total.compute() != before
    assert BitSum(tensors).compute() == total.compute()
    flip(tensor, byte, bit)
    assert total.compute() == before


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (20, 30, 4, 5)])
def test_the_memory_layout_of_a_tensor_does_not_matter(shape):
    tensor = torch.randn(shape)
    other = tensor.contiguous(memory_format=torch.channels_last)
    assert other.stride() != tensor.stride()
    assert bit_sum([tensor]) == bit_sum([other])
    assert bit_sum([tensor]) != bit_sum([tensor + 1])


def test_a_tensor_with_gaps_is_checked_too():
    base = torch.randn(6, 4)
    gaps = BitSum({"a": base[:, ::2]})
    before = gaps.compute()
    assert before == BitSum({"a": base[:, ::2].clone()}).compute()
    base[0, 1] += 1  # in a gap
    assert gaps.compute() == before
    base[0, 2] += 1
    assert gaps.compute() != before


def test_swapped_tensors_change_the_sum():
    a, b = torch.randn(5), torch.randn(5)
    assert bit_sum([a, b]) != bit_sum([b, a])
    a, b = torch.randn(5000), torch.randn(5000)
    assert bit_sum([a, b]) != bit_sum([b, a])
    assert bit_sum([a, b]) == bit_sum([a.clone(), b.clone()])

"""A state is read back bit for bit, for any division into shares."""

import math
import shutil

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.files import MODEL, files_of, share_out
from raytrain_plus.checkpoint.snapshot import Snapshot
from raytrain_plus.training.state import tensor_bytes
from raytrain_plus.training.tensor_file import encode
from tests.training.small_tasks import OPTIMIZERS, Noisy, Normed, Tied, loop_alone, run

SIZES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 1000), max_size=30)


@given(model=st.integers(0, 3000), rest=SIZES, shares=st.integers(1, 9))
def test_every_tensor_is_in_one_share_and_the_longest_is_short(model, rest, shares):
    cut = share_out(model, rest, shares)
    assert len(cut) == shares
    assert sorted(name for names in cut for name in names) == sorted(rest)
    loads = [sum(rest[n] for n in names) + model * (i == 0) for i, names in enumerate(cut)]
    assert max(loads) <= max(model, sum(loads) / shares + max(rest.values(), default=0))


@given(rest=SIZES, shares=st.integers(1, 9), order=st.randoms())
def test_all_workers_find_the_same_shares(rest, shares, order):
    items = list(rest.items())
    order.shuffle(items)
    assert share_out(100, dict(items), shares) == share_out(100, rest, shares)


def test_the_writer_of_the_model_gets_less_of_the_rest():
    rest = {f"{i}": 10 for i in range(6)}
    assert share_out(0, rest, 2) == [["0", "2", "4"], ["1", "3", "5"]]
    assert [len(names) for names in share_out(20, rest, 2)] == [2, 4]
    assert share_out(100, rest, 3)[0] == []
    with pytest.raises(ValueError, match="0 shares"):
        share_out(0, rest, 0)


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def any_bits(dtype, shape, seed):
    """Return a tensor of arbitrary bits, including all kinds of NaN."""
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).bool()
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed))
    return raw.to(torch.uint8).view(dtype).reshape(shape)


TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.builds(
        any_bits,
        st.sampled_from(DTYPES),
        st.tuples(st.integers(0, 3), st.integers(0, 3)) | st.just(()),
        st.integers(0, 10**6),
    ),
    max_size=8,
)


@given(TENSORS)
def test_a_file_opens_with_plain_safetensors(tensors):
    loaded = safetensors.torch.load(b"".join(encode(tensors)))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(loaded[name]) == tensor_bytes(tensor)


def test_a_file_is_the_one_that_the_library_writes():
    tensors = {"b": torch.arange(3.0), "a": torch.arange(2), "c": torch.ones(1, dtype=torch.int8)}
    assert b"".join(encode(tensors)) == safetensors.torch.save(tensors)


def test_types_that_the_format_does_not_know_are_refused_by_name():
    with pytest.raises(ValueError, match=r"odd is of dtype torch\.complex128"):
        encode({"odd": torch.ones(1, dtype=torch.complex128)})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=6)
@given(shares=st.integers(1, 12), order=st.randoms())
def test_any_split_loads_to_the_same_bits_and_steps(optimizer, shares, order, tmp_path_factory):
    ours, other = loop_alone(Noisy(optimizer)), loop_alone(Noisy(optimizer))
    run(ours, 2)
    place = tmp_path_factory.mktemp("split") / "checkpoint_00000002"
    taken = Snapshot.of(ours.replica)
    turns = list(range(shares))
    order.shuffle(turns)
    files = [p for share in turns for p in checkpointer.write_share(place, taken, share, shares)]
    assert not checkpointer.kept(checkpointer.Store(place.parent))
    checkpointer.commit(place, {"run": "r", **checkpointer.describe_state(taken)}, files)

    checkpointer.load(place, other.replica)
    assert other.replica.digest() == ours.replica.digest() == taken.digest()
    run(ours, 1)
    run(other, 1)
    assert other.replica.digest() == ours.replica.digest() != taken.digest()
    shutil.rmtree(place.parent)


def test_only_the_first_share_has_the_model_and_empty_shares_have_no_file():
    loop = loop_alone(Tied("AdamW"))
    run(loop, 1)
    taken = Snapshot.of(loop.replica)
    files = [files_of(taken, share, 30) for share in range(30)]
    assert [MODEL in names for names in files] == [True] + [False] * 29
    assert files[29] == {}
    held = [name for share in files for f, t in share.items() if f != MODEL for name in t]
    assert sorted(held) == sorted(taken.rest)


def test_shares_of_other_numbers_of_workers_have_other_names():
    """A late writer of a cancelled attempt overwrites no file of the next attempt."""
    loop = loop_alone(Normed("AdamW"))
    run(loop, 1)
    taken = Snapshot.of(loop.replica)
    two, three = ({f for i in range(n) for f in files_of(taken, i, n)} for n in (2, 3))
    assert two & three == {MODEL}

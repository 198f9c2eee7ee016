"""A state is read back bit for bit, for any division into shares."""

import json
import math
import shutil
from collections import Counter

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.files import INDEX, MODEL, Limits, is_of_model, lay_out, places_of
from raytrain_plus.checkpoint.snapshot import Snapshot, layout_of
from raytrain_plus.training.state import tensor_bytes
from raytrain_plus.training.tensor_file import FOR_TORCH, decode, encode
from tests.training.small_tasks import OPTIMIZERS, Noisy, Tied, loop_alone, run

SIZES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 1000), max_size=30)
LIMITS = st.builds(
    Limits,
    model_bytes=st.integers(1, 2000),
    least_bytes=st.integers(0, 500),
    writers=st.integers(1, 6),
)
TINY = Limits(least_bytes=1)


def files_in(layout):
    return {piece.file: piece.names for share in layout.shares for piece in share}


@given(model=SIZES, rest=SIZES, workers=st.integers(1, 9), limits=LIMITS)
def test_every_tensor_is_in_one_file_and_no_writer_has_less_than_the_least(
    model, rest, workers, limits
):
    layout = lay_out(model, rest, workers, limits)
    assert 1 <= len(layout.shares) <= min(workers, limits.writers)
    pieces = [piece for share in layout.shares for piece in share]
    assert len({piece.file for piece in pieces}) == len(pieces)
    named = [(is_of_model(piece.file), name) for piece in pieces for name in piece.names]
    assert sorted(named) == sorted([*((True, n) for n in model), *((False, n) for n in rest)])
    for piece in pieces:
        sizes = model if is_of_model(piece.file) else rest
        assert piece.bytes == sum(sizes[name] for name in piece.names)
        if is_of_model(piece.file):
            assert (
                piece.bytes <= limits.model_bytes
                or len(piece.names) == 1
                or not any(sizes[name] for name in piece.names[1:])
            )
    assert all(layout.shares)
    total = sum(model.values()) + sum(rest.values())
    assert len(layout.shares) * limits.least_bytes <= max(total, limits.least_bytes)
    cut = sorted(piece for piece in pieces if not is_of_model(piece.file))
    assert all(piece.bytes >= limits.least_bytes for piece in cut[:-1])
    mean = sum(rest.values()) / max(1, len(cut))
    assert all(piece.bytes <= mean + max(rest.values()) for piece in cut)


@given(model=SIZES, rest=SIZES, workers=st.integers(1, 9), limits=LIMITS, order=st.randoms())
def test_all_workers_find_the_same_files(model, rest, workers, limits, order):
    items = list(rest.items())
    order.shuffle(items)
    assert lay_out(model, dict(items), workers, limits) == lay_out(model, rest, workers, limits)


@given(model=SIZES, rest=SIZES, limits=LIMITS)
def test_a_files_name_says_which_tensors_it_has(model, rest, limits):
    """A late writer of an attempt that was given up overwrites no other tensors."""
    seen = {}
    for workers in range(1, 12):
        for file, names in files_in(lay_out(model, rest, workers, limits)).items():
            assert seen.setdefault(file, names) == names


def test_the_control_of_that_files_of_other_numbers_have_other_tensors():
    rest = {f"{i}": 10 for i in range(6)}
    two, three = (files_in(lay_out({}, rest, n, TINY)) for n in (2, 3))
    assert two.keys() & three.keys() == {MODEL}
    assert two["rest-00001-of-00002.safetensors"] == ("0", "1", "2")


def test_a_small_state_has_one_writer_and_a_large_one_256():
    million = 10**6
    assert len(lay_out({"w": 20 * million}, {"m": 40 * million}, 1000).shares) == 1
    tensors = {f"{i:04d}": 10 * million for i in range(100)}
    # 1 GB of the model in one file, the rest in 14 of 70 MB and the last of 20 MB.
    assert len(lay_out(tensors, tensors, 1000).shares) == 16
    huge = {f"{i:06d}": 10 * million for i in range(20_000)}
    for workers in (1_000, 10_000):
        layout = lay_out(huge, huge, workers)
        assert len(layout.shares) == 256
        loads = [sum(piece.bytes for piece in share) for share in layout.shares]
        assert sorted(loads)[-41:] == [930 * million, *[5_000 * million] * 40]
    with pytest.raises(ValueError, match="0 workers"):
        lay_out({}, {}, 0)


def test_a_model_is_one_file_up_to_the_limit_and_then_numbered_with_an_index():
    model = {"b": 30, "a": 30, "large": 100, "c": 1}
    assert lay_out(model, {}, 1, Limits(model_bytes=161)).index is None
    layout = lay_out(model, {}, 1, Limits(model_bytes=60))
    assert files_in(layout) == {
        "model-00001-of-00003.safetensors": ("b", "a"),
        "model-00002-of-00003.safetensors": ("large",),
        "model-00003-of-00003.safetensors": ("c",),
    }
    index = json.loads(layout.index)
    assert index["metadata"] == {"total_size": 161}
    assert index["weight_map"]["large"] == "model-00002-of-00003.safetensors"
    assert is_of_model(MODEL)
    assert not any(map(is_of_model, (INDEX, "rest-00001-of-00003.safetensors", "model-1")))


@given(nodes=st.lists(st.sampled_from("abcd"), min_size=1, max_size=20), data=st.data())
def test_writers_are_spread_over_the_nodes(nodes, data):
    writers = data.draw(st.integers(1, len(nodes)))
    places = places_of(writers, nodes)
    assert len(set(places)) == writers
    assert places[0] == 0
    used = Counter(nodes[place] for place in places)
    for node, there in Counter(nodes).items():  # a node with fewer writers has no worker left
        assert used[node] >= min(there, max(used.values()) - 1)
    control = Counter(nodes[place] for place in range(writers))
    assert len(used) >= len(control)


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
@given(
    workers=st.integers(1, 12),
    limits=st.builds(Limits, model_bytes=st.sampled_from([40, 400, 4000]), least_bytes=st.just(1)),
    order=st.randoms(),
)
def test_any_split_loads_to_the_same_bits_and_steps(
    optimizer, workers, limits, order, tmp_path_factory
):
    ours, other = loop_alone(Noisy(optimizer)), loop_alone(Noisy(optimizer))
    run(ours, 2)
    place = tmp_path_factory.mktemp("split") / "checkpoint_00000002"
    taken = Snapshot.of(ours.replica)
    layout = layout_of(taken, workers, limits)
    order.shuffle(turns := list(range(len(layout.shares))))
    files = []
    for writer in turns:
        mine = Snapshot.of(ours.replica, layout=layout, writer=writer)
        files += checkpointer.write_share(place, mine, layout, writer)
    assert not checkpointer.kept(checkpointer.Store(place.parent))
    checkpointer.commit(place, {"run": "r", **checkpointer.describe_state(taken)}, files)

    checkpointer.load(place, other.replica)
    assert other.replica.digest() == ours.replica.digest() == taken.digest()
    run(ours, 1)
    run(other, 1)
    assert other.replica.digest() == ours.replica.digest() != taken.digest()
    shutil.rmtree(place.parent)


def test_a_writer_copies_its_own_tensors_only_and_the_first_all():
    loop = loop_alone(Tied("AdamW"))
    run(loop, 1)
    layout = layout_of(loop.replica, 30, TINY)
    assert layout == layout_of(Snapshot.of(loop.replica), 30, TINY)
    taken = [
        Snapshot.of(loop.replica, layout=layout, writer=writer)
        for writer in range(len(layout.shares))
    ]
    assert taken[0].digest() == loop.replica.digest()
    for snapshot, share in zip(taken[1:], layout.shares[1:], strict=True):
        names = {name for piece in share for name in piece.names}
        held = {*snapshot.tensors, *snapshot.model}
        assert {name.removeprefix("model/") for name in held} <= names | {
            name.removeprefix("model/") for name in names
        }
    assert len(taken) > 2


@given(TENSORS, st.data())
@settings(max_examples=200)
def test_a_file_is_decoded_as_the_library_does_or_refused(tensors, data):
    content = bytearray(b"".join(encode(tensors, FOR_TORCH)))
    ours = decode(content)
    assert ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(ours[name]) == tensor_bytes(tensor)
    place = data.draw(st.integers(0, len(content) - 1))
    broken = bytearray(content)
    broken[place] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(content)))
    for wrong in (broken, content[:cut]):
        try:
            theirs = safetensors.torch.load(bytes(wrong))
        except Exception:  # noqa: BLE001 - the library raises errors of many types
            theirs = None
        try:
            found = decode(wrong)
        except ValueError:
            continue
        assert theirs is None or found.keys() == theirs.keys()


def test_tensors_that_are_not_aligned_are_decoded():
    tensors = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.arange(2.0)}
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text
    content += b"".join(tensor_bytes(tensor) for tensor in tensors.values())
    found = decode(bytearray(content))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())

"""Optimizer state reaches another worker and a checkpoint completely, or is refused by name."""

import json
import math
import struct
from collections import OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.group import Group, verdict
from raytrain_plus.task import TaskError
from raytrain_plus.training.admission import check_start
from raytrain_plus.training.corruption import Fingerprint
from raytrain_plus.training.decoding import Decoder
from raytrain_plus.training.encoding import Encoder
from raytrain_plus.training.same_bits import same_bits
from raytrain_plus.training.state import Replica
from tests.training.optimizers import CARRIED, REFUSED, InGroup, KeyedByText, Listed, OwnAttributes
from tests.training.small_tasks import Plain, loop_alone, part, run

CPU = torch.device("cpu")


class With(Plain):
    """A task with a given optimizer."""

    def __init__(self, kind):
        self.kind = kind

    def optimizer(self, model):
        return self.kind(model.parameters())


@pytest.mark.parametrize("name", CARRIED)
def test_a_run_that_is_resized_and_resumed_has_the_bits_of_an_undisturbed_one(name):
    assert verdict(lambda: Group(lambda: With(CARRIED[name]), part), steps=2) == "equal"


@pytest.mark.parametrize("name", CARRIED)
def test_each_of_these_optimizers_has_state_that_matters(name):
    """The negative control: a newcomer that loads only the weights has other bits."""
    ours, other = loop_alone(With(CARRIED[name])), loop_alone(With(CARRIED[name]))
    run(ours, 3)
    other.replica.model.load_state_dict(ours.replica.model.state_dict())
    other.replica.step = 3
    for _ in range(2):
        run(ours, 1)
        run(other, 1)
    pairs = zip(ours.replica.model.parameters(), other.replica.model.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_optimizer_state_that_cannot_be_carried_is_refused_by_name_within_two_steps(kind):
    loop = loop_alone(With(kind))
    with pytest.raises(TaskError, match=REFUSED[kind]):
        run(loop, 2)


@pytest.mark.parametrize("kind", [Listed, InGroup, KeyedByText, OwnAttributes])
def test_digest_and_fingerprint_cover_all_that_an_optimizer_keeps(kind):
    loop = loop_alone(With(kind))
    run(loop, 2)
    optimizer, fingerprint = loop.replica.optimizer, Fingerprint(loop.replica, loop.buffers)
    before = loop.replica.digest(), fingerprint.compute()
    assert (loop.replica.digest(), fingerprint.compute()) == before
    if kind is Listed:
        optimizer.state[loop.replica.model[0].weight]["momenta"][1].view(-1)[0] += 1
    elif kind is InGroup:
        optimizer.param_groups[0]["k"] += 1
    elif kind is KeyedByText:
        optimizer.state["all"]["calls"] += 1
    else:
        optimizer.late = (0, math.nan)
    after = loop.replica.digest(), fingerprint.compute()
    assert after[0] != before[0]
    assert after[1] != before[1]


class Phases(Plain):
    def model(self):
        model = super().model()
        model.register_buffer("phases", torch.ones(3, dtype=torch.complex128))
        return model


def test_a_buffer_that_is_in_no_checkpoint_is_refused_before_the_first_step():
    with pytest.raises(TaskError, match=r"model/phases is of dtype torch.complex128"):
        check_start(Phases(), Replica.build(Phases(), 17, CPU))
    check_start(Plain(), Replica.build(Plain(), 17, CPU))  # the control


def test_a_task_that_makes_one_model_only_is_not_refused_for_that():
    class Once(Plain):
        model_of_all = nn.Linear(6, 3)

        def model(self):
            return self.model_of_all

    run(loop_alone(Once()), 3)


def test_building_a_second_replica_does_not_change_random_numbers():
    class Noisy(Plain):
        def model(self):
            return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    class TooSlow(Noisy):
        pass

    rehearsed, other = loop_alone(Noisy()), loop_alone(TooSlow())
    other.replica.build_seconds = 1e6  # so that none is built
    run(rehearsed, 3)
    run(other, 3)
    assert rehearsed.replica.digest() == other.replica.digest()


@pytest.mark.parametrize("damage", [None, [], {}, {"state": 3}, {"state": {"dict": [[1]]}}])
def test_a_damaged_state_gives_our_own_error(damage):
    ours, other = loop_alone(With(Listed)), loop_alone(With(Listed))
    run(ours, 2)
    scalars = {**ours.replica.scalars(), "optimizer": damage}
    with pytest.raises(ValueError, match=r"optimizer's state|not enough values"):
        other.replica.load(ours.replica.tensors(), scalars)


def scalar_values():
    numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
    return st.one_of(
        numbers,
        st.binary(max_size=8),
        st.complex_numbers(),
        st.sampled_from([torch.float16, torch.Size([2, 3]), CPU, np.float32(0.1), np.int8(-3)]),
    )


def values():
    keys = st.one_of(st.text(), st.integers(), st.tuples(st.integers(), st.text()))
    tensors = st.sampled_from(
        [
            torch.tensor(-0.0),
            torch.arange(6.0).reshape(2, 3).t(),
            torch.ones(2, 2, dtype=torch.bfloat16),
            torch.zeros(0, 3, dtype=torch.int8),
            torch.tensor([True, False]),
        ]
    ).map(lambda t: t.clone(memory_format=torch.preserve_format))
    return st.recursive(
        st.one_of(scalar_values(), tensors),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.lists(inner, max_size=3).map(lambda v: deque(v, maxlen=3)),
            st.dictionaries(keys, inner, max_size=4),
            st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
            st.dictionaries(keys, inner, max_size=3).map(lambda v: defaultdict(list, v)),
            st.sets(st.integers(), max_size=3),
        ),
        max_leaves=12,
    )


def there_and_back(value):
    encoder = Encoder({}, CPU, set(), "optimizer X")
    encoded = json.loads(json.dumps(encoder.encode(value, "here")))
    tensors = {name: t.contiguous().clone() for name, t in encoder.tensors.items()}
    return Decoder(tensors, {}, CPU, set()).decode(encoded, None, "here")


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert same_bits(one, other)
        assert one.stride() == other.stride()
    elif isinstance(one, float):
        assert struct.pack(">d", one) == struct.pack(">d", other)
    elif isinstance(one, complex):
        assert_same(one.real, other.real)
        assert_same(one.imag, other.imag)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
        assert getattr(one, "default_factory", None) is getattr(other, "default_factory", None)
    elif isinstance(one, list | tuple | deque):
        assert len(one) == len(other)
        assert getattr(one, "maxlen", None) == getattr(other, "maxlen", None)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@settings(max_examples=200, deadline=None)
@given(values())
def test_values_come_back_with_their_types_and_bits(value):
    assert_same(there_and_back(value), value)


def test_a_shared_object_is_still_shared_afterwards():
    shared, tensor = [1], torch.ones(2)
    circle = {"a": shared, "b": (shared, tensor), "t": tensor}
    circle["self"] = circle
    found = there_and_back(circle)
    assert found["a"] is found["b"][0]
    assert found["t"] is found["b"][1]
    assert found["self"] is found

"""The Python state of a task is the same on any number of workers."""

import collections
import contextlib
import json
import time
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_purity import RANKS, Base, Layered, admitted, train
from torch import nn

from raytrain_plus.task import TaskError, TaskWarning
from raytrain_plus.training import bookkeeping
from raytrain_plus.training.bookkeeping import Bookkeeping, NotPlainError, from_json, to_json
from tests.training.small_tasks import FEATURES, Plain
from tests.training.small_tasks import part as batch_of
from tests.training.wires import Network

STEPS = 4


class Switching(Layered):
    """A counter that changes results from the third step on."""

    def __init__(self):
        super().__init__()
        self.forwards = 0

    def forward(self, x, _):
        self.forwards += 1
        return self.layer(x) * (2 if self.forwards > 2 * RANKS + 3 else 1)


class Growing(Layered):
    """A list that grows, and changes results when it is long."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, _):
        self.seen.append(float(x.detach().mean()))
        return self.layer(x) * (sum(self.seen) if len(self.seen) > 2 else 1)


class Recent(Growing):
    """The newest losses, in a container that is replaced each time."""

    def __init__(self):
        super().__init__()
        self.seen = deque(maxlen=3)

    def forward(self, x, _):
        self.seen = deque([*self.seen, float(x.detach().mean())], maxlen=3)
        return self.layer(x) * (sum(self.seen) if len(self.seen) > 2 else 1)


class Nested(Layered):
    """Counts by name, in dictionaries."""

    def __init__(self):
        super().__init__()
        self.held = {"counts": collections.Counter(), "last": None}

    def forward(self, x, length):
        self.held["counts"][length] += 1
        self.held["last"] = (length, float(x.detach().mean()), {length})
        many = sum(self.held["counts"].values()) > 2
        return self.layer(x) * (self.held["last"][1] if many else 1)


class NestedPlainly(Nested):
    def __init__(self):
        super().__init__()
        self.held = {"counts": {2: 0, 3: 0, 4: 0}, "last": None}


class Average:
    """A meter as in many training scripts."""

    def __init__(self):
        self.total, self.count, self.mean = 0.0, 0, 0.0

    def update(self, value, n):
        self.total += value * n
        self.count += n
        self.mean = self.total / self.count


class Metered(Layered):
    """Two objects of one class, in a list."""

    def __init__(self):
        super().__init__()
        self.meters = [Average(), Average()]

    def forward(self, x, _):
        for place, meter in enumerate(self.meters):
            meter.update(float(x.detach().mean()) + place, len(x))
        far = self.meters[0].count > 2 * len(x)
        return self.layer(x) * (self.meters[1].mean if far else 1)


class FirstSet(Layered):
    """A counter that the forward itself creates."""

    def forward(self, x, _):
        self.forwards = getattr(self, "forwards", 0) + 1
        return self.layer(x) * (2 if self.forwards > 9 else 1)


class Late(Layered):
    """A counter that starts to count in a later step, on some logical ranks."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))
        self.large = 0

    def forward(self, x, _):
        self.steps += 1
        if self.steps > 1 and x.abs().max() > 4:
            self.large += 1
        return self.layer(x) * (1 + (self.large > 3))


class WithACache(Layered):
    """A counter, and a cached table for a length."""

    def __init__(self):
        super().__init__()
        self.made_for, self.forwards = 0, 0
        self.register_buffer("table", torch.ones(FEATURES), persistent=False)

    def forward(self, x, length):
        self.forwards += 1
        if length != self.made_for:
            self.register_buffer("table", torch.full((FEATURES,), length / 4), persistent=False)
            self.made_for = length
        return self.layer(x * self.table) * (2 if self.forwards > 2 * RANKS else 1)


KEPT = [
    Switching,
    Growing,
    Recent,
    NestedPlainly,
    Metered,
    FirstSet,
    Late,
    WithACache,
]


def task_of(kind):
    return type("Keeping", (Base,), {"kind": kind})


@pytest.mark.parametrize("kind", KEPT)
def test_python_state_is_the_same_on_any_number_of_workers(kind):
    digests, states, losses = set(), [], []
    for workers in (1, 2, 3):
        loops, told = train(task_of(kind), workers, STEPS)
        digests |= {loop.replica.digest() for loop in loops}
        states += [loop.replica.bookkeeping for loop in loops]
        losses.append(told)
    assert len(digests) == 1
    assert states[0]
    assert all(state == states[0] for state in states)
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("kind", KEPT)
def test_newcomers_and_resumed_runs_continue_with_the_python_state(kind):
    whole = train(task_of(kind), 1, STEPS)[0][0]
    first = train(task_of(kind), 1, 2)[0][0].replica
    later = [admitted(task_of(kind)()) for _ in range(2)]
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    scalars = json.dumps(first.scalars())
    for loop in later:
        loop.replica.load(tensors, json.loads(scalars))
    ranges, network = [range(2), range(2, RANKS)], Network(2)
    for place, loop in enumerate(later):
        loop.begin_generation(ranges, network.wire(place))

    def go_on(wire):
        torch.set_num_threads(1)
        for step in range(2, STEPS):
            later[wire.index].run_step([batch_of(step, r) for r in ranges[wire.index]])

    network.run(go_on)
    for loop in later:
        assert loop.replica.digest() == whole.replica.digest()
        assert loop.replica.bookkeeping == whole.replica.bookkeeping


@pytest.mark.parametrize("kind", [Switching, Growing])
def test_without_carrying_the_state_the_bits_differ(kind, monkeypatch):
    """The negative control: each process counts separately."""
    monkeypatch.setattr(Bookkeeping, "commit", lambda *_: None)
    make = task_of(kind)
    digests = set()
    for workers in (1, 3):
        with monkeypatch.context() as patch:
            loops = [admitted(make()) for _ in range(workers)]
            for loop in loops:
                patch.setattr(loop.buffers.attributes, "put_back", list)
            ranges = [range(RANKS)] if workers == 1 else [range(4), range(4, 5), range(5, RANKS)]
            network = Network(workers)
            for place, loop in enumerate(loops):
                loop.begin_generation(ranges, network.wire(place))

            def run(wire, loops=loops, ranges=ranges):
                torch.set_num_threads(1)
                for step in range(STEPS):
                    loops[wire.index].run_step([batch_of(step, r) for r in ranges[wire.index]])

            network.run(run)
            digests |= {loop.replica.digest() for loop in loops}
    assert len(digests) > 1


def test_counts_are_those_of_one_process_that_computes_all_logical_ranks():
    found = []

    class Counting(Plain):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def loss(self, outputs, batch):
            self.calls += 1
            found.append(self.calls)
            return super().loss(outputs, batch)

    loop = admitted(Counting())
    found.clear()
    loop.begin_generation([range(RANKS)], Network(1).wire(0))
    for step in range(3):
        loop.run_step([batch_of(step, r) for r in range(RANKS)])
    assert found[RANKS:] == [*range(RANKS + 1, 3 * RANKS + 1)]


def test_an_object_with_other_values_has_those_of_logical_rank_0():
    loop = admitted(task_of(Metered)())
    loop.begin_generation([range(RANKS)], Network(1).wire(0))
    means = []
    for step in range(3):
        loop.run_step([batch_of(step, r) for r in range(RANKS)])
        means.append(float(batch_of(step, 0)["x"].mean()))
    meter = loop.replica.model.meters[0]
    assert meter.count == 3 * len(batch_of(0, 0)["x"])
    assert meter.total / meter.count == pytest.approx(sum(means) / 3)


def test_time_stamps_are_carried_but_are_not_in_the_digest():
    class Timed(Plain):
        def __init__(self):
            super().__init__()
            self.began = None

        def forward(self, model, batch):
            self.began = time.perf_counter()
            return super().forward(model, batch)

    loops, _ = train(Timed, 2)
    again, _ = train(Timed, 2)
    ours, theirs = (loop.replica.bookkeeping for loop in loops)
    assert ours == theirs != again[0].replica.bookkeeping
    assert loops[0].replica.digest() == again[0].replica.digest()


@pytest.mark.parametrize("where", ["class", "globals"])
def test_counters_of_classes_and_globals_continue(where):
    class OfTheClass(Plain):
        calls = 0

        def loss(self, outputs, batch):
            global CALLS  # noqa: PLW0603 - what is tried
            if where == "class":
                type(self).calls += 1
            else:
                CALLS += 1
            return super().loss(outputs, batch)

    before = CALLS
    loop = admitted(OfTheClass())
    loop.begin_generation([range(RANKS)], Network(1).wire(0))
    for step in range(3):
        loop.run_step([batch_of(step, r) for r in range(RANKS)])
    counted = OfTheClass.calls if where == "class" else CALLS - before
    assert counted == 3 * RANKS


CALLS = 0


class FirstCallMakesATable(Layered):
    """A table that is made at a certain count: the table is restored, the count is not."""

    def __init__(self):
        super().__init__()
        self.calls, self.table = 0, torch.ones(FEATURES)

    def forward(self, x, _):
        self.calls += 1
        if self.calls == 1:
            self.table = torch.full((FEATURES,), 0.5)
        return self.layer(x * self.table)


def test_a_table_made_at_a_certain_count_is_refused():
    with pytest.raises(TaskError, match="not a function of its inputs"):
        admitted(task_of(FirstCallMakesATable)())


def test_a_count_that_affects_only_the_backward_is_refused():
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(context, x, factor):
            context.factor = factor
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * context.factor, None

    class InBackward(Layered):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x, _):
            self.calls += 1
            return Backward.apply(self.layer(x), self.calls)

    with pytest.raises(TaskError, match=r"not a function of its inputs: .*'calls' of the model"):
        admitted(task_of(InBackward)())


def test_state_that_is_too_large_is_not_carried_and_is_reported(monkeypatch):
    monkeypatch.setattr(bookkeeping, "ROOM", 120)
    digests, lengths = set(), set()
    for workers in (2, 1):  # two threads disturb the capture of warnings
        said = pytest.warns(TaskWarning, match="'seen' of the model")
        with said if workers == 1 else contextlib.nullcontext():
            loops, _ = train(task_of(Growing), workers, 8)
        digests |= {loop.replica.digest() for loop in loops}
        lengths |= {len(loop.replica.model.seen) for loop in loops}
    assert len(digests) == 1
    assert len(lengths) == 1
    assert 0 < lengths.pop() < 8


def test_a_failed_step_restores_the_python_state():
    loop = admitted(task_of(Switching)())
    loop.begin_generation([range(RANKS)], Network(1).wire(0))
    loop.run_step([batch_of(0, r) for r in range(RANKS)])
    before = loop.replica.model.forwards, json.dumps(loop.replica.bookkeeping)
    with pytest.raises(KeyError):
        loop.run_step([*[batch_of(1, r) for r in range(RANKS - 1)], {}])
    assert (loop.replica.model.forwards, json.dumps(loop.replica.bookkeeping)) == before


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_KEYS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@given(
    st.recursive(
        _PLAIN,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(_KEYS | st.tuples(_KEYS, _KEYS), inner, max_size=3)
            | st.sets(_KEYS, max_size=3)
            | st.lists(inner, max_size=3).map(lambda items: deque(items, 5))
        ),
        max_leaves=8,
    )
)
def test_encoded_values_are_decoded_unchanged(value):
    try:
        said = json.loads(json.dumps(to_json(value)))
    except NotPlainError:
        return
    again = from_json(said)
    assert repr(again) == repr(value) or again == value
    assert type(again) is type(value)


@pytest.mark.parametrize(
    "value", [torch.zeros(1), [torch.zeros(1)], object(), nn.Linear(1, 1), 1j, b"", len]
)
def test_other_values_are_not_encoded(value):
    with pytest.raises(NotPlainError):
        to_json(value)

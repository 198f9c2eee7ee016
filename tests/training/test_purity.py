"""A part is a function of its data, the state and its seeds; other state is restored or refused.

Each task here would give different results on one and two workers, or differ from plain PyTorch.
"""

import functools
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from raytrain_plus.algorithms import Aspect, Weave
from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.seeds import seed_for
from raytrain_plus.task import TaskError
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.purity import check_function
from raytrain_plus.training.state import Replica
from tests.training.small_tasks import (
    CLASSES,
    CLOCK,
    FEATURES,
    PART,
    SEED,
    CountsSteps,
    Plain,
    everything,
    loop_alone,
    run,
)
from tests.training.small_tasks import part as batch_of
from tests.training.wires import Network, bits

RANKS = 6


def loop_of(task, *, watch_task=True):
    replica = Replica.build(task, SEED, torch.device("cpu"), weave=Weave(()), clock=CLOCK)
    return TrainingLoop(task, replica, Weave(()), watch_task=watch_task)


def admitted(task):
    """Return a loop whose task has been checked, as a worker does at its start."""
    loop = loop_of(task)
    check_function(loop, lambda: batch_of(0, 0))
    return loop


def train(make_task, workers, steps=3):
    """Train some workers, one after the other within each step; return their loops and losses."""
    ranges = [a.ranks for a in assign(RANKS, [WorkerSpeed(f"w{i}") for i in range(workers)])]
    network = Network(workers)
    loops = [admitted(make_task()) for _ in range(workers)]
    for i, loop in enumerate(loops):
        loop.begin_generation(ranges, network.wire(i))

    def one(wire):
        torch.set_num_threads(1)
        loop, mine = loops[wire.index], ranges[wire.index]
        return [loop.run_step([batch_of(step, r) for r in mine]).loss for step in range(steps)]

    losses = network.run(one)[0]
    for loop in loops:
        loop.end_generation()
    return loops, losses


def plain(task, steps):
    """Train with plain PyTorch, one forward for each part; returns the model and the losses."""
    torch.manual_seed(seed_for(SEED, "model"))
    model = task.model()
    optimizer = task.optimizer(model)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for rank in range(RANKS):
            batch = batch_of(step, rank)
            loss = task.loss(task.forward(model, batch), batch).sum() / (RANKS * PART)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return model, losses


def length_of(batch):
    """Return a length, which sometimes equals that of the part before."""
    return 2 + int(batch["label"][0])


class Base(Plain):
    """A task whose model gets a length."""

    kind: type

    def model(self):
        return self.kind()

    def forward(self, model, batch):
        return model(batch["x"], length_of(batch))


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)


class Rebound(Layered):
    """A table that is registered again when the length changes."""

    def __init__(self):
        super().__init__()
        self.made_for = 0
        self.register_buffer("table", torch.ones(FEATURES), persistent=False)

    def forward(self, x, length):
        if length != self.made_for:
            self.register_buffer("table", torch.full((FEATURES,), length / 4), persistent=False)
            self.made_for = length
        return self.layer(x * self.table)


class Resized(Layered):
    """A table with the size of the length."""

    def __init__(self):
        super().__init__()
        self.made_for = 1
        self.register_buffer("table", torch.ones(1))

    def forward(self, x, length):
        if length != self.made_for:
            self.table = torch.linspace(0, 1, length)
            self.made_for = length
        return self.layer(x) * self.table.sum()


class InPlace(Layered):
    """A table that is filled in place when the length changes."""

    def __init__(self):
        super().__init__()
        self.made_for = 0
        self.register_buffer("table", torch.ones(FEATURES))

    def forward(self, x, length):
        if length != self.made_for:
            self.table.fill_(length / 4)
            self.made_for = length
        return self.layer(x * self.table)


class Appearing(Layered):
    """A buffer that is None until the first forward, and then a constant."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", None)

    def forward(self, x, _):
        if self.mask is None:
            self.mask = torch.linspace(0, 1, FEATURES)
        return self.layer(x * self.mask)


class Added(Layered):
    """A buffer that is registered in the first forward."""

    def forward(self, x, _):
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.linspace(0, 1, FEATURES))
        return self.layer(x * self.mask)


class Attribute(Layered):
    """A plain tensor that is cached for a length."""

    def __init__(self):
        super().__init__()
        self.table = None
        self.made_for = 0

    def forward(self, x, length):
        if length != self.made_for:
            self.table, self.made_for = torch.full((FEATURES,), length / 4), length
        return self.layer(x * self.table)


class Dictionary(Layered):
    """Tables by length, in a dictionary."""

    def __init__(self):
        super().__init__()
        self.tables = {}

    def forward(self, x, length):
        if length not in self.tables:
            self.tables[length] = torch.full((FEATURES,), length / 4)
        return self.layer(x * self.tables[length])


class LastValue(Layered):
    """An auxiliary value that is left for the loss, and the last input."""

    def forward(self, x, length):
        self.hidden = self.layer(x)
        self.length = length
        return self.hidden


class CachedProperty(Layered):
    @functools.cached_property
    def table(self):
        return torch.linspace(0, 1, FEATURES)

    def forward(self, x, _):
        return self.layer(x * self.table)


class OldSpectralNorm(Layered):
    def __init__(self):
        super().__init__()
        self.layer = nn.utils.weight_norm(self.layer)

    def forward(self, x, _):
        return self.layer(x)


CACHES = [
    Rebound,
    Resized,
    InPlace,
    Appearing,
    Added,
    Attribute,
    Dictionary,
    LastValue,
    CachedProperty,
    OldSpectralNorm,
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", CACHES)
def test_caches_give_the_same_function_as_plain_pytorch_on_any_number_of_workers(kind):
    task = type("Cached", (Base,), {"kind": kind})
    model, expected = plain(task(), 3)
    digests = set()
    for workers in (1, 2, 3):
        loops, losses = train(task, workers)
        assert losses == pytest.approx(expected, rel=1e-5)
        digests |= {loop.replica.digest() for loop in loops}
        assert len({tuple(loop.replica.tensors()) for loop in loops}) == 1
    assert len(digests) == 1
    for name, theirs in model.named_parameters():
        torch.testing.assert_close(loops[0].replica.model.get_parameter(name), theirs)


@pytest.mark.parametrize("kind", [Rebound, InPlace, Attribute])
def test_without_restoring_attributes_the_function_differs(kind, monkeypatch):
    """The negative control."""
    task = type("Cached", (Base,), {"kind": kind})()
    loop = admitted(task)
    monkeypatch.setattr(loop.buffers.attributes, "put_back", list)
    loop.begin_generation([range(RANKS)], Network(1).wire(0))
    losses = [loop.run_step([batch_of(s, r) for r in range(RANKS)]).loss for s in range(3)]
    expected = plain(task, 3)[1]
    assert kind is Attribute or losses != pytest.approx(expected, rel=1e-3)


def test_attributes_that_are_set_at_first_use_stay():
    made = []

    class Lazy(Plain):
        @functools.cached_property
        def scale(self):
            made.append(1)
            return 0.5

        def loss(self, outputs, batch):
            return super().loss(outputs * self.scale, batch)

    loop = admitted(Lazy())
    before = len(made)
    loop.begin_generation([range(RANKS)], Network(1).wire(0))
    loop.run_step([batch_of(0, r) for r in range(RANKS)])
    assert len(made) == before


def test_the_trial_changes_no_state():
    for kind in CACHES[:7]:
        task = type("Cached", (Base,), {"kind": kind})
        loop, other = loop_of(task()), loop_of(task())
        before = everything(loop)
        check_function(loop, lambda: batch_of(0, 0))
        assert everything(loop) == before
        held = {k: v for k, v in vars(loop.replica.model).items() if isinstance(v, int)}
        assert held == {k: v for k, v in vars(other.replica.model).items() if k in held}
        assert vars(loop.replica.model).keys() == vars(other.replica.model).keys()


class Counter(Layered):
    def __init__(self):
        super().__init__()
        self.forwards = 0

    def forward(self, x, _):
        self.forwards += 1
        return self.layer(x) * (1 + 0.01 * self.forwards)


class Growing(Layered):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, _):
        self.seen.append(float(x.mean()))
        return self.layer(x) + len(self.seen)


class PlainStatistic(Layered):
    """A running mean that is not a buffer."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(FEATURES)

    def forward(self, x, _):
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.layer(x - self.mean)


class HiddenStatistic(PlainStatistic):
    """The same, in a way that PyTorch's counter does not notice."""

    def forward(self, x, _):
        self.mean.data.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.layer(x - self.mean)


class Previous(Layered):
    """Uses a value of the part before."""

    def __init__(self):
        super().__init__()
        self.previous = None

    def forward(self, x, _):
        before, self.previous = self.previous, x.mean(0)
        return self.layer(x if before is None else x + before)


class FirstBatch(Layered):
    """Is initialised by its first data."""

    def __init__(self):
        super().__init__()
        self.scale = None

    def forward(self, x, _):
        if self.scale is None:
            self.scale = float(x.std())
        return self.layer(x / self.scale)


class Drawing(Layered):
    def __init__(self, generator):
        super().__init__()
        self.noise = generator

    def forward(self, x, _):
        if isinstance(self.noise, torch.Generator):
            drawn = torch.rand(1, generator=self.noise).item()
        else:
            drawn = self.noise.random()
        return self.layer(x * drawn)


class Iterating(Layered):
    def __init__(self):
        super().__init__()
        self.steps = itertools.count()

    def forward(self, x, _):
        return self.layer(x) * next(self.steps)


class AppearingState(Layered):
    """A statistic that is None until the first forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, x, _):
        now = x.detach().mean(0)
        self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        return self.layer(x - self.mean)


class ResizedState(Layered):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x, length):
        self.seen = torch.zeros(length)
        return self.layer(x)


class Removed(Layered):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x, _):
        self.seen = None
        return self.layer(x)


STATES = [
    (Counter, "'forwards' of the model"),
    (Growing, "'seen' of the model"),
    (PlainStatistic, "'mean' of the model"),
    (HiddenStatistic, "'mean' of the model"),
    (Previous, "'previous' of the model"),
    (FirstBatch, "'scale' of the model"),
    (lambda: Drawing(random.Random(3)), "'noise' of the model"),
    (lambda: Drawing(np.random.default_rng(3)), "'noise' of the model"),
    (lambda: Drawing(np.random.RandomState(3)), "'noise' of the model"),
    (lambda: Drawing(torch.Generator().manual_seed(3)), "'noise' of the model"),
    (lambda: Drawing(random.SystemRandom()), "not a function of its inputs"),
    (Iterating, "not a function of its inputs"),
    (AppearingState, "buffer 'mean'"),
    (ResizedState, "buffer 'seen'"),
    (Removed, "buffer 'seen'"),
]


@pytest.mark.parametrize(("make", "named"), STATES)
def test_state_outside_of_buffers_is_refused_by_name(make, named):
    task = type("Stateful", (Base,), {"model": lambda _: make()})()
    with pytest.raises(TaskError, match=named):
        admitted(task)


GENERATOR = random.Random(5)


class GlobalGenerator(Plain):
    def forward(self, model, batch):
        return model(batch["x"] * GENERATOR.random())


class HeldGenerator(Plain):
    """State in an object that the task holds."""

    class Noise:
        def __init__(self):
            self.generator = random.Random(1)

    def __init__(self):
        super().__init__()
        self.noise = self.Noise()

    def forward(self, model, batch):
        return model(batch["x"] * self.noise.generator.random())


class GrowingTensors(Plain):
    """Recent losses, with their graphs."""

    def __init__(self):
        super().__init__()
        self.recent = []

    def loss(self, outputs, batch):
        losses = super().loss(outputs, batch)
        self.recent.append(losses.mean())
        return losses


@pytest.mark.parametrize(
    ("task", "named"),
    [
        (GlobalGenerator, "'GENERATOR' of Python module"),
        (HeldGenerator, "'generator' of Noise in 'noise' of the task"),
        (GrowingTensors, r"'recent' of the task \(GrowingTensors\)"),
    ],
)
def test_state_of_the_task_is_refused_by_name(task, named):
    with pytest.raises(TaskError, match=named):
        admitted(task())


def test_a_later_cache_is_restored_and_a_later_count_with_effect_is_refused():
    class Late(Layered):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.tensor(0))
            self.made_for, self.table, self.calls = 0, None, 0

        def forward(self, x, length):
            self.steps += 1
            if self.steps <= 2:
                return self.layer(x)
            if self.steps > 4:
                self.calls += 1
                x = x * self.calls
            if length != self.made_for:
                self.table, self.made_for = torch.full((FEATURES,), length / 4), length
            return self.layer(x * self.table)

    task = type("Cached", (Base,), {"kind": Late})
    digests = set()
    for workers in (1, 2, 3):
        loops, _ = train(task, workers, 4)
        digests |= {loop.replica.digest() for loop in loops}
        assert loops[0].replica.model.made_for == 0
        with pytest.raises(TaskError, match="'calls' of the model"):
            train(task, workers, 5)
    assert len(digests) == 1


class MaxNorm(Plain):
    def model(self):
        return nn.Sequential(nn.Embedding(CLASSES, FEATURES, max_norm=0.5), nn.Linear(FEATURES, 3))

    def forward(self, model, batch):
        return model(batch["label"])


class Clamped(Plain):
    """Weights that are clamped before use, in a way that PyTorch's counter does not notice."""

    def forward(self, model, batch):
        model[0].weight.data.clamp_(-0.01, 0.01)
        return model(batch["x"])


class InBackward(Plain):
    """An optimizer that updates in the backward."""

    def model(self):
        model = super().model()
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p: setattr(p, "data", p.data - 0.1 * p.grad)
            )
        return model


class Replaced(Plain):
    def forward(self, model, batch):
        if not isinstance(model[0].weight, Own):
            model[0].weight = Own(model[0].weight.detach() * 1)
        return model(batch["x"])


class Own(nn.Parameter):
    pass


class DataDependentInit(Plain):
    """ActNorm: the first batch sets the weights."""

    def model(self):
        model = super().model()
        model.register_buffer("ready", torch.tensor(False))
        return model

    def forward(self, model, batch):
        if not model.ready:
            with torch.no_grad():
                model[0].bias.copy_(-model[0](batch["x"]).mean(0))
            model.ready.fill_(True)
        return model(batch["x"])


class Sparse(MaxNorm):
    def model(self):
        return nn.Sequential(nn.Embedding(CLASSES, FEATURES, sparse=True), nn.Linear(FEATURES, 3))


class Unfreezing(Plain):
    def model(self):
        model = super().model()
        model[0].requires_grad_(False)
        return model

    def forward(self, model, batch):
        model[0].requires_grad_(True)
        return model(batch["x"])


class Freezing(Plain):
    def forward(self, model, batch):
        model[0].requires_grad_(False)
        return model(batch["x"])


class Lazy(Plain):
    def model(self):
        return nn.LazyLinear(CLASSES)


@pytest.mark.parametrize(
    ("task", "named"),
    [
        (MaxNorm, "the forward changes parameter '0.weight'"),
        (Clamped, "changes parameter '0.weight'"),
        (InBackward, "changes parameter '0.weight'"),
        (DataDependentInit, "the forward changes parameter '0.bias'"),
        (Sparse, "'0.weight' has a sparse gradient"),
        (Unfreezing, "switches on requires_grad of parameter '0.weight'"),
        (Freezing, "switches off requires_grad of parameter '0.weight'"),
        (Lazy, "'weight' has no shape yet"),
    ],
)
def test_a_forward_that_changes_parameters_is_refused_by_name(task, named):
    with pytest.raises(TaskError, match=named):
        admitted(task())


def test_a_parameter_that_is_unfrozen_later_is_refused_before_state_is_lost():
    class Later(CountsSteps, Unfreezing):
        def forward(self, model, batch):
            model.steps += 1
            if model.steps > 2:
                model[0].requires_grad_(True)
            return model(batch["x"])

    for workers in (1, 2):
        loops, _ = train(Later, workers, 2)
        with pytest.raises(TaskError, match=r"switches on requires_grad of parameter '0.weight'"):
            train(Later, workers, 3)
        assert {loop.replica.step for loop in loops} == {2}


class LaterChange(CountsSteps, Plain):
    """One phase changes a weight, from the third step on."""

    def __init__(self, phase, caught=None):
        super().__init__()
        self.phase = phase
        self.caught = caught

    def change(self, model, phase):
        if model.steps > 2 and phase == self.phase:
            with torch.no_grad():
                model[2].bias.add_(0.5)

    def forward(self, model, batch):
        model.steps += 1
        self.change(model, "forward")
        outputs = model(batch["x"])
        outputs.register_hook(lambda _: self.change(model, "backward"))
        batch["model"] = model
        return outputs

    def loss(self, outputs, batch):
        self.change(batch["model"], "loss")
        losses = super().loss(outputs, batch)
        if self.caught is not None and batch["model"].steps > 2:
            raise self.caught
        return losses


class Idle(Aspect):
    """Gives advice at each phase and does nothing."""

    def forward(self, _):
        yield

    def loss(self, _):
        yield


@pytest.mark.parametrize("algorithms", [(), (Idle(),)])
@pytest.mark.parametrize("phase", ["forward", "loss", "backward"])
def test_a_phase_that_changes_a_parameter_later_is_named_before_the_update(phase, algorithms):
    loop = loop_alone(LaterChange(phase), 2, algorithms=algorithms)
    run(loop, 2, range(2))
    with pytest.raises(TaskError, match=rf"^the {phase} changes parameter '2\.bias'"):
        run(loop, 1, range(2))
    assert loop.replica.step == 2
    assert not loop.replica.torn


def test_a_changed_parameter_is_named_also_if_it_causes_another_error():
    loop = loop_alone(LaterChange("forward", RuntimeError("modified by an inplace operation")), 2)
    run(loop, 2, range(2))
    with pytest.raises(TaskError, match=r"changes parameter '2\.bias'") as raised:
        run(loop, 1, range(2))
    assert isinstance(raised.value.__context__, RuntimeError)
    other = loop_alone(LaterChange("none", RuntimeError("another")), 2)  # the control
    run(other, 2, range(2))
    with pytest.raises(RuntimeError, match="another"):
        run(other, 1, range(2))


def test_a_parameter_that_is_replaced_or_added_between_steps_is_refused():
    for change, named in [
        (lambda m: setattr(m[0], "weight", Own(m[0].weight.detach())), "'0.weight' was replaced"),
        (lambda m: m.append(nn.Linear(3, 3)), "other parameters than at its start"),
        (lambda m: m[0].requires_grad_(False), "switches off requires_grad"),
    ]:
        loop = admitted(Plain())
        loop.begin_generation([range(2)], Network(1).wire(0))
        loop.run_step([batch_of(0, r) for r in range(2)])
        change(loop.replica.model)
        before = [bits(p) for p in loop.replica.model.parameters()]
        with pytest.raises(TaskError, match=named):
            loop.run_step([batch_of(1, r) for r in range(2)])
        assert [bits(p) for p in loop.replica.model.parameters()] == before


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)),
        lambda: nn.utils.spectral_norm(nn.Linear(6, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(6, 3)),
        lambda: prune.l1_unstructured(nn.Linear(6, 3), "weight", 0.3),
        lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))),
    ],
)
def test_usual_models_are_admitted(make):
    loop = admitted(type("Usual", (Plain,), {"model": lambda _: make()})())
    assert not loop.buffers.cached
    loop.begin_generation([range(2)], Network(1).wire(0))
    assert loop.run_step([batch_of(0, r) for r in range(2)]).step == 1

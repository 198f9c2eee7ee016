"""The step is right, and has the same bits each time and on every number of workers."""

import random
import re
import threading

import numpy as np
import pytest
import torch
from torch.nn import functional

from raytrain_plus.algorithms import Aspect, GradientClipping, LabelSmoothing
from raytrain_plus.algorithms.gradient_clipping import clip_by_global_norm
from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.seeds import seed_for
from raytrain_plus.training import exchange, reduction
from raytrain_plus.training import loop as loop_module
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.tree import fold
from tests.training.small_tasks import (
    CLOCK,
    PART,
    SEED,
    Branching,
    Noisy,
    Normed,
    Plain,
    Tied,
    everything,
    loop_alone,
    make_loop,
    parameters,
    part,
    run,
)
from tests.training.wires import Network, bits

RANKS = 4


def by_hand(task, steps, ranks=RANKS):
    """Train with plain PyTorch on the whole batch at once: the oracle."""
    torch.manual_seed(seed_for(SEED, "model"))
    model = task.model()
    optimizer = task.optimizer(model)
    losses = []
    for step in range(steps):
        parts = [part(step, rank) for rank in range(ranks)]
        batch = {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
        loss = functional.cross_entropy(model(batch["x"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_steps_are_those_of_plain_pytorch_on_the_whole_batch(optimizer, ranks):
    task = Plain(optimizer)
    loop = loop_alone(task, ranks)
    results = run(loop, 5, range(ranks))
    model, losses = by_hand(task, 5, ranks)
    assert [r.loss for r in results] == pytest.approx(losses, rel=1e-5)
    assert [r.step for r in results] == [1, 2, 3, 4, 5]
    for ours, theirs in zip(loop.replica.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    _, too_few = by_hand(task, 4, ranks)  # the control: the tolerance distinguishes steps
    assert abs(results[4].loss - too_few[3]) > 1e-3


def test_a_step_has_the_bits_of_partial_sums_added_by_hand():
    """With dropout and BatchNorm: each part is computed alone, from the state before the step."""
    task = Noisy()
    loop = loop_alone(task, 3)
    run(loop, 1, range(3))
    replica = loop.replica
    start = {n: b.clone() for n, b in replica.model.named_buffers()}
    momentum = [replica.optimizer.state[p]["momentum_buffer"].clone() for p in parameters(loop)]
    leaves, moved = [], []
    for rank in range(3):
        torch.manual_seed(seed_for(SEED, "step", 1, rank))
        batch = part(1, rank)
        loss = task.loss(replica.model(batch["x"]), batch).sum()
        leaves.append(torch.autograd.grad(loss, parameters(loop)))
        moved.append(replica.model[1].running_mean - start["1.running_mean"])
        replica.model.load_state_dict(start, strict=False)
    gradients = [fold([leaf[i] for leaf in leaves], torch.add) / (3 * PART) for i in range(6)]
    expected = []
    for p, g, before in zip(parameters(loop), gradients, momentum, strict=True):
        velocity = before.mul(0.9).add(g)
        expected.append(bits(p.detach().add(g.add(velocity, alpha=0.9), alpha=-0.1)))

    run(loop, 1, range(3))
    assert [bits(p) for p in parameters(loop)] == expected
    mean = start["1.running_mean"] + fold(moved, torch.add) / 3
    assert bits(replica.model[1].running_mean) == bits(mean)


@pytest.mark.parametrize("algorithms", [(), (GradientClipping(norm=0.3), LabelSmoothing())])
def test_two_runs_have_the_same_bits_and_another_seed_gives_others(algorithms):
    digests = []
    for _ in range(2):
        loop = loop_alone(Noisy("AdamW"), algorithms=algorithms)
        torch.manual_seed(len(digests))  # draws of other code in between do not matter
        losses = [result.loss for result in run(loop, 3)]
        digests.append((loop.replica.digest(), losses))
    assert digests[0] == digests[1]

    other = loop_alone(Noisy("AdamW"), algorithms=algorithms, seed=SEED + 1)
    assert [result.loss for result in run(other, 3)] != digests[0][1]


class Clipped(Normed):
    """Some parameters are in no optimizer: they only change the clipped norm."""

    def optimizer(self, model):
        return torch.optim.SGD([*model[0].parameters(), *model[1].parameters()], lr=0.5)


class LeafClipping(Aspect):
    """Needs the gradient of one logical rank, before any other gradient is added to it."""

    def backward(self, step):
        yield
        clip_by_global_norm([p.grad for p in step.model.parameters()], 0.1)


class Counting(Normed):
    """An integer buffer that each logical rank would set to another value."""

    def model(self):
        model = super().model()
        model.register_buffer("seen", torch.tensor(0))
        return model

    def forward(self, model, batch):
        model.seen += batch["label"].sum()
        return model(batch["x"])


@pytest.mark.parametrize(
    ("task", "algorithms"),
    [
        (Normed("AdamW"), ()),
        (Counting(), ()),
        (Branching(), ()),
        (Tied(), ()),
        (Normed("SGD"), (LabelSmoothing(),)),
        (Clipped(), (GradientClipping(norm=0.01),)),
    ],
)
@pytest.mark.parametrize("overlap", [False, True])
def test_steps_have_the_same_bits_on_every_number_of_workers(
    task, algorithms, overlap, monkeypatch
):
    if overlap:  # of many small buckets with the last backward
        monkeypatch.setattr(exchange, "_OVERLAP_BYTES", 0)
        monkeypatch.setattr(reduction, "_BUCKET_BYTES", 1)
    ranks = 6
    ends = set()
    for workers in (1, 2, 3, 4, 6):
        ranges = [a.ranks for a in assign(ranks, [WorkerSpeed(f"w{i}") for i in range(workers)])]
        # Building draws from the global generators, so it is done one after the other.
        built = {}

        def train(wire, built=built, ranges=ranges):
            return [r.loss for r in run(built[wire.index], 3, ranges[wire.index])]

        network = Network(workers)
        for index in range(workers):
            built[index] = make_loop(task, ranges, network.wire(index), algorithms=algorithms)
        losses = network.run(train)
        threads = {thread.name.split("_")[0] for thread in threading.enumerate()}
        assert ("exchange" in threads) == (overlap and workers > 1)
        for loop in built.values():
            loop.end_generation()
        digests = {loop.replica.digest() for loop in built.values()}
        assert len(digests) == 1
        ends.add((digests.pop(), *losses[0]))
    assert len(ends) == 1
    other = loop_alone(task, 5, algorithms=algorithms)  # the control: V does matter
    run(other, 3, range(5))
    assert other.replica.digest() != next(iter(ends))[0]


def test_an_aspect_sees_the_gradient_of_one_logical_rank_alone(monkeypatch):
    monkeypatch.setattr(exchange, "_OVERLAP_BYTES", 0)
    digests = set()
    for ranges in ([range(4)], [range(1), range(1, 4)], [range(2), range(2, 4)]):
        network = Network(len(ranges))
        loops = [
            make_loop(Plain(), ranges, network.wire(i), algorithms=(LeafClipping(),))
            for i in range(len(ranges))
        ]
        network.run(lambda wire, a=loops, r=ranges: run(a[wire.index], 2, r[wire.index]))
        digests |= {loop.replica.digest() for loop in loops}
    assert len(digests) == 1
    other = loop_alone(Plain())  # the control: the clipping does something
    run(other, 2)
    assert other.replica.digest() not in digests


def test_a_flag_or_a_busy_second_of_one_worker_is_seen_by_all():
    ranges = [range(1), range(1, 3), range(3, 4)]
    network = Network(3)
    loops = [make_loop(Plain(), ranges, network.wire(i)) for i in range(3)]

    def step(wire, asks):
        batches = [part(loops[wire.index].replica.step, r) for r in ranges[wire.index]]
        return loops[wire.index].run_step(batches, ask_pause=wire.index in asks)

    for asks in ((), (1,), (), (0, 2)):
        results = network.run(lambda wire, asks=asks: step(wire, asks))
        assert [r.pause for r in results] == [bool(asks)] * 3
        assert len({r.busy_seconds for r in results}) == 1
        assert results[0].busy_seconds >= 0


def recording(log):
    """Return an aspect that records the start and the end of each join point."""

    def advice(point):
        def around(_, step):
            log.append((point, step.number, step.logical_rank))
            yield
            log.append(("/" + point, step.number, step.logical_rank))

        return around

    points = ("step", "batch", "forward", "loss", "backward", "update", "evaluate")
    return type("Recording", (Aspect,), {point: advice(point) for point in points})()


def test_join_points_come_in_the_order_of_the_docstring():
    documented = re.findall(
        r"^ +(step|batch|forward|loss|backward|update|evaluate)\b",
        TrainingLoop.run_step.__doc__.split("The join points, in order:")[1],
        re.MULTILINE,
    )
    log = []
    loop = loop_alone(Plain(), 2, algorithms=[recording(log)])
    run(loop, 1, range(2))
    begun = [point for point, *_ in log if point[0] != "/"]
    assert list(dict.fromkeys(begun)) == [p for p in documented if p != "evaluate"]

    def of_part(rank):
        inner = [(p, 0, rank) for name in ("forward", "loss", "backward") for p in around(name)]
        return [("batch", 0, rank), *inner, ("/batch", 0, rank)]

    def around(name):
        return name, "/" + name

    assert log == [
        ("step", 0, -1),
        *of_part(0),
        *of_part(1),
        ("update", 0, -1),
        ("/update", 0, -1),
        ("/step", 0, -1),
    ]


def test_phases_are_entered_in_order():
    log = []
    run(loop_alone(Plain(), 2, enter=log.append), 1, range(2))
    kept = [phase for phase in log if phase in ("forward", "backward", "exchange", "update")]
    assert kept == ["forward", "backward", "forward", "backward", "exchange", "update"]


def test_the_schedule_scales_the_learning_rate_by_progress():
    class Falling(Plain):
        def schedule(self, progress):
            return 1.0 - progress

    loop = loop_alone(Falling())
    rates = []
    for _ in range(3):
        run(loop, 1)
        rates.append(loop.replica.optimizer.param_groups[0]["lr"])
    total = CLOCK.total_steps
    assert rates == [0.1 * (1 - step / total) for step in range(3)]


def test_a_probe_computes_a_partial_sum_and_changes_no_state():
    loop, other = loop_alone(Noisy()), loop_alone(Noisy())
    run(loop, 1)
    before = everything(loop)
    leaf = loop.probe(part(0, 0))
    assert everything(loop) == before
    assert [t.shape for t in leaf[:6]] == [p.shape for p in loop.replica.model.parameters()]

    run(other, 1)
    assert [bits(t) for t in other.probe(part(0, 0))] == [bits(t) for t in leaf]
    assert [bits(t) for t in other.probe(part(0, 1))] != [bits(t) for t in leaf]


def test_each_rank_of_a_step_draws_different_numbers():
    drawn = []

    class Drawing(Plain):
        def forward(self, model, batch):
            drawn.append(torch.rand(1).item())
            return model(batch["x"])

    run(loop_alone(Drawing(), 3), 2, range(3))
    first = list(drawn)
    assert len(set(first)) == 6
    run(loop_alone(Drawing(), 3), 2, range(3))
    assert drawn[6:] == first


def test_a_step_starts_no_thread():
    before = threading.active_count()
    run(loop_alone(Normed()), 2)
    assert threading.active_count() == before


def own_optimizers():
    """Return the optimizers of torch that take a step from one dense gradient."""
    kinds = vars(torch.optim).values()
    found = [k for k in kinds if isinstance(k, type) and issubclass(k, torch.optim.Optimizer)]
    return [
        k
        for k in found
        if k not in {torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam}
    ]


class Langevin(torch.optim.SGD):
    """Adds noise of torch's, Python's and NumPy's global generators in each step."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                scale = random.random() + np.random.random()  # noqa: NPY002
                p.add_(torch.randn_like(p), alpha=1e-2 * scale)


class Thermal(Plain):
    """A task whose optimizer draws."""

    def optimizer(self, model):
        return Langevin(model.parameters(), lr=0.1)


def drawn_before_updates(draws):
    """Return the digest of a run whose last part leaves the generators in a certain state."""

    def enter(phase):
        if phase == "update":
            torch.rand(draws), np.random.random(draws), random.random()  # noqa: NPY002

    loop = loop_alone(Thermal(), enter=enter)
    run(loop, 3)
    return loop.replica.digest()


class Hooked(Thermal):
    """A task with a hook on a torch optimizer that draws random numbers."""

    def optimizer(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: torch.rand(1))
        return optimizer


def test_an_update_is_seeded_if_user_code_may_draw_in_it(monkeypatch):
    seeded = []
    monkeypatch.setattr(loop_module, "seed_global_generators", seeded.append)
    for task, algorithms, expected in [
        (Plain(), (), 0),
        (Plain("AdamW"), (), 0),
        (Plain(), [LabelSmoothing()], 1),
        (Thermal(), (), 1),
        (Hooked(), (), 1),
    ]:
        seeded.clear()
        run(loop_alone(task, algorithms=algorithms), 1)
        assert seeded == [seed_for(SEED, "update", 0)] * expected


@pytest.mark.parametrize("kind", [*own_optimizers()])
def test_torchs_own_optimizers_draw_nothing(kind):
    """The control is Langevin, in the tests above and below."""
    model = torch.nn.Linear(3, 3, bias=False)
    optimizer = kind(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    optimizer.step()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_an_updates_random_numbers_do_not_depend_on_the_parts_before_it(monkeypatch):
    assert drawn_before_updates(1) == drawn_before_updates(5)
    monkeypatch.setattr(loop_module, "seed_global_generators", lambda _: None)  # the control
    assert drawn_before_updates(1) != drawn_before_updates(5)

"""Logged scalars: means over all samples, with the same bits on any number of workers."""

import math
import random

import pytest
import torch

from raytrain_plus.algorithms import SAM, Aspect
from raytrain_plus.scalars import MOST_NAMES
from raytrain_plus.task import TaskError
from raytrain_plus.training.tree import fold
from tests.training.small_tasks import PART, Normed, Plain, loop_alone, make_loop, run
from tests.training.small_tasks import part as batch_of
from tests.training.test_salvage import CUTS, RANKS, Group
from tests.training.wires import Network


class Logs(Normed):
    """Logs each form of value; `late` comes from one logical rank in the third step only."""

    def loss(self, outputs, batch):
        losses = super().loss(outputs, batch)
        x = batch["x"]
        self.log("confidence", outputs.softmax(1).amax(1))
        self.log("spread", x.double().std())
        self.log("weighted", losses, weights=batch["label"])
        self.log("layer", x[:, 0].mean())
        self.log("layer", x[:, 1].mean())
        if float(x[0, 0]) == float(batch_of(2, 3)["x"][0, 0]):
            self.log("late", losses)
        return losses


class Norms(Aspect):
    """Logs what is the same on all workers."""

    def update(self, step):
        norms = [p.grad.norm() for p in step.model.parameters() if p.grad is not None]
        step.log("gradient_norm", torch.stack(norms).norm())
        yield
        step.log("rate", step.optimizer.param_groups[0]["lr"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NORMS = (Norms(),)


def logged_with(workers, steps=4, task=Logs, algorithms=NORMS):
    cuts = CUTS[workers]
    network = Network(workers)
    loops = [
        make_loop(task(), cuts, network.wire(i), algorithms=algorithms) for i in range(workers)
    ]

    def train(wire):
        torch.set_num_threads(1)
        return [
            loops[wire.index].run_step([batch_of(step, r) for r in cuts[wire.index]])
            for step in range(steps)
        ]

    results = network.run(train)
    of_steps = [[dict(result.logged) for result in of_worker] for of_worker in results]
    assert all(one == of_steps[0] for one in of_steps)  # all workers have all values
    return of_steps[0]


def test_values_have_the_same_bits_on_any_number_of_workers():
    alone = logged_with(1)
    names = {"confidence", "gradient_norm", "layer", "rate", "spread", "weighted"}
    assert [set(values) - {"late"} for values in alone] == [names] * 4
    assert ["late" in values for values in alone] == [False, False, True, False]
    for workers in (2, 3, 4):
        assert logged_with(workers) == alone
    sums = [batch_of(0, rank)["x"].double().std().item() * PART for rank in range(RANKS)]
    assert alone[0]["spread"] == fold(sums, lambda a, b: a + b) / (RANKS * PART)
    labels = torch.cat([batch_of(0, rank)["label"] for rank in range(RANKS)])
    assert alone[0]["weighted"] != pytest.approx(alone[0]["confidence"])
    assert labels.sum() > 0
    both = [batch_of(0, rank)["x"][:, :2].mean().item() for rank in range(RANKS)]
    assert alone[0]["layer"] == pytest.approx(sum(both) / RANKS, rel=1e-5)


def test_the_order_of_the_sum_shows_in_the_bits():
    """The control: summed from left to right the values are others."""
    sums = [batch_of(step, r)["x"].double().std().item() for step in range(9) for r in range(RANKS)]
    trees = [fold(sums[i : i + RANKS], lambda a, b: a + b) for i in range(0, len(sums), RANKS)]
    assert trees != [sum(sums[i : i + RANKS]) for i in range(0, len(sums), RANKS)]


def test_a_run_that_logs_has_the_bits_of_one_that_does_not():
    digests = set()
    for task, algorithms in ((Logs(), (Norms(),)), (Normed(), ())):
        loop = loop_alone(task, RANKS, algorithms=algorithms)
        results = run(loop, 3, range(RANKS))
        digests.add((loop.replica.digest(), results[-1].loss))
        assert bool(results[-1].logged) == isinstance(task, Logs)
    assert len(digests) == 1


def test_what_survivors_have_logged_is_used_after_a_loss():
    expected = logged_with(1, 3, algorithms=())
    chance = random.Random(7)
    salvaged = 0
    for _ in range(8):
        group = Group(Logs(), 3)
        first = group.train(1)
        for member in group.members:
            member.patience = chance.randrange(30)
        second = group.train(2)
        step = group.resize(2, lost=2)
        later = group.train(3)
        for result in [result for of_worker in (*first, *second, *later) for result in of_worker]:
            assert dict(result.logged) == expected[result.step - 1]
            salvaged += result.salvaged
        assert {result.step for result in later[0]} == set(range(step + 1, 4))
    assert salvaged > 0


def test_nan_is_kept_and_a_name_without_weight_is_left_out():
    class Odd(Plain):
        def loss(self, outputs, batch):
            self.log("odd", math.nan if float(batch["x"].abs().max()) > 4 else 1.0)
            self.log("nothing", 3.0, weights=0.0)
            self.log("flag", batch["label"] > 0)
            return super().loss(outputs, batch)

    logged = run(loop_alone(Odd()), 1)[0].logged
    assert set(logged) == {"odd", "flag"}
    assert math.isnan(logged["odd"])
    labels = torch.cat([batch_of(0, rank)["label"] for rank in range(4)])
    assert logged["flag"] == pytest.approx((labels > 0).double().mean().item())


def test_a_part_that_is_computed_twice_counts_once():
    class Counts(Plain):
        def loss(self, outputs, batch):
            self.log("samples", 1.0, weights=1.0)
            self.log("first", batch["x"][:, 0])
            return super().loss(outputs, batch)

    class Twice(Aspect):
        def batch(self, step):
            with torch.no_grad():
                step.compute(
                    {name: value * 2 for name, value in step.batch.items() if value.dim() > 1}
                    | {"label": step.batch["label"]}
                )
            yield

    plain, twice = (run(loop_alone(Counts(), algorithms=a), 1)[0].logged for a in ((), (Twice(),)))
    assert plain == twice
    assert set(run(loop_alone(Counts(), algorithms=(SAM(),)), 1)[0].logged) == set(plain)


@pytest.mark.parametrize(
    ("name", "value", "weights", "said"),
    [
        ("", 1.0, None, "needs a name"),
        ("x" * 201, 1.0, None, "needs a name"),
        ("a\nb", 1.0, None, "needs a name"),
        ("x", "many", None, "not a str"),
        ("x", torch.ones(2, 2), None, r"shape \(2, 2\)"),
        ("x", torch.ones(0), None, r"shape \(0,\)"),
        ("x", torch.ones(PART), torch.ones(PART + 1), "same shape as its values"),
        ("x", torch.ones(PART), 2.0, "same shape as its values"),
    ],
)
def test_other_values_are_refused_by_name(name, value, weights, said):
    class Wrong(Plain):
        def loss(self, outputs, batch):
            self.log(name, value, weights)
            return super().loss(outputs, batch)

    with pytest.raises(TaskError, match=said):
        run(loop_alone(Wrong()), 1)


class TooLate(Aspect):
    def backward(self, step):
        yield
        step.log("late", 1.0)


class Twofold(Aspect):
    def update(self, step):
        step.log("spread", 1.0)
        yield


class PerSample(Aspect):
    def update(self, step):
        step.log("x", torch.ones(3))
        yield


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (TooLate(), "comes after the loss"),
        (Twofold(), "in the parts of a step and outside"),
        (PerSample(), "needs one number"),
    ],
)
def test_values_at_the_wrong_place_are_refused(algorithm, said):
    with pytest.raises(TaskError, match=said):
        run(loop_alone(Logs(), RANKS, algorithms=(algorithm,)), 1, range(RANKS))


def test_names_that_change_each_step_are_refused():
    class Endless(Plain):
        steps = 0

        def loss(self, outputs, batch):
            for i in range(MOST_NAMES // 2 + 1):
                self.log(f"{float(batch['x'][0, 0])} {i}", 1.0)
            return super().loss(outputs, batch)

    with pytest.raises(TaskError, match="does a name hold a number that changes"):
        run(loop_alone(Endless()), 1)


def test_outside_of_a_step_a_task_logs_nothing():
    task = Plain()
    task.log("x", 1.0)  # as in an evaluation's forward

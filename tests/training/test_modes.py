"""Training weights and evaluation weights; weights that are lost."""

import pytest
import torch

from raytrain_plus.algorithms import Aspect
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.checkpointer import CheckpointError
from raytrain_plus.checkpoint.export import export
from raytrain_plus.checkpoint.snapshot import Snapshot
from raytrain_plus.task import TaskError
from raytrain_plus.training import modes
from raytrain_plus.training.corruption import CorruptionError
from raytrain_plus.training.loop import LossError, StateError
from tests.training.corrupted import Group, Worker, flip_parameter
from tests.training.small_tasks import CountsSteps, Plain, loop_alone, parameters, run
from tests.training.wires import bits


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD; refuses to train in evaluation mode, as the published versions do."""

    def __init__(self, given):
        super().__init__(given, {"lr": 0.5, "beta": 0.9, "k": 0, "training": False})

    @torch.no_grad()
    def switch(self, *, training, weight):
        for group in self.param_groups:
            if group["training"] != training:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], weight(group["beta"]))
                group["training"] = training

    def eval(self):
        self.switch(training=False, weight=lambda beta: 1 - 1 / beta)

    def train(self):
        self.switch(training=True, weight=lambda beta: 1 - beta)

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002
        for group in self.param_groups:
            assert group["training"], "not in train mode"
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                if "z" not in state:
                    state["z"] = p.clone()
                p.lerp_(state["z"], 1 / group["k"])
                rate = group["lr"] * (1 - group["beta"] * (1 - 1 / group["k"]))
                p.sub_(p.grad, alpha=rate)
                state["z"].sub_(p.grad, alpha=group["lr"])


class Free(Plain):
    def optimizer(self, model):
        return ScheduleFree(model.parameters())


class OwnSwitch(Aspect):
    """A task that calls the optimizer's methods itself."""

    def evaluate(self, step):
        step.optimizer.eval()
        yield
        step.optimizer.train()


def evaluate(loop, seen=None):
    """Read the weights as an evaluation does."""
    replica = loop.replica
    with loop.guard.unchanged(), modes.evaluated(replica.model, replica.optimizer):
        if seen is not None:
            seen.append([p.detach().clone() for p in replica.model.parameters()])


def test_an_evaluation_uses_the_evaluation_weights_and_restores_the_trained_ones():
    loop, other = loop_alone(Free()), loop_alone(Free())
    seen = []
    for _ in range(4):
        run(loop, 1)
        evaluate(loop, seen)
        run(other, 1)
    assert loop.replica.digest() == other.replica.digest()

    own = [bits(p) for p in parameters(other)]
    other.replica.optimizer.eval()
    assert [bits(p) for p in seen[-1]] == [bits(p) for p in parameters(other)]
    assert [bits(p) for p in parameters(other)] != own


@pytest.mark.parametrize("workers", [1, 2])
def test_an_aspect_may_switch_the_optimizers_mode_itself(workers):
    group = Group(workers, Free, (OwnSwitch(),), check_every=1)
    plain = Group(workers, Free, check_every=1)

    def look(loop):
        replica = loop.replica
        step = type("S", (), {"optimizer": replica.optimizer})()
        with (
            modes.evaluated(replica.model, replica.optimizer),
            loop._weave.around("evaluate", step),
        ):
            pass

    for _ in range(3):
        assert not any(isinstance(r, CorruptionError) for r in group.step())
        assert group.measure(look) == [None] * workers
        plain.step()
    assert group.digests() == plain.digests()


def test_an_export_has_the_evaluation_weights_and_a_checkpoint_the_trained_ones(tmp_path):
    loop = loop_alone(Free())
    run(loop, 3)
    checkpointer.save(tmp_path / "kept", loop.replica, "run")
    exported = export(Free(), tmp_path / "kept")
    resumed = loop_alone(Free())
    checkpointer.load(tmp_path / "kept", resumed.replica)
    run(resumed, 2)
    run(loop, 2)
    assert resumed.replica.digest() == loop.replica.digest()

    again = loop_alone(Free())
    run(again, 3)
    trained = [bits(p) for p in parameters(again)]
    again.replica.optimizer.eval()
    assert [bits(p) for p in exported.parameters()] == [bits(p) for p in parameters(again)]
    assert [bits(p) for p in exported.parameters()] != trained


class LeavesChanged(Aspect):
    """Evaluates with other weights and restores its own with rounding errors."""

    def evaluate(self, step):
        weights = [p.data for p in step.model.parameters()]  # PyTorch does not count these
        for weight in weights:
            weight.mul_(1.1)
        yield
        for weight in weights:
            weight.div_(1.1)


@pytest.mark.parametrize("workers", [1, 2])
def test_weights_that_an_evaluation_leaves_changed_are_blamed_on_the_advice(workers):
    group = Group(workers, Plain, (LeavesChanged(),), check_every=1)
    group.step()

    def look(loop):
        with loop._weave.around("evaluate", type("S", (), {"model": loop.replica.model})()):
            pass

    with pytest.raises(TaskError, match=r"evaluation changes parameter '\d\."):
        group.measure(look)
    other = Group(workers, Plain, (LeavesChanged(),), check_every=1)  # the control: bad memory
    other.step()
    other.members[0].loop._weave = other.members[0].loop._weave.__class__(())
    results = other.measure(lambda loop: loop is other.members[0].loop and flip_parameter(loop))
    assert all(isinstance(result, CorruptionError) for result in results)


class Clamping(CountsSteps, Plain):
    """Changes weights in the forward, from its third step on, unnoticed by PyTorch's counter."""

    def forward(self, model, batch):
        model.steps += 1
        if model.steps > 2:
            model[0].weight.data.clamp_(-0.1, 0.1)
        return model(batch["x"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_forward_that_changes_weights_later_is_not_reported_as_bad_memory(workers):
    group = Group(workers, Clamping, check_every=1)
    for _ in range(2):
        assert not any(isinstance(r, CorruptionError) for r in group.step())
    with pytest.raises(TaskError, match=r"changes parameter '0\.weight'"):
        group.step()


class Overflow(torch.optim.SGD):
    """Finite gradients, and in the third step an update that is not finite."""

    taken = 0

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        self.taken += 1
        if self.taken == 3:
            for p in self.param_groups[0]["params"]:
                p.mul_(1e38).mul_(1e38)


class Overflowing(Plain):
    def optimizer(self, model):
        return Overflow(model.parameters(), lr=0.1)


def test_an_update_that_overflows_never_becomes_a_checkpoint(tmp_path):
    loop = loop_alone(Overflowing())
    run(loop, 2)
    loop.check_state()
    checkpointer.save(tmp_path / "kept", loop.replica, "run")
    replica = loop.replica
    run(loop, 1)
    with pytest.raises(StateError, match=r"model/0\.(weight|bias) is not finite after step 3"):
        loop.check_state()
    for keep in (Snapshot.of, lambda r: checkpointer.save(tmp_path / "lost", r, "run")):
        with pytest.raises(CheckpointError, match="after step 3 is not kept"):
            keep(replica)
    assert not (tmp_path / "lost").exists()
    with pytest.raises(StateError, match="after step 3"):  # the loss is NaN, too
        run(loop, 1)
    assert not issubclass(StateError, LossError)


def test_a_moment_that_is_not_a_number_is_found():
    loop = loop_alone(Plain())
    run(loop, 1)
    moment = next(iter(loop.replica.optimizer.state.values()))["momentum_buffer"]
    moment.reshape(-1)[0] = torch.inf
    loop.check_state()
    moment.reshape(-1)[0] = torch.nan
    with pytest.raises(StateError, match="momentum_buffer is not finite"):
        loop.check_state()


def test_ordinary_optimizers_have_no_modes():
    worker = Worker(Plain())
    assert not modes.has_modes(worker.loop.replica.optimizer)
    assert modes.has_modes(loop_alone(Free()).replica.optimizer)

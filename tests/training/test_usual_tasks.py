"""What users write is plain PyTorch's function with equal bits anywhere, or is refused by name."""

import contextlib
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint

from benchmarks.group import RANKS, Group, verdict
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.task import Task, TaskError, TaskWarning
from raytrain_plus.training.backward import Backward
from raytrain_plus.training.corruption import CorruptionError
from raytrain_plus.training.reduction import Reduction
from tests.training.small_tasks import (
    CLASSES,
    FEATURES,
    PART,
    CountsSteps,
    Plain,
    Tied,
    loop_alone,
    part,
    run,
)

SEED = 17
STEPS = 3


class Usual(Task):
    """Two layers; a case overrides what it is about."""

    make = staticmethod(
        lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    )
    optimize = staticmethod(lambda parameters: torch.optim.AdamW(parameters, lr=0.05))

    def model(self):
        return self.make()

    def optimizer(self, model):
        return self.optimize(model.parameters())

    def loss(self, outputs, batch):
        return functional.cross_entropy(outputs.float(), batch["label"], reduction="none")


def plain(task, steps):
    """Train with plain PyTorch: one forward and backward per part, with its seed; return the model.

    The update's gradient is the sum over the parts, divided by the number of samples.
    """
    seed_global_generators(seed_for(SEED, "model"))
    model = task.model()
    optimizer = task.optimizer(model)
    for step in range(steps):
        model.zero_grad()
        model.train()
        for rank in range(RANKS):
            batch = part(step, rank)
            seed_global_generators(seed_for(SEED, "step", step, rank))
            task.loss(task.forward(model, batch), batch).sum().backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(RANKS * PART)
        task.schedule(step / 1000)
        optimizer.step()
    return model


def of_model(make, **more):
    return type("OfModel", (Usual,), {"make": staticmethod(make), **more})


def of_optimizer(optimize, **more):
    return type("OfOptimizer", (Usual,), {"optimize": staticmethod(optimize), **more})


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class Experts(nn.Module):
    """Each sample goes to one of six experts; in some parts, some get nothing and no gradient."""

    def __init__(self, k):
        super().__init__()
        self.k = k
        self.first, self.gate = nn.Linear(FEATURES, 8), nn.Linear(8, 6)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(7))  # the last is never used
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        weights, chosen = self.gate(hidden).softmax(-1).topk(self.k, -1)
        mixed = torch.zeros_like(hidden)
        for place, expert in enumerate(self.experts):
            rows, slots = (chosen == place).nonzero(as_tuple=True)
            if len(rows):
                weighted = expert(hidden[rows]) * weights[rows, slots].unsqueeze(-1)
                mixed = mixed.index_add(0, rows, weighted)
        return self.last(hidden + mixed)


class Checkpointed(nn.Module):
    """A block that is used once or twice, and is computed again in the backward."""

    def __init__(self, *layers, times=1, reentrant):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.block = nn.Sequential(nn.Linear(8, 8), *layers, nn.Tanh())
        self.times, self.reentrant = times, reentrant

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.times):
            if self.reentrant is None:
                x = self.block(x)
            else:
                x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.last(x)


class Adapted(nn.Module):
    """A frozen layer and norm, and a trained matrix of low rank next to them."""

    def __init__(self):
        super().__init__()
        self.base, self.norm = nn.Linear(FEATURES, 8), nn.BatchNorm1d(8)
        self.norm.running_mean.fill_(0.3)
        self.down = nn.Parameter(torch.randn(FEATURES, 2) * 0.1)
        self.up = nn.Parameter(torch.zeros(2, 8))
        self.head = nn.Linear(8, CLASSES)
        self.base.requires_grad_(False)
        self.norm.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.base(x) + x @ self.down @ self.up)))


class Complex(nn.Module):
    def __init__(self, dtype=torch.complex64):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 8, dtype=dtype) * 0.3)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last((x.to(self.weight.dtype) @ self.weight).abs().float())


class Mixed(nn.Module):
    """Parameters of three dtypes, which travel in a bucket each."""

    def __init__(self):
        super().__init__()
        self.single, self.last = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.narrow, self.wide = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8).double()

    def forward(self, x):
        x = self.narrow(torch.tanh(self.single(x)).bfloat16())
        return self.last(self.wide(torch.tanh(x).double()).float())


class Averaged(nn.Module):
    """A network, and the mean of its weights over the updates."""

    def __init__(self, **options):
        super().__init__()
        self.net = Usual.make()
        self.mean = swa_utils.AveragedModel(self.net, **options)

    def forward(self, x):
        return self.net(x)


class Averaging(Usual):
    """Averages in a hook after each update."""

    make = Averaged

    def optimizer(self, model):
        optimizer = torch.optim.AdamW(model.net.parameters(), lr=0.05)
        optimizer.register_step_post_hook(lambda *_: model.mean.update_parameters(model.net))
        return optimizer


def initialised(model):
    model(torch.zeros(2, FEATURES))
    return model


def with_moving_mean(weight):
    """Return a model with a moving mean, in a buffer, of what a forward hook sees."""
    model = Usual.make()
    model.register_buffer("mean", torch.zeros(8, FEATURES) if weight else torch.zeros(8))

    def hook(_module, _inputs, outputs):
        seen = model[0].weight.detach() if weight else outputs.detach().mean(0)
        model.mean.mul_(0.9).add_(seen, alpha=0.1)

    model[0].register_forward_hook(hook)
    return model


class Autocast(Usual):
    """Computes in bfloat16, in the forward and in the loss."""

    def forward(self, model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch["x"])

    def loss(self, outputs, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return super().loss(outputs, batch)


class Unscaling(Usual):
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)

    def loss(self, outputs, batch):
        return self.scaler.scale(super().loss(outputs, batch))


class Counting(torch.optim.Optimizer):
    """Counts its steps in Python's whole numbers."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})
        self.calls = 0

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002
        self.calls += 1
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
            p.sub_(p.grad, alpha=0.1 / state["step"] / self.calls)


class Keeping(torch.optim.SGD):
    """Keeps the gradient that it gets: the tensor itself, a view of it, or a copy."""

    def __init__(self, parameters, how):
        super().__init__(parameters, lr=0.1)
        self.how = how

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002
        ways = {"itself": lambda g: g, "view": lambda g: g.view(-1), "copy": lambda g: g.clone()}
        for p in self.param_groups[0]["params"]:
            if "previous" in self.state[p]:
                p.sub_(self.state[p]["previous"].view_as(p), alpha=0.05)
            p.sub_(p.grad, alpha=0.1)
            self.state[p]["previous"] = ways[self.how](p.grad)


class OwnHead(Usual):
    """Holds a layer outside of the model, which is drawn when the task is made."""

    def __init__(self):
        self.head = nn.Linear(CLASSES, CLASSES)

    def loss(self, outputs, batch):
        return super().loss(self.head(outputs), batch)


class Centered(Usual):
    """Holds a module whose buffer moves in the loss."""

    def __init__(self):
        self.center = nn.BatchNorm1d(CLASSES, affine=False)

    def loss(self, outputs, batch):
        self.center(outputs)
        return super().loss(outputs - self.center.running_mean.clone(), batch)


class Hooked(Usual):
    """An optimizer whose `state_dict()` hooks add to what is saved, and take it out again."""

    def optimizer(self, model):
        optimizer = super().optimizer(model)
        optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "extra": 1})
        optimizer.register_load_state_dict_pre_hook(lambda _, saved: saved.pop("extra") and None)
        return optimizer


class Groups(Usual):
    """A group whose parameters are frozen, an empty one, and one that is trained."""

    def model(self):
        model = super().model()
        model[0].requires_grad_(False)
        return model

    def optimizer(self, model):
        rates = [(model[0].parameters(), 0.1), ([], 0.2), (model[2].parameters(), 0.05)]
        return torch.optim.AdamW([{"params": p, "lr": rate} for p, rate in rates])


class Late(Usual):
    """The second layer's parameters come into the optimizer in the second step."""

    def optimizer(self, model):
        self.model_, self.optimizer_ = model, torch.optim.AdamW(model[0].parameters(), lr=0.05)
        return self.optimizer_

    def add(self):
        self.optimizer_.add_param_group({"params": self.model_[2].parameters(), "lr": 0.02})

    def schedule(self, progress):
        if progress >= 1 / 1000 and len(self.optimizer_.param_groups) == 1:
            self.add()
        return 1.0


class InnerBackward(Usual):
    """Adds a gradient by a backward inside of its loss."""

    def forward(self, model, batch):
        (0.01 * model[0].weight.square().sum()).backward()
        return model(batch["x"])


def many(kind, ways, *names):
    """Return tasks for some optimizers, each by one way of computing."""
    return {
        f"{name} {kind}": of_optimizer(lambda p, name=name: getattr(torch.optim, name)(p, **ways))
        for name in names
    }


ADAPTIVE = "Adam", "AdamW", "NAdam", "RAdam", "Adagrad", "RMSprop", "Adadelta", "Adamax", "ASGD"
EQUAL = {
    **many("foreach", {"foreach": True}, *ADAPTIVE, "SGD", "Rprop"),
    **many("fused", {"fused": True}, "Adam", "AdamW", "SGD", "Adagrad"),
    "rate that is a tensor": of_optimizer(lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.05))),
    "steps in whole numbers": of_optimizer(Counting),
    "gradient kept": of_optimizer(lambda p: Keeping(p, "itself")),
    "view of the gradient kept": of_optimizer(lambda p: Keeping(p, "view")),
    "hooks of state_dict": Hooked,
    "frozen and empty groups": Groups,
    "late group": Late,
    "experts, one of six": of_model(lambda: Experts(1), optimize=staticmethod(sgd)),
    "experts, two of six": of_model(
        lambda: Experts(2),
        optimize=staticmethod(lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5)),
    ),
    "scaler that is off": Unscaling,
    "checkpointing, reentrant": of_model(
        lambda: Checkpointed(nn.Dropout(0.3), reentrant=True), optimize=staticmethod(sgd)
    ),
    "checkpointing": of_model(
        lambda: Checkpointed(nn.Dropout(0.3), reentrant=False), optimize=staticmethod(sgd)
    ),
    "checkpointing twice, reentrant": of_model(lambda: Checkpointed(times=2, reentrant=True)),
    "checkpointing twice": of_model(lambda: Checkpointed(times=2, reentrant=False)),
    "backward in the forward": InnerBackward,
    "moving mean of outputs": of_model(lambda: with_moving_mean(weight=False)),
    "moving mean of weights": of_model(lambda: with_moving_mean(weight=True)),
    "SyncBatchNorm": of_model(
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(
            nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        ),
        optimize=staticmethod(sgd),
    ),
    "low rank next to frozen": of_model(Adapted),
    "tied": of_model(Tied.Model),
    "weight norm": of_model(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(FEATURES, CLASSES)))
    ),
    "lazy, initialised": of_model(
        lambda: initialised(nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(CLASSES)))
    ),
    "complex": of_model(Complex),
    "mean of weights": Averaging,
    "moving mean of weights and buffers": type(
        "Moving",
        (Averaging,),
        {
            "make": staticmethod(
                functools.partial(
                    Averaged,
                    multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9),
                    use_buffers=True,
                )
            )
        },
    ),
}
ROUNDED = {"autocast": Autocast, "mixed dtypes": of_model(Mixed)}  # by bfloat16


@pytest.mark.filterwarnings("ignore::raytrain_plus.task.TaskWarning")
@pytest.mark.parametrize("name", [*EQUAL, *ROUNDED])
def test_it_is_the_function_of_plain_pytorch_with_equal_bits_anywhere(name):
    task = (EQUAL | ROUNDED)[name]
    alone = Group(task, part)
    alone.run(STEPS)
    theirs, fewer = plain(task(), STEPS), plain(task(), STEPS - 1)
    tolerance = {"rtol": 2e-2, "atol": 4e-3} if name in ROUNDED else {"rtol": 1e-4, "atol": 1e-5}
    apart = 0
    for at, ours in alone.replica.model.named_parameters():
        torch.testing.assert_close(ours, theirs.get_parameter(at), **tolerance)
        apart += not torch.allclose(ours, fewer.get_parameter(at), **tolerance)
    assert apart  # the control: the tolerance tells steps apart
    assert verdict(lambda: Group(task, part), steps=1) == "equal"


class Normed(nn.Module):
    """Uses the running mean in training, and counts; no checkpoint of PyTorch has either."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("mean", torch.zeros(FEATURES), persistent=False)
        self.register_buffer("count", torch.tensor(0), persistent=False)

    def forward(self, x):
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
            self.count += 1
        return self.layer(x - self.mean)


OWN_MEANING = {  # buffers move by the mean over all logical ranks, so there is no plain function
    "layer outside of the model": OwnHead,
    "buffers that are not persistent": of_model(Normed),
    "spectral norm": of_model(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(FEATURES, CLASSES)))
    ),
    "checkpointed norm": of_model(
        lambda: Checkpointed(nn.BatchNorm1d(8), reentrant=False), optimize=staticmethod(sgd)
    ),
    "checkpointed norm, reentrant": of_model(
        lambda: Checkpointed(nn.BatchNorm1d(8), reentrant=True), optimize=staticmethod(sgd)
    ),
}


@pytest.mark.filterwarnings("ignore::raytrain_plus.task.TaskWarning")
@pytest.mark.parametrize("name", OWN_MEANING)
def test_buffers_that_matter_have_equal_bits_anywhere(name):
    assert verdict(lambda: Group(OWN_MEANING[name], part), steps=2) == "equal"


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_norm_moves_its_statistics_as_without_checkpointing(reentrant):
    def make(how):
        task = of_model(lambda: Checkpointed(nn.BatchNorm1d(8), reentrant=how))
        return Group(task, part)

    with pytest.warns(TaskWarning, match=r"backward changes buffer 'block.1.running_mean' and 2"):
        checkpointed = make(reentrant)
    usual = make(None)
    for group in (checkpointed, usual):
        group.run(STEPS)
    theirs = dict(usual.replica.model.named_buffers())
    for name, ours in checkpointed.replica.model.named_buffers():
        torch.testing.assert_close(ours, theirs[name])
    twice = plain(of_model(lambda: Checkpointed(nn.BatchNorm1d(8), reentrant=reentrant))(), STEPS)
    once = plain(of_model(lambda: Checkpointed(nn.BatchNorm1d(8), reentrant=None))(), STEPS)
    assert twice.block[1].num_batches_tracked == 2 * once.block[1].num_batches_tracked


def test_siblings_whose_gradients_come_in_parts_cannot_be_added_by_autograd(monkeypatch):
    """The negative control: the first part of a run has shown that they must be apart."""
    monkeypatch.setattr(Backward, "counted", lambda _: contextlib.nullcontext())
    with pytest.raises(TaskError, match="gets its gradient in several parts in one backward"):
        Group(EQUAL["checkpointing twice, reentrant"], part).run(1)


class Scaling(Usual):
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cpu")

    def loss(self, outputs, batch):
        return self.scaler.scale(super().loss(outputs, batch))


SCALER = None


class ScalingByGlobal(Usual):
    def loss(self, outputs, batch):
        return SCALER.scale(super().loss(outputs, batch))


class LateInForward(CountsSteps, Late):
    """Adds the group in the forward of the third step."""

    def forward(self, model, batch):
        model.steps += 1
        if model.steps == 3 and len(self.optimizer_.param_groups) == 1:
            self.add()
        return model(batch["x"])

    def schedule(self, progress):  # noqa: ARG002
        return 1.0


class LateByNote(Late):
    """Remembers by itself that the group was added, which no newcomer knows."""

    added = False

    def schedule(self, progress):
        if progress >= 1 / 1000 and not self.added:
            self.added = True
            self.add()
        return 1.0


class Decaying(Late):
    """Changes a setting of the optimizer in the forward."""

    def forward(self, model, batch):
        self.optimizer_.param_groups[0]["weight_decay"] *= 0.5
        return model(batch["x"])


class Remembering(nn.Module):
    """Goes on from the hidden state of the batch before."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.LSTM(FEATURES, 8, batch_first=True), nn.Linear(8, CLASSES)
        self.hidden = None

    def forward(self, x):
        outputs, hidden = self.layer(x[:, None], self.hidden)
        self.hidden = tuple(one.detach() for one in hidden)
        return self.last(outputs[:, 0])


class OwnDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        return x * (torch.rand(x.shape, generator=self.generator) > 0.3) / 0.7


class AveragedInForward(Averaged):
    def forward(self, x):
        self.mean.update_parameters(self.net)
        return super().forward(x)


def with_generator_in_hook():
    generator = torch.Generator().manual_seed(3)
    model = Usual.make()
    model[0].register_forward_hook(lambda *given: given[2] * torch.rand(8, generator=generator))
    return model


class CountingHook(Usual):
    """Scales gradients in a hook before each update, by a count that only the hook knows."""

    def optimizer(self, model):
        optimizer = sgd(model.parameters())
        calls = []

        def hook(*_):
            calls.append(1)
            for parameter in model.parameters():
                parameter.grad.div_(len(calls))

        optimizer.register_step_pre_hook(hook)
        return optimizer


def with_buffer(value):
    model = Usual.make()
    model.register_buffer("held", value)
    return model


REFUSED = {
    "sparse buffer": (
        of_model(lambda: with_buffer(torch.eye(2).to_sparse())),
        "'held' is of layout",
    ),
    "buffer of a byte": (
        of_model(lambda: with_buffer(torch.ones(2).to(torch.float8_e4m3fn))),
        "'held' is a buffer of torch.float8_e4m3fn",
    ),
    "quantized buffer": (
        of_model(
            lambda: with_buffer(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
        ),
        "'held' is quantized",
    ),
    "repeated buffer": (
        of_model(lambda: with_buffer(torch.ones(1, 3).expand(2, 3))),
        "'held' is a view with repeated",
    ),
    "buffer of the task": (Centered, "buffer 'task.center.running_mean' changes"),
    "LBFGS": (of_optimizer(torch.optim.LBFGS), "the optimizer LBFGS needs a closure"),
    "lazy": (of_model(lambda: nn.LazyLinear(CLASSES)), "'weight' has no shape yet"),
    "scaler": (Scaling, r"scaled by a torch.amp.GradScaler \(task.scaler\)"),
    "late group in the forward": (
        LateInForward,
        "the forward, the loss or the backward changes the members of the parameter groups",
    ),
    "late group by a note": (LateByNote, r"task.schedule\(\) adds a parameter group, and would"),
    "setting in the forward": (Decaying, "changes 'weight_decay' in the parameter groups"),
    "LSTM that remembers": (of_model(Remembering), "'hidden' of the model"),
    "dropout of its own": (
        of_model(lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES), OwnDropout())),
        r"'generator' of module '1' \(OwnDropout\)",
    ),
    "generator in a hook": (of_model(with_generator_in_hook), "generator of the task's own"),
    "mean of weights in the forward": (
        of_model(AveragedInForward),
        "the forward changes parameter 'mean.module.0.weight'",
    ),
    "complex128": (
        of_model(lambda: Complex(torch.complex128)),
        "model/weight is of dtype torch.complex128",
    ),
    "count in a hook of the optimizer": (
        CountingHook,
        "the state of the optimizer SGD differs in another worker after one more step",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_no_run_can_keep_equal_is_refused_by_its_name(name, workers):
    task, named = REFUSED[name]

    def train():
        group = Group(task, part)
        group.resize(workers)
        group.run(STEPS)

    with pytest.raises(TaskError, match=named):
        train()


def test_a_global_scaler_is_refused_as_well(monkeypatch):
    monkeypatch.setitem(globals(), "SCALER", torch.amp.GradScaler("cpu"))
    with pytest.raises(TaskError, match=r"scaled by a torch.amp.GradScaler \(SCALER\)"):
        Group(ScalingByGlobal, part)


def test_a_scaler_that_is_not_used_is_left_alone():
    class Idle(Scaling):
        loss = Usual.loss

    Group(Idle, part).run(1)


def test_a_gradient_that_is_kept_would_be_overwritten_in_the_next_step(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(Reduction, "_references", lambda _: [])
    with pytest.raises(CorruptionError, match="changed between two steps"):
        Group(EQUAL["gradient kept"], part).run(STEPS)


@pytest.mark.parametrize(("name", "memories"), [("AdamW", 1), ("gradient kept", STEPS)])
def test_the_memory_of_the_sums_is_reused_unless_it_is_kept(name, memories):
    loop = loop_alone(Plain("AdamW") if name == "AdamW" else EQUAL[name]())
    used = []
    for _ in range(STEPS):
        run(loop, 1)
        used.append(loop._reduction._totals)
    assert len({totals[0].data_ptr() for totals in used}) == memories

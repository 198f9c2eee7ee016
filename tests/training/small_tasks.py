"""Small tasks, and a loop on one worker that runs them."""

import torch
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import Weave
from raytrain_plus.clock import Clock
from raytrain_plus.task import Task
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica
from tests.training.wires import Network, bits

SEED = 17
FEATURES, CLASSES, PART = 6, 3, 5
CLOCK = Clock(total_steps=100, steps_per_epoch=10, batch_size=20, evaluate_every=10)

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, betas=(0.8, 0.95)),
    "Adam amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(
        parameters, 0.01, momentum=0.5, centered=True
    ),
}


class Plain(Task):
    """A task without random numbers and without buffers."""

    def __init__(self, optimizer="SGD"):
        self.make_optimizer = OPTIMIZERS[optimizer]

    def model(self):
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))

    def optimizer(self, model):
        return self.make_optimizer(model.parameters())

    def loss(self, outputs, batch):
        return functional.cross_entropy(outputs, batch["label"], reduction="none")


class Normed(Plain):
    """A task with BatchNorm, whose buffers change, without random numbers."""

    def model(self):
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


class Noisy(Plain):
    """A task with BatchNorm and Dropout."""

    def model(self):
        return nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)
        )


class Branching(Plain):
    """One parameter is used by some logical ranks only, another by none."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(6, 3)
            self.sometimes = nn.Linear(6, 3)
            self.never = nn.Linear(6, 3)

        def forward(self, x, extra):
            return self.base(x) + (self.sometimes(x) if extra else 0)

    def model(self):
        return self.Model()

    def forward(self, model, batch):
        return model(batch["x"], extra=batch["x"].abs().max() > 4)


class CountsSteps:
    """Gives the model of a task a buffer in which its forward counts steps."""

    def model(self):
        model = super().model()
        model.register_buffer("steps", torch.tensor(0))
        return model


class Tied(Plain):
    """One parameter is used twice, once in place of another parameter."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
            self.second.weight = self.first.weight
            self.last = nn.Linear(FEATURES, CLASSES)

        def forward(self, x):
            return self.last(self.second(torch.tanh(self.first(x))))

    def model(self):
        return self.Model()


def part(step, rank):
    """Return the batch of one logical rank in one step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {
        "x": torch.randn((PART, FEATURES), generator=generator) * (rank + 1),
        "label": torch.randint(0, CLASSES, (PART,), generator=generator),
    }


def make_loop(task, ranges, wire, *, algorithms=(), seed=SEED, enter=lambda _: None):
    weave = Weave(algorithms)
    replica = Replica.build(task, seed, torch.device("cpu"), weave=weave, clock=CLOCK)
    loop = TrainingLoop(task, replica, weave, enter)
    loop.begin_generation(ranges, wire)
    return loop


def loop_alone(task, ranks=4, **options):
    """Return a loop on the only worker of its generation."""
    return make_loop(task, [range(ranks)], Network(1).wire(0), **options)


def run(loop, steps, ranks=range(4)):
    """Run some more steps; return their results."""
    return [loop.run_step([part(loop.replica.step, r) for r in ranks]) for _ in range(steps)]


def parameters(loop):
    return list(loop.replica.model.parameters())


def everything(loop):
    """Return all that a step could change."""
    replica = loop.replica
    return (
        {name: bits(t) for name, t in replica.tensors().items()},
        replica.scalars(),
        {name: p.grad for name, p in replica.parameters.items()},
        {name: id(b) for name, b in replica.model.named_buffers()},
        replica.torn,
    )

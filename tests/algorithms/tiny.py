"""Tiny tasks, one of images and one of tokens, and a loop on one worker that runs them."""

import torch
from torch import nn
from torch.nn import functional

from raytrain_plus.algorithms import Weave
from raytrain_plus.clock import Clock
from raytrain_plus.models.gpt import GPT
from raytrain_plus.models.resnet import ResidualBlock
from raytrain_plus.task import Task
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica
from tests.training.wires import Network

SEED = 17
PART, RANKS = 4, 6
SIZE, CLASSES = 12, 3
WORDS, CONTEXT = 16, 8
CLOCK = Clock(
    total_steps=12,
    steps_per_epoch=5,
    batch_size=PART * RANKS,
    evaluate_every=5,
    tokens_per_sample=CONTEXT + 1,
)


class TinyNetwork(nn.Module):
    """One layer of each kind that methods for images change."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(ResidualBlock(4, 8, 2), ResidualBlock(8, 8))
        self.group = nn.GroupNorm(2, 8)
        self.dropout = nn.Dropout(0.2)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images):
        x = self.blocks(self.pool(torch.relu(self.norm(self.stem(images)))))
        x = self.dropout(self.group(x).mean(dim=(2, 3)))
        return self.head(torch.relu(self.hidden(x)))


class TinyImages(Task):
    """Images in [0, 1] of shape (2, 12, 12), three classes."""

    def model(self):
        return TinyNetwork()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)

    def loss(self, outputs, batch):
        return functional.cross_entropy(outputs, batch["label"], reduction="none")

    @staticmethod
    def part(step, rank):
        """Return the batch of one logical rank in one step."""
        generator = torch.Generator().manual_seed(1000 * step + rank)
        return {
            "image": torch.rand((PART, 2, SIZE, SIZE), generator=generator),
            "label": torch.randint(0, CLASSES, (PART,), generator=generator),
        }


class TinyTokens(Task):
    """Sequences of 9 tokens, 16 words."""

    tokens = "tokens"

    def model(self):
        return GPT(vocabulary=WORDS, context=CONTEXT, layers=2, width=8, heads=2)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def forward(self, model, batch):
        return model(batch["tokens"][:, :-1])

    def loss(self, outputs, batch):
        losses = functional.cross_entropy(
            outputs.transpose(1, 2), batch["tokens"][:, 1:].long(), reduction="none"
        )
        return losses.mean(dim=1)

    @staticmethod
    def part(step, rank):
        """Return the batch of one logical rank in one step."""
        generator = torch.Generator().manual_seed(1000 * step + rank)
        shape = (PART, CONTEXT + 1)
        return {"tokens": torch.randint(0, WORDS, shape, generator=generator, dtype=torch.uint8)}


def build(task, aspects=()):
    """Return a loop and its weave; it belongs to no generation yet."""
    weave = Weave(aspects)
    replica = Replica.build(task, SEED, torch.device("cpu"), weave=weave, clock=CLOCK)
    return TrainingLoop(task, replica, weave), weave


def alone():
    """Return the transport of a single worker."""
    return Network(1).wire(0)


def trained(task, aspects=(), steps=3):
    """Train on one worker; return the loop and the losses."""
    loop, _ = build(task, aspects)
    loop.begin_generation([range(RANKS)], alone())
    losses = [
        loop.run_step([task.part(loop.replica.step, r) for r in range(RANKS)]).loss
        for _ in range(steps)
    ]
    return loop, losses

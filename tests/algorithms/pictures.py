"""Random images, and one part of a step around them."""

import torch
from torch import nn

from raytrain_plus.algorithms import Step, Training
from tests.algorithms.tiny import CLOCK, SEED


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(shape, dtype=torch.float32, seed=0):
    """Return uint8 images in [0, 255], or floating ones in [0, 1]."""
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator(seed), dtype=dtype)
    return torch.rand(shape, generator=generator(seed)).to(dtype)


def part_of(images, number=0, rank=0, labels=None, classes=5):
    """Return a step in which one logical rank has a batch of these images."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = Step(Training(model=model, optimizer=optimizer, clock=CLOCK, seed=SEED), number)
    labels = torch.arange(len(images)) % classes if labels is None else labels
    step.logical_rank = rank
    step.batch = {"image": images, "label": labels}
    step.outputs = torch.zeros((len(images), classes))
    return step

"""The smallest replica that has all kinds of state."""

import torch
from torch import nn

from raytrain_plus.task import Task
from raytrain_plus.training.state import Replica


class Tiny(Task):
    """A linear layer and a norm, trained with momentum."""

    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def trained(steps, seed=17):
    """Return a replica after some steps."""
    replica = Replica.build(Tiny(), seed, torch.device("cpu"))
    train(replica, steps)
    return replica


def train(replica, steps):
    """Train a replica further; equal steps give equal states."""
    for _ in range(steps):
        inputs = torch.randn((8, 3), generator=torch.Generator().manual_seed(replica.step))
        replica.optimizer.zero_grad()
        replica.model(inputs).square().sum().backward()
        replica.optimizer.step()
        replica.step += 1

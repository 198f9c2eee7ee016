"""A map-style dataset with random rows, in a module that a process imports quickly."""

import random

import numpy as np
import torch


class Noisy:
    """Draws from each of the global generators, as transforms of torchvision do."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        if i == 14:
            raise ValueError("fourteen")
        old = np.random.rand()  # noqa: NPY002 - as users do
        return {"x": torch.rand(2) + old + random.random(), "i": i}

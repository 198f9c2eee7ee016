"""The tasks of the benchmarks, for raytrain_plus and for its peers."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from benchmarks.networks import CLASSES, IMAGE, convolutions
from raytrain_plus import Task
from raytrain_plus.task import Batch, load_task


class Classification(Task):
    """Random inputs of one shape with random labels; the speed does not depend on the data."""

    rows = 4096
    shape: tuple[int, ...] = ()

    def optimizer(self, model: nn.Module) -> Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy, one per sample."""
        return functional.cross_entropy(outputs, batch["label"], reduction="none")

    def arrays(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return inputs and labels."""
        draw = np.random.default_rng(0)
        inputs = draw.standard_normal((self.rows, *self.shape), np.float32)
        return inputs, draw.integers(0, CLASSES, self.rows)

    def data(self) -> pa.Table:
        """Return the arrays as a table."""
        inputs, labels = self.arrays()
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(inputs)
        return pa.table({"input": column, "label": labels})


class Convolutions(Classification):
    """Compute-bound: three convolutions with BatchNorm on 32x32 images, 0.1 MB of gradients."""

    shape = IMAGE

    def model(self) -> nn.Module:
        """Build the network."""
        return convolutions()


class Perceptron(Classification):
    """Communication-bound: 23 MB of gradients, and few samples to compute them from."""

    shape = (784,)

    def model(self) -> nn.Module:
        """Build the network."""
        return nn.Sequential(
            nn.Linear(784, 2048),
            nn.ReLU(),
            nn.Linear(2048, 2048),
            nn.ReLU(),
            nn.Linear(2048, CLASSES),
        )


class Tiny(Classification):
    """Almost nothing to compute, so that all other costs show."""

    shape = (32,)

    def model(self) -> nn.Module:
        """Build the network."""
        return nn.Linear(32, CLASSES)


@dataclass(frozen=True)
class Workload:
    """A task and the parts of its batch.

    Attributes:
        task: where the task is, for `load_task`.
        batch_size: samples per step, over all workers.
        logical_ranks: parts of a batch, over all workers; each is one micro-batch.
    """

    task: str
    batch_size: int
    logical_ranks: int

    def load(self) -> Classification:
        """Return the task."""
        task = load_task(self.task)
        assert isinstance(task, Classification)
        return task


COMPUTE_BOUND = Workload("benchmarks.tasks:Convolutions", 256, 8)
COMMUNICATION_BOUND = Workload("benchmarks.tasks:Perceptron", 64, 8)
TINY = Workload("benchmarks.tasks:Tiny", 64, 8)

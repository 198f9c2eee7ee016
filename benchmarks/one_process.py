"""Trains a recipe in this process, without Ray; the result has the same bits as any run of it.

It is for searches of hundreds of short runs: no process has to start, and the cost is the CPU time
of this process.
"""

import copy
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import torch

from raytrain_plus import configure
from raytrain_plus.algorithms import Step, Weave
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.streams.loader import Loader, to_device
from raytrain_plus.task import Task
from raytrain_plus.training.evaluation import Evaluation
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica

CPU = torch.device("cpu")


class Alone:
    """The transport of a single worker."""

    index, size = 0, 1
    peers: tuple[int, ...] = ()
    device = CPU

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return the message of the only worker."""
        return [payload]

    def post(self, sends: Any, receives: Any) -> Any:  # noqa: ARG002 - the protocol's
        """Do nothing: there is no other worker."""
        raise AssertionError

    def fence(self) -> None:
        """Do nothing: there is nothing to wait for."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A complete run.

    Attributes:
        metrics: the metrics of the evaluation at its end.
        seconds: CPU seconds of this process for training, the evaluation not counted.
        wall_seconds: the same by the wall clock.
        loss: the loss of the last step.
        costs: what each aspect's advice cost.
        digest: the digest of the final state.
    """

    metrics: Mapping[str, Any]
    seconds: float
    wall_seconds: float
    loss: float
    steps: int
    samples: int
    tokens: int
    costs: Mapping[str, Any]
    digest: str


def train(task: Task, recipe: Recipe, *, seed: int = 17, logical_ranks: int = 2) -> Result:
    """Train a recipe to its end and evaluate once."""
    torch.set_num_threads(1)
    task = dataclasses.replace(task, **recipe.task)  # type: ignore[type-var]
    data, held_out = configure.data_of(task, None, None)
    source = configure.open_for(task, data, "training data")
    part_rows = recipe.batch_size // logical_ranks
    clock = configure.clock(
        source,
        task,
        duration=recipe.duration,
        evaluate_every="1dur",
        batch_size=recipe.batch_size,
        logical_ranks=logical_ranks,
    )
    weave = Weave(recipe.aspects())
    replica = Replica.build(task, seed, CPU, weave=weave, clock=clock)
    loop = TrainingLoop(task, replica, weave)
    wire = Alone()
    loop.begin_generation([range(logical_ranks)], wire)
    order = source.order(logical_ranks, seed, part_rows)
    loader = Loader(
        source, order, part_rows=part_rows, lanes=range(logical_ranks), first_step=0, depth=2
    )
    began, wall = time.process_time(), time.perf_counter()
    loss = float("nan")
    try:
        while replica.step < clock.total_steps:
            loss = loop.run_step([to_device(part, CPU) for part in loader.next()]).loss
    finally:
        loader.close()
    seconds, wall_seconds = time.process_time() - began, time.perf_counter() - wall
    metrics = _evaluate(task, held_out, loop, weave, logical_ranks, seed)
    return Result(
        metrics=metrics,
        seconds=seconds,
        wall_seconds=wall_seconds,
        loss=loss,
        steps=replica.step,
        samples=replica.samples,
        tokens=replica.tokens,
        costs=copy.deepcopy(weave.spent()),
        digest=replica.digest(),
    )


def _evaluate(
    task: Task, held_out: Any, loop: TrainingLoop, weave: Weave, logical_ranks: int, seed: int
) -> Mapping[str, Any]:
    source = configure.open_for(task, held_out, "evaluation data")
    evaluation = Evaluation(task, source, source.plain_order(logical_ranks), 250, seed)
    loop.buffers.snapshot()
    step = Step(loop.replica.training, loop.replica.step)
    values = evaluation.run(step, weave, [range(logical_ranks)], Alone())
    loop.buffers.restore()
    return values

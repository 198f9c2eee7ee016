"""The cost per step of aspects that have nothing to do in the step.

Run as `python -m benchmarks.aspects [--quick] [--json]`.

The model is tiny and runs in one process, so that all other costs show. Measured is our loop with
no, one and ten idle aspects (each gives advice at every join point of a step and does nothing), and
with ten aspects that give no advice, against a bare PyTorch loop over the same batches. Composer's
Trainer costs 2.4 to 2.7 ms per batch more than a bare loop. Its latest release cannot be measured
here, since it needs another torch (see `docs/benchmarks.md`).
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.one_process import CPU, Alone
from benchmarks.report import Aim, Row
from benchmarks.tasks import Tiny
from raytrain_plus.algorithms import Advice, Aspect, Step, Weave
from raytrain_plus.clock import Clock
from raytrain_plus.task import Batch
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica

_MOST = 0.2  # milliseconds
_ROWS = 64
_POINTS = ("step", "batch", "forward", "loss", "backward", "update")


def idle(name: str) -> Aspect:
    """Return an aspect that gives advice at each join point and does nothing."""

    def advice(_: Aspect, step: Step) -> Advice:
        if step.number >= 0:
            return
        yield

    kind: type[Aspect] = type(name, (Aspect,), dict.fromkeys(_POINTS, advice))
    return kind()


def absent(name: str) -> Aspect:
    """Return an aspect that gives no advice in a step."""
    kind: type[Aspect] = type(name, (Aspect,), {})
    return kind()


def batches(task: Tiny) -> list[Batch]:
    """Return the data, cut into batches."""
    inputs, labels = (torch.from_numpy(array) for array in task.arrays())
    return [
        {"input": inputs[i : i + _ROWS], "label": labels[i : i + _ROWS]}
        for i in range(0, len(inputs), _ROWS)
    ]


def ours(aspects: list[Aspect]) -> Callable[[Batch], object]:
    """Return a function that runs one step of our loop."""
    task = Tiny()
    clock = Clock(total_steps=10**9, steps_per_epoch=64, batch_size=_ROWS, evaluate_every=10**9)
    weave = Weave(aspects)
    replica = Replica.build(task, 17, CPU, weave=weave, clock=clock)
    loop = TrainingLoop(task, replica, weave)
    loop.begin_generation([range(1)], Alone())
    return lambda batch: loop.run_step([batch])


def bare() -> Callable[[Batch], object]:
    """Return a function that runs one step of a plain loop, which reads the loss."""
    task = Tiny()
    model = task.model()
    optimizer = task.optimizer(model)

    def step(batch: Batch) -> float:
        loss: Tensor = task.loss(model(batch["input"]), batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def milliseconds(step: Callable[[Batch], object], data: list[Batch], rounds: int) -> float:
    """Return the CPU time per step."""
    began = time.process_time()
    for _ in range(rounds):
        for batch in data:
            step(batch)
    return (time.process_time() - began) / (rounds * len(data)) * 1e3


def main() -> None:
    """Measure all variants in turn, several times."""
    options = report.options("CPU time per step of idle aspects")
    torch.set_num_threads(1)
    data = batches(Tiny())
    kinds = {
        "bare loop": bare(),
        "no aspect": ours([]),
        "1 idle aspect": ours([idle("A")]),
        "10 idle aspects": ours([idle(name) for name in "ABCDEFGHIJ"]),
        "10 aspects without advice": ours([absent(name) for name in "ABCDEFGHIJ"]),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(3 if options.quick else 15):
        for name, step in kinds.items():
            found[name].append(milliseconds(step, data, 4 if options.quick else 10))
    rows: list[Row] = []
    for name, values in found.items():
        cost = report.median([v - b for v, b in zip(values, found["bare loop"], strict=True)])
        rows.append({"loop": name, "ms per step": report.median(values), "over bare ms": cost})
    report.show("milliseconds of CPU per step", rows)
    ten = next(row for row in rows if row["loop"] == "10 idle aspects")
    aims = [Aim("ms per step over a bare loop, 10 idle aspects", ten["over bare ms"], most=_MOST)]
    report.finish(aims, {"aspects": rows}, as_json=options.json)


if __name__ == "__main__":
    main()

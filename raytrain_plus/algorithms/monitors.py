"""Aspects that only look: they log values, write traces, and change no bit of a run.

They are no part of a run's identity: a resume may have others.
"""

import os
import socket
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step

_PAGE = os.sysconf("SC_PAGE_SIZE")


class LearningRateMonitor(Aspect):
    """Logs the learning rate of each parameter group in each step.

    With one group the name is `learning_rate`, otherwise `learning_rate/0` and so on.
    """

    observes: ClassVar[bool] = True

    def update(self, step: Step) -> Advice:
        """Log the rates of this update."""
        groups = step.optimizer.param_groups
        for i, group in enumerate(groups):
            step.log(f"learning_rate/{i}" if groups[1:] else "learning_rate", group["lr"])
        yield


class NormMonitor(Aspect):
    """Logs `gradient_norm`, before any clipping, and `parameter_norm`, every some steps.

    Attributes:
        every: steps from one to the next. Default 10.
    """

    observes: ClassVar[bool] = True
    runs_before: ClassVar[tuple[str, ...]] = ("*",)

    every: int = Field(10, ge=1)

    def update(self, step: Step) -> Advice:
        """Log the norms of the gradient that was summed over all logical ranks."""
        if step.number % self.every:
            return
        parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        step.log("gradient_norm", _norm(gradients))
        step.log("parameter_norm", _norm([p.detach() for p in parameters]))
        yield


class MemoryMonitor(Aspect):
    """Logs `memory_gb` of the first worker's process, and `device_memory_gb`, every some steps.

    The second is the most that tensors have held on its GPU.

    Attributes:
        every: steps from one to the next. Default 10.
    """

    observes: ClassVar[bool] = True

    every: int = Field(10, ge=1)

    def update(self, step: Step) -> Advice:
        """Log what the process holds now."""
        if step.number % self.every:
            return
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - a third of Path's time
            pages = int(file.read().split()[1])
        step.log("memory_gb", pages * _PAGE / 1e9)
        if next(step.model.parameters()).is_cuda:
            step.log("device_memory_gb", torch.cuda.max_memory_allocated() / 1e9)
        yield


class Profile(Aspect):
    """Writes a trace of chosen steps, one file for each worker, which opens in Perfetto.

    The file is `traces/step_N.HOST.PID.json` in the run's folder. Open it at
    https://ui.perfetto.dev.

    Attributes:
        steps: which steps, from 1.
        folder: another folder for the files. A relative path begins in the run's folder.
        stacks: also record where in the code each operation was called. Default False.
    """

    observes: ClassVar[bool] = True
    runs_before: ClassVar[tuple[str, ...]] = ("*",)

    steps: tuple[int, ...]
    folder: str = "traces"
    stacks: bool = False

    def step(self, step: Step) -> Advice:
        """Trace the step, if it is one of those chosen."""
        if step.number + 1 not in self.steps:
            return
        with torch.profiler.profile(with_stack=self.stacks) as profile:
            yield
        folder = step.folder / Path(self.folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{step.number + 1}.{socket.gethostname()}.{os.getpid()}.json"
        profile.export_chrome_trace(str(folder / name))


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all elements of some tensors."""
    if not tensors:
        return torch.zeros(())
    norms: list[Tensor] = list(torch._foreach_norm(tensors))  # noqa: SLF001
    total: Tensor = torch.stack(norms).double().norm()
    return total

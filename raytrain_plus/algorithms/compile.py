"""Compilation of the model.

Ansel et al. 2024, ASPLOS, "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode
Transformation and Graph Compilation" (doi 10.1145/3620665.3640366).
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.surgery import Surgery

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that says where compiled code is kept."""


class Compile(Aspect):
    """Compile the model's forward and backward with `torch.compile` when they first run.

    Attributes:
        cache: the folder for compiled code, for all workers of a node. None for the environment
            variable TORCHINDUCTOR_CACHE_DIR, or else PyTorch's default, one per user of a node.
            Default None.
        processes: number of compilers that a worker runs at the same time. Each one imports
            PyTorch. Workers of one node share what they compile. Default 1: the worker itself.
        versions: number of different shapes, modes and settings for which one function may be
            compiled; one more is an error. Default 64.
    """

    cache: str | None = None
    processes: int = Field(default=1, ge=1)
    versions: int = Field(default=64, ge=1)

    # Innermost: the model is compiled as all other aspects have changed it.
    runs_after: ClassVar[Sequence[str]] = ("*",)

    def fit(self, step: Step) -> Advice:
        """Make the model compile itself; the plain model does not."""
        check_compiler(next(step.model.parameters()).device)
        surgery = apply_compile(step.model, cache=self.cache, processes=self.processes)
        yield
        surgery.undo()

    def batch(self, step: Step) -> Advice:  # noqa: ARG002 - it is the same at each
        """Bound the number of compiled versions."""
        with at_most(self.versions):
            yield

    def evaluate(self, step: Step) -> Advice:  # noqa: ARG002
        """Bound the number of compiled versions."""
        with at_most(self.versions):
            yield


def apply_compile(model: nn.Module, *, cache: str | None = None, processes: int = 1) -> Surgery:
    """Make a model compile itself when it is first called; names and parameters stay the same.

    Args:
        model: the model.
        cache: the folder for compiled code; None for the environment's.
        processes: number of compilers that run at the same time.

    Returns:
        What was done, and can be undone.
    """
    surgery = Surgery(model)
    if cache is not None:
        before = os.environ.get(CACHE)
        os.environ[CACHE] = str(Path(cache).expanduser().resolve())
        surgery.on_undo(lambda: _set_environment(CACHE, before))
    compiled = model._compiled_call_impl  # noqa: SLF001 - there is no public way back
    # Static shapes: with automatic dynamic shapes, a process compiles the second shape that it sees
    # for all shapes. Its code, and so its bits, would depend on what it has seen, and a newcomer
    # has seen less. Deterministic: code is chosen by rules, never by measured speed.
    model.compile(dynamic=False, options={"deterministic": True, "compile_threads": processes})

    def undo() -> None:
        model._compiled_call_impl = compiled  # noqa: SLF001

    surgery.on_undo(undo)
    surgery.changed[""] = model
    return surgery


@contextmanager
def at_most(versions: int) -> Iterator[None]:
    """Raise an error instead of compiling more versions of a function than this.

    PyTorch would continue without compiling. That gives other bits, and only on the workers that
    have seen as many versions. PyTorch's settings hold for one thread, so they are set around each
    use.
    """
    from torch._dynamo import config  # noqa: PLC0415 - slow to import, and not needed by others

    with config.patch(
        recompile_limit=versions,
        accumulated_recompile_limit=max(versions, config.accumulated_recompile_limit),
        fail_on_recompile_limit_hit=True,
    ):
        yield


def check_compiler(device: torch.device) -> None:
    """Refuse a machine that cannot compile.

    Raises:
        AspectError: there is no C++ compiler; code for the CPU needs one.
    """
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(wanted) is None:
        raise AspectError(
            f"Compile needs a C++ compiler and there is no {wanted!r} on the path: install one "
            "(g++ or clang++), name it in the environment variable CXX, or leave Compile out"
        )


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value

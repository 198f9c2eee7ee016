"""Reset of a process between two runs.

A reused process must compute for each run what a new process would. The reset restores the settings
that libraries keep per process and that a task may change, and removes the user's modules. It then
repeats a small computation: if its bits differ from those of the new process, something is left
that cannot be undone, and the process must be replaced.
"""

import gc
import hashlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_OURS = "raytrain_plus"
_ROWS = 8


class ProcessBaseline:
    """The state of a process before its first run."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._paths = list(sys.path)
        self._modules = frozenset(sys.modules)
        self._warnings = list(warnings.filters)
        self._settings = [(set_to, get()) for get, set_to in _SETTINGS]
        self._reset_generators()
        self._bits = _bits()

    def restore(self, folders: Iterable[str]) -> str:
        """Undo what a run has changed; returns what is left, or an empty text.

        Args:
            folders: where the run's modules came from.
        """
        os.environ.clear()
        os.environ.update(self._environment)
        sys.path[:] = self._paths
        warnings.filters[:] = self._warnings  # type: ignore[index]  # a list, whatever its type says
        self._remove_modules([Path(folder) for folder in folders])
        for set_to, value in self._settings:
            set_to(value)
        torch.set_flush_denormal(False)
        torch.set_default_device(None)
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # noqa: SLF001 - the documented way
        self._reset_generators()
        gc.collect()
        return "" if _bits() == self._bits else "it computes other bits than when it was new"

    def _remove_modules(self, folders: list[Path]) -> None:
        """Remove the user's modules, so that the next run imports them again."""
        for name in set(sys.modules) - self._modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file and name.split(".")[0] != _OURS and _is_users(Path(file), folders):
                del sys.modules[name]

    def _reset_generators(self) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the generator that tasks may draw from


def _is_users(file: Path, folders: list[Path]) -> bool:
    """Say whether a module is the user's own, and not installed."""
    installed = {"site-packages", "dist-packages"}.intersection(file.parts)
    return not installed and any(file.is_relative_to(folder) for folder in folders)


# Settings that libraries keep per process: how to read each, and how to set it.
_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.is_autocast_cpu_enabled, torch.set_autocast_cpu_enabled),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (
        lambda: torch.backends.mkldnn.enabled,
        torch.backends.mkldnn.set_flags,
    ),
]


def _bits() -> str:
    """Return a digest of forward and backward passes through the usual kinds of layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 32), nn.GELU(), nn.LayerNorm(32), nn.Dropout(0.1), nn.Linear(32, 4),
        )  # fmt: skip
        images = torch.randn(_ROWS, 1, 8, 8, requires_grad=True)
        outputs = model(images)
        attended = functional.scaled_dot_product_attention(outputs, outputs, outputs)
        loss = functional.cross_entropy(attended, torch.arange(_ROWS) % 4, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        tiny = torch.full((_ROWS,), 1e-39) * 0.5  # which is zero where denormals are flushed
    digest = hashlib.sha256()
    grads = [parameter.grad for parameter in model.parameters()]
    for value in (outputs, loss, tiny, images.grad, *grads):
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor | None) -> bytes:
    if value is None:
        return b"none"
    return (
        str(value.dtype).encode() + value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    )

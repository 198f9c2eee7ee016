"""State of the process, which building a second replica must not change.

A task's `model()` and `optimizer()` may set threads, precision, the default dtype, seeds, or names
of their own module. They do so once in each process that trains. When a replica is built only to
compare, all of that is put back, since it can change the bits of the replica that trains.
"""

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from raytrain_plus.training.attributes import ABSENT
from raytrain_plus.user_code import is_users_module


def _flag(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _enable_gradients(enable: bool) -> None:
    torch.set_grad_enabled(enable)


def _deterministic() -> tuple[bool, bool]:
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warn


# Each with how it is read and how it is set; torch has no way to read `set_flush_denormal`.
_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.is_grad_enabled, _enable_gradients),
    (_deterministic, lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1])),
    (
        lambda: torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        lambda value: setattr(torch.utils.deterministic, "fill_uninitialized_memory", value),
    ),
    *(_flag(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
    *(_flag(torch.backends.mkldnn, name) for name in ("enabled", "deterministic")),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (np.geterr, lambda value: np.seterr(**value)),
]


def generator_bytes() -> tuple[bytes, ...]:
    """Return the states of the CPU's global generators, to compare."""
    of_torch, of_python, of_numpy, _ = generators()
    return (
        of_torch.numpy().tobytes(),
        repr(of_python).encode(),
        of_numpy[1].tobytes() + repr(of_numpy[2:]).encode(),
    )


def generators() -> list[Any]:
    """Return the states of all global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), random.getstate(), np.random.get_state(), cuda]  # noqa: NPY002


def set_generators(states: list[Any]) -> None:
    """Set the states of all global generators."""
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])


@contextmanager
def process_kept() -> Iterator[None]:
    """Put the process's state back afterwards: settings, generators, names of the user's modules.

    The content of lists and dictionaries is not put back here (`Attributes.undone` does that).
    """
    drawn = generators()
    settings = [read() for read, _ in _SETTINGS]
    environment = dict(os.environ)
    flushes = _flushes_denormals()
    names = [(owner, {**vars(owner)}) for owner in _owners()]
    try:
        yield
    finally:
        for owner, before in names:
            _restore_names(owner, before)
        for (read, put), value in zip(_SETTINGS, settings, strict=True):
            if read() != value:
                put(value)
        if _flushes_denormals() != flushes:
            torch.set_flush_denormal(flushes)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        set_generators(drawn)


def _flushes_denormals() -> bool:
    return not (torch.tensor([2.0**-1060], dtype=torch.float64) * 0.5).item()


def _owners() -> list[Any]:
    """Return the user's modules, and the classes that they define."""
    modules = [module for name, module in [*sys.modules.items()] if is_users_module(name)]
    classes = [
        value
        for module in modules
        for value in [*vars(module).values()]
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return [*modules, *classes]


def _restore_names(owner: Any, before: dict[str, Any]) -> None:
    for key in [*before, *vars(owner)]:
        value = before.get(key, ABSENT)
        if vars(owner).get(key, ABSENT) is value or key in ("__dict__", "__weakref__"):
            continue
        if value is ABSENT:
            delattr(owner, key)
        else:
            setattr(owner, key, value)

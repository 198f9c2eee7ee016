"""Names the module in which a failed step's numbers stop being finite.

It is looked for only after a step has failed: the part is computed again, with hooks on all
modules. Before that nothing is watched, and nothing costs time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_plus.task import Batch


def explain(model: nn.Module, batch: Batch, compute: Callable[[], object]) -> str:
    """Return where NaN or infinity comes from, as a sentence; empty if that is not found.

    Args:
        model: the model.
        batch: the part's batch.
        compute: runs forward and backward of the part, and leaves no trace.
    """
    bad = [name for name, value in batch.items() if not _is_finite(value)]
    if bad:
        return f"The data of {bad[0]!r} is not finite itself."
    forward: list[str] = []
    backward: list[str] = []
    # An error of the diagnosis must not replace the error that it explains.
    with suppress(Exception), _watched(model, forward, backward):
        compute()
    if forward:
        return f"The first output that is not finite is that of {forward[0]}."
    if backward:
        return (
            f"In the backward, the gradient is not finite from the output of {backward[0]} on: "
            "look at what is computed from it."
        )
    return ""


@contextmanager
def _watched(model: nn.Module, forward: list[str], backward: list[str]) -> Iterator[None]:
    """Note the modules whose output, or whose output's gradient, is not finite, in order."""

    def output(name: str, _module: nn.Module, _inputs: object, outputs: object) -> None:
        for tensor in _tensors(outputs):
            if not _is_finite(tensor):
                forward.append(name)
            if tensor.requires_grad:
                tensor.register_hook(partial(gradient, name))  # type: ignore[no-untyped-call]

    def gradient(name: str, value: Tensor) -> None:
        if not _is_finite(value):
            backward.append(name)

    hooks = [
        module.register_forward_hook(partial(output, _called(name, module)))
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _called(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"{name!r} ({kind})" if name else f"the model itself ({kind})"


def _is_finite(value: object) -> bool:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value.detach()).all())


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from _tensors(value)

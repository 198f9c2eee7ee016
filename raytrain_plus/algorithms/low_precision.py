"""Training in bfloat16 where that is safe, and in float32 elsewhere.

Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training" (arXiv 1905.12322), in the
manner of Micikevicius et al. 2017, "Mixed Precision Training" (arXiv 1710.03740).
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step


def _supported(dtype: str) -> str:
    if dtype != "bfloat16":
        why = "needs its losses scaled, which is not done here" if dtype == "float16" else "is none"
        raise ValueError(f"dtype {dtype!r} {why}: use bfloat16")
    return dtype


class LowPrecision(Aspect):
    """Compute forward and loss under `torch.autocast`: products in bfloat16, sums in float32.

    Parameters, gradients and the optimizer stay float32. Other code gets outputs and losses in
    float32.

    Attributes:
        dtype: dtype of products. Only "bfloat16", which has the range of float32 and needs no loss
            scaling. Default "bfloat16".
        evaluation: whether evaluations use it, too. Default True.
    """

    dtype: Annotated[str, AfterValidator(_supported)] = "bfloat16"
    evaluation: bool = True

    # Innermost, so that other methods compute with float32 outputs and losses.
    runs_after: ClassVar[Sequence[str]] = ("*",)

    def forward(self, step: Step) -> Advice:
        """Compute the outputs in low precision, and return them as float32."""
        with low_precision(step.model):
            yield
        step.outputs = in_float32(step.outputs)

    def loss(self, step: Step) -> Advice:
        """Compute the losses in low precision, and return them as float32."""
        with low_precision(step.model):
            yield
        step.losses = in_float32(step.losses)

    def evaluate(self, step: Step) -> Advice:
        """Evaluate in low precision."""
        if not self.evaluation:
            return
        with low_precision(step.model):
            yield


def low_precision(model: nn.Module) -> torch.autocast:
    """Return the context in which a model computes in bfloat16 where that is safe.

    Args:
        model: the model; its parameters determine the kind of device.
    """
    kind = next(model.parameters()).device.type
    return torch.autocast(kind, dtype=torch.bfloat16)


def in_float32(values: Any) -> Any:
    """Return values with each bfloat16 tensor converted to float32.

    Args:
        values: a tensor, or a list, tuple or mapping of such values; other values are returned
            unchanged.
    """
    if isinstance(values, Tensor):
        return values.float() if values.dtype == torch.bfloat16 else values
    if isinstance(values, dict):
        changed = {key: in_float32(value) for key, value in values.items()}
        return changed if type(values) is dict else type(values)(**changed)
    if isinstance(values, list | tuple):
        items = [in_float32(value) for value in values]
        return type(values)(*items) if hasattr(values, "_fields") else type(values)(items)
    return values

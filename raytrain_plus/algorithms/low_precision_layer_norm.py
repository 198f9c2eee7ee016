"""Layer normalisation (Ba, Kiros, Hinton 2016, arXiv 1607.06450) computed in bfloat16."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.surgery import Surgery


class LowPrecisionLayerNorm(Aspect):
    """Compute every layer normalisation in bfloat16; its weights and their updates keep theirs."""

    def fit(self, step: Step) -> Advice:
        """Change how layer normalisations compute."""
        surgery = apply_low_precision_layer_norm(step.model, step.optimizer)
        surgery.warn_if_unchanged("LowPrecisionLayerNorm", "torch.nn.LayerNorm")
        yield
        surgery.undo()


def apply_low_precision_layer_norm(model: nn.Module, optimizer: Optimizer | None = None) -> Surgery:
    """Let every `nn.LayerNorm` of a model compute in bfloat16.

    Subclasses that have a forward of their own are left as they are. What is returned has the
    dtype of autocast where that is on, and the input's where not.

    Args:
        model: the model.
        optimizer: may be left out; no parameter is added.
    """
    surgery = Surgery(model, optimizer)
    for name, module in surgery.candidates(nn.LayerNorm, _InBfloat16):
        if type(module).forward is nn.LayerNorm.forward:
            surgery.mix_in(name, module, _InBfloat16)
    return surgery


def output_dtype(x: Tensor) -> torch.dtype:
    """Return autocast's dtype where it is on for the tensor's device, and the tensor's if not."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def in_bfloat16(parameter: Tensor | None) -> Tensor | None:
    """Return a parameter that may be left out in bfloat16."""
    return None if parameter is None else parameter.to(torch.bfloat16)


class _InBfloat16:
    normalized_shape: tuple[int, ...]
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            low = functional.layer_norm(
                x.to(torch.bfloat16),
                self.normalized_shape,
                in_bfloat16(self.weight),
                in_bfloat16(self.bias),
                self.eps,
            )
        return low.to(output_dtype(x))

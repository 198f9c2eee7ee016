"""Layer normalisation (Ba, Kiros, Hinton 2016, arXiv 1607.06450) computed in bfloat16."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.surgery import Surgery


class LowPrecisionLayerNorm(Aspect):
    """Compute each layer normalisation in bfloat16; weights and updates keep their dtype."""

    def fit(self, step: Step) -> Advice:
        """Change how layer normalisations compute."""
        surgery = apply_low_precision_layer_norm(step.model, step.optimizer)
        surgery.warn_if_unchanged("LowPrecisionLayerNorm", "torch.nn.LayerNorm")
        yield
        surgery.undo()


def apply_low_precision_layer_norm(model: nn.Module, optimizer: Optimizer | None = None) -> Surgery:
    """Make each `nn.LayerNorm` of a model compute in bfloat16; see `compute_in_bfloat16`."""
    return compute_in_bfloat16(model, nn.LayerNorm, _LayerNorm, optimizer)


def compute_in_bfloat16(
    model: nn.Module,
    kind: type[nn.Module],
    mixin: "type[InBfloat16]",
    optimizer: Optimizer | None = None,
) -> Surgery:
    """Make each normalisation of a kind compute in bfloat16.

    Subclasses with their own forward are left unchanged. The output has autocast's dtype if
    autocast is on, else the input's.

    Args:
        model: the model.
        kind: PyTorch's class of the normalisation.
        mixin: the class that computes it in bfloat16.
        optimizer: may be left out; no parameter is added.
    """
    surgery = Surgery(model, optimizer)
    for name, module in surgery.candidates(kind, mixin):
        if type(module).forward is kind.forward:
            surgery.mix_in(name, module, mixin)
    return surgery


def output_dtype(x: Tensor) -> torch.dtype:
    """Return autocast's dtype if autocast is on for the tensor's device, else the tensor's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class InBfloat16:
    """A normalisation that computes with its input, weight and bias in bfloat16."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, and return the dtype that the surrounding code expects."""
        low = [None if t is None else t.to(torch.bfloat16) for t in (self.weight, self.bias)]
        with torch.autocast(x.device.type, enabled=False):
            normalized = self.normalize(x.to(torch.bfloat16), *low)
        return normalized.to(output_dtype(x))

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Compute the normalisation itself."""
        raise NotImplementedError


class _LayerNorm(InBfloat16):
    normalized_shape: tuple[int, ...]

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

"""Group normalisation (Wu, He 2018, arXiv 1803.08494) computed in bfloat16."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.low_precision_layer_norm import in_bfloat16, output_dtype
from raytrain_plus.algorithms.surgery import Surgery


class LowPrecisionGroupNorm(Aspect):
    """Compute every group normalisation in bfloat16; its weights and their updates keep theirs."""

    def fit(self, step: Step) -> Advice:
        """Change how group normalisations compute."""
        surgery = apply_low_precision_group_norm(step.model, step.optimizer)
        surgery.warn_if_unchanged("LowPrecisionGroupNorm", "torch.nn.GroupNorm")
        yield
        surgery.undo()


def apply_low_precision_group_norm(model: nn.Module, optimizer: Optimizer | None = None) -> Surgery:
    """Let every `nn.GroupNorm` of a model compute in bfloat16.

    Subclasses that have a forward of their own are left as they are. What is returned has the
    dtype of autocast where that is on, and the input's where not.

    Args:
        model: the model.
        optimizer: may be left out; no parameter is added.
    """
    surgery = Surgery(model, optimizer)
    for name, module in surgery.candidates(nn.GroupNorm, _InBfloat16):
        if type(module).forward is nn.GroupNorm.forward:
            surgery.mix_in(name, module, _InBfloat16)
    return surgery


class _InBfloat16:
    num_groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            low = functional.group_norm(
                x.to(torch.bfloat16),
                self.num_groups,
                in_bfloat16(self.weight),
                in_bfloat16(self.bias),
                self.eps,
            )
        return low.to(output_dtype(x))

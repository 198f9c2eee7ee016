"""Group normalisation (Wu, He 2018, arXiv 1803.08494) computed in bfloat16."""

from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.low_precision_layer_norm import InBfloat16, compute_in_bfloat16
from raytrain_plus.algorithms.surgery import Surgery


class LowPrecisionGroupNorm(Aspect):
    """Compute each group normalisation in bfloat16; weights and updates keep their dtype."""

    def fit(self, step: Step) -> Advice:
        """Change how group normalisations compute."""
        surgery = apply_low_precision_group_norm(step.model, step.optimizer)
        surgery.warn_if_unchanged("LowPrecisionGroupNorm", "torch.nn.GroupNorm")
        yield
        surgery.undo()


def apply_low_precision_group_norm(model: nn.Module, optimizer: Optimizer | None = None) -> Surgery:
    """Make each `nn.GroupNorm` of a model compute in bfloat16; see `compute_in_bfloat16`."""
    return compute_in_bfloat16(model, nn.GroupNorm, _GroupNorm, optimizer)


class _GroupNorm(InBfloat16):
    num_groups: int

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return functional.group_norm(x, self.num_groups, weight, bias, self.eps)

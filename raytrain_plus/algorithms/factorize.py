"""Low-rank factorisation of linear layers and convolutions.

Two thin layers replace a thick one: Denton, Zaremba, Bruna, LeCun, Fergus 2014, "Exploiting Linear
Structure Within Convolutional Networks for Efficient Evaluation" (arXiv 1404.0736), and Jaderberg,
Vedaldi, Zisserman 2014 (arXiv 1405.3866). As a training method it follows MosaicML's Composer.
"""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.surgery import Surgery


class Factorize(Aspect):
    """Replace the weights of large layers with products of two thin ones, where that saves work.

    Attributes:
        rank: below 1, a fraction of a layer's input or output features, whichever are fewer; from 1
            on, a number of features. Default 0.25.
        min_features: layers with fewer input or output features (channels) are left unchanged.
            Default 512.
    """

    rank: float = Field(default=0.25, gt=0)
    min_features: int = Field(default=512, ge=2)

    # Layers that another method has changed are skipped, so such methods run first.
    runs_after: ClassVar[Sequence[str]] = ("BlurPool",)
    conflicts_with: ClassVar[Sequence[str]] = ("WeightStandardization",)

    @field_validator("rank")
    @classmethod
    def _share_or_number(cls, rank: float) -> float:
        _check_rank(rank)
        return rank

    def fit(self, step: Step) -> Advice:
        """Factorise; in the plain model the weight is the product."""
        surgery = apply_factorization(
            step.model,
            rank=self.rank,
            min_features=self.min_features,
            optimizer=step.optimizer,
        )
        surgery.warn_if_unchanged(
            self.name,
            f"Linear and Conv2d layers with at least {self.min_features} features on both sides "
            "for which two thin layers are less work",
        )
        yield
        surgery.undo()


def apply_factorization(
    model: nn.Module,
    *,
    rank: float = 0.25,
    min_features: int = 512,
    optimizer: Optimizer | None = None,
) -> Surgery:
    """Replace the weights of large `Linear` and `Conv2d` layers with two factors, in place.

    A layer's `weight` is replaced by `weight_in`, which maps to `rank` features, and `weight_out`,
    which maps from them. Reading `weight` gives their product, at first the one nearest to the old
    weight. Left unchanged are layers that would not become cheaper, that are frozen, grouped, or
    share their weight with another module, and subclasses that compute something else.

    Args:
        model: the model.
        rank: below 1, a fraction of a layer's input or output features, whichever are fewer; from 1
            on, a number of features.
        min_features: the fewest input and output features of a layer that is changed.
        optimizer: trains the factors in the parameter group of the weight.

    Returns:
        What was done; its `undo` multiplies the factors.

    Raises:
        AspectError: the rank is neither a fraction nor a whole number.
    """
    try:
        _check_rank(rank)
    except ValueError as error:
        raise AspectError(str(error)) from error
    surgery = Surgery(model, optimizer)
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values())  # noqa: SLF001
    kinds: list[tuple[type[nn.Module], type[_Factorized]]] = [
        (nn.Linear, _FactorizedLinear),
        (nn.Conv2d, _FactorizedConv2d),
    ]
    for kind, mixin in kinds:
        for name, layer in surgery.candidates(kind, _Factorized):
            weight = layer._parameters.get("weight")  # noqa: SLF001 - None where it is computed
            if weight is None or uses[id(weight)] > 1 or not weight.requires_grad:
                continue
            if _is_plain(layer) and min(weight.shape[:2]) >= min_features:
                r = max(1, round(rank * min(weight.shape[:2]))) if rank < 1 else int(rank)
                if r * (weight[0].numel() + len(weight)) < weight.numel():
                    _factorize(surgery, name, layer, mixin, r)
    return surgery


@torch.no_grad()
def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the two thin weights whose product is nearest to a weight (Eckart, Young 1936).

    Args:
        weight: of a linear layer, shape (after, before), or of a convolution, shape
            (after, before, height, width).
        rank: features between the two.

    Returns:
        The weight that maps to `rank` features, shape (rank, before, ...), and the one that maps
        from them, shape (after, rank, 1, ...). Both have the same scale.
    """
    # In float64 on the CPU: exact enough for every dtype, and the same on every device.
    u, s, v = torch.linalg.svd(weight.double().cpu().flatten(1), full_matrices=False)
    root = s[:rank].sqrt()
    inner = (root[:, None] * v[:rank]).reshape(rank, *weight.shape[1:])
    outer = (u[:, :rank] * root).reshape(len(weight), rank, *[1] * (weight.ndim - 2))
    return inner.to(weight), outer.to(weight)


class _Factorized:
    """A layer with two factors instead of its weight."""

    weight_in: nn.Parameter
    weight_out: nn.Parameter
    bias: nn.Parameter | None

    @property
    def weight(self) -> Tensor:
        """The product of the factors, for code that reads the weight."""
        inner = self.weight_in
        return (self.weight_out.flatten(1) @ inner.flatten(1)).reshape(-1, *inner.shape[1:])


class _FactorizedLinear(_Factorized):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.weight_in), self.weight_out, self.bias)


class _FactorizedConv2d(_Factorized):
    def forward(self, x: Tensor) -> Tensor:
        # The layer's own method handles its stride, padding, dilation and padding mode.
        thin = self._conv_forward(x, self.weight_in, None)  # type: ignore[attr-defined]
        return functional.conv2d(thin, self.weight_out, self.bias)


def _check_rank(rank: float) -> None:
    if rank <= 0 or (rank >= 1 and rank != int(rank)):
        raise ValueError(
            f"rank {rank} is neither a fraction of the features, above 0 and below 1, nor a whole "
            "number of them: write 0.25 or 64"
        )


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer computes what its PyTorch class does, through its own call."""
    kind = type(layer)
    if isinstance(layer, nn.Conv2d):
        return (
            kind.forward is nn.Conv2d.forward
            and kind._conv_forward is nn.Conv2d._conv_forward  # type: ignore[attr-defined]  # noqa: SLF001
            and layer.groups == 1
        )
    # nn.MultiheadAttention reads this layer's weight and never calls the layer.
    attention = isinstance(layer, NonDynamicallyQuantizableLinear)
    return kind.forward is nn.Linear.forward and not attention


def _factorize(
    surgery: Surgery, name: str, layer: nn.Module, mixin: type[_Factorized], rank: int
) -> None:
    old = layer._parameters["weight"]  # noqa: SLF001 - the type of `layer.weight` is not known
    assert old is not None
    new = [nn.Parameter(factor) for factor in factors(old, rank)]
    surgery.replace_parameter(
        layer, "weight", dict(zip(("weight_in", "weight_out"), new, strict=True)), like=old
    )
    surgery.mix_in(name, layer, mixin)

    @torch.no_grad()
    def multiply() -> None:
        assert isinstance(layer.weight, Tensor)
        old.copy_(layer.weight)

    surgery.on_undo(multiply)

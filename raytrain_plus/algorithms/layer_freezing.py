"""Layer freezing (FreezeOut, Brock et al. 2017, arXiv 1706.04983; as in MosaicML's Composer)."""

from typing import Self

from pydantic import Field, model_validator
from torch import nn

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.times import Time, check_order


class LayerFreezing(Aspect):
    """Freeze layers one after the other, from the first on, as training proceeds.

    No gradient is computed for frozen layers, and the backward stops before them. Without a
    gradient, neither momentum nor weight decay changes their parameters. Their BatchNorm statistics
    still change.

    Attributes:
        fraction: the fraction of layers that are frozen in the end, in [0, 1). Default 0.5.
        start: when freezing starts. Default "0.5dur".
        finish: when `fraction` is reached; the number of frozen layers grows linearly. Default
            "1dur".
    """

    fraction: float = Field(default=0.5, ge=0, lt=1)
    start: Time = "0.5dur"
    finish: Time = "1dur"

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        check_order(self.start, self.finish)
        return self

    def step(self, step: Step) -> Advice:
        """Freeze for one step."""
        share = self._share(step)
        frozen = freeze_layers(step.model, share) if share else []
        if not frozen:
            return
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_()

    def _share(self, step: Step) -> float:
        start, finish = (step.clock.step_of(time) for time in (self.start, self.finish))
        done = (step.number - start) / max(1, finish - start)
        return self.fraction * min(max(done, 0.0), 1.0)


def freeze_layers(model: nn.Module, fraction: float) -> list[nn.Parameter]:
    """Make the first layers of a model require no gradient; the last layer always requires one.

    Args:
        model: the model.
        fraction: the fraction of its layers, in [0, 1]; the number is rounded down.

    Returns:
        The parameters that required a gradient before.
    """
    found = layers(model)
    first = found[: min(int(fraction * len(found)), len(found) - 1)]
    frozen = [parameter for layer in first for parameter in layer]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the trainable parameters of each module that owns some, in model order.

    A parameter that several modules share belongs to the last of them.
    """
    owned = [list(module.parameters(recurse=False)) for module in model.modules()]
    owner = {parameter: i for i, own in enumerate(owned) for parameter in own}
    trained = [[p for p in own if p.requires_grad and owner[p] == i] for i, own in enumerate(owned)]
    return [own for own in trained if own]

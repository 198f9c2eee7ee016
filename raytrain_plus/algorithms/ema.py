"""Exponential moving average of the weights (Tarvainen and Valpola 2017, arXiv 1703.01780)."""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor, nn

from raytrain_plus.algorithms.aspect import Advice, Step
from raytrain_plus.algorithms.times import Interval, Time, due
from raytrain_plus.algorithms.weight_averaging import (
    WeightAveraging,
    count_one_more,
    kept,
    move_average,
)


class EMA(WeightAveraging):
    """Evaluate and export a moving average of the weights; the training itself is unchanged.

    Trainable parameters and running statistics (BatchNorm's) are averaged. Other buffers keep their
    current values. Before `start` there is no average, and the live weights are evaluated.

    Attributes:
        half_life: time after which a value counts half in the average. Default "100ba", 100 steps.
        smoothing: the weight of the old average in the new one, in [0, 1); replaces `half_life`.
            Default None.
        update_interval: time between two updates of the average. Default "1ba", every step.
        start: when the average starts, with the weights of that moment. Default "0dur", the run's
            first step.
    """

    conflicts_with = ("SWA",)

    half_life: Interval = "100ba"
    smoothing: float | None = Field(default=None, ge=0, lt=1)
    update_interval: Interval = "1ba"
    start: Time = "0dur"

    def update(self, step: Step) -> Advice:
        """Move the average towards the weights that the optimizer has set."""
        if not due(step.clock, step.number + 1, self.start, self.update_interval):
            return
        yield
        averages, count = kept(step.state(self))
        update_ema(averages, step.model, self._smoothing(step) if count else 0.0)
        count_one_more(step.state(self))

    def _smoothing(self, step: Step) -> float:
        if self.smoothing is not None:
            return self.smoothing
        half_life, interval = (
            max(1, step.clock.step_of(text)) for text in (self.half_life, self.update_interval)
        )
        return smoothing_of(half_life, interval)


def update_ema(averages: Mapping[str, Tensor], model: nn.Module, smoothing: float) -> None:
    """Update averages in place: `smoothing * average + (1 - smoothing) * value`.

    Args:
        averages: by name, from `weight_averaging.begin_average(model)`.
        model: the model whose values are averaged.
        smoothing: in [0, 1]; 0 sets the averages to the current values.
    """
    move_average(averages, model, 1.0 - smoothing)


def smoothing_of(half_life: float, interval: float = 1) -> float:
    """Return the smoothing for which a value counts half after `half_life` steps.

    Args:
        half_life: in steps, above zero.
        interval: steps between two updates.
    """
    smoothing: float = 0.5 ** (interval / half_life)
    return smoothing

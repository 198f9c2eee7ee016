"""Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407)."""

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


class SWA(WeightAveraging):
    """Evaluate and export the plain mean of the weights at regular times near the run's end.

    BatchNorm statistics are averaged like weights. The paper measures them again instead, in one
    more pass over the data. Before `start` the live weights are evaluated.

    Attributes:
        start: when the first weights are added to the mean. Default "0.7dur".
        interval: time between two additions. Default "1ep".
        learning_rate: a factor on the scheduled learning rate from `start` on; None leaves it
            unchanged. Default None.
    """

    start: Time = "0.7dur"
    interval: Interval = "1ep"
    learning_rate: float | None = Field(default=None, gt=0)

    def update(self, step: Step) -> Advice:
        """Change the update's learning rate, and add the weights after the update to the mean."""
        takes = due(step.clock, step.number + 1, self.start, self.interval)
        scales = self.learning_rate is not None and step.number >= step.clock.step_of(self.start)
        if not (takes or scales):
            return
        if scales:
            for group in step.optimizer.param_groups:
                group["lr"] *= self.learning_rate
        yield
        if takes:
            averages, count = kept(step.state(self))
            update_swa(averages, step.model, count)
            count_one_more(step.state(self))


def update_swa(averages: Mapping[str, Tensor], model: nn.Module, count: int) -> None:
    """Add a model's values to the mean of `count` earlier ones, in place.

    Args:
        averages: by name, from `weight_averaging.begin_average(model)`.
        model: the model whose values are averaged.
        count: the number of values in the mean; 0 sets the averages to the current values.
    """
    move_average(averages, model, 1.0 / (count + 1))

"""Rules that end a run before its last step, decided from values that all workers have alike. Pure.

Each worker decides by itself, after a step or an evaluation. The values have the same bits on any
number of workers, so all of them stop after the same step, also after failures and a resume. What a
worker that joins later has not seen is in its plan: the evaluations before, and the last values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop when a metric has not improved for some evaluations.

    Attributes:
        metric: of the evaluation.
        patience: evaluations in a row without an improvement.
        mode: whether `max` or `min` is better. Default `max`.
        min_change: a smaller change is no improvement. Default 0.0.
    """

    metric: str
    patience: int = 3
    mode: Literal["max", "min"] = "max"
    min_change: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_change < 0 or self.mode not in ("max", "min"):
            raise ValueError(
                f"early stopping by {self.metric!r} has patience {self.patience}, mode "
                f"{self.mode!r} and min_change {self.min_change}: the patience must be at least 1, "
                "the mode max or min, and the change not negative"
            )

    def reason(self, values: Sequence[float]) -> str:
        """Return why to stop; empty to go on.

        Args:
            values: of all evaluations up to now, in order. NaN is no improvement.
        """
        sign = 1.0 if self.mode == "max" else -1.0
        best, since = -math.inf, 0
        for value in values:
            since += 1
            if sign * value > best + (self.min_change if best > -math.inf else 0.0):
                best, since = sign * value, 0
        if since < self.patience:
            return ""
        known = f"{sign * best:g}" if best > -math.inf else "none"
        return f"{self.metric} has not improved for {since} evaluations; its best is {known}"


@dataclass(frozen=True, kw_only=True)
class StopAt:
    """Stop as soon as a value is above or below a bound.

    Attributes:
        name: `loss`, a logged scalar, or a metric of the evaluation.
        above: stop if the value is at least this. Default: none.
        below: stop if the value is at most this. Default: none.
    """

    name: str
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ValueError(f"stopping at {self.name!r} needs a bound: above or below")

    def reason(self, values: Mapping[str, float]) -> str:
        """Return why to stop; empty to go on.

        Args:
            values: of the step, and of the evaluation that follows it.
        """
        value = values.get(self.name, math.nan)
        if self.above is not None and value >= self.above:
            return f"{self.name} is {value:g}, which is at least {self.above:g}"
        if self.below is not None and value <= self.below:
            return f"{self.name} is {value:g}, which is at most {self.below:g}"
        return ""


Rule: TypeAlias = EarlyStopping | StopAt


class Stopping:
    """What a worker knows for its decision.

    Args:
        rules: of the run.
        evaluations: step and metrics of those before, in order.
        step: committed steps.
        values: of that step, as far as they are known.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        evaluations: Sequence[tuple[int, Mapping[str, Any]]],
        step: int,
        values: Mapping[str, float],
    ) -> None:
        self._rules = rules
        self._evaluations = list(evaluations)
        self._step, self._values = step, values

    def add_step(self, step: int, loss: float, logged: Mapping[str, float]) -> None:
        """Note a committed step."""
        if self._rules:
            self._step, self._values = step, {**logged, "loss": loss}

    def add_evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Note an evaluation."""
        if self._rules:
            self._evaluations.append((step, metrics))

    def unmeasured(self, metrics: Mapping[str, Any]) -> str:
        """Return why early stopping would never stop the run; empty if it may.

        Args:
            metrics: of an evaluation of all sets.
        """
        for rule in self._rules:
            if isinstance(rule, EarlyStopping) and rule.metric not in metrics:
                known = ", ".join(metrics) or "nothing"
                return (
                    f"early stopping looks at {rule.metric!r}, and the evaluation has measured "
                    f"{known}: name one of these"
                )
        return ""

    @property
    def is_evaluated(self) -> bool:
        """Whether the present state has been evaluated."""
        return bool(self._evaluations) and self._evaluations[-1][0] == self._step

    def reason(self) -> str:
        """Return why to stop now; empty to go on."""
        metrics = self._evaluations[-1][1] if self.is_evaluated else {}
        for rule in self._rules:
            if isinstance(rule, StopAt):
                why = rule.reason({**numbers(metrics), **self._values})
            else:
                told = [numbers(found) for _, found in self._evaluations]
                why = rule.reason([found[rule.metric] for found in told if rule.metric in found])
            if why:
                return why
        return ""


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are one number."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }

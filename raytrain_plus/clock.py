"""Where a run is: steps, epochs, batches, samples, and how long it lasts."""

import re
from dataclasses import dataclass

_UNITS = {"ep": "epochs", "ba": "batches (steps)", "sp": "samples"}


class DurationError(ValueError):
    """A duration that cannot be understood."""


@dataclass(frozen=True)
class Duration:
    """A length of training, such as `10ep`.

    Attributes:
        value: how many, above zero; a fraction only of epochs.
        unit: `ep` (epochs), `ba` (batches, that is steps) or `sp` (samples).
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read `10ep`, `0.5ep`, `500ba` or `20000sp`.

        Raises:
            DurationError: the text is none of these.
        """
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", str(text))
        if match is None or match[2] not in _UNITS:
            units = ", ".join(f"{unit} ({meaning})" for unit, meaning in _UNITS.items())
            raise DurationError(
                f"duration {text!r} is not a number and a unit; the units are {units}: "
                "write 10ep, 500ba or 20000sp"
            )
        duration = cls(float(match[1]), match[2])
        if duration.value <= 0:
            raise DurationError(f"duration {text!r} must be above zero")
        if duration.unit != "ep" and duration.value != int(duration.value):
            raise DurationError(f"duration {text!r}: only epochs may be a fraction")
        return duration

    def steps(self, steps_per_epoch: int, batch_size: int) -> int:
        """Return the number of whole steps, at least 1."""
        steps = {
            "ep": self.value * steps_per_epoch,
            "ba": self.value,
            "sp": self.value / batch_size,
        }
        return max(1, int(steps[self.unit] + 1e-9))


@dataclass(frozen=True)
class Clock:
    """The lengths that turn a number of committed steps into every other unit.

    Attributes:
        total_steps: the step after which the run ends.
        steps_per_epoch: whole global batches in an epoch.
        batch_size: samples in a global batch.
        evaluate_every: steps between evaluations; also one at the end.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    evaluate_every: int

    def progress(self, step: int) -> float:
        """Return the fraction of the run that `step` committed steps are, in [0, 1]."""
        return step / self.total_steps

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, in which the step after `step` committed ones falls."""
        return step // self.steps_per_epoch

    def evaluation_due(self, step: int) -> bool:
        """Say whether the model is evaluated when `step` steps are committed."""
        return step > 0 and (step % self.evaluate_every == 0 or step == self.total_steps)

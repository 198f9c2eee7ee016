"""The length of a run, and a place in it: steps, epochs, batches, samples, tokens."""

import re
from dataclasses import dataclass
from functools import cache

_UNITS = {
    "ep": "epochs",
    "ba": "batches (steps)",
    "sp": "samples",
    "tok": "tokens",
    "dur": "the whole run's duration",
}
_FRACTIONS = ("ep", "dur")


class DurationError(ValueError):
    """A duration that cannot be understood."""


@dataclass(frozen=True)
class Duration:
    """A length of training, such as `10ep`.

    Attributes:
        value: how many, at least zero; only epochs and the whole run may be fractions.
        unit: `ep` (epochs), `ba` (batches, that is steps), `sp` (samples), `tok` (tokens) or `dur`
            (the duration of the run).
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read `10ep`, `0.5ep`, `500ba`, `20000sp`, `1000000tok` or `0.5dur`.

        Raises:
            DurationError: the text has another form.
        """
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", str(text))
        if match is None or match[2] not in _UNITS:
            units = ", ".join(f"{unit} ({meaning})" for unit, meaning in _UNITS.items())
            raise DurationError(
                f"duration {text!r} is not a number and a unit; the units are {units}: "
                "write 10ep, 500ba, 20000sp, 1000000tok or 0.5dur"
            )
        duration = cls(float(match[1]), match[2])
        if duration.unit not in _FRACTIONS and duration.value != int(duration.value):
            raise DurationError(f"duration {text!r}: only epochs and dur may be a fraction")
        if duration.unit == "dur" and duration.value > 1:
            raise DurationError(f"duration {text!r} is longer than the run: at most 1dur")
        return duration

    def steps(self, lengths: "Lengths", total_steps: int | None = None) -> int:
        """Return the number of whole steps.

        Args:
            lengths: of an epoch and a batch.
            total_steps: of the run; None if it is not known, because it is being computed.

        Raises:
            DurationError: the unit is `dur` and the run's length is not known, or it is `tok` and
                the task has no tokens.
        """
        if self.unit == "dur" and total_steps is None:
            raise DurationError(
                f"{self.value:g}dur is a fraction of the run, and cannot be the run's length"
            )
        if self.unit == "tok" and not lengths.tokens_per_sample:
            raise DurationError(
                "a duration in tokens needs a task that says which column holds them: set the "
                "task's `tokens`. Where its rows are of any length, they are counted only if the "
                "run's duration is given in tokens"
            )
        steps = {
            "ep": lambda: self.value * lengths.steps_per_epoch,
            "ba": lambda: self.value,
            "sp": lambda: self.value / lengths.batch_size,
            "tok": lambda: self.value / (lengths.batch_size * lengths.tokens_per_sample),
            "dur": lambda: self.value * (total_steps or 0),
        }
        return int(steps[self.unit]() + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The lengths that convert steps into other units.

    Attributes:
        steps_per_epoch: whole global batches in an epoch.
        batch_size: samples in a global batch.
        tokens_per_sample: tokens in a sample as it is loaded; the mean over all samples if their
            numbers differ; 0 if there are none.
    """

    steps_per_epoch: int
    batch_size: int
    tokens_per_sample: float = 0

    @property
    def batch_tokens(self) -> int:
        """Tokens in a global batch as it is loaded; in an average batch if they differ."""
        return round(self.batch_size * self.tokens_per_sample)


def run_length(text: str, lengths: Lengths, total_steps: int | None = None) -> int:
    """Return the steps of a run, or between two evaluations or checkpoints: at least 1.

    Raises:
        DurationError: the text is not a duration, is zero, or cannot be counted in this run.
    """
    duration = Duration.parse(text)
    if duration.value <= 0:
        raise DurationError(f"duration {text!r} must be above zero")
    return max(1, duration.steps(lengths, total_steps))


@cache
def _steps(text: str, lengths: Lengths, total_steps: int) -> int:
    return Duration.parse(text).steps(lengths, total_steps)


@dataclass(frozen=True, kw_only=True)
class Clock(Lengths):
    """The lengths that convert a number of committed steps into every other unit.

    Attributes:
        total_steps: the step after which the run ends.
        evaluate_every: steps between evaluations; there is also one at the end.
        evaluate_each: the same for each of several evaluation sets, by name. `evaluate_every` is
            then the smallest of these. Default: there is one set.
        checkpoint_every: steps between checkpoints; None means one at the end only.
    """

    total_steps: int
    evaluate_every: int
    checkpoint_every: int | None = None
    evaluate_each: tuple[tuple[str, int], ...] = ()

    def step_of(self, when: str) -> int:
        """Return how many steps are committed at a time such as `0.5dur`, `2ep` or `100ba`.

        Raises:
            DurationError: it is not a time, or cannot be counted in this run.
        """
        return _steps(when, self, self.total_steps)

    def progress(self, step: int) -> float:
        """Return the fraction of the run that is done after `step` committed steps, in [0, 1]."""
        return step / self.total_steps

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, of the step that follows `step` committed steps."""
        return step // self.steps_per_epoch

    def evaluation_due(self, step: int, name: str | None = None) -> bool:
        """Say whether the model is evaluated when `step` steps are committed.

        Args:
            step: committed steps.
            name: of the evaluation set. Default: any.
        """
        if step <= 0 or step == self.total_steps:
            return step > 0
        if not self.evaluate_each:
            return step % self.evaluate_every == 0
        return any(step % every == 0 for one, every in self.evaluate_each if name in (None, one))

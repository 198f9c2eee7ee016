"""Corrects costs for a machine whose speed changes.

At intervals a sweep runs the same baseline with the same seed again. The work is the same bit for
bit, so a difference in cost comes from the machine. The machine's speed is assumed to change
linearly between two such runs, and to be constant before the first and after the last. The noise of
each run adds to the costs around it, so the correction helps if `spread` is well above the noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from raytrain_plus.frontier.estimates import Array
from raytrain_plus.frontier.points import FinishedTrial, PointError, key_of


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How fast the machine was, and when.

    Attributes:
        times: the middles of the calibration runs, in seconds since the epoch, rising.
        speeds: the median cost of all calibration runs divided by the cost of each; above 1 the
            machine was faster than usual.
    """

    times: tuple[float, ...] = ()
    speeds: tuple[float, ...] = ()

    @classmethod
    def of(cls, runs: Sequence[FinishedTrial]) -> "Calibration":
        """Compute the machine's speed from repeated runs; fewer than two correct nothing.

        Args:
            runs: complete trials of one recipe and one seed, in any order.

        Raises:
            PointError: the runs are not repeats of one run, or one is not complete.
        """
        if len({(key_of(run.recipe), run.seed) for run in runs}) > 1:
            raise PointError(
                "calibration runs of several recipes or seeds do different work: repeat one"
            )
        wrong = [run.name for run in runs if run.outcome != "complete"]
        if wrong:
            raise PointError(
                f"calibration runs {', '.join(wrong)} are not complete: leave them out"
            )
        if len(runs) < 2:
            return cls()
        ordered = sorted(runs, key=lambda run: (run.started + run.ended, run.name))
        usual = float(np.median([run.cost for run in ordered]))
        return cls(
            times=tuple((run.started + run.ended) / 2 for run in ordered),
            speeds=tuple(usual / run.cost for run in ordered),
        )

    @property
    def spread(self) -> float:
        """How much faster the fastest run was than the slowest: 0.1 is ten per cent."""
        return max(self.speeds) / min(self.speeds) - 1 if self.speeds else 0.0

    def factor(self, started: float, ended: float) -> float:
        """Return the factor by which to multiply a trial's cost.

        Args:
            started: seconds since the epoch.
            ended: seconds since the epoch.

        Returns:
            The machine's mean speed during the trial; 1 if nothing is known.
        """
        if not self.speeds:
            return 1.0
        inside = [time for time in self.times if started < time < ended]
        grid: Array = np.array([started, *inside, ended])
        speeds = np.interp(grid, self.times, self.speeds)
        if ended <= started:
            return float(speeds[0])
        return float(np.trapezoid(speeds, (grid - started) / (ended - started)))

    def correct(self, trial: FinishedTrial) -> FinishedTrial:
        """Return a trial with its costs at the usual speed; all parts get the same factor."""
        factor = self.factor(trial.started, trial.ended)
        return replace(
            trial,
            cost=trial.cost * factor,
            aspect_costs={name: cost * factor for name, cost in trial.aspect_costs.items()},
            parts={name: cost * factor for name, cost in trial.parts.items()},
        )

    def __str__(self) -> str:
        if not self.speeds:
            return "fewer than two calibration runs: costs are as measured"
        slowest, fastest = 1 / min(self.speeds) - 1, 1 - 1 / max(self.speeds)
        return (
            f"{len(self.speeds)} calibration runs: the machine took up to {slowest:.1%} more and "
            f"{fastest:.1%} less than usual; costs are corrected for that"
        )

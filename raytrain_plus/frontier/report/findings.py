"""What the trials of a sweep show: a pure function from a table of trials to values."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raytrain_plus.frontier.calibration import Calibration
from raytrain_plus.frontier.curve import best_per_duration, compare
from raytrain_plus.frontier.estimates import Estimate
from raytrain_plus.frontier.pareto import (
    Noise,
    attainment,
    frontier,
    hypervolume_over_budget,
    non_dominated,
)
from raytrain_plus.frontier.points import FinishedTrial, Objective, Point, key_of, points
from raytrain_plus.frontier.report.contributions import Contributions, contributions_of
from raytrain_plus.frontier.report.results import SweepResults

CALIBRATION, BASELINE = "calibration", "baseline"
MOST_ON_FRONTIER = 40  # recipes that are compared and listed; a page can show no more

Corners = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class FrontierRow:
    """A recipe on the frontier, compared with the baseline.

    Attributes:
        point: the trials of the recipe.
        is_baseline: whether it adds no algorithm to the baseline.
        speed_up: speed-up at equal quality; None if there is no curve to compare with.
        gain: gain at equal cost; None if there is no curve.
    """

    point: Point
    is_baseline: bool
    speed_up: Estimate | None = None
    gain: Estimate | None = None

    @property
    def beats_baseline(self) -> bool:
        """Whether it reaches its mean quality faster than the baseline, ignoring the interval."""
        speed_up = self.speed_up
        return speed_up is not None and speed_up.bound != "less than" and speed_up.value > 1

    @property
    def is_faster(self) -> bool:
        """Whether the interval shows it faster than the baseline to the same quality."""
        return self.speed_up is not None and self.speed_up.low > 1


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Attainment surfaces: the costs and qualities that at least k seeds reach.

    Attributes:
        by_seeds: number of seeds k -> corners, by rising cost.
        recipes: number of recipes used: all that were run with each of the seeds.
    """

    by_seeds: dict[int, Corners]
    recipes: int


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All content of a report; costs are corrected for drift of the machine's speed.

    Attributes:
        sweep: the sweep.
        trials: trials with corrected costs, in the order in which they ended.
        calibration: how fast the machine was, and when.
        points: points of all complete trials.
        noise: the noise of seeds.
        baseline: all baselines with the most seeds, and the best one at each other duration, by
            rising cost. Those of one seed are used only if there are no others.
        frontier: by rising cost: recipes of two seeds or more that no other clearly dominates, and
            recipes that no other dominates by its mean.
        unproven: further recipes of one seed that no other clearly dominates.
        dominated: recipes that another one clearly dominates.
        winner: the recipe to train; None if there is none yet.
        reference: cost and quality of the hypervolume's reference point.
        hypervolume: device-seconds spent, and the hypervolume at that cost.
        surfaces: attainment surfaces; None if fewer than two recipes share two seeds.
        contributions: contributions of aspects and of pairs.
    """

    sweep: SweepResults
    trials: Sequence[FinishedTrial]
    calibration: Calibration
    points: Sequence[Point]
    noise: Noise
    baseline: Sequence[Point]
    frontier: Sequence[FrontierRow]
    unproven: int
    dominated: int
    winner: FrontierRow | None
    reference: tuple[float, float] | None
    hypervolume: Corners
    surfaces: Surfaces | None
    contributions: Contributions

    @property
    def objective(self) -> Objective:
        """The metric and its direction."""
        return self.sweep.objective

    def is_baseline(self, point: Point) -> bool:
        """Say whether a point adds no algorithm to the baseline."""
        return set(point.recipe.algorithms) <= base_algorithms(self.trials)


def findings_of(sweep: SweepResults) -> Findings:
    """Return what the trials of a sweep show.

    Args:
        sweep: the sweep; without finished trials the findings are empty.
    """
    objective = sweep.objective
    calibration = Calibration.of(calibration_runs(sweep.trials))
    trials = [calibration.correct(trial) for trial in sweep.trials]
    found = points(trials)
    noise = Noise.of(found)
    base = base_algorithms(trials)
    plain = [point for point in found if set(point.recipe.algorithms) <= base]
    baseline = _curve(plain, objective)
    standing = non_dominated(found, objective, noise)
    listed = _listed(found, standing, objective)
    rows = [_row(point, baseline, objective, base) for point in listed]
    reference = _reference(found, baseline, objective)
    return Findings(
        sweep=sweep,
        trials=trials,
        calibration=calibration,
        points=found,
        noise=noise,
        baseline=baseline,
        frontier=rows,
        unproven=len({key_of(p.recipe) for p in standing} - {key_of(p.recipe) for p in listed}),
        dominated=len(found) - len(standing),
        winner=winner_of(rows, baseline, objective),
        reference=reference,
        hypervolume=hypervolume_over_budget(trials, objective, reference) if reference else [],
        surfaces=_surfaces(found, listed, objective),
        contributions=contributions_of(
            [trial for trial in trials if trial.purpose != CALIBRATION], baseline, objective
        ),
    )


def calibration_runs(trials: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """Return the complete runs of the recipe and seed that calibrations repeated most often."""
    complete = [trial for trial in trials if trial.outcome == "complete"]
    keys = Counter((key_of(t.recipe), t.seed) for t in complete if t.purpose == CALIBRATION)
    if not keys:
        return []
    usual = keys.most_common(1)[0][0]
    return [trial for trial in complete if (key_of(trial.recipe), trial.seed) == usual]


def base_algorithms(trials: Sequence[FinishedTrial]) -> set[str]:
    """Return the names of the algorithms that the baseline itself has."""
    said = [set(trial.recipe.algorithms) for trial in trials if trial.purpose == BASELINE]
    return said[0] if said else set()


def winner_of(
    rows: Sequence[FrontierRow], baseline: Sequence[Point], objective: Objective
) -> FrontierRow | None:
    """Return the recipe to train.

    Only recipes of two seeds or more are candidates, if there are any. The winner is the one with
    the highest lower bound of its speed-up among those that reach the quality of the longest
    baseline; if none reaches it, among all. If no recipe is faster by its mean, or there is no
    curve to compare with, the winner is the best in quality.
    """
    proven = [row for row in rows if len(row.point.seeds) > 1] or list(rows)
    faster = [row for row in proven if row.beats_baseline]
    if baseline and faster:
        goal = max(objective.sign * point.quality for point in baseline)
        there = [row for row in faster if objective.sign * row.point.quality >= goal]
        return max(there or faster, key=_surely)
    return max(proven, key=lambda row: objective.sign * row.point.quality, default=None)


def costs_by_aspect(trials: Sequence[FinishedTrial]) -> dict[str, tuple[float, float, int]]:
    """Return each aspect's mean device-seconds, mean share of a trial's cost, and trials."""
    told: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        if trial.outcome == "complete":
            for name, seconds in trial.aspect_costs.items():
                told.setdefault(name, []).append((seconds, seconds / trial.cost))
    return {
        name: (
            statistics.fmean(seconds for seconds, _ in pairs),
            statistics.fmean(share for _, share in pairs),
            len(pairs),
        )
        for name, pairs in sorted(told.items())
    }


def _surely(row: FrontierRow) -> tuple[float, float]:
    speed_up = row.speed_up or Estimate(value=0.0)
    return speed_up.low, speed_up.value


def _curve(plain: Sequence[Point], objective: Objective) -> list[Point]:
    """Return the baselines of the curve: more of them make a stronger baseline."""
    best = best_per_duration(plain, objective)
    most = max((len(point.seeds) for point in plain), default=0)
    full = [point for point in plain if len(point.seeds) == most]
    there = {point.recipe.duration for point in full}
    chosen = [*full, *(point for point in best if point.recipe.duration not in there)]
    # One duration without repeated seeds would leave every comparison without an interval.
    proven = [point for point in chosen if len(point.seeds) > 1]
    kept = proven if len({point.recipe.duration for point in proven}) > 1 else best
    return sorted(kept, key=lambda point: point.cost)


def _listed(found: Sequence[Point], standing: Sequence[Point], objective: Objective) -> list[Point]:
    """Return the points that the report lists as the frontier, by rising cost."""
    by_mean = {key_of(point.recipe) for point in frontier(found, objective)}
    proven = [p for p in standing if len(p.seeds) > 1 or key_of(p.recipe) in by_mean]
    if len(proven) > MOST_ON_FRONTIER:  # keep those of most seeds, among them the best
        ranked = sorted(proven, key=lambda p: (-len(p.seeds), -objective.sign * p.quality))
        proven = ranked[:MOST_ON_FRONTIER]
    return sorted(proven, key=lambda point: point.cost)


def _row(
    point: Point, baseline: Sequence[Point], objective: Objective, base: set[str]
) -> FrontierRow:
    is_baseline = set(point.recipe.algorithms) <= base
    if is_baseline or len({p.cost for p in baseline}) < 2:
        return FrontierRow(point=point, is_baseline=is_baseline)
    found = compare(point, baseline, objective)
    return FrontierRow(
        point=point, is_baseline=is_baseline, speed_up=found.speed_up, gain=found.gain
    )


def _reference(
    found: Sequence[Point], baseline: Sequence[Point], objective: Objective
) -> tuple[float, float] | None:
    """Return twice the highest cost of a baseline, and the worst quality of one."""
    measured = baseline or found
    if not measured:
        return None
    worst = min(measured, key=lambda point: objective.sign * point.quality).quality
    return 2 * max(point.cost for point in measured), worst


def _surfaces(
    found: Sequence[Point], listed: Sequence[Point], objective: Objective
) -> Surfaces | None:
    """Return the surfaces over the seeds that all repeated recipes of the frontier share."""
    repeated = [set(point.seeds) for point in listed if len(point.seeds) > 1]
    seeds = set.intersection(*repeated) if repeated else set()
    if len(seeds) < 2:  # no two seeds are common to all: use those of the most repeated recipes
        most = max((len(point.seeds) for point in found), default=0)
        sets = Counter(point.seeds for point in found if len(point.seeds) == most)
        seeds = set(sets.most_common(1)[0][0]) if most > 1 else set()
    if len(seeds) < 2:
        return None
    shared = [
        Point(
            recipe=point.recipe,
            costs={seed: point.costs[seed] for seed in seeds},
            qualities={seed: point.qualities[seed] for seed in seeds},
        )
        for point in found
        if seeds <= set(point.seeds)
    ]
    return Surfaces(by_seeds=attainment(shared, objective), recipes=len(shared))

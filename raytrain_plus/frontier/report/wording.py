"""The report's texts: results as sentences; estimates, recipes and commands as text."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raytrain_plus.frontier.estimates import Estimate
from raytrain_plus.frontier.points import Point, label_of
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.report.contributions import Contributions
from raytrain_plus.frontier.report.findings import Findings, FrontierRow
from raytrain_plus.frontier.report.results import SweepResults
from raytrain_plus.observe.quantities import number

FEWER = "one seed, no interval"


def factor(estimate: Estimate | None) -> str:
    """Return a speed-up such as `1.77 x` or `more than 1.31 x`; empty for none."""
    if estimate is None:
        return ""
    return f"{estimate.bound} {estimate.value:.2f} x".strip()


def factor_interval(estimate: Estimate | None) -> str:
    """Return the interval of a speed-up, such as `1.68 to 1.83`."""
    return _interval(estimate, "{:.2f}", 0.0)


def signed(estimate: Estimate | None) -> str:
    """Return a gain such as `+0.0248`; empty for none."""
    if estimate is None:
        return ""
    return f"{estimate.bound} {_plus(estimate.value)}".strip()


def signed_interval(estimate: Estimate | None) -> str:
    """Return the interval of a gain."""
    return _interval(estimate, "{:+.3g}", -math.inf)


def percent_more(estimate: Estimate | None) -> str:
    """Return a factor on cost as `+5.2 %`; empty for none."""
    return f"{100 * (estimate.value - 1):+.1f} %" if estimate is not None else ""


def chance(p: float) -> str:
    """Return a p value as `0.012` or `below 0.001`."""
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def label(row: FrontierRow) -> str:
    """Return the names of a recipe's algorithms, or `the baseline`."""
    return "the baseline" if row.is_baseline else label_of(row.point.recipe)


def title(row: FrontierRow) -> str:
    """Return the name for the recipe to train."""
    return "the winner" if row.beats_baseline else "the best so far"


def count(number: int, what: str) -> str:
    """Return a number of things, such as `1 trial` or `3,000 trials`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def settings(recipe: Recipe, varying: Iterable[str] = ()) -> str:
    """Return a recipe's settings: its algorithms', and those of the task that vary.

    Args:
        recipe: the recipe.
        varying: names of the task's settings to include, and `batch_size`.
    """
    said = [
        f"{name.rpartition(':')[2]}: {_pairs(values)}"
        for name, values in sorted(recipe.algorithms.items())
        if values
    ]
    wanted = sorted(varying)
    task = {key: recipe.task[key] for key in wanted if key in recipe.task}
    if "batch_size" in wanted:
        task = {"batch_size": recipe.batch_size, **task}
    return "; ".join([*said, *([_pairs(task)] if task else [])])


def varying_settings(found: Sequence[Point]) -> set[str]:
    """Return the names of the task's settings, and `batch_size`, that differ between points."""
    values: dict[str, set[str]] = {}
    for point in found:
        said = {**point.recipe.task, "batch_size": point.recipe.batch_size}
        for key, value in said.items():
            values.setdefault(key, set()).add(json.dumps(value, sort_keys=True, default=str))
    return {key for key, different in values.items() if len(different) > 1}


def name_of(point: Point) -> str:
    """Return a point's algorithms, duration and seeds in a few words."""
    return f"{label_of(point.recipe)}, {point.recipe.duration}, {count(len(point.seeds), 'seed')}"


def recipe_text(row: FrontierRow, sweep: SweepResults) -> str:
    """Return a recipe as YAML for `train --recipe`."""
    recipe = row.point.recipe
    about = recipe.about or f"{label(row)}, of the sweep {sweep.name}."
    said = {**recipe.model_dump(mode="json"), "about": about}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)


def command_of(sweep: SweepResults, seed: int, file: Path) -> str:
    """Return the command that trains a recipe as the sweep trained it.

    Args:
        sweep: the sweep.
        seed: of the run.
        file: the recipe's file.
    """
    words = ["raytrain-plus", "train", sweep.task or "TASK", "--recipe", str(file)]
    words += ["--seed", str(seed), "--evaluate-every", "1dur"]
    if sweep.logical_ranks is not None:
        words += ["--logical-ranks", str(sweep.logical_ranks)]
    return shlex.join(words)


def remark_on_command(sweep: SweepResults) -> str:
    """Return a note on the command, empty if none is needed."""
    if not sweep.task:
        return (
            "Put in place of TASK where the task is imported from: module:Class or file.py:Class."
        )
    if ":" not in sweep.task:
        return (
            f"The sweep was given an object of the class {sweep.task}: say where it is imported "
            "from, as module:Class or file.py:Class."
        )
    return "Run it where the sweep was run, so that the task is found."


def _interval(estimate: Estimate | None, form: str, nothing: float) -> str:
    if estimate is None:
        return ""
    knows = estimate.low > nothing, math.isfinite(estimate.high)
    low, high = form.format(estimate.low), form.format(estimate.high)
    told = {
        (True, True): f"{low} to {high}",
        (True, False): f"from {low}",
        (False, True): f"up to {high}",
    }
    return told.get(knows, FEWER)


def _plus(value: float) -> str:
    return f"{value:+.3g}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sentence(found: Findings) -> str:
    """Return the result in one or two sentences."""
    complete = sum(trial.outcome == "complete" for trial in found.trials)
    if not complete:
        live = found.sweep.under_way
        return "No trial has run to its end yet" + (f"; {live} are under way." if live else ".")
    winner = found.winner
    begun = f"{count(complete, 'complete trial')} of {_recipes(found)}: "
    if winner is None:
        return begun + "no recipe can be chosen yet."
    name, speed_up = label(winner), winner.speed_up
    if speed_up is None or not winner.beats_baseline:
        told = f"the best is {name} at {winner.point.recipe.duration}"
        if any(row.speed_up is not None for row in found.frontier):
            told += "; no recipe is faster than the baseline to the same quality so far"
        return f"{begun}{told}."
    known = f"({factor_interval(speed_up)})"
    times = f"{factor(speed_up).removesuffix(' x')} times as fast"
    if speed_up.bound == "more than":
        return f"{begun}{name} is better than the longest baseline, and {times} {known}."
    return f"{begun}{name} reaches the baseline's quality {times} {known}."


def remarks(found: Findings) -> list[str]:
    """Return notes on the list of recipes on the frontier."""
    said = []
    if found.dominated:
        clear = (
            "is clearly dominated by another" if found.dominated == 1 else "are clearly dominated"
        )
        said.append(f"{count(found.dominated, 'other recipe')} {clear}.")
    if found.unproven:
        said.append(
            f"{count(found.unproven, 'other recipe')}, most of one seed, cannot be distinguished "
            "from these and are not listed."
        )
    if len(found.baseline) < 2:
        said.append("Without the baseline at two durations there is no curve to compare with.")
    elif found.points and min(len(point.seeds) for point in found.baseline) < 2:
        said.append("The baseline has one seed at some duration. Intervals need two seeds.")
    if found.noise.freedom:
        said.append(
            f"Seeds alone change {found.objective.metric} by {number(found.noise.quality)} and "
            f"cost by {found.noise.cost:.1%} (standard deviations, with {found.noise.freedom} "
            "degrees of freedom)."
        )
    return said


def contribution_notes(found: Findings) -> list[str]:
    """Return notes on the contributions."""
    told, said = found.contributions, []
    if told.alone or told.pairs:
        metric = found.objective.metric
        measure = (
            f"{metric} beyond the baseline's at equal cost"
            if told.at_equal_cost
            else f"{metric}, whatever it cost, since there is no curve of the baseline"
        )
        said.append(
            f"Measured in {measure}; above zero is better. From "
            f"{count(told.trials, 'trial')}{_at(told)} that can be compared with others of "
            "the same duration, seed and settings. p is corrected for how many were looked at "
            "(Holm)."
        )
    hurting = [
        " + ".join(one.aspects)
        for one in told.alone
        if one.effect is not None and one.effect.verdict == "hurts"
    ]
    if hurting:
        said.append(f"On its own hurts: {', '.join(hurting)}.")
    if told.beyond:
        said.append(
            f"{count(told.beyond, 'trial')} cost less or more than any baseline and cannot "
            "be compared at equal cost."
        )
    reasons_why = Counter(told.unknown.values())
    said += [f"{count(n, 'effect')} unknown: {why}." for why, n in reasons_why.items()]
    return said


def _at(told: Contributions) -> str:
    return f" at {told.duration}" if told.duration else ""


def reference_words(found: Findings) -> str:
    """Return a note on the reference point of the hypervolume."""
    if found.reference is None:
        return ""
    cost, quality = found.reference
    return (
        f"The hypervolume is the area that the means of all recipes cover: below {number(cost)} "
        f"device-seconds (twice the dearest baseline), and better than {number(quality)} (the "
        "worst baseline). It may fall when further seeds correct a lucky first one."
    )


def picked(row: FrontierRow) -> str:
    """Return why this recipe was chosen for training."""
    if row.speed_up is None:
        return "The best in quality."
    return (
        "The recipe with the surest speed-up of those that reach the longest baseline's quality, "
        "or of all if none does. The intervals do not include the effect of choosing the best "
        "of many."
    )


def _recipes(found: Findings) -> str:
    durations = len({point.recipe.duration for point in found.points})
    recipes = count(len(found.points), "recipe")
    return f"{recipes} at {count(durations, 'duration')}"

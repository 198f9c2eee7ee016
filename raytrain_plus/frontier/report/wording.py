"""Estimates, recipes and commands as people read them."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raytrain_plus.frontier.estimates import Estimate
from raytrain_plus.frontier.points import Point, label_of
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.report.account import SweepAccount
from raytrain_plus.frontier.report.findings import Standing

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
    """Return a chance as `0.012` or `below 0.001`."""
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def label(row: Standing) -> str:
    """Return the names of a recipe's algorithms, or that it is the baseline."""
    return "the baseline" if row.is_baseline else label_of(row.point.recipe)


def title(row: Standing) -> str:
    """Return what the recipe to train is called."""
    return "the winner" if row.beats_baseline else "the best so far"


def count(number: int, what: str) -> str:
    """Return a number of things, such as `1 trial` or `3,000 trials`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def settings(recipe: Recipe, varying: Iterable[str] = ()) -> str:
    """Return what is set in a recipe: its algorithms' settings, and those of the task that vary.

    Args:
        recipe: the recipe.
        varying: names of the task's settings to tell, and `batch_size`.
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


def recipe_text(row: Standing, account: SweepAccount) -> str:
    """Return a recipe as the YAML that `train --recipe` reads."""
    recipe = row.point.recipe
    about = recipe.about or f"{label(row)}, of the sweep {account.name}."
    said = {**recipe.model_dump(mode="json"), "about": about}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)


def command_of(account: SweepAccount, seed: int, file: Path) -> str:
    """Return the command that trains a recipe of a sweep as the sweep has.

    Args:
        account: the sweep.
        seed: of the run.
        file: the recipe's.
    """
    words = ["raytrain-plus", "train", account.task or "TASK", "--recipe", str(file)]
    words += ["--seed", str(seed), "--evaluate-every", "1dur"]
    if account.logical_ranks is not None:
        words += ["--logical-ranks", str(account.logical_ranks)]
    return shlex.join(words)


def remark_on_command(account: SweepAccount) -> str:
    """Return what is still to be said of the command, empty for nothing."""
    if not account.task:
        return (
            "Put in place of TASK where the task is imported from: module:Class or file.py:Class."
        )
    if ":" not in account.task:
        return (
            f"The sweep was given an object of the class {account.task}: say where it is imported "
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

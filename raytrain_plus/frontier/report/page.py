"""The page of a sweep: one HTML file that reloads itself while the sweep runs.

`view_of` makes the words and rows of each section; `page.html` is the template.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raytrain_plus.frontier.estimates import Estimate
from raytrain_plus.frontier.points import key_of
from raytrain_plus.frontier.report import drawings, wording
from raytrain_plus.frontier.report.contributions import Contribution
from raytrain_plus.frontier.report.findings import Findings, FrontierRow, costs_by_aspect
from raytrain_plus.frontier.synergy import Effect, Verdict
from raytrain_plus.observe.charts import Part, Tone, stacked_bar
from raytrain_plus.observe.intervals import interval
from raytrain_plus.observe.pages.rendering import render
from raytrain_plus.observe.pages.rows import Row
from raytrain_plus.observe.quantities import duration, number, share
from raytrain_plus.observe.scales import Scale, scale_of

REFRESH = 20  # seconds
_MOST_ROWS = 60
_MOST_ERRORS = 8
_TONES: dict[Verdict, Tone] = {"shown": "good", "hurts": "bad", "not shown": "plain"}
_OUTCOMES = ("complete", "dominated", "failed")


def view_of(found: Findings, command: str, now: float) -> dict[str, Any]:
    """Return all values that the page's template needs.

    Args:
        found: of the sweep.
        command: that trains the winner.
        now: Unix time at which the page is made.
    """
    sweep = found.sweep
    picture = drawings.frontier_drawing(found)
    covered = any(area for _, area in found.hypervolume)
    return {
        "name": sweep.name,
        "state": sweep.state,
        "refresh": REFRESH if sweep.state == "running" else 0,
        "task": sweep.task,
        "goal": drawings.quality_label(found),
        "metric": found.objective.metric,
        "sentence": wording.sentence(found),
        "problem": sweep.problem,
        "tiles": _tiles(found),
        "picture": picture.html() if found.points else "",
        "left_out": picture.left_out,
        "rows": _frontier_rows(found),
        "remarks": wording.remarks(found),
        "winner": _winner(found, command),
        "aspects": _contribution_rows(found.contributions.alone),
        "pairs": _contribution_rows(found.contributions.pairs)[:_MOST_ROWS],
        "contributions": wording.contribution_notes(found),
        "budget": drawings.hypervolume_drawing(found).html() if covered else "",
        "reference": wording.reference_words(found),
        "machine": drawings.calibration_drawing(found).html() if found.calibration.times else "",
        "calibration": _sentence(str(found.calibration)),
        "costs": cost_rows(found),
        "bar": _cost_bar(found, found.winner) if found.winner else "",
        "trials": trial_rows(found),
        "outcomes": _OUTCOMES,
        "stopped": reasons(found, "dominated"),
        "failed": reasons(found, "failed"),
        "made_at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)),
    }


def cost_rows(found: Findings) -> list[tuple[str, str, str, str, int]]:
    """Return name, seconds, share, net effect on cost and trials of each aspect."""
    net = {one.aspects[0]: one.cost for one in found.contributions.alone}
    return [
        (
            name.rpartition(":")[2],
            duration(seconds),
            share(part, 1.0),
            wording.percent_more(net.get(name.rpartition(":")[2])),
            trials,
        )
        for name, (seconds, part, trials) in costs_by_aspect(found.trials).items()
    ]


def trial_rows(found: Findings) -> list[tuple[str, list[int], str]]:
    """Return purpose, number of trials by outcome, and device-seconds."""
    purposes = list(dict.fromkeys(trial.purpose for trial in found.trials))
    rows = []
    for purpose in [*purposes, ""]:
        mine = [trial for trial in found.trials if not purpose or trial.purpose == purpose]
        counts = [sum(trial.outcome == outcome for trial in mine) for outcome in _OUTCOMES]
        rows.append((purpose or "all", counts, duration(sum(trial.cost for trial in mine))))
    return rows


def reasons(found: Findings, outcome: str) -> list[tuple[str, int]]:
    """Return the reasons of an outcome and their counts, the most frequent first."""
    lines = Counter(
        (trial.error.strip().splitlines() or ["no reason is written"])[-1][:300]
        for trial in found.trials
        if trial.outcome == outcome
    )
    return lines.most_common(_MOST_ERRORS)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _tiles(found: Findings) -> list[Row]:
    outcomes = Counter[str](trial.outcome for trial in found.trials)
    others = f"{outcomes['dominated']:,} stopped early, {outcomes['failed']:,} failed"
    sweep = found.sweep
    tiles = [
        Row("complete trials", f"{outcomes['complete']:,}", others),
        Row("device time", duration(sum(trial.cost for trial in found.trials)), "of all trials"),
    ]
    if sweep.state == "running":
        tiles.append(Row("under way", f"{sweep.under_way:,}", f"{sweep.workers} workers"))
    if found.frontier:
        proven = sum(len(row.point.seeds) > 1 for row in found.frontier)
        tiles.append(Row("on the frontier", f"{len(found.frontier)}", f"{proven} with more seeds"))
    sure = [r.speed_up for r in found.frontier if r.speed_up and r.is_faster]
    winner = found.winner
    most = max(sure, key=lambda speed_up: speed_up.low, default=None)
    if most is not None and (winner is None or most is not winner.speed_up):
        known = wording.factor_interval(most)
        tiles.append(Row("surest speed-up", wording.factor(most), known))
    if winner and winner.speed_up:
        known = wording.factor_interval(winner.speed_up)
        tiles.append(
            Row(f"speed-up of {wording.title(winner)}", wording.factor(winner.speed_up), known)
        )
    if winner:
        what = f"{found.objective.metric} of {wording.title(winner)}"
        tiles.append(Row(what, number(winner.point.quality), wording.name_of(winner.point)))
    return tiles


def _frontier_rows(found: Findings) -> list[dict[str, Any]]:
    rows = found.frontier
    speed_ups = _scale([row.speed_up for row in rows], 1.0, log=True)
    gains = _scale([row.gain for row in rows], 0.0)
    varying = wording.varying_settings([row.point for row in rows])
    return [
        {
            "number": i,
            "label": wording.label(row),
            "settings": wording.settings(row.point.recipe, varying),
            "duration": row.point.recipe.duration,
            "seeds": len(row.point.seeds),
            "cost": duration(row.point.cost),
            "quality": number(row.point.quality),
            "speed_up": wording.factor(row.speed_up),
            "speed_up_interval": wording.factor_interval(row.speed_up),
            "speed_up_bar": _drawn(row.speed_up, speed_ups, 1.0, wording.factor),
            "gain": wording.signed(row.gain),
            "gain_interval": wording.signed_interval(row.gain),
            "gain_bar": _drawn(row.gain, gains, 0.0, wording.signed),
            "wins": wording.title(row).removeprefix("the ") if found.winner is row else "",
        }
        for i, row in enumerate(rows, 1)
    ]


def _winner(found: Findings, command: str) -> dict[str, Any] | None:
    row = found.winner
    if row is None:
        return None
    recipe = row.point.recipe
    number_of = [key_of(one.point.recipe) for one in found.frontier].index(key_of(recipe)) + 1
    return {
        "number": number_of,
        "label": wording.label(row),
        "title": f"Train {wording.title(row)}",
        "command": command,
        "remark": wording.remark_on_command(found.sweep),
        "recipe": wording.recipe_text(row, found.sweep),
        "picked": wording.picked(row),
    }


def _contribution_rows(found: Sequence[Contribution]) -> list[dict[str, Any]]:
    scale = _scale([one.effect.estimate if one.effect else None for one in found], 0.0)
    return [_contribution_row(one, one.effect, scale) for one in found]


def _contribution_row(one: Contribution, effect: Effect | None, scale: Scale) -> dict[str, Any]:
    row = {
        "label": " + ".join(one.aspects),
        "quality": wording.signed(one.quality),
        "cost": wording.percent_more(one.cost),
    }
    if effect is None:
        unknown = dict.fromkeys(("value", "interval", "bar", "p", "seeds"), "")
        return {**row, **unknown, "verdict": "unknown"}
    estimate = effect.estimate
    return {
        **row,
        "value": wording.signed(estimate),
        "interval": wording.signed_interval(estimate),
        "bar": _drawn(estimate, scale, 0.0, wording.signed, _TONES[effect.verdict]),
        "p": wording.chance(effect.p) if effect.seeds > 1 else "",
        "seeds": effect.seeds,
        "verdict": effect.verdict,
    }


def _scale(estimates: Sequence[Estimate | None], none: float, *, log: bool = False) -> Scale:
    """Return a scale for intervals; infinite ends and long tails are cut off."""
    known = [estimate for estimate in estimates if estimate is not None]
    values = [none, *(estimate.value for estimate in known)]
    around = max(values) - min(values) or 1.0
    ends = [end for estimate in known for end in (estimate.low, estimate.high)]
    values += [e for e in ends if math.isfinite(e) and abs(e - none) <= 3 * around]
    return scale_of([v for v in values if v > 0] if log else values, log=log, room=0.05)


def _drawn(
    estimate: Estimate | None,
    scale: Scale,
    none: float,
    told: Callable[[Estimate], str],
    tone: Tone | None = None,
) -> str:
    """Return an interval as a drawing; by default green or red if it does not contain zero."""
    if estimate is None or not (math.isfinite(estimate.low) or math.isfinite(estimate.high)):
        return ""
    if tone is None:
        tone = "good" if estimate.low > none else "bad" if estimate.high < none else "plain"
    ends = estimate.low, estimate.high
    return interval(ends, estimate.value, scale, none, told(estimate), tone)


def _cost_bar(found: Findings, row: FrontierRow) -> str:
    """Return the mean device-seconds of a recipe's trials by part of the work."""
    key, seeds = key_of(row.point.recipe), len(row.point.seeds)
    mine = [t for t in found.trials if t.outcome == "complete" and key_of(t.recipe) == key]
    advice = costs_by_aspect(mine)
    if not advice:
        return ""
    rest = statistics.fmean(trial.cost - sum(trial.aspect_costs.values()) for trial in mine)
    parts = [Part(label="the loop, the model and the data", value=rest, colour=0)]
    parts += [
        Part(label=name.rpartition(":")[2], value=seconds, colour=(1, 2, 3, 4, 5, 7)[i % 6])
        for i, (name, (seconds, _, _)) in enumerate(advice.items())
    ]
    title = f"Device-seconds of {wording.title(row)}, mean of {wording.count(seeds, 'seed')}"
    return stacked_bar(title, parts)


_TEMPLATE = Path(__file__).parent / "page.html"


def page_of(found: Findings, command: str, now: float) -> str:
    """Return the page of a sweep.

    Args:
        found: of the sweep.
        command: that trains the winner.
        now: Unix time at which the page is made.
    """
    return render(_TEMPLATE, view_of(found, command, now))

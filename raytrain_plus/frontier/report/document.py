"""The report of a sweep as Markdown, for a project's own documents."""

from collections.abc import Sequence

from raytrain_plus.frontier.report import drawings, page, wording
from raytrain_plus.frontier.report.contributions import Contribution
from raytrain_plus.frontier.report.findings import Findings
from raytrain_plus.observe.quantities import duration, number

_MOST_PAIRS = 40


def document_of(found: Findings, command: str, picture: str) -> str:
    """Return the report as Markdown.

    Args:
        found: of the sweep.
        command: that trains the winner.
        picture: the name of the file that shows the frontier.
    """
    parts = [f"# The sweep {_escaped(found.sweep.name)}", _escaped(wording.sentence(found))]
    if found.sweep.state == "running":
        parts.append("The sweep is running: this is how it stands so far.")
    if found.sweep.problem:
        parts.append(f"It has ended with a problem: {_escaped(found.sweep.problem)}")
    if found.points:
        parts += [f"![Quality over cost]({picture})", *_frontier(found)]
    if found.winner:
        parts += [f"## Train {wording.title(found.winner)}", _code(command, "sh")]
        parts += [_escaped(wording.remark_on_command(found.sweep))]
        parts += [_code(wording.recipe_text(found.winner, found.sweep), "yaml")]
    parts += _contributions(found)
    parts += _costs(found)
    parts += _trials(found)
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _frontier(found: Findings) -> list[str]:
    metric = found.objective.metric
    head = ["#", "recipe", "duration", "seeds", "device-seconds", metric]
    head += ["speed-up at equal quality", "gain at equal cost"]
    varying = wording.varying_settings([row.point for row in found.frontier])
    rows = []
    for i, row in enumerate(found.frontier, 1):
        said = wording.settings(row.point.recipe, varying)
        name = wording.label(row) + (f" ({said})" if said else "")
        rows.append(
            [
                str(i),
                name + (" **winner**" if row is found.winner and row.beats_baseline else ""),
                row.point.recipe.duration,
                str(len(row.point.seeds)),
                number(row.point.cost),
                number(row.point.quality),
                _with(wording.factor(row.speed_up), wording.factor_interval(row.speed_up)),
                _with(wording.signed(row.gain), wording.signed_interval(row.gain)),
            ]
        )
    goal = drawings.quality_label(found)
    return ["## The frontier", f"{_escaped(goal)}, over cost.", _table(head, rows),
            *map(_escaped, wording.remarks(found))]  # fmt: skip


def _contributions(found: Findings) -> list[str]:
    told = found.contributions
    if not told.alone:
        return []
    parts = ["## What each aspect contributes", _effects(told.alone, "aspect", found)]
    if told.pairs:
        parts += ["### What pairs add beyond the sum of both"]
        parts += [_effects(told.pairs[:_MOST_PAIRS], "pair", found)]
    return [*parts, *map(_escaped, wording.contribution_notes(found))]


def _effects(effects: Sequence[Contribution], what: str, found: Findings) -> str:
    head = [what, "verdict", "contribution", "p", "seeds", found.objective.metric, "cost"]
    rows = []
    for one in effects:
        effect = one.effect
        told = ["unknown", "", "", ""]
        if effect is not None:
            value = wording.signed(effect.estimate), wording.signed_interval(effect.estimate)
            told = [effect.verdict, _with(*value), wording.chance(effect.p), str(effect.seeds)]
        end = [wording.signed(one.quality), wording.percent_more(one.cost)]
        rows.append([" + ".join(one.aspects), *told, *end])
    return _table(head, rows)


def _costs(found: Findings) -> list[str]:
    rows = page.cost_rows(found)
    parts = ["## The machine and the budget", _escaped(str(found.calibration)) + "."]
    if found.hypervolume:
        spent, area = found.hypervolume[-1]
        parts.append(f"Hypervolume {number(area)} after {duration(spent)}.")
        parts.append(_escaped(wording.reference_words(found)))
    if rows:
        head = ["aspect", "in its own advice", "share", "net effect on cost", "trials"]
        parts.append(_table(head, [list(map(str, row)) for row in rows]))
    return parts


def _trials(found: Findings) -> list[str]:
    head = ["purpose", "complete", "stopped early", "failed", "device time"]
    rows = [[purpose, *map(str, n), cost] for purpose, n, cost in page.trial_rows(found)]
    parts = ["## Trials", _table(head, rows)]
    for outcome, title in (("dominated", "Stopped early"), ("failed", "Failed")):
        lines = [f"- {times} x `{_inline(why)}`" for why, times in page.reasons(found, outcome)]
        parts += [f"{title}:", "\n".join(lines)] if lines else []
    return parts


def _with(value: str, known: str) -> str:
    return f"{value} ({known})" if value else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[_escaped(cell) for cell in head], ["---"] * len(head)]
    lines += [[_cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    bold = " **winner**"
    return _escaped(text.removesuffix(bold)) + (bold if text.endswith(bold) else "")


def _escaped(text: str) -> str:
    """Return text that is no markup, and on one line."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _code(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"

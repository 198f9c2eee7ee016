"""The report of a sweep as Markdown, for the user's own documents: fills in `document.md`."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from raytrain_plus.frontier.report import drawings, page, wording
from raytrain_plus.frontier.report.contributions import Contribution
from raytrain_plus.frontier.report.findings import Findings
from raytrain_plus.observe.quantities import duration, number

_HERE = Path(__file__).parent
_MOST_PAIRS = 40


def document_of(found: Findings, command: str, picture: str) -> str:
    """Return the report as Markdown.

    Args:
        found: the sweep's findings.
        command: the command that trains the winner.
        picture: name of the file with the picture of the frontier.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=False,  # noqa: S701 - Markdown is not HTML; `escaped` is its own filter
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (_escaped, _inline, _table, _code)
    environment.filters |= {one.__name__.removeprefix("_"): one for one in filters}
    environment.filters |= {"duration": duration, "number": number}
    told, winner = found.contributions, found.winner
    text = environment.get_template("document.md").render(
        sweep=found.sweep,
        sentence=wording.sentence(found),
        metric=found.objective.metric,
        goal=drawings.quality_label(found),
        picture=picture,
        rows=_frontier(found) if found.points else [],
        remarks=wording.remarks(found),
        winner=wording.title(winner) if winner else "",
        command=command,
        remark_on_command=wording.remark_on_command(found.sweep),
        recipe=wording.recipe_text(winner, found.sweep) if winner else "",
        alone=_effects(told.alone),
        pairs=_effects(told.pairs[:_MOST_PAIRS]),
        notes=wording.contribution_notes(found),
        calibration=str(found.calibration),
        hypervolume=found.hypervolume[-1] if found.hypervolume else None,
        reference=wording.reference_words(found) if found.hypervolume else "",
        costs=[list(map(str, row)) for row in page.cost_rows(found)],
        trials=[[what, *map(str, n), cost] for what, n, cost in page.trial_rows(found)],
        ends=[
            ("Stopped early", page.reasons(found, "dominated")),
            ("Failed", page.reasons(found, "failed")),
        ],
    )
    return text.rstrip("\n") + "\n"


def _frontier(found: Findings) -> list[list[str]]:
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
    return rows


def _effects(effects: Sequence[Contribution]) -> list[list[str]]:
    rows = []
    for one in effects:
        effect = one.effect
        told = ["unknown", "", "", ""]
        if effect is not None:
            value = wording.signed(effect.estimate), wording.signed_interval(effect.estimate)
            told = [effect.verdict, _with(*value), wording.chance(effect.p), str(effect.seeds)]
        end = [wording.signed(one.quality), wording.percent_more(one.cost)]
        rows.append([" + ".join(one.aspects), *told, *end])
    return rows


def _with(value: str, known: str) -> str:
    return f"{value} ({known})" if value else ""


def _table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    lines = [[_escaped(cell) for cell in head], ["---"] * len(head)]
    lines += [[_cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    bold = " **winner**"
    return _escaped(text.removesuffix(bold)) + (bold if text.endswith(bold) else "")


def _escaped(text: str) -> str:
    """Return text escaped and on one line."""
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

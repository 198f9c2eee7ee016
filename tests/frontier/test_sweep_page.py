"""The page and the document of a sweep show the findings, and no text becomes markup."""

import csv
import io
import re
from dataclasses import replace

import pytest

from raytrain_plus.frontier.points import Objective
from raytrain_plus.frontier.report.document import document_of
from raytrain_plus.frontier.report.findings import findings_of
from raytrain_plus.frontier.report.page import page_of
from raytrain_plus.frontier.report.tables import recipes_csv, trials_csv
from tests.expected import require
from tests.frontier import synthetic
from tests.frontier.synthetic import World
from tests.observe import browser
from tests.observe.test_charts import HOSTILE, Tags
from tests.observe.test_report import Words

COMMAND = "raytrain-plus train tasks:Synthetic --recipe report/winner.yaml --seed 17"


@pytest.fixture(scope="module")
def found():
    return findings_of(synthetic.whole().results())


@pytest.fixture(scope="module")
def page(found):
    return page_of(found, COMMAND, 1e9)


def words(page):
    return " | ".join(Words(page).found)


def test_the_page_shows_all_of_a_sweep(page):
    said = words(page)
    for expected in (
        "synthetic | finished",
        "157 complete trials of 62 recipes at 3 durations: BlurPool + EMA + ProgressiveResizing",
        "is better than the longest baseline, and more than 1.31 times as fast",
        "157 | 3 stopped early, 2 failed",
        COMMAND,
        "BlurPool: {} EMA: {} ProgressiveResizing: {}",
        "BlurPool + ProgressiveResizing | shown",
        "SAM | hurts",
        "On its own hurts: SAM.",
        "other recipes are clearly dominated.",
        "calibration runs: the machine took up to",
        "The hypervolume is the area",
        "3 x | its loss is nan",
        "2 x | ValueError: <no> such image",
        "one seed, no interval",
    ):
        assert expected in said
    assert "the sweep is running" not in said
    assert 'http-equiv="refresh"' not in page


def test_the_page_of_a_running_sweep_says_so_and_reloads_itself():
    sweep = synthetic.Sweep(World()).results(state="running", under_way=2)
    text = page_of(findings_of(sweep), "", 1e9)
    said = words(text)
    assert "synthetic | running" in said
    assert "No trial has run to its end yet; 2 are under way." in said
    assert '<meta http-equiv="refresh" content="20">' in text
    assert "The frontier" not in said


def test_there_is_no_winner_if_no_recipe_is_faster():
    sweep = synthetic.whole(World(effects={"SAM": (-0.01, 2.0), "EMA": (-0.02, 1.1)}))
    found = findings_of(sweep.results())
    said = words(page_of(found, COMMAND, 1e9))
    assert "the best is the baseline at 48000sp." in said
    assert "Train the best so far" in said
    assert "winner" not in said.replace("winner.yaml", "")
    assert "winner" not in document_of(found, "command", "p.png")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, 30, 60, 120])
def test_there_is_a_page_at_every_stage_of_a_sweep(count):
    sweep = synthetic.whole(World(less_is_better=True))
    found = findings_of(sweep.results(trials=sweep.trials[:count], state="running"))
    assert "</html>" in page_of(found, COMMAND, 1e9)
    assert document_of(found, COMMAND, "frontier.png").startswith("# The sweep")


def test_a_problem_is_shown():
    sweep = synthetic.baseline_alone(World()).results(state="failed", problem="a < b")
    assert "Why it ended | a < b" in words(page_of(findings_of(sweep), COMMAND, 1e9))


def test_a_task_that_cannot_be_imported_is_reported():
    sweep = synthetic.baseline_alone(World()).results(task="Rings")
    assert "an object of the class Rings: say where" in words(page_of(findings_of(sweep), "", 1))


@pytest.fixture(scope="module")
def hostile():
    sweep = synthetic.whole()
    sweep.trials = [
        replace(
            trial,
            purpose=trial.purpose + HOSTILE if trial.purpose == "search" else trial.purpose,
            error=trial.error and trial.error + HOSTILE,
            recipe=trial.recipe.model_copy(
                update={
                    "task": {**trial.recipe.task, "name" + HOSTILE: HOSTILE},
                    "algorithms": {
                        name + "|" + HOSTILE: {"x" + HOSTILE: HOSTILE}
                        for name in trial.recipe.algorithms
                    },
                }
            ),
        )
        for trial in sweep.trials
    ]
    sweep = sweep.results(
        name=HOSTILE, task=HOSTILE, objective=Objective(metric=HOSTILE, mode="max")
    )
    return findings_of(sweep)


def test_no_text_of_a_sweep_becomes_markup(hostile, page):
    text = page_of(hostile, HOSTILE, 1e9)
    assert "<script>alert" not in text
    scripts = [tag for tag, _ in Tags(text).found].count("script")
    charts = [tag for tag, _ in Tags(text).found].count("figcaption")
    assert scripts <= 1 + charts
    assert "b" not in {tag for tag, _ in Tags(text).found} - {tag for tag, _ in Tags(page).found}


def test_no_text_of_a_sweep_becomes_a_column_of_the_document(hostile):
    document = document_of(hostile, HOSTILE + "|", "p.png")
    tables = re.findall(r"(?:^\|.*\n)+", document, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1
    outside = re.sub(r"(```+)\w*\n.*?\n\1|`[^`]*`", "", document, flags=re.DOTALL)
    assert "<" not in outside.replace("\\<", "")
    # The control: a cell that is not escaped is noticed.
    assert len(re.findall(r"(?<!\\)\|", "| a|b |")) == 3


def test_the_page_needs_no_other_file(page):
    for tag, attributes in Tags(page).found:
        assert not {"src", "srcset", "data", "action"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in page
    assert "@import" not in page


def test_the_tables_hold_every_recipe_and_every_trial(found):
    recipes = list(csv.DictReader(io.StringIO(recipes_csv(found))))
    assert len(recipes) == len(found.points)
    assert [row["frontier"] for row in recipes if row["frontier"]] == [
        str(i) for i in range(1, len(found.frontier) + 1)
    ]
    winner = next(row for row in recipes if row["winner"] == "True")
    assert winner["label"] == "BlurPool + EMA + ProgressiveResizing"
    assert float(winner["speed_up_low"]) == found.winner.speed_up.low
    trials = list(csv.DictReader(io.StringIO(trials_csv(found))))
    assert [row["name"] for row in trials] == [trial.name for trial in found.trials]
    assert {row["outcome"] for row in trials} == {"complete", "dominated", "failed"}


@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_all_of_it_at_any_width(page, width):
    require("chromium", browser.why_not())
    seen = browser.look(page, width)
    assert seen.faults() == []
    assert [drawing["title"] for drawing in seen.drawings] == [
        "Quality over cost",
        "Hypervolume over budget",
        "Speed of the machine",
        "Device-seconds of the winner, mean of 5 seeds",
    ]
    # The tip of a cloud names the nearest recipe.
    tip = seen.drawings[0]["tip"].splitlines()
    assert tip[0].endswith(("seed", "seeds"))
    assert [line.split()[0] for line in tip[1:]] == ["device-seconds", "accuracy"]
    assert all(card["width"] > 100 and card["right"] <= width for card in seen.cards)
    assert COMMAND.split(maxsplit=1)[0] in seen.text


@pytest.mark.parametrize(
    ("part", "broken", "fault"),
    [
        ("Math.hypot(", "Math.hypo(", "error: "),
        ("</style>", ".chart { width: 1300px }</style>", "leaves the page"),
    ],
    ids=["script", "width"],
)
def test_a_broken_page_of_a_sweep_is_noticed(page, part, broken, fault):
    """The negative control."""
    require("chromium", browser.why_not())
    assert part in page
    faults = browser.look(page.replace(part, broken, 1), 1200).faults()
    assert any(fault in one for one in faults)

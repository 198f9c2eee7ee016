"""The page in a real browser: no errors, all charts visible and inside, wide and narrow."""

import pytest

from raytrain_plus.observe.report.history import read_history
from raytrain_plus.observe.report.page import page_of
from tests.expected import require
from tests.observe import browser, journals


@pytest.fixture(scope="module", autouse=True)
def chromium():
    require("chromium", browser.why_not())


@pytest.fixture(scope="module")
def page():
    events = journals.disturbed()
    events[0]["run"] = "<script>problems.push('run')</script> " + "long-name-" * 12
    return page_of(read_history(events), 1e9)


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_shows_all_of_a_run_at_any_width(page, width):
    seen = browser.look(page, width)
    assert seen.width == width
    assert seen.faults() == []
    titles = [drawing["title"] for drawing in seen.drawings]
    assert titles == [
        "Workers over time",
        "Loss over steps",
        "Loss over time",
        "accuracy over steps",
        "accuracy over time",
        "Wall time",
        "Worker-seconds",
    ]
    assert all(card["width"] > 100 and card["right"] <= width for card in seen.cards)
    for words in ("w1 lost: it died", "20 of 20 steps in 35.0 s", "e" * 64, "<script>problems"):
        assert words in seen.text
    assert seen.drawings[1]["tip"] == "step 10\nloss 0.2"


def test_the_page_is_dark_if_the_browser_prefers_dark(page):
    def light(seen):
        return sum(map(int, seen.ground.removeprefix("rgb(").removesuffix(")").split(",")))

    dark = browser.look(page, 1200, dark=True)
    assert dark.faults() == []
    assert light(dark) < 150
    assert light(browser.look(page, 1200)) > 600


@pytest.mark.parametrize(
    ("part", "broken", "found"),
    [
        ("document.querySelectorAll(", "document.querySelectorAl(", "error: "),
        ("</style>", ".chart { width: 1300px }</style>", "leaves the page"),
        ("</style>", ".plot { display: none }</style>", "is 0 x 0"),
        ("</style>", "</style><style>@import 'http://127.0.0.1:1/x.css';</style>", "style-src"),
    ],
    ids=["script", "width", "hidden", "network"],
)
def test_a_broken_page_is_noticed(page, part, broken, found):
    """The negative control."""
    assert part in page
    faults = browser.look(page.replace(part, broken, 1), 1200).faults()
    assert any(found in fault for fault in faults)

"""The dashboard shows all metrics that exist, and no others."""

import json
import re

from raytrain_plus.observe.gauges import METRICS
from tests.cluster.dashboard import DASHBOARD, named, queries

NAMES = {metric.seen_as for metric in METRICS}


def test_the_dashboard_names_every_metric_and_no_other():
    assert named(DASHBOARD.read_text()) == NAMES


def test_a_metric_that_is_renamed_is_found():
    """The negative control."""
    renamed = DASHBOARD.read_text().replace("ray_raytrain_plus_loss", "ray_raytrain_plus_los")
    assert named(renamed) - NAMES == {"ray_raytrain_plus_los"}
    assert NAMES - named(renamed) == {"ray_raytrain_plus_loss"}


def test_every_query_is_about_the_runs_that_were_chosen():
    for query in queries(DASHBOARD.read_text()):
        series = re.findall(r"raytrain_plus_\w+(\{[^}]*\})?", query)
        assert series
        assert set(series) == {'{run=~"$run"}'}, query


def test_every_panel_asks_the_data_source_that_was_chosen():
    told = json.loads(DASHBOARD.read_text())
    sources = [panel["datasource"] for panel in told["panels"]]
    sources += [target["datasource"] for panel in told["panels"] for target in panel["targets"]]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    assert [one["name"] for one in told["templating"]["list"]] == ["datasource", "run"]


def test_panels_do_not_overlap():
    told = json.loads(DASHBOARD.read_text())
    taken = set()
    for panel in told["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in told["panels"]}) == len(told["panels"])


def test_the_page_about_monitoring_has_every_metric():
    page = DASHBOARD.with_name("README.md").read_text()
    for name in NAMES:
        assert name in page or name.replace("ray_raytrain_plus", "`", 1) in page, name

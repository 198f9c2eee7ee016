"""Reads the queries of the Grafana dashboard."""

import json
import re
from pathlib import Path

import cluster

DASHBOARD = Path(cluster.__file__).parent / "grafana" / "raytrain_plus.json"


def queries(text):
    """Return the queries of a dashboard's panels."""
    panels = json.loads(text)["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def named(text):
    """Return the metrics that a dashboard's panels and variables name."""
    variables = [str(one.get("definition", "")) for one in json.loads(text)["templating"]["list"]]
    found = " ".join([*queries(text), *variables])
    return set(re.findall(r"\b(?:ray_)?raytrain_plus_\w+", found))

"""The status of a run that is not running, from its journal."""

import pytest

from raytrain_plus.elastic.client import control
from raytrain_plus.observe.journal import Journal
from raytrain_plus.ray_cluster.gcs import ClusterError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The journal of a run that has ended after six steps."""

    def refused(*_, **__):
        raise ClusterError("not in a test")

    monkeypatch.setattr(control, "join", refused)
    monkeypatch.setattr(control, "trusted", lambda told: told)
    written = Journal(tmp_path)
    described = {"run": "run", "address": "10.0.0.9:6379"}
    written.write("run", **described, total_steps=6)
    for step in range(1, 7):
        written.write("step", step=step, loss=1.0 / step, generation=1)
    written.write("evaluate", step=6, metrics={"accuracy": 0.75})
    found = {"loss": 1.0 / 6, "metrics": {"accuracy": 0.75}}
    written.write("end", state="finished", step=6, digest="d", **found)
    return written, described


def told(folder):
    status = control.status(str(folder), ".")
    return tuple(status[key] for key in ("state", "step", "loss", "metrics", "digest"))


@pytest.mark.usefixtures("run")
def test_an_ended_run_has_the_state_of_its_end(tmp_path):
    assert told(tmp_path) == ("finished", 6, 1.0 / 6, {"accuracy": 0.75}, "d")


def test_a_resumed_run_has_the_state_from_which_it_goes_on(run, tmp_path):
    written, described = run
    written.write("run", **described, total_steps=4, resumed_step=3, changes=["total_steps"])
    assert told(tmp_path) == ("unreachable", 3, None, {}, "")
    written.write("step", step=4, loss=0.5, generation=1)
    assert told(tmp_path) == ("unreachable", 4, 0.5, {}, "")
    written.write("end", state="finished", step=4, digest="e", loss=0.5, metrics={})
    assert told(tmp_path) == ("finished", 4, 0.5, {}, "e")

"""From outside of a cluster: a run is controlled and stopped; mistakes are reported in one line."""

import json
from pathlib import Path

import pytest

from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.observe import journal
from tests.end_to_end import outside
from tests.end_to_end.runs import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("outside")


@pytest.fixture(scope="module")
def told(folder):
    return program(outside.__name__, folder)


def test_a_run_is_watched_and_controlled_through_the_jobs_api(told):
    status = json.loads(told["status"]["out"])
    assert told["status"]["status"] == 0
    assert (status["run"], status["state"]) == (outside.NAME, "training")
    assert told["for people"]["status"] == 0
    assert "{" not in told["for people"]["out"].splitlines()[0]


def test_errors_on_the_cluster_are_reported_outside(told):
    assert told["too many"]["status"] == 2
    assert "between 1 and 1" in told["too many"]["err"]
    assert told["no such run"]["status"] == 2
    assert told["no such run"]["err"].startswith("error: no run 'ghost'")


def test_stopping_the_job_stops_the_run_after_the_step_in_flight(told, folder):
    assert told["status"]["status"] == 0
    events = journal.read(folder / "runs" / outside.NAME)
    (end,) = [event for event in events if event["event"] == "end"]
    assert end["state"] == "stopped"
    assert 0 < end["step"] < 9000
    assert end["checkpoint"]


def test_a_sweep_runs_as_a_job_with_as_many_workers_as_the_cluster_has_room_for(told, folder):
    said = told["sweep"]
    assert said["status"] == "SUCCEEDED"
    assert said["said"]["state"] == "finished"
    assert set(said["said"]["trials"]) == {"complete"}
    assert Path(said["said"]["report"]).is_relative_to(folder)
    swept = SweepFolder(folder / "sweeps" / "mine")
    assert [e["workers"] for e in swept.events() if e["event"] == "session"] == [2]
    assert len(swept.finished()) == said["said"]["trials"]["complete"]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("wrong token, jobs", ["does not accept this machine's token", "RAY_AUTH_TOKEN_PATH"]),
        ("wrong token, head", ["does not accept this machine's token", "RAY_AUTH_TOKEN_PATH"]),
        ("no token, head", ["does not accept this machine's token", "RAY_AUTH_MODE=token"]),
        ("no server, jobs", ["no server listens at http://127.0.0.1:1", "8265"]),
        ("no server, head", ["no server listens at 127.0.0.1:1"]),
        ("no server, client", ["no server listens at ray://127.0.0.1:1", "10001"]),
        ("web page, jobs", ["is not Ray's dashboard"]),
        ("web page, head", ["is not Ray's head"]),
        ("dashboard, head", ["is not Ray's head but a web server", "write http://127.0.0.1"]),
        ("train, no server", ["no server listens at 127.0.0.1:1"]),
        ("train, token", ["does not accept this machine's token"]),
        ("train, jobs", ["ray job submit --address http://127.0.0.1"]),
        ("other versions", ["runs Ray 2.1.0 on Python 3.9.9", "they must be the same"]),
    ],
)
def test_a_mistake_is_reported_at_once_in_one_line(told, mistake, words):
    said = told[mistake]
    assert said["status"] == 1
    assert said["out"] == ""
    assert len(said["err"].splitlines()) == 1, said["err"]
    assert all(word in said["err"] for word in words)


def test_no_mistake_is_reported_for_correct_commands(told):
    """The negative control."""
    assert told["well"]["status"] == 0, told["well"]["out"] + told["well"]["err"]
    assert "1 nodes, nothing wrong" in told["well"]["out"]

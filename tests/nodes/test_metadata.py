"""Asking a metadata service: tokens that expire, notices that appear, servers that stall."""

import json
import time

import pytest

from raytrain_plus.nodes import metadata
from raytrain_plus.nodes.metadata import Ec2, Gce, NoticeFile, notice_source
from raytrain_plus.nodes.notices import NoticeError
from tests.nodes.metadata_server import ACTION, PREEMPTED, REBALANCE, metadata_server

SOON = json.dumps({"action": "terminate", "time": "2030-01-01T00:00:00Z"})
SOON_SECONDS = 1893456000.0
LATER = json.dumps({"noticeTime": "2030-01-01T00:00:00Z"})


@pytest.fixture
def ec2():
    with metadata_server() as server:
        yield server


@pytest.fixture
def gce():
    with metadata_server(google=True) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(metadata, "_SECONDS", 0.2)
    monkeypatch.setattr(metadata, "_PROBE_SECONDS", 0.2)


def test_ec2_has_no_notice_and_then_one(ec2):
    source = Ec2(ec2.url)
    assert source.look() is None
    ec2.said[ACTION] = SOON
    assert source.look().deadline == SOON_SECONDS


def test_a_token_that_has_expired_is_renewed(ec2):
    source = Ec2(ec2.url)
    source.look()
    ec2.token = "second"
    ec2.said[ACTION] = SOON
    assert source.look().deadline == SOON_SECONDS
    # The control: without a new token there is no notice.
    ec2.token = None
    with pytest.raises(NoticeError, match="no token"):
        source.look()


def test_a_recommendation_counts_or_does_not(ec2):
    ec2.said[REBALANCE] = LATER
    assert Ec2(ec2.url).look().deadline > SOON_SECONDS
    assert Ec2(ec2.url, rebalance=False).look() is None
    ec2.said[ACTION] = SOON  # and a certain notice comes first
    assert Ec2(ec2.url).look().deadline == SOON_SECONDS


def test_compute_engine_answers_when_something_changes(gce):
    source = Gce(gce.url)
    gce.said[PREEMPTED] = "FALSE"
    assert source.look() is None
    gce.said[PREEMPTED] = "TRUE"
    gce.changed.set()
    assert source.look().deadline == pytest.approx(time.time() + 30, abs=10)


def test_compute_engine_answers_after_a_while_without_a_change(gce):
    gce.said[PREEMPTED] = "FALSE"
    gce.changed.set()
    source = Gce(gce.url)
    assert [source.look() for _ in range(3)] == [None, None, None]


@pytest.mark.usefixtures("impatient")
def test_a_stalled_or_missing_server_is_an_error_within_the_deadline(ec2, gce):
    sources = [Ec2(ec2.url), Gce(gce.url, wait=0)]
    sources[0].look()
    ec2.stalled.set()
    gce.stalled.set()
    for source in sources:
        with pytest.raises(OSError, match="timed out"):
            source.look()
    with pytest.raises(OSError, match="refused"):
        Ec2("http://127.0.0.1:1").look()


@pytest.mark.usefixtures("impatient")
def test_the_provider_is_found_by_its_answer(ec2, gce):
    assert notice_source("auto", ec2.url).name == "EC2"
    assert notice_source("auto", gce.url).name == "Compute Engine"
    assert notice_source("auto", "http://127.0.0.1:1") is None
    gce.stalled.set()
    assert notice_source("auto", gce.url) is None
    assert notice_source("none") is None
    with pytest.raises(NoticeError, match="'azure' is none of auto, ec2, gce"):
        notice_source("azure")


def test_no_proxy_is_used(ec2, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert Ec2(ec2.url).look() is None


def test_a_file_is_a_notice_when_it_is_there(tmp_path):
    source = NoticeFile(tmp_path / "notice", grace=30.0)
    assert source.look() is None
    source.path.write_text("90 the rack is moved")
    written = source.path.stat().st_mtime
    assert source.look().deadline == written + 90
    source.path.write_bytes(b"\xff\xfe")
    with pytest.raises(NoticeError, match="no text"):
        source.look()

"""The meaning of a cloud's answer: a notice with its deadline, none, or an error; never a guess."""

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.nodes.notices import (
    EC2_SECONDS,
    GCE_SECONDS,
    REBALANCE_SECONDS,
    Notice,
    NoticeError,
    ec2_action,
    ec2_rebalance,
    file_notice,
    gce_preempted,
    is_news,
)

NOW = 1_800_000_000.0
seconds = st.integers(NOW - 10**6, NOW + 10**6).map(float)
READERS = [ec2_action, ec2_rebalance, gce_preempted]


def said(instant):
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@given(seconds, st.sampled_from(["terminate", "stop", "hibernate"]))
def test_ec2_names_the_action_and_the_time(deadline, action):
    body = json.dumps({"action": action, "time": said(deadline)})
    assert ec2_action(200, body, NOW) == Notice(f"EC2 will {action} it", deadline)
    assert ec2_action(404, body, NOW) is None


@given(st.text())
def test_an_action_counts_from_now_if_its_time_cannot_be_read(time):
    try:
        datetime.fromisoformat(time)
    except ValueError:
        body = json.dumps({"action": "terminate", "time": time})
        assert ec2_action(200, body, NOW).deadline == NOW + EC2_SECONDS
    assert ec2_action(200, '{"action": "stop"}', NOW).deadline == NOW + EC2_SECONDS


@given(seconds)
def test_a_rebalance_recommendation_has_a_softer_deadline_that_has_not_passed(since):
    notice = ec2_rebalance(200, json.dumps({"noticeTime": said(since)}), NOW)
    assert notice.deadline == max(since + REBALANCE_SECONDS, NOW)
    assert ec2_rebalance(404, "", NOW) is None


def test_compute_engine_says_true_or_false():
    assert gce_preempted(200, "TRUE", NOW).deadline == NOW + GCE_SECONDS
    assert gce_preempted(200, "true\n", NOW).deadline == NOW + GCE_SECONDS
    assert gce_preempted(200, "FALSE", NOW) is None


@given(st.sampled_from(READERS), st.integers(100, 599), st.text())
def test_an_invalid_answer_is_an_error(read, status, body):
    """A web page that a proxy returns must not drain a node."""
    if status == 404 and read is not gce_preempted:
        assert read(status, body, NOW) is None
    elif body.strip().upper() not in ("TRUE", "FALSE"):
        with pytest.raises(NoticeError):
            read(status, body, NOW)


@pytest.mark.parametrize("body", ["[]", "3", "null", '{"action": "reboot"}', "[" * 100_000])
def test_unexpected_json_is_an_error(body):
    for read in (ec2_action, ec2_rebalance):
        with pytest.raises(NoticeError):
            read(200, body, NOW)


@given(st.floats(0, 10**6), st.sampled_from(["", " the rack is moved"]))
def test_a_file_has_seconds_from_the_time_of_its_writing(left, reason):
    notice = file_notice(f"{left}{reason}\n", NOW, 30.0)
    assert notice.deadline == NOW + left
    assert notice.reason == (reason.strip() or "a notice was left in a file")


def test_a_file_may_have_a_time_or_be_empty():
    assert file_notice(said(NOW + 77), NOW, 30.0).deadline == NOW + 77
    assert file_notice("\n", NOW, 30.0).deadline == NOW + 30


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "2026-13-01T00:00:00Z", "30s"])
def test_a_file_with_other_content_is_an_error(text):
    with pytest.raises(NoticeError, match="second"):
        file_notice(text, NOW, 30.0)


@given(st.text(), st.floats(0, 1e9))
def test_a_files_deadline_is_always_a_number(text, grace):
    try:
        notice = file_notice(text, NOW, grace)
    except NoticeError:
        return
    assert math.isfinite(notice.deadline)


def test_only_an_earlier_deadline_is_new():
    known = Notice("it may go", NOW + 600)
    assert is_news(known, None)
    assert is_news(Notice("it goes", NOW + 120), known)
    assert not is_news(Notice("it may go", NOW + 600), known)
    assert not is_news(Notice("it goes later", NOW + 700), known)

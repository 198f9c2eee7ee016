"""The model of the cost of scale: its bytes are the real exchange's; its fit finds constants."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import scale, scale_measure, scale_model
from benchmarks.scale_exchange import Network, bound_seconds, exchange_seconds
from benchmarks.scale_model import Case, Wire
from benchmarks.traffic import Traffic, ranges_of
from raytrain_plus.elastic.coordinator.membership import Membership
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.observe.journal import Journal
from raytrain_plus.training import bucket
from raytrain_plus.training.halving import halving
from raytrain_plus.training.reduction import Reduction
from raytrain_plus.training.step_header import HEADER_WIDTH
from tests.training import wires

WIRE = Wire(
    step_seconds=1e-3,
    message_seconds=8e-5,
    byte_seconds=1e-9,
    value_seconds=1e-8,
    meeting_seconds=4e-3,
    connection_seconds=3e-4,
)


class Counting:
    """A transport that counts sent messages and bytes."""

    def __init__(self, wire):
        self.wire, self.bytes, self.messages = wire, 0, 0

    def __getattr__(self, name):
        return getattr(self.wire, name)

    def post(self, sends, receives):
        self.bytes += sum(message.tensor.nbytes for message in sends)
        self.messages += len(sends)
        return self.wire.post(sends, receives)


_MARKS = 64  # elements of a bucket's marks, one aligned block


def counted(workers, logical_ranks, elements):
    """Return the bytes and the messages that each worker sends in a real exchange.

    Args:
        workers, logical_ranks: their numbers.
        elements: number of elements of the gradient and its marks.
    """
    ranges = ranges_of(workers, logical_ranks)

    def exchange(wire):
        counting = Counting(wire)
        like = [torch.ones(elements - _MARKS)]
        reduction = Reduction(like, [], ranges, counting)
        mine = Traffic(ranges, 1, 1).partials[wire.index]
        rows = np.ones((len(ranges[wire.index]), HEADER_WIDTH))
        reduction.run([like] * mine, rows, b"")
        return counting.bytes, counting.messages

    return wires.Network(workers).run(exchange)


# Multiples of all chunks' alignment: a small one, and one so large that it is sent in slices.
@pytest.mark.parametrize("elements", [64 * 60, 64 * 60 * 200])
@pytest.mark.parametrize(("workers", "logical_ranks"), [(2, 8), (3, 8), (4, 8), (5, 13), (3, 64)])
def test_the_plan_predicts_the_sent_bytes(workers, logical_ranks, elements):
    traffic = Traffic(ranges_of(workers, logical_ranks), 4 * elements, 1)
    found = counted(workers, logical_ranks, elements)
    told = [sum(both) for both in zip(traffic.sent_bytes, traffic.header_bytes, strict=True)]
    assert [sent for sent, _ in found] == pytest.approx(told)
    assert [messages for _, messages in found] == traffic.messages
    # The control: another plan has another number of bytes.
    other = Traffic(ranges_of(workers, logical_ranks + 5), 4 * elements, 1)
    assert [sent for sent, _ in found] != pytest.approx(other.sent_bytes)


@pytest.mark.parametrize(("workers", "logical_ranks"), [(8, 32), (7, 20)])
def test_the_plan_predicts_what_a_sum_by_halves_sends(workers, logical_ranks, monkeypatch):
    monkeypatch.setattr(bucket, "by_halves", lambda *_: True)
    elements = 64 << 10
    traffic = Traffic(ranges_of(workers, logical_ranks), 4 * elements, 1)
    found = counted(workers, logical_ranks, elements)
    told = [sum(both) for both in zip(traffic.sent_bytes, traffic.header_bytes, strict=True)]
    assert [sent for sent, _ in found] == pytest.approx(told, rel=1e-3)  # whole blocks are sent
    assert [messages for _, messages in found] == traffic.messages
    monkeypatch.setattr(bucket, "by_halves", lambda *_: False)  # the control
    assert Traffic(traffic.ranges, 4 * elements, 1).messages != traffic.messages


@given(st.integers(2, 64), st.integers(0, 4))
def test_no_group_sends_less_than_a_ring_and_aligned_groups_send_no_more(workers, doublings):
    traffic = Traffic(ranges_of(workers, workers << doublings), 1e9, 1)
    assert traffic.partials == [1] * workers
    assert sum(traffic.sent_bytes) == pytest.approx(workers * traffic.ring_bytes)
    uneven = Traffic(ranges_of(workers, workers * 7 + 3), 1e9, 1)
    assert uneven.ratio > 1
    assert sum(uneven.sent_bytes) >= workers * uneven.ring_bytes


def test_one_worker_sends_nothing():
    alone = Traffic(ranges_of(1, 8), 1e9, 4)
    assert (alone.sent_bytes, alone.messages, alone.header_bytes) == ([0], [0], [0])
    assert alone.ratio == 1


@settings(deadline=None)
@given(st.floats(1e-6, 1e-3), st.floats(1e-10, 1e-8), st.floats(1e-5, 1e-2))
def test_the_fit_finds_the_true_constants(message, byte, connection):
    true = replace(WIRE, message_seconds=message, byte_seconds=byte, connection_seconds=connection)
    ranges = ranges_of(2, 64), ranges_of(8, 64)
    cases = {
        "fixed": Traffic(ranges[0], 4096.0, 1),
        "large": Traffic(ranges[0], 1e8, 8),
        "some": Traffic(ranges[1], 1e4, 20),
        "many": Traffic(ranges[1], 1e4, 100),
    }
    found = scale.fitted(
        **{name: (traffic, true.exchange_seconds(traffic)) for name, traffic in cases.items()},
        value_seconds=true.value_seconds,
        meetings={connections: true.meeting_cpu(connections) for connections in (1, 4, 7)},
    )
    # The costs of rows and of the few bytes of many messages are not separated.
    assert found.message_seconds == pytest.approx(message, rel=0.1, abs=2e-6)
    assert found.byte_seconds == pytest.approx(byte, rel=0.1, abs=1e-11)
    assert found.connection_seconds == pytest.approx(connection)
    assert found.meeting_seconds == pytest.approx(true.meeting_seconds)


def test_messages_grow_with_the_group_and_bytes_do_not():
    few, many = (scale_model.exchange(Case(), WIRE, workers) for workers in (100, 1000))
    assert many["messages"] < 2 * few["messages"]
    assert few["connections"] < many["connections"] <= 20
    assert many["MB sent"] / few["MB sent"] == pytest.approx(1, rel=0.01)
    assert many["messages s"] == pytest.approx(many["messages"] * WIRE.message_seconds)


@pytest.mark.parametrize("workers", [8, 30])
def test_a_simulated_exchange_takes_longer_than_its_links_need(workers):
    planned = halving(ranges_of(workers, 8 * workers), bucket.UNITS)
    bound = bound_seconds(workers, 1e8, 1.25e9)

    def seconds(network):
        return exchange_seconds(planned, 1e8, 24, network)

    usual = seconds(Network(2e-5, 3e-10))
    assert bound < usual < 1.2 * bound
    # The controls: everything that costs time makes it longer.
    assert seconds(Network(2e-3, 3e-10)) > usual
    assert seconds(Network(2e-5, 3e-9)) > usual
    assert seconds(Network(2e-5, 3e-10, latency=1e-2)) > usual
    assert seconds(Network(2e-5, 3e-10, link=1.25e8)) > 9 * bound


@pytest.mark.slow
def test_the_exchange_of_a_thousand_workers_is_near_the_bound_of_their_links():
    planned = halving(ranges_of(1_000, 8_000), bucket.UNITS)
    found = exchange_seconds(planned, 1e8, 24, Network(1.5e-5, 3e-10))
    assert found < 1.15 * bound_seconds(1_000, 1e8, 1.25e9)


def test_a_state_spreads_as_a_tree():
    case = Case(gradient_bytes=1e9 / 3, link=1e9)  # sending a state takes a second
    piece = 2 * scale_model.PIECE_BYTES / 1e9
    assert scale_model.healing(case, 10, 10) == 0
    assert scale_model.healing(case, 10, 5) == pytest.approx(1)
    assert scale_model.healing(case, 3, 1) == pytest.approx(2)
    assert scale_model.healing(case, 7, 1) == pytest.approx(2 + piece)
    assert scale_model.healing(case, 8, 1) == pytest.approx(2 + 2 * piece)
    assert scale_model.healing(case, 1000, 1) == pytest.approx(2 + 8 * piece)


def test_the_first_exceeded_bound_comes_first():
    rows = [{"workers": n, "cost": n * 2.0} for n in (1, 10, 100)]
    assert scale_model.first_above(rows, "cost", 15) == 10
    assert scale_model.first_above(rows, "cost", 200) is None
    found = scale.breaking(scale.tables(scale.Constants.read()))
    sizes = [row["workers"] for row in found]
    assert sizes
    assert sizes == sorted(sizes)


def test_the_stored_constants_are_those_of_this_code():
    """Constants that do not depend on the machine are measured again."""
    kept = {one.workers: one for one in scale.Constants.read().at}
    assert tuple(kept) == scale.SIZES
    now = scale_measure.at_size(30)
    for name in ("plan_bytes", "record_bytes", "share_bytes", "writers", "subtrees"):
        assert getattr(now, name) == pytest.approx(getattr(kept[30], name), rel=0.1), name
    for smaller, larger in itertools.pairwise(kept.values()):
        assert smaller.plan_bytes < larger.plan_bytes


def test_checking_the_members_does_not_search_the_group_for_each_worker(tmp_path):
    class Listed(list):
        def __contains__(self, _):
            raise AssertionError("ten thousand workers would be searched ten thousand times")

    names = [f"w{i}" for i in range(3)]
    membership = Membership(scale_measure.spec_for(3), None, RunLog(Journal(tmp_path)))
    membership.members = {name: scale_measure.member_of(name) for name in names}
    assert not membership.wants_change(Listed(names))
    # The control: a worker outside of the group is noticed.
    assert membership.wants_change(Listed(names[:2]))
    with pytest.raises(AssertionError):
        "w0" in Listed(names)  # noqa: B015

"""Real processes on the loopback meet, exchange, die and are aborted."""

import itertools
import time

import pytest
import torch

from raytrain_plus.training.endpoint import Endpoint
from raytrain_plus.training.transport import Transport, TransportError
from raytrain_plus.training.wire import Message
from tests.elastic.members import CPU, HOST, PATIENCE, SECRET, MemberProcess, abort, listen, meet

SOON = 15.0  # seconds within which an abort must have ended a wait
A_WHILE = 0.3  # seconds in which no wait may end
GENERATIONS = itertools.count(1)


@pytest.fixture
def members():
    made = []

    def make(count):
        made.extend(MemberProcess() for _ in range(count))
        return made[-count:]

    yield make
    for member in made:
        member.kill()


def addresses_of(members):
    return [member.do(listen) for member in members]


def assemble(members, generation):
    """Let members meet; each keeps its transport under the name of the generation."""
    addresses, number = addresses_of(members), next(GENERATIONS)
    met = [m.call(meet, i, addresses, number, generation) for i, m in enumerate(members)]
    for future in met:
        future.result(PATIENCE)


# Functions that members run.


def send(kept, generation, peer, numbers, elements=3):
    kept[generation].exchange(
        [Message(peer, torch.full((elements,), float(n))) for n in numbers], []
    )


def receive(kept, generation, peer, count, elements=3):
    boxes = [torch.zeros(elements) for _ in range(count)]
    kept[generation].exchange([], [Message(peer, box) for box in boxes])
    return [set(box.tolist()) for box in boxes]


def trade(kept, generation, rounds):
    """Exchange numbered messages of several sizes and types with all peers."""
    transport = kept[generation]
    kinds = [torch.float32, torch.int64, torch.uint8, torch.bfloat16]
    boxes, pendings = [], []
    for number in range(rounds):
        kind = kinds[number % len(kinds)]
        elements = 1 + 1000 * (number % 3)
        box = {peer: torch.zeros(elements, dtype=kind) for peer in transport.peers}
        mine = torch.full((elements,), 10 * number + transport.index, dtype=kind)
        boxes.append((number, box))
        sends = [Message(peer, mine) for peer in transport.peers]
        pendings.append(transport.post(sends, [Message(*item) for item in box.items()]))
    for pending in reversed(pendings):
        pending.wait()
    return [
        (number, peer, set(values.tolist()))
        for number, box in boxes
        for peer, values in box.items()
    ]


def gather(kept, generation, payload):
    return kept[generation].all_gather_bytes(payload)


def close(kept, generation):
    kept[generation].close()


def connections(kept):
    """Return the ports of the open connections, by partner."""
    return {name: end.getsockname() for name, end in kept["endpoint"]._open.items()}


# The tests.


def test_messages_arrive_in_the_order_in_which_they_are_posted(members):
    group = members(3)
    assemble(group, "order")
    trades = [member.call(trade, "order", 12) for member in group]
    for index, future in enumerate(trades):
        arrived = future.result(PATIENCE)
        assert len(arrived) == 24
        assert {peer for _, peer, _ in arrived} == {0, 1, 2} - {index}
        for number, peer, values in arrived:
            assert values == {10 * number + peer}


def test_large_messages_arrive_completely(members):
    first, second = group = members(2)
    assemble(group, "large")
    sent = first.call(send, "large", 1, [1, 2], 2_000_003)
    assert second.do(receive, "large", 0, 2, 2_000_003) == [{1.0}, {2.0}]
    sent.result(PATIENCE)


def test_bytes_of_any_length_are_gathered_in_the_order_of_the_group(members):
    group = members(3)
    assemble(group, "gather")
    for payloads in ([b"zero", b"", b"two" * 1000], [b"", b"", b""]):
        gathered = [m.call(gather, "gather", p) for m, p in zip(group, payloads, strict=True)]
        assert [future.result(PATIENCE) for future in gathered] == [payloads] * 3


@pytest.mark.parametrize("wait", ["receive", "send", "gather"])
def test_an_abort_ends_a_wait_while_the_peer_stays_silent(members, wait):
    waiting, silent = group = members(2)
    generation = f"{wait} in silence"
    assemble(group, generation)
    arguments = {"receive": (1, 1), "send": (1, [1], 50_000_000), "gather": (b"payload",)}[wait]
    future = waiting.call(globals()[wait], generation, *arguments)
    with pytest.raises(TimeoutError):  # the control: silence alone ends no wait
        future.result(A_WHILE)
    began = time.monotonic()
    waiting.do(abort, "the coordinator says so", generation)
    with pytest.raises(TransportError, match="the coordinator says so"):
        future.result(PATIENCE)
    assert time.monotonic() - began < SOON

    # Afterwards no call waits any more; the first reason stays.
    waiting.do(abort, "a later reason", generation)
    for again in (receive, send):
        with pytest.raises(TransportError, match="the coordinator says so"):
            waiting.do(again, generation, 1, [1] if again is send else 1)
    # The silent member, which was not informed, notices the abort as soon as it sends.
    with pytest.raises(TransportError, match="a peer was lost"):
        silent.do(receive, generation, 0, 1)


def test_an_abort_ends_a_wait_for_a_process_that_hangs(members):
    waiting, hung = group = members(2)
    assemble(group, "hang")
    hung.halt()
    future = waiting.call(receive, "hang", 1, 1)
    with pytest.raises(TimeoutError):
        future.result(A_WHILE)
    began = time.monotonic()
    waiting.do(abort, "it hangs", "hang")
    with pytest.raises(TransportError, match="it hangs"):
        future.result(PATIENCE)
    assert time.monotonic() - began < SOON


def test_a_death_ends_waits_for_the_dead_worker_and_an_abort_ends_all_others(members):
    first, second, dead = group = members(3)
    assemble(group, "death")
    on_dead = first.call(receive, "death", 2, 1)
    on_living = second.call(receive, "death", 0, 1)
    with pytest.raises(TimeoutError):
        on_dead.result(A_WHILE)
    began = time.monotonic()
    dead.kill()
    with pytest.raises(TransportError, match="a peer was lost"):
        on_dead.result(PATIENCE)
    assert time.monotonic() - began < SOON
    with pytest.raises(TimeoutError):  # a wait for another worker is not ended
        on_living.result(A_WHILE)
    first.do(abort, "one was lost", "death")
    with pytest.raises(TransportError, match="a peer was lost"):
        on_living.result(PATIENCE)


def test_survivors_meet_again_without_the_dead(members):
    group = members(3)
    assemble(group, "before")
    group.pop().kill()
    for member in group:
        member.do(abort, "one was lost", "before")
    assemble(group, "after")
    sent = group[0].call(send, "after", 1, [5])
    assert group[1].do(receive, "after", 0, 1) == [{5.0}]
    sent.result(PATIENCE)


def test_an_abort_ends_the_wait_for_a_member_that_does_not_come(members):
    alone, _ = group = members(2)
    addresses = addresses_of(group)
    for index, order in enumerate((addresses, addresses[::-1])):  # it calls, and is called
        future = alone.call(meet, index, order, next(GENERATIONS), "lonely")
        with pytest.raises(TimeoutError):
            future.result(A_WHILE)
        began = time.monotonic()
        alone.do(abort, "no peer connects", "lonely")
        with pytest.raises(TransportError, match="no peer connects"):
            future.result(PATIENCE)
        assert time.monotonic() - began < SOON
    assemble(group, "in company")  # it can be used again


def test_an_abort_before_the_meeting_ends_it_at_once():
    transport = Transport(0, 2, CPU)
    transport.abort("over before it began")
    with pytest.raises(TransportError, match="over before it began"):
        transport.meet(None, [], 1)


def test_generations_do_not_receive_each_others_messages(members):
    first, second = group = members(2)
    assemble(group, "old")
    first.do(send, "old", 1, [1])  # no worker receives this
    for member in group:
        member.do(close, "old")
    assemble(group, "new")
    sent = first.call(send, "new", 1, [2])
    assert second.do(receive, "new", 0, 1) == [{2.0}]
    sent.result(PATIENCE)
    first.do(abort, "over", "old")
    sent = first.call(send, "new", 1, [3])  # an old transport's abort comes too late to do harm
    with pytest.raises(TransportError, match="over"):
        first.do(send, "old", 1, [4])
    assert second.do(receive, "new", 0, 1) == [{3.0}]
    sent.result(PATIENCE)


def test_a_calm_end_leaves_the_connections_to_the_next_generation(members):
    first, _, third = group = members(3)
    assemble(group, "calm")
    before = [member.do(connections) for member in group]
    for member in group:
        member.do(close, "calm")
    reordered = [third, first]
    assemble(reordered, "next")
    sent = first.call(send, "next", 0, [1])
    assert third.do(receive, "next", 1, 1) == [{1.0}]
    sent.result(PATIENCE)
    after = first.do(connections)
    assert after.items() <= before[0].items()  # the same connection, though others call now
    assert len(after) == 1  # and none to a worker that is not in the group
    third.do(abort, "one was lost", "next")
    with pytest.raises(TransportError, match="a peer was lost"):
        first.do(receive, "next", 0, 1)
    first.do(abort, "one was lost", "next")
    assemble(group, "afterwards")
    assert set(first.do(connections).values()).isdisjoint(before[0].values())  # the control


def test_members_of_different_generations_do_not_meet(members):
    one, other = group = members(2)
    addresses = addresses_of(group)
    early, late = next(GENERATIONS), next(GENERATIONS)
    futures = [
        one.call(meet, 0, addresses, early, "this"),
        other.call(meet, 1, addresses, late, "that"),
    ]
    for member, future, name in zip((one, other), futures, ("this", "that"), strict=True):
        with pytest.raises(TimeoutError):
            future.result(A_WHILE)
        member.do(abort, "alone", name)
        with pytest.raises(TransportError, match="alone"):
            future.result(PATIENCE)
    assemble(group, "together")


def test_a_worker_of_another_run_does_not_join(members):
    (member,) = members(1)
    stranger = Endpoint(HOST, "another run's secret")
    addresses = [member.do(listen), stranger.address]
    future = member.call(meet, 0, addresses, next(GENERATIONS), "mixed")
    with pytest.raises(TimeoutError):
        future.result(A_WHILE)
    member.do(abort, "it does not belong to us", "mixed")
    with pytest.raises(TransportError, match="it does not belong to us"):
        future.result(PATIENCE)
    stranger.close()
    friend = Endpoint(HOST, SECRET)  # the control
    transport = Transport(1, 2, CPU)
    addresses, number = [addresses[0], friend.address], next(GENERATIONS)
    future = member.call(meet, 0, addresses, number, "right")
    transport.meet(friend, addresses, number)
    future.result(PATIENCE)
    friend.close()


def test_a_group_of_one_needs_no_peer():
    transport = Transport(0, 1, CPU)
    transport.meet(None, [("nowhere", 1, "")], 1)
    assert transport.all_gather_bytes(b"mine") == [b"mine"]
    transport.exchange([], [])
    transport.abort("over")
    with pytest.raises(TransportError, match="over"):
        transport.exchange([], [])

"""Real processes on the loopback meet, exchange, die and are aborted."""

import datetime as dt
import os
import socket
import time

import pytest
import torch

from raytrain_plus.training.reduction import Message
from raytrain_plus.training.transport import MeetingPoint, Transport, TransportError
from tests.elastic.members import CPU, HOST, PATIENCE, MemberProcess, abort, meet

SOON = 15.0  # seconds within which an abort must have ended a wait; gloo itself would take 60
A_WHILE = 0.3  # seconds in which no wait may end


@pytest.fixture(scope="module")
def store():
    return MeetingPoint(HOST)


@pytest.fixture
def members():
    made = []

    def make(count):
        made.extend(MemberProcess() for _ in range(count))
        return made[-count:]

    yield make
    for member in made:
        member.kill()


def assemble(members, store, generation):
    """Let members meet; each keeps its transport under the name of the generation."""
    size = len(members)
    met = [m.call(meet, index, size, store.address, generation) for index, m in enumerate(members)]
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


def listen(kept):
    kept["listener"] = socket.create_server((HOST, 0))


def abort_after_reuse(kept, generation, reason):
    """Abort when another connection has a descriptor of the group; return what happens."""
    transport = kept[generation]
    numbers = set(transport._sockets)
    listener = kept["listener"]
    deadline = time.monotonic() + PATIENCE
    taken = []
    while time.monotonic() < deadline:  # gloo closes its descriptors in a thread of its own
        taken = [] if len(taken) > 10 else taken
        pair = socket.create_connection(listener.getsockname()), listener.accept()[0]
        taken.append(pair)
        if numbers & {end.fileno() for end in pair}:
            transport.abort(reason)
            pair[0].sendall(b"alive")
            return pair[1].recv(5)
    return b"no descriptor was taken over"


# The tests.


def test_messages_arrive_in_the_order_in_which_they_are_posted(members, store):
    group = members(3)
    assemble(group, store, "order")
    trades = [member.call(trade, "order", 12) for member in group]
    for index, future in enumerate(trades):
        arrived = future.result(PATIENCE)
        assert len(arrived) == 24
        assert {peer for _, peer, _ in arrived} == {0, 1, 2} - {index}
        for number, peer, values in arrived:
            assert values == {10 * number + peer}


def test_large_messages_arrive_completely(members, store):
    first, second = group = members(2)
    assemble(group, store, "large")
    sent = first.call(send, "large", 1, [1, 2], 2_000_003)
    assert second.do(receive, "large", 0, 2, 2_000_003) == [{1.0}, {2.0}]
    sent.result(PATIENCE)


def test_bytes_of_any_length_are_gathered_in_the_order_of_the_group(members, store):
    group = members(3)
    assemble(group, store, "gather")
    for payloads in ([b"zero", b"", b"two" * 1000], [b"", b"", b""]):
        gathered = [m.call(gather, "gather", p) for m, p in zip(group, payloads, strict=True)]
        assert [future.result(PATIENCE) for future in gathered] == [payloads] * 3


@pytest.mark.parametrize("wait", ["receive", "send", "gather"])
def test_an_abort_ends_a_wait_while_the_peer_stays_silent(members, store, wait):
    waiting, silent = group = members(2)
    generation = f"{wait} in silence"
    assemble(group, store, generation)
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


def test_an_abort_ends_a_wait_for_a_process_that_hangs(members, store):
    waiting, hung = group = members(2)
    assemble(group, store, "hang")
    hung.halt()
    future = waiting.call(receive, "hang", 1, 1)
    with pytest.raises(TimeoutError):
        future.result(A_WHILE)
    began = time.monotonic()
    waiting.do(abort, "it hangs", "hang")
    with pytest.raises(TransportError, match="it hangs"):
        future.result(PATIENCE)
    assert time.monotonic() - began < SOON


def test_a_death_ends_waits_for_the_dead_worker_and_an_abort_ends_all_others(members, store):
    first, second, dead = group = members(3)
    assemble(group, store, "death")
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


def test_survivors_meet_again_without_the_dead(members, store):
    group = members(3)
    assemble(group, store, "before")
    group.pop().kill()
    for member in group:
        member.do(abort, "one was lost", "before")
    assemble(group, store, "after")
    sent = group[0].call(send, "after", 1, [5])
    assert group[1].do(receive, "after", 0, 1) == [{5.0}]
    sent.result(PATIENCE)


def test_an_abort_ends_the_wait_for_a_member_that_does_not_come(members, store):
    (alone,) = members(1)
    future = alone.call(meet, 0, 2, store.address, "lonely")
    with pytest.raises(TimeoutError):
        future.result(A_WHILE)
    began = time.monotonic()
    alone.do(abort, "no peer connects", "lonely")
    with pytest.raises(TransportError, match="no peer connects"):
        future.result(PATIENCE)
    assert time.monotonic() - began < SOON
    assemble([alone, *members(1)], store, "in company")  # it can be used again


def test_an_abort_before_the_meeting_ends_it_at_once(store):
    transport = Transport(0, 2, CPU)
    transport.abort("over before it began")
    with pytest.raises(TransportError, match="over before it began"):
        transport.meet(store.address, "early", HOST)


def test_generations_do_not_receive_each_others_messages(members, store):
    first, second = group = members(2)
    assemble(group, store, "old")
    first.call(send, "old", 1, [1])  # no worker receives this
    assemble(group, store, "new")
    sent = first.call(send, "new", 1, [2])
    assert second.do(receive, "new", 0, 1) == [{2.0}]
    sent.result(PATIENCE)
    first.do(abort, "over", "old")
    sent = first.call(send, "new", 1, [3])  # an abort of one generation does not abort the other
    assert second.do(receive, "new", 0, 1) == [{3.0}]
    sent.result(PATIENCE)


def test_members_of_different_generations_do_not_meet(members, store):
    one, other = members(2)
    futures = [
        one.call(meet, 0, 2, store.address, "this"),
        other.call(meet, 1, 2, store.address, "that"),
    ]
    for member, future, name in zip((one, other), futures, ("this", "that"), strict=True):
        with pytest.raises(TimeoutError):
            future.result(A_WHILE)
        member.do(abort, "alone", name)
        with pytest.raises(TransportError, match="alone"):
            future.result(PATIENCE)


def test_an_abort_does_not_close_a_connection_with_a_reused_descriptor(members, store):
    survivor, dead = group = members(2)
    assemble(group, store, "reuse")
    survivor.do(listen)
    dead.kill()
    with pytest.raises(TransportError, match="a peer was lost"):
        survivor.do(receive, "reuse", 1, 1)
    assert survivor.do(abort_after_reuse, "reuse", "one was lost") == b"alive"


def test_a_group_of_one_needs_no_peer():
    transport = Transport(0, 1, CPU)
    transport.meet(("nowhere", 1, ""), "alone", HOST)
    assert transport.all_gather_bytes(b"mine") == [b"mine"]
    transport.exchange([], [])
    transport.abort("over")
    with pytest.raises(TransportError, match="over"):
        transport.exchange([], [])


def test_the_meeting_point_listens_on_its_own_address_only():
    store = MeetingPoint("127.0.0.1")
    with socket.create_connection(store.address[:2]):  # the control
        pass
    with pytest.raises(OSError):  # noqa: PT011 - refused, as nothing listens there
        socket.create_connection(("127.0.0.2", store.address[1]), timeout=5.0)


def test_other_connections_to_the_meeting_point_have_no_effect(members, store):
    """They write under other keys; garbage ends only their own connection."""
    host, port, secret = store.address
    assert len(secret) == 32
    assert MeetingPoint(HOST).address[2] != secret
    for _ in range(3):
        with socket.create_connection((host, port)) as stranger:
            stranger.sendall(os.urandom(4096))
    patience = dt.timedelta(seconds=20)
    theirs = torch.distributed.TCPStore(host, port, is_master=False, timeout=patience)
    for key in (
        "besieged/0",
        "besieged/1",
        "besieged/rank_0",
        "besieged/sockets/0",
        "0",
        "sockets/1",
    ):
        theirs.set(key, b"garbage")
    assemble(members(2), store, "besieged")

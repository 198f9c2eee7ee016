"""Endpoints of one run connect to each other; strangers are refused and do no harm."""

import contextlib
import os
import random
import socket
import threading
import time

import pytest

from raytrain_plus import connections
from raytrain_plus.training.endpoint import Endpoint

HOST = "127.0.0.1"
PATIENCE = 20.0


@pytest.fixture
def endpoints():
    made = []

    def make(secret="ours"):
        made.append(Endpoint(HOST, secret))
        return made[-1]

    yield make
    for endpoint in made:
        endpoint.close()


def identity(endpoint):
    return endpoint.address[2]


def await_caller(called, caller):
    until = time.monotonic() + PATIENCE
    return called.await_connection(identity(caller), until, lambda: False)


def connect(caller, called):
    """Connect; return both ends."""
    return caller.connect(called.address, PATIENCE), await_caller(called, caller)


def carries(one, other):
    one.sendall(b"hello")
    return other.recv(5) == b"hello"


def test_two_endpoints_of_a_run_connect(endpoints):
    caller, called = endpoints(), endpoints()
    one, other = connect(caller, called)
    assert carries(one, other)
    assert carries(other, one)
    assert caller.connection(identity(called)) is one
    assert called.connection(identity(caller)) is other


def test_an_endpoint_of_another_run_is_refused(endpoints):
    caller, called = endpoints("theirs"), endpoints("ours")
    with pytest.raises(ConnectionError):
        caller.connect(called.address, PATIENCE)
    assert called.connection(identity(caller)) is None


def test_something_else_that_listens_there_is_refused(endpoints):
    """It may answer what it has seen before, but it does not know the secret."""
    caller, called = endpoints(), endpoints()
    seen = []
    with socket.create_server((HOST, 0)) as between:

        def pass_on():
            inner, _ = between.accept()
            with inner, socket.create_connection(called.address[:2]) as outer:
                nonce = outer.recv(100)
                inner.sendall(nonce)
                call = inner.recv(1000)
                outer.sendall(call)
                proof = outer.recv(100)
                seen.extend((nonce, call, proof))  # first: the caller may be done after this
                inner.sendall(proof)
                inner.recv(1)

        def replay():
            inner, _ = between.accept()
            with inner:
                inner.sendall(seen[0])
                inner.recv(1000)
                inner.sendall(seen[2])
                inner.recv(1)

        place = (HOST, between.getsockname()[1], identity(called))
        threading.Thread(target=pass_on, daemon=True).start()
        caller.connect(place, PATIENCE)  # the control: what the called one answers is accepted
        threading.Thread(target=replay, daemon=True).start()
        with pytest.raises(ConnectionError, match="no process of this run"):
            caller.connect(place, PATIENCE)
    with socket.create_connection(called.address[:2]) as replayed:
        assert len(replayed.recv(100)) == len(seen[0])
        replayed.sendall(seen[1])
        assert replayed.recv(1) == b""  # a call that was recorded is refused


def test_an_endpoint_that_had_the_port_before_is_not_the_one_called(endpoints):
    caller, called = endpoints(), endpoints()
    host, port, _ = called.address
    with pytest.raises(ConnectionError):
        caller.connect((host, port, "00" * 8), PATIENCE)
    connect(caller, called)  # the control


def strange(called, draws):
    """Connect and send garbage, or what is as long as a call, or nothing; return the connection."""
    stranger = socket.create_connection(called.address[:2], timeout=PATIENCE)
    with contextlib.suppress(OSError):  # refused meanwhile
        if draws.random() < 0.5:
            stranger.sendall(draws.randbytes(draws.randrange(1, 5000)))
        elif draws.random() < 0.5:
            stranger.recv(100)
            stranger.sendall(draws.randbytes(64))
    return stranger


def test_garbage_silence_and_haste_of_strangers_do_no_harm(endpoints, monkeypatch):
    monkeypatch.setattr(connections, "_HANDSHAKE_SECONDS", 0.5)
    draws = random.Random(7)
    caller, called = endpoints(), endpoints()
    strangers = [strange(called, draws) for _ in range(3 * connections._MOST_STRANGERS)]
    until = time.monotonic() + PATIENCE
    while True:  # a caller tries again, as a meeting does
        try:
            one = caller.connect(called.address, 1.0)
            break
        except OSError:
            assert time.monotonic() < until
    assert carries(one, await_caller(called, caller))
    for stranger in strangers:
        with stranger, contextlib.suppress(ConnectionResetError):
            while stranger.recv(1000):  # the nonce, and then the end
                pass
    assert set(called._open) == {identity(caller)}


def test_it_listens_on_its_own_address_only(endpoints):
    called = endpoints()
    with socket.create_connection(called.address[:2]):  # the control
        pass
    with pytest.raises(OSError):  # noqa: PT011 - refused, as nothing listens there
        socket.create_connection(("127.0.0.2", called.address[1]), timeout=5.0)


def test_a_new_connection_replaces_the_one_before(endpoints):
    caller, called = endpoints(), endpoints()
    _, before = connect(caller, called)
    one = caller.connect(called.address, PATIENCE)
    assert before.recv(1) == b""
    until = time.monotonic() + PATIENCE
    while (other := await_caller(called, caller)) is before:
        assert time.monotonic() < until
    assert carries(one, other)
    called.drop(identity(caller), before)  # an old one that is dropped late
    assert called.connection(identity(caller)) is other


def test_a_connection_that_the_other_end_has_closed_is_none(endpoints):
    caller, called = endpoints(), endpoints()
    one, other = connect(caller, called)
    assert caller.connection(identity(called)) is one
    other.shutdown(socket.SHUT_RDWR)
    until = time.monotonic() + PATIENCE
    while caller.connection(identity(called)) is not None:
        assert time.monotonic() < until


def test_connections_to_workers_that_left_are_closed(endpoints):
    ours, stays, leaves = endpoints(), endpoints(), endpoints()
    kept, _ = connect(ours, stays)
    _, dropped = connect(ours, leaves)
    ours.keep_only({identity(stays)})
    assert dropped.recv(1) == b""
    assert ours.connection(identity(stays)) is kept


def test_waits_end_when_it_is_closed_or_has_no_purpose(endpoints):
    ours, absent = endpoints(), endpoints()
    over = threading.Event()
    ended = []

    def wait():
        try:
            ours.await_connection(identity(absent), time.monotonic() + PATIENCE, over.is_set)
        except InterruptedError:
            ended.append("interrupted")

    waiting = threading.Thread(target=wait)
    waiting.start()
    over.set()
    ours.wake()
    waiting.join(PATIENCE)
    assert ended == ["interrupted"]
    with pytest.raises(TimeoutError):
        ours.await_connection(identity(absent), time.monotonic(), lambda: False)


def test_a_forked_child_holds_no_connection(endpoints):
    """If it did, a partner would not notice the end of the process."""
    caller, called = endpoints(), endpoints()
    one, other = connect(caller, called)
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)  # lives until the test is over
        os._exit(0)
    try:
        os.close(ready)
        caller.close()
        one.close()
        other.settimeout(PATIENCE)
        assert other.recv(1) == b""
        with pytest.raises(OSError):  # noqa: PT011 - refused
            socket.create_connection(caller.address[:2], timeout=5.0)
    finally:
        os.close(go)
        os.waitpid(child, 0)

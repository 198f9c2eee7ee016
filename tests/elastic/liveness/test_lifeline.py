"""A lifeline reports the end of a process at once, and nothing else."""

import contextlib
import errno
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from raytrain_plus.elastic.liveness.lifeline import Lifelines, LifelineServer

PATIENCE = 20.0
CHILD = """
import sys, threading
from raytrain_plus.elastic.liveness.lifeline import LifelineServer
lifeline = LifelineServer("127.0.0.1", lambda: None)
print(*lifeline.address, flush=True)
threading.Event().wait()
"""


FORKING = CHILD.replace("import sys,", "import os, sys, time,").replace(
    "threading.Event().wait()",
    "sys.stdin.readline()\nif os.fork() == 0:\n    time.sleep(60)\n"
    "print(flush=True)\nthreading.Event().wait()",
)


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    host, port, secret = process.stdout.readline().split()
    yield process, (host, int(port), secret)
    process.kill()
    process.wait()


@pytest.fixture
def gone():
    told = queue.Queue()
    lines = Lifelines(lambda worker, why: told.put((worker, why)))
    return lines, told


def test_the_death_of_a_killed_process_is_reported(child, gone):
    process, address = child
    lines, told = gone
    lines.hold("w0", address)
    process.kill()
    worker, why = told.get(timeout=PATIENCE)
    assert worker == "w0"
    assert "ended" in why or "gone" in why


def test_a_stopped_process_keeps_its_lifeline_until_it_dies(child, gone):
    process, address = child
    lines, told = gone
    lines.hold("w0", address)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(queue.Empty):
        told.get(timeout=1.0)
    process.kill()
    assert told.get(timeout=PATIENCE)[0] == "w0"


def test_the_end_of_a_released_process_is_not_reported(child, gone):
    process, address = child
    lines, told = gone
    lines.hold("w0", address)
    lines.release("w0")
    lines.release("w0")
    process.kill()
    process.wait()
    with pytest.raises(queue.Empty):
        told.get(timeout=0.5)


def test_an_unreachable_process_counts_as_dead(child, gone):
    process, address = child
    process.kill()
    process.wait()
    lines, told = gone
    lines.hold("w0", address)
    assert "cannot be reached" in told.get(timeout=PATIENCE)[1]


def test_the_worker_notices_the_end_of_its_coordinator(gone):
    released = threading.Event()
    lifeline = LifelineServer("127.0.0.1", released.set)
    lines, told = gone
    lines.hold("w0", lifeline.address)
    assert not released.wait(0.2)
    assert lifeline.is_held
    lines.release("w0")
    assert released.wait(PATIENCE)
    assert not lifeline.is_held
    assert told.empty()
    lifeline.close()


def test_a_forked_child_does_not_keep_the_lifeline_of_a_killed_process(gone):
    lines, told = gone
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        host, port, secret = process.stdout.readline().split()
        lines.hold("w0", (host, int(port), secret))
        with pytest.raises(queue.Empty):
            told.get(timeout=0.5)  # the lifeline is accepted by now
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()  # the child is there
        process.kill()
        assert told.get(timeout=PATIENCE)[0] == "w0"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the child, too
        process.wait()


def test_a_connection_without_the_secret_neither_holds_nor_ends_a_worker(gone):
    released = queue.Queue()
    lifeline = LifelineServer("127.0.0.1", lambda: released.put("released"))
    host, port, secret = lifeline.address
    for said in (b"", b"x" * 32, b"x" * 5000, secret.encode()):
        with socket.create_connection((host, port)) as stranger:
            stranger.settimeout(PATIENCE)
            # Bytes that the server leaves unread reset the connection, at any point of these lines.
            with contextlib.suppress(ConnectionError):
                stranger.sendall(said)
                _say_no_more(stranger)
                while stranger.recv(100):  # its random number, and then the end
                    pass
        assert not lifeline.is_held
    lines, told = gone
    lines.hold("w0", (host, port, secret[:-1]))
    assert "cannot be reached" in told.get(timeout=PATIENCE)[1]
    assert not lifeline.is_held
    assert released.empty()
    lines.hold("w0", lifeline.address)  # the control
    lines.release("w0")
    assert released.get(timeout=PATIENCE) == "released"
    lifeline.close()


def _say_no_more(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # which is no ConnectionError
            raise


@pytest.fixture
def talking():
    """Both ends of a lifeline, with what each has received."""
    at_worker, at_coordinator = queue.Queue(), queue.Queue()
    lifeline = LifelineServer("127.0.0.1", lambda: None, at_worker.put)
    lines = Lifelines(
        lambda *gone: at_coordinator.put(gone), lambda *frame: at_coordinator.put(frame)
    )
    lines.hold("w0", lifeline.address)
    until = time.monotonic() + PATIENCE
    while not lifeline.is_held:  # the worker's end knows of it a moment later
        assert time.monotonic() < until
    yield lifeline, lines, at_worker, at_coordinator
    lines.close()
    lifeline.close()


def test_frames_of_any_size_arrive_in_order(talking):
    lifeline, lines, at_worker, at_coordinator = talking
    sizes = [0, 1, 3, 70_000, 5, 9_000_000, 2]
    frames = [bytes([number]) * size for number, size in enumerate(sizes)]
    for frame in frames:
        assert lines.send("w0", frame)  # which does not wait, though more than fits is sent
    assert [at_worker.get(timeout=PATIENCE) for _ in frames] == frames
    for frame in frames:
        assert lifeline.send(frame)
    assert [at_coordinator.get(timeout=PATIENCE) for _ in frames] == [("w0", f) for f in frames]


def test_nothing_is_sent_to_a_worker_that_is_released_or_by_one_that_is_not_held(talking):
    lifeline, lines, at_worker, at_coordinator = talking
    assert lines.send("w0", b"one")
    assert at_worker.get(timeout=PATIENCE) == b"one"
    lines.release("w0")
    assert not lines.send("w0", b"two")
    assert not lines.send("w1", b"two")
    while lifeline.is_held:
        pass
    assert not lifeline.send(b"three")
    assert at_worker.empty()
    assert at_coordinator.empty()


def test_a_worker_speaks_to_the_newest_coordinator(talking):
    lifeline, lines, at_worker, _ = talking
    told = queue.Queue()
    newer = Lifelines(lambda *_: None, lambda *frame: told.put(frame))
    newer.hold("me", lifeline.address)
    assert newer.send("me", b"here")
    assert at_worker.get(timeout=PATIENCE) == b"here"
    assert lifeline.send(b"you")
    assert told.get(timeout=PATIENCE) == ("me", b"you")
    assert lines.send("w0", b"still here")  # the control: the older one is connected, too
    assert at_worker.get(timeout=PATIENCE) == b"still here"
    newer.close()


def test_a_frame_that_is_too_long_ends_the_connection(talking, monkeypatch):
    lifeline, lines, _, at_coordinator = talking
    monkeypatch.setattr("raytrain_plus.elastic.liveness.lifeline._MOST", 100)
    lifeline.send(b"x" * 100)
    assert at_coordinator.get(timeout=PATIENCE) == ("w0", b"x" * 100)  # the control
    lifeline.send(b"x" * 101)
    worker, why = at_coordinator.get(timeout=PATIENCE)
    assert worker == "w0"
    assert "101 bytes" in why
    assert not lines.send("w0", b"")

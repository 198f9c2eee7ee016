"""The stack of a hanging process can be read, even if its interpreter does not answer."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from raytrain_plus.elastic.liveness import stacks

CHILD = """
import itertools
from raytrain_plus.elastic.liveness import stacks
def spinning():
    print(stacks.offer(), flush=True)
    sum(itertools.repeat(0))  # never releases the interpreter
spinning()
"""


@pytest.fixture
def spinning():
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    descriptor = int(process.stdout.readline())
    yield process.pid, descriptor
    process.kill()
    process.wait()


def test_a_process_that_holds_its_interpreter_shows_where(spinning):
    assert "in spinning" in stacks.of_neighbour(*spinning).stack  # it may not spin yet
    until = time.monotonic() + 20
    while (seen := stacks.of_neighbour(*spinning)).finding != "stands":
        assert time.monotonic() < until, seen
    assert "in spinning" in seen.stack


def test_a_stopped_process_is_reported_as_stopped(spinning):
    os.kill(spinning[0], signal.SIGSTOP)
    os.waitpid(spinning[0], os.WUNTRACED)
    seen = stacks.of_neighbour(*spinning)
    assert seen.finding == "stopped"
    assert "stopped" in seen.stack


def test_an_ended_process_is_reported_as_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    seen = stacks.of_neighbour(process.pid, 3)
    assert seen.finding == "gone"
    assert "cannot be read" in seen.stack


WAITING = """
import socket
from raytrain_plus.elastic.liveness import stacks
from raytrain_plus.training.frames import Links, tag_of
ours, partners = socket.socketpair()
links = Links(1, {0: ours})
posted = links.post([], [(0, tag_of(1, 1), memoryview(bytearray(8)))])
print(stacks.offer(), flush=True)
def train():
    links.wait(posted)
train()
"""


def test_a_process_that_waits_for_a_message_is_seen_to_wait():
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    try:
        descriptor = int(process.stdout.readline())
        until = time.monotonic() + 20
        while (seen := stacks.of_neighbour(process.pid, descriptor)).finding != "waits":
            assert time.monotonic() < until, seen
    finally:
        process.kill()
        process.wait()
    # The control: a hang in the same file is none, if it is not in a wait.
    hang = 'Thread 0x1 (most recent call first):\n  File "/torch/nn.py", line 1 in forward\n'
    assert not stacks._waits(hang)
    assert not stacks._waits(hang + seen.stack)


def test_only_training_and_reading_threads_of_the_own_process_are_shown():
    go, here = threading.Event(), threading.Event()

    def training():
        here.set()
        go.wait()

    def reading():
        go.wait()

    threads = [
        threading.Thread(target=training, name="any"),
        threading.Thread(target=reading, name="raytrain_plus loader"),
        threading.Thread(target=reading, name="another thread"),
    ]
    for thread in threads:
        thread.start()
    here.wait()
    told = stacks.own(threads[0].ident)
    go.set()
    assert "in training" in told
    assert "raytrain_plus loader" in told
    assert "another thread" not in told
    assert told.index("in training") < told.index("in reading")

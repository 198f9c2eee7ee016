"""The stack of a hanging process can be read, even if its interpreter does not answer."""

import os
import signal
import subprocess
import sys
import threading

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
    assert "in spinning" in stacks.of_neighbour(*spinning)
    assert "in spinning" in stacks.of_neighbour(*spinning)  # and again


def test_a_stopped_process_is_reported_as_stopped(spinning):
    os.kill(spinning[0], signal.SIGSTOP)
    os.waitpid(spinning[0], os.WUNTRACED)
    assert "stopped" in stacks.of_neighbour(*spinning)


def test_an_ended_process_is_reported_as_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert "cannot be read" in stacks.of_neighbour(process.pid, 3)


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

"""A signal that comes while an interrupted command cleans up."""

import signal
import subprocess
import sys

import pytest

# What Ray registers at its import runs after what the command registers when it is interrupted.
SCRIPT = """
import atexit, signal, sys, time
from raytrain_plus import interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever was inherited

def clean_up():
    print("cleaning up", flush=True)
    time.sleep(60)

atexit.register(clean_up)
if sys.argv[1:] == ["interrupted"]:
    interrupts.end_at_signals()
"""


def ended_by(number, *arguments):
    """Send a signal to a process that cleans up; returns its status and what it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "cleaning up\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    return process.returncode, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_further_signal_ends_the_process_at_once_without_a_traceback(number):
    assert ended_by(number, "interrupted") == (128 + number, "")


def test_otherwise_python_writes_a_traceback():
    status, error = ended_by(signal.SIGINT)
    assert "Traceback" in error
    assert status != 128 + signal.SIGINT

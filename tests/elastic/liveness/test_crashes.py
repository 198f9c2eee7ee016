"""A process that crashes leaves a report; one that is killed does not."""

import signal
import subprocess
import sys

import pytest

from raytrain_plus.elastic.liveness import crashes

_CODE = """
import ctypes, os, sys
from pathlib import Path
from raytrain_plus.elastic.liveness import crashes
word = crashes.offer(Path(sys.argv[1]), "w0")
def forward():
    exec(sys.argv[2])
forward()
"""


def run(folder, what):
    return subprocess.run([sys.executable, "-c", _CODE, folder, what], check=False).returncode


@pytest.mark.parametrize(
    ("what", "number", "said"),
    [
        ("ctypes.string_at(0)", signal.SIGSEGV, "Segmentation fault"),
        ("os.abort()", signal.SIGABRT, "Aborted"),
    ],
)
def test_a_crash_says_what_it_was_and_where(tmp_path, what, number, said):
    assert run(tmp_path, what) == -number
    told = crashes.of(tmp_path, "w0")
    assert told.startswith("its process crashed: ")
    assert said in told
    assert "in forward" in told
    crashes.forget(tmp_path, "w0")
    assert crashes.of(tmp_path, "w0") == ""


@pytest.mark.parametrize("what", ["os.kill(os.getpid(), 9)", "os._exit(3)", "pass"])
def test_a_process_that_is_killed_or_ends_leaves_no_report(tmp_path, what):
    run(tmp_path, what)
    assert crashes.of(tmp_path, "w0") == ""


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path):
    assert crashes.offer(tmp_path / "no folder", "w0") is None
    assert crashes.of(tmp_path / "no folder", "w0") == ""

"""Signals that end a command: while it starts, works and cleans up. No Ray runs."""

import signal
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import csv
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.observe import journal
from raytrain_plus.streams.writer import StreamWriter
from tests.observe import journals

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

# Ray's exit handlers, registered at its import, run after those of an interrupted command.
CLEANS_UP = """
import atexit, signal, sys, time
from raytrain_plus import interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever was inherited

def clean_up():
    print("here", flush=True)
    time.sleep(60)

atexit.register(clean_up)
if sys.argv[1:] == ["interrupted"]:
    interrupts.end_at_signals()
"""
IMPORTS = """
import importlib, time
from raytrain_plus import cli

def import_module(name):
    print("here", flush=True)
    time.sleep(60)

importlib.import_module = import_module
cli.main()
"""
# The command hangs in the {call}-th call of a function, as with a slow store or disk.
HANGS = """
import os, signal, sys, time
from raytrain_plus import cli
from raytrain_plus.storage import store

signal.signal(signal.SIGINT, signal.default_int_handler)
before, calls = {function}, []

def hang(*args, **kwargs):
    calls.append(args)
    if len(calls) == {call}:
        print("here", flush=True)
        time.sleep(60)
    return before(*args, **kwargs)

{function} = hang
cli.main()
"""


def ended_by(number, code, *arguments, waits=False):
    """Send a signal to a process once it prints "here"; returns its exit status and its output.

    Args:
        number: the signal's number.
        code: the program's source.
        arguments: the program's arguments.
        waits: whether the process waits for a hanging call, so that it needs a second signal.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        while waits:  # two signals at the same moment are one
            try:
                process.wait(1.0)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    return process.returncode, error


def command(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def rows(tmp_path):
    """A file of rows from which `data write` makes several files."""
    csv.write_csv(pa.table({"x": list(range(20_000))}), tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_further_signal_ends_the_process_at_once_without_a_traceback(number):
    assert ended_by(number, CLEANS_UP, "interrupted") == (128 + number, "")


def test_without_our_handler_python_writes_a_traceback():
    status, error = ended_by(signal.SIGINT, CLEANS_UP)
    assert "Traceback" in error
    assert status != 128 + signal.SIGINT


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_a_command_that_still_imports(number):
    assert ended_by(number, IMPORTS, "train", "module:Task") == (128 + number, "")


def test_a_stream_whose_writer_was_interrupted_is_never_complete(tmp_path, rows):
    """After the first signal it waits for the file that is being stored; after the second not."""
    code = HANGS.format(function="store.Store.write", call=2)
    write = ["data", "write", rows, tmp_path / "s", "--file-size", "20KB"]
    status, error = ended_by(signal.SIGTERM, code, *write, waits=True)
    assert (status, error) == (143, "")
    assert list((tmp_path / "s").glob("*.arrow"))
    refused = command("data", "inspect", tmp_path / "s")
    assert (refused.exit_code, "not a complete stream" in refused.stderr) == (2, True)
    assert command(*write).exit_code == 0
    assert "20,000" in command("data", "inspect", tmp_path / "s").stdout


def test_parquet_whose_writer_was_interrupted_is_never_complete(tmp_path):
    with StreamWriter(tmp_path / "s", file_size="20KB") as writer:
        writer.write(pa.table({"x": list(range(20_000))}))
    code = HANGS.format(function="store.Store.write", call=3)
    status, error = ended_by(signal.SIGINT, code, "data", "convert", tmp_path / "s", tmp_path / "p")
    assert (status, error) == (130, "interrupted by SIGINT\n")
    assert len(list((tmp_path / "p").glob("*.parquet"))) == 1
    refused = command("data", "inspect", tmp_path / "p")
    assert (refused.exit_code, "is incomplete" in refused.stderr) == (2, True)


def test_an_interrupted_report_leaves_the_previous_one(tmp_path):
    """`export` writes its file in the same way."""
    (tmp_path / "run").mkdir()
    lines = b"".join(map(journal.line_of, journals.disturbed()))
    (tmp_path / "run" / journal.FILE_NAME).write_bytes(lines)
    (tmp_path / "run" / "report.html").write_text("as before")
    code = HANGS.format(function="os.fsync", call=1)
    status, error = ended_by(signal.SIGTERM, code, "report", "run", "--storage", tmp_path)
    assert (status, error) == (143, "interrupted by SIGTERM\n")
    assert (tmp_path / "run" / "report.html").read_text() == "as before"
    assert len(list((tmp_path / "run").iterdir())) == 2

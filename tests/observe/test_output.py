# ruff: noqa: T201 - what tasks print
"""The output of a task is stored completely, and shown within limits, with the worker's name."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain_plus.observe import output
from raytrain_plus.observe.output import OutputCapture, Tail


@pytest.fixture
def kept(tmp_path, monkeypatch, capsys):
    """Store output in a folder while the test runs."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)

    def keep(worker="w1"):
        OutputCapture(tmp_path, worker)
        return tmp_path / "logs" / f"{worker}.log"

    yield keep
    capsys.readouterr()


def test_prints_and_logging_are_kept_and_still_printed(kept, capsys):
    path = kept()
    print("a print", 1)
    print("one line", end=" ")
    print("in two parts")
    sys.stderr.write("to stderr\n")
    handler = logging.StreamHandler()
    logging.getLogger("a task").addHandler(handler)
    logging.getLogger("a task").error("logged")
    logging.getLogger("a task").removeHandler(handler)
    text = path.read_text()
    for said in ("a print 1\n", "one line in two parts\n", "to stderr\n", "logged\n"):
        assert said in text
    printed = capsys.readouterr()
    assert printed.out == "a print 1\none line in two parts\n"
    assert "logged" in printed.err


def test_the_streams_are_otherwise_unchanged(kept):
    before = sys.stdout
    kept()
    assert sys.stdout is not before
    assert sys.stdout.encoding == before.encoding
    assert sys.stdout.isatty() == before.isatty()
    sys.stdout.flush()


def test_a_process_that_serves_another_run_writes_to_that_runs_file(kept):
    first = kept("w1")
    print("of the first")
    second = kept("w2")
    print("of the second")
    assert (first.read_text(), second.read_text()) == ("of the first\n", "of the second\n")


def test_a_file_has_a_limit_and_says_so(kept, monkeypatch):
    monkeypatch.setattr(output, "_MOST_BYTES", 50)
    path = kept()
    for i in range(100):
        print("line", i)
    assert len(path.read_bytes()) < 120
    assert path.read_text().endswith("(this file is full; later lines are not kept)\n")


def test_a_print_does_not_fail_if_its_file_cannot_be_written(kept, capsys):
    kept()
    OutputCapture(Path("/proc/no/such/folder"), "w1")
    print("still printed")
    assert capsys.readouterr().out == "still printed\n"


def test_the_tail_shows_new_whole_lines_with_their_worker(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "w1.log").write_text("before\n")
    tail = Tail(tmp_path)
    assert list(tail.new(0.0)) == []
    with (logs / "w1.log").open("a") as file:
        file.write("[bold] one\nnot yet who")
    (logs / "w2.log").write_text("two\n")
    assert list(tail.new(1.0)) == ["[w1] [bold] one", "[w2] two"]
    with (logs / "w1.log").open("a") as file:
        file.write("le\n" + "x" * 5000 + "\n")
    whole, long = tail.new(2.0)
    assert whole == "[w1] not yet whole"
    assert len(long) < 2100
    assert long.endswith(" ...")


def test_a_flood_of_lines_is_limited_and_the_rest_is_counted(tmp_path):
    path = tmp_path / "logs" / "w1.log"
    path.parent.mkdir()
    tail = Tail(tmp_path)
    shown = []
    for second in range(10):  # 500 lines a second
        with path.open("a") as file:
            file.writelines(f"{second} {i}\n" for i in range(500))
        shown += tail.new(float(second))
    assert len(shown) == 100 + 9 * 10
    assert list(tail.new(10.0, last=True)) == [f"[w1] (4,810 more lines are in {path})"]
    with path.open("a") as file:
        file.write("calm again\n")
    assert list(tail.new(60.0, last=True)) == ["[w1] calm again"]


def test_lines_of_ours_and_of_ray_are_not_kept(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from raytrain_plus.observe.output import OutputCapture\n"
        f"OutputCapture(Path({str(tmp_path)!r}), 'w1')\n"
        "print(':actor_name:Worker')\n"
        "print('mine')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "logs" / "w1.log").read_text() == "mine\n"

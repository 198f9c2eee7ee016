# ruff: noqa: T201 - what tasks print
"""The output of a task is stored completely, and shown within limits, with the worker's name."""

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raytrain_plus.observe import output
from raytrain_plus.observe.output import OutputCapture, Tail


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def kept(tmp_path, monkeypatch, capsys):
    """Return a function that keeps output in a folder while the test runs; it returns the file."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    made = []

    def keep(worker="w1", **options):
        made.append(OutputCapture(**options))
        made[-1].serve(tmp_path, worker)
        return tmp_path / "logs" / f"{worker}.log"

    keep.made = made
    yield keep
    for one in reversed(made):
        one.close()
    capsys.readouterr()


def print_all_ways():
    print("a print", 1)
    print("one line", end=" ")
    print("in two parts")
    sys.stderr.write("to stderr\n")
    handler = logging.StreamHandler()
    logging.getLogger("a task").addHandler(handler)
    logging.getLogger("a task").error("logged")
    logging.getLogger("a task").removeHandler(handler)
    thread = threading.Thread(target=lambda: print("in a thread"))
    thread.start()
    thread.join()


SAID = ("a print 1\n", "one line in two parts\n", "to stderr\n", "logged\n", "in a thread\n")


def test_a_workers_prints_and_logging_are_kept_in_one_place(kept, capsys):
    path = kept()
    print_all_ways()
    assert all(said in path.read_text() for said in SAID)
    assert capsys.readouterr() == ("", "")  # Ray would show them a second time


def test_in_a_local_run_they_are_printed_as_well_at_once(kept, capsys):
    path = kept(forwards=True)
    print_all_ways()
    print("(Pdb) ", end="")
    assert all(said in path.read_text() for said in SAID)
    printed = capsys.readouterr()
    assert printed.out == "a print 1\none line in two parts\nin a thread\n(Pdb) "
    assert "logged" in printed.err


def test_the_streams_are_otherwise_unchanged_and_come_back(kept):
    before = sys.stdout
    kept()
    assert sys.stdout is not before
    assert sys.stdout.encoding == before.encoding
    assert sys.stdout.isatty() == before.isatty()
    sys.stdout.flush()
    kept.made[0].close()
    assert sys.stdout is before


def test_a_process_that_serves_another_run_writes_to_that_runs_file(kept, tmp_path, capsys):
    path = kept("w1")
    handler = logging.StreamHandler()  # as a module makes one when it is imported
    logger = logging.getLogger("of both runs")
    logger.addHandler(handler)
    print("of the first")
    print("its last words", end="")
    kept.made[0].release()
    print("between two runs")
    kept.made[0].serve(tmp_path, "w2")
    logger.error("of the second")
    logger.removeHandler(handler)
    assert path.read_text() == "of the first\nits last words\n"
    assert path.with_name("w2.log").read_text() == "between two runs\nof the second\n"
    assert capsys.readouterr().out == "between two runs\n"


def test_what_is_printed_before_the_folder_is_known_is_kept(kept, tmp_path):
    path = kept("w1")
    kept.made[0].release()
    capture = OutputCapture()
    print("while the task is imported")
    capture.serve(tmp_path, "w3")
    capture.close()
    assert path.with_name("w3.log").read_text() == "while the task is imported\n"


def test_secrets_are_replaced(kept):
    path = kept()
    print("opening s3://key:hidden@bucket/data with password=hidden")
    assert "hidden" not in path.read_text()
    assert "bucket/data" in path.read_text()


def test_a_progress_bar_leaves_its_last_state(kept):
    path = kept()
    for percent in range(0, 101, 10):
        sys.stderr.write(f"\r{percent}%")
    assert len(sys.stderr._pending) < 10  # what was written over takes no memory
    sys.stderr.write("\n")
    assert path.read_text() == "100%\n"


def test_a_flood_costs_little_and_says_how_much_is_left_out(kept, monkeypatch):
    monkeypatch.setattr(output, "_TICK", 3600.0)
    clock = Clock()
    path = kept(clock=clock)
    for i in range(100_000):  # in 10 seconds
        clock.now = i / 10_000
        print("line", i)
        if i % 10_000 == 9_999:
            kept.made[0].settle()
    kept.made[0].close()
    lines = path.read_text().splitlines()
    few = [line for line in lines if line.startswith("line")]
    limit = output._KEPT_BURST + 10 * (output._KEPT_RATE + output._LAST)
    assert limit / 2 < len(few) <= limit
    assert lines[-1] == "line 99999"  # the last lines are there in any case
    told = sum(int(line[1:].split()[0].replace(",", "")) for line in lines if line[0] == "(")
    assert told + len(few) == 100_000


def test_files_are_continued_and_the_first_and_the_newest_are_kept(kept, monkeypatch):
    monkeypatch.setattr(output, "_MOST_BYTES", 200)
    path = kept()
    for i in range(300):
        print("line", i)
    files = sorted(path.parent.glob("w1*.log"), key=output.number_of)
    assert len(files) == output._FILES
    assert all(file.stat().st_size <= 300 for file in files)
    assert files[0].read_text().startswith("line 0\n")
    assert files[-1].read_text().endswith("line 299\n")
    assert "were left out: too many)" in files[-1].read_text()
    kept.made[0].serve(path.parents[1], "w1")  # as a run that is resumed
    print("later")
    assert (
        files[-1].read_text().endswith("later\n")
        or "later\n" in files[-1].with_name(f"w1.{output.number_of(files[-1]) + 1}.log").read_text()
    )


def test_a_print_does_not_fail_if_its_file_cannot_be_written(kept, capsys):
    kept()
    kept.made[0].serve(Path("/proc/no/such/folder"), "w1")
    print("still printed")
    assert capsys.readouterr().out == "still printed\n"


def test_the_last_lines_of_a_process_that_is_killed_are_kept(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from raytrain_plus.observe.output import of_process\n"
        f"of_process().serve(Path({str(tmp_path)!r}), 'w1')\n"
        "print(':actor_name:Worker')\n"
        "print('the last line')\n"
        "if os.fork() == 0:\n"
        "    print('of a child')\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "logs" / "w1.log").read_text() == "the last line\nof a child\n"


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


def write(path, *lines):
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_the_same_warning_of_several_workers_is_shown_once_with_the_count(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    tail = Tail(tmp_path)
    warning = ("/a/task.py:3: UserWarning: old weights", "  warnings.warn('old weights')")
    for worker in ("w0", "w1", "w2"):
        write(logs / f"{worker}.log", *warning, "ready", "ready")
    shown = list(tail.new(0.0))
    assert [line for line in shown if "Warning" in line or "warnings" in line] == [
        f"[w0] {line}" for line in warning
    ]
    assert shown.count("[w2] ready") == 2  # other lines are shown as often as they come
    write(logs / "w2.log", *warning, "/a/task.py:4: UserWarning: another one")
    assert list(tail.new(1.0)) == ["[w2] /a/task.py:4: UserWarning: another one"]
    (told,) = tail.new(6.0)
    assert told == "[w1, w2] (the same warning 3 times more: " + warning[0] + ")"
    assert list(tail.new(60.0, last=True)) == []


def test_the_tail_follows_a_worker_into_its_next_file(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    tail = Tail(tmp_path)
    write(logs / "w1.log", "one")
    assert list(tail.new(0.0)) == ["[w1] one"]
    write(logs / "w1.log", "two")
    write(logs / "w1.1.log", "three")
    assert list(tail.new(1.0)) == ["[w1] two", "[w1] three"]

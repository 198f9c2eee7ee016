"""The tutorial does what it says: each page's commands run in order, as a reader types them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tutorial

PATIENCE = 600.0  # seconds for any single command, on a busy machine
EQUAL = "equal in every bit"
pytestmark = pytest.mark.timeout(1800)  # a page has several commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which a reader works, after the first page."""
    here = tmp_path_factory.mktemp("tutorial")
    outputs = follow(tutorial.TUTORIAL / "first-run.md", here)
    (shown,) = [
        b.text for b in tutorial.blocks(tutorial.TUTORIAL / "first-run.md") if b.language == "text"
    ]
    assert all(line.split()[1] in outputs for line in shown.splitlines())
    return here


def environment():
    """Return a reader's environment: the tools are on the PATH, and no cluster is known."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    tools = str(Path(sys.executable).parent)
    path = f"{tools}{os.pathsep}{known['PATH']}"
    paths = os.pathsep.join(filter(None, [str(tutorial.ROOT), known.get("PYTHONPATH")]))
    return {**known, "PATH": path, "PYTHONPATH": paths}


def follow(page, folder):
    """Run a page's commands, and return their output.

    A block of terminal 1 runs while those of terminal 2 run, and must end before the blocks after
    them.
    """
    for name, text in tutorial.files(page).items():
        (folder / name).write_text(text)
    printed, live, before = [], [], set()
    for block in tutorial.blocks(page):
        if block.language == "text":
            exact = [line for line in block.text.splitlines() if EQUAL in line]
            assert all(line in printed[-1] for line in exact), (block.text, printed[-1])
        if block.language != "sh":
            continue
        if block.title == "terminal 2":
            wait_for_a_step(folder, before, live[0])
        elif live:
            printed.append(ended(live.pop()))
        before = before if live else set(journals(folder))
        begun = begin(block.text, folder)
        if block.title == "terminal 1":
            live.append(begun)
        else:
            printed.append(ended(begun))
    return "\n".join([*printed, *map(ended, live)])


def begin(script, folder):
    return subprocess.Popen(
        ["bash", "-eu", "-c", script],
        cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(process):
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
        pytest.fail(f"no end after {PATIENCE} s:\n{output[-3000:]}")
    assert process.returncode == 0, f"{process.args[-1]}\n{output[-3000:]}"
    return output


def journals(folder):
    return folder.glob("runs/*/journal.jsonl")


def wait_for_a_step(folder, before, process):
    """Wait until a new run, whose journal was not there before, trains."""
    deadline = time.monotonic() + PATIENCE
    while not any(
        b'"event": "step"' in path.read_bytes() for path in set(journals(folder)) - before
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no step"
        time.sleep(0.1)


@pytest.mark.slow  # tests/test_tutorial.py checks its commands and its task
def test_your_own_task(folder):
    assert EQUAL in follow(tutorial.TUTORIAL / "your-own-task.md", folder)


@pytest.mark.slow  # takes minutes; test_command_line.py does the same with a shorter run
def test_resizing_and_killing(folder):
    output = follow(tutorial.TUTORIAL / "resize-and-kill.md", folder)
    assert EQUAL in output
    journal = (folder / "runs/mine/journal.jsonl").read_text()
    assert '"kind": "lost"' in journal  # a worker was really killed
    assert journal.count('"event": "run"') == 2  # and it was really resumed


@pytest.mark.slow  # its budgets alone take minutes; tests/test_tutorial.py checks its commands
def test_a_sweep(folder):
    output = follow(tutorial.TUTORIAL / "sweep.md", folder)
    assert "frontier.html" in output


def test_a_page_whose_output_is_wrong_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"```sh\necho 3 common steps\n```\n\n```text\n3 common steps; {EQUAL}\n```\n")
    with pytest.raises(AssertionError, match=EQUAL):
        follow(page, tmp_path)
    page.write_text("```sh\nfalse\n```\n")
    with pytest.raises(AssertionError, match="false"):
        follow(page, tmp_path)

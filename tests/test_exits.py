"""A task's exit becomes an error."""

import os
import subprocess
import sys

import pytest

from raytrain_plus.exits import TaskExitError, as_errors
from raytrain_plus.task import TaskError, load_task


@pytest.mark.parametrize("call", ["sys.exit('no licence')", "quit()", "os._exit(3)", "exit(0)"])
def test_an_exit_at_import_is_an_error_with_its_place(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    name = f"exits{abs(hash(call))}"
    (tmp_path / f"{name}.py").write_text(f"import os, sys\n\n{call}\n")
    with pytest.raises(TaskError, match=f"{name}.py:3") as refused:
        load_task(f"{name}.py:Mine")
    assert "SystemExit" in str(refused.value)


def test_an_exit_in_a_function_that_makes_the_task_is_an_error_too():
    with pytest.raises(TaskExitError, match="the task's data"), as_errors("the task's data()"):
        sys.exit(1)


def test_a_forked_child_may_end_itself():
    with as_errors("the task"):
        child = os.fork()
        if child == 0:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def test_later_exits_are_exits_again():
    code = (
        "import os; from raytrain_plus.exits import as_errors as e\nwith e('x'): pass\nos._exit(5)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 5

"""A task is found by name, missing methods are named, and its defaults are as documented."""

import re
import sys

import pytest
import torch
from torch import nn

from raytrain_plus.task import Task, TaskError, load_task

SOURCE = """
from raytrain_plus.task import Task

class MyTask(Task):
    {attribute} = {value!r}

made = MyTask()
number = 7

def make():
    return MyTask()

class NoTask:
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder; modules imported from it are removed afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path, value=1, attribute="value"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(SOURCE.format(attribute=attribute, value=value))


@pytest.mark.parametrize("attribute", ["MyTask", "made", "make"])
@pytest.mark.parametrize(
    "name", ["tasks_by_module", "tasks_by_module.py", "inner/tasks_by_file.py"]
)
def test_a_task_is_found_by_module_or_file(folder, name, attribute):
    write(folder / (name if name.endswith(".py") else name + ".py"))
    task = load_task(f"{name}:{attribute}")
    assert isinstance(task, Task)
    assert task.value == 1


def test_a_task_object_is_accepted_as_it_is():
    task = Task()
    assert load_task(task) is task


def test_two_files_of_the_same_name_are_not_confused(folder):
    write(folder / "one" / "same_stem.py", 1)
    write(folder / "two" / "same_stem.py", 2)
    assert load_task("one/same_stem.py:made").value == 1
    with pytest.raises(TaskError, match=r"two/same_stem\.py.*one/same_stem\.py.*rename"):
        load_task("two/same_stem.py:made")


def test_a_file_named_like_an_installed_module_is_refused(folder):
    write(folder / "json.py")
    with pytest.raises(TaskError, match=r"`import json` finds.*rename"):
        load_task("json.py:made")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tasks_of_errors", "is not of the form module:attribute or file.py:attribute"),
        (":made", "is not of the form"),
        ("tasks_of_errors:", "is not of the form"),
        ("no_such_module_anywhere:Task", "No module named 'no_such_module_anywhere'"),
        ("no_such_file.py:Task", "no_such_file.py does not exist on "),
        ("tasks_of_errors:missing", "no attribute 'missing'"),
        ("tasks_of_errors:number", "is a int, not a raytrain_plus.Task"),
        ("tasks_of_errors:NoTask", "is a NoTask, not a raytrain_plus.Task"),
        (7, "a task is a raytrain_plus.Task or 'module:attribute', not 7"),
        (Task, "not <class 'raytrain_plus.task.Task'>"),
    ],
)
def test_an_object_that_is_not_a_task_is_refused(folder, name, says):
    write(folder / "tasks_of_errors.py")
    with pytest.raises(TaskError, match=re.escape(says)):
        load_task(name)


def test_a_module_that_breaks_is_named_with_its_own_error(folder):
    (folder / "tasks_that_break.py").write_text("import absent_dependency\n")
    with pytest.raises(TaskError, match=r"'tasks_that_break'(?s:.*)absent_dependency"):
        load_task("tasks_that_break:made")
    (folder / "tasks_of_nonsense.py").write_text("def broken(:\n")
    with pytest.raises(TaskError, match=r"'tasks_of_nonsense'(?s:.*)SyntaxError"):
        load_task("tasks_of_nonsense:made")


@pytest.mark.parametrize("method", ["model", "optimizer", "loss"])
def test_a_missing_method_of_a_task_is_named(method):
    class Empty(Task):
        pass

    arguments = {"model": (), "optimizer": (nn.Identity(),), "loss": (None, {})}[method]
    with pytest.raises(TaskError, match=rf"Empty does not define {method}\("):
        getattr(Empty(), method)(*arguments)


def test_the_defaults_are_those_of_a_classifier():
    task = Task()
    batch = {"image": torch.ones(2, 3), "label": torch.tensor([0, 1])}
    assert task.forward(lambda x: 2 * x, batch).tolist() == [[2, 2, 2], [2, 2, 2]]
    assert [task.schedule(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    assert (task.metrics(), task.data(), task.evaluation_data()) == ({}, None, None)
    seen = []

    class Metric:
        def update(self, *given):
            seen.extend(given)

    task.update_metric(Metric(), "outputs", batch)
    assert seen == ["outputs", batch["label"]]


@pytest.mark.parametrize("columns", [["label"], ["label", "image", "weight"]])
def test_the_default_forward_needs_one_input_and_names_the_columns(columns):
    batch = dict.fromkeys(columns, torch.ones(2))
    named = ", ".join(columns[1:]) or "none"
    with pytest.raises(TaskError, match=rf"\({named}\).*set `columns` or `target`, or override"):
        Task().forward(nn.Identity(), batch)


def test_the_target_may_have_another_name():
    class Renamed(Task):
        target = "y"

    batch = {"label": torch.ones(2), "y": torch.zeros(2)}
    assert Renamed().forward(nn.Identity(), batch) is batch["label"]

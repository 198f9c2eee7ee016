"""A task with wrong methods is refused before a worker starts; the error says what is expected."""

import pytest
import torch
from torch import nn

from raytrain_plus.configure import check_task, data_of
from raytrain_plus.task import Task, TaskError, load_task


class Fine(Task):
    columns = ("x", "label")

    def model(self):
        return nn.Linear(6, 3)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")


def changed(**given):
    return type("Changed", (Fine,), given)()


class Loose(Fine):
    """Methods that can be called, although they are written in other ways."""

    columns = {"x": (6,), "label": ()}  # noqa: RUF012
    tokens = "x"

    @staticmethod
    def model():
        return nn.Linear(6, 3)

    @classmethod
    def optimizer(cls, *models):
        return torch.optim.SGD(models[0].parameters(), lr=0.1)

    def loss(self, outputs, batch, scale=1.0):
        return scale * super().loss(outputs, batch)

    def schedule(self, progress, **_):
        return progress


@pytest.mark.parametrize("task", [Fine(), Loose(), changed(columns=None), changed(columns=["x"])])
def test_methods_of_other_forms_are_accepted_if_they_can_be_called(task):
    check_task(task)


def fails(_):
    raise KeyError("where")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": Task.model, "loss": Task.loss}, r"does not define model\(\), loss\(\)$"),
        ({"model": nn.Linear(6, 3)}, r"model of task Changed is a Linear, .* def model\(\)"),
        ({"model": nn.Linear}, "model of task Changed is the class Linear"),
        ({"model": lambda: nn.Linear(6, 3)}, r"cannot be called as model\(\).*def model\(self\)$"),
        ({"model": lambda _, size: nn.Linear(size, 3)}, r"model\(size\) .*missing a required"),
        ({"optimizer": lambda _: None}, r"optimizer\(\) .*def optimizer\(self, model\)$"),
        ({"loss": lambda _, __: None}, r"loss\(__\).*def loss\(self, outputs, batch\)$"),
        ({"loss": nn.CrossEntropyLoss()}, "loss of task Changed is a CrossEntropyLoss"),
        ({"forward": lambda _, __: None}, r"forward\(__\).*as forward\(model, batch\)"),
        ({"schedule": 0.5}, "schedule of task Changed is a float"),
        ({"metrics": {}}, r"metrics of task Changed is a dict, and must be a method: def metrics"),
        ({"data": "train.parquet"}, "data of task Changed is a str"),
        ({"columns": "x"}, "columns of task Changed is 'x', and must be a list of names"),
        ({"columns": {"x", "label"}}, "and must be a list of names, or a mapping"),
        ({"columns": ["x", 3]}, "has 3, which is not the name of a column"),
        ({"columns": ["x", "x"]}, "has 'x' twice"),
        ({"columns": []}, "columns of task Changed is empty"),
        ({"columns": {"x": 6}}, r"gives 'x' the shape 6, .* such as \(1, 28, 28\)"),
        ({"columns": {"x": "6"}}, "gives 'x' the shape '6'"),
        ({"target": None}, "target of task Changed is None, and must be the name of a column"),
        ({"target": ["label"]}, r"target of task Changed is \['label'\]"),
        ({"tokens": 5}, "tokens of task Changed is 5, and must be the name of a column, or None"),
        ({"tokens": True}, "tokens of task Changed is True"),
        (
            {"ignore_index": None},
            "ignore_index of task Changed is None, and must be a whole number",
        ),
        ({"metrics": fails}, r"Changed.metrics\(\) failed:\n.*in fails\n.*KeyError: 'where'$"),
    ],
)
def test_a_task_with_wrong_methods_is_refused(given, said):
    with pytest.raises(TaskError, match=f"(?s){said}"):
        check_task(changed(**given))


@pytest.mark.parametrize("method", ["data", "evaluation_data"])
def test_an_error_before_the_run_shows_the_users_lines(method):
    task = changed(**{"data": lambda _: "here", method: fails})
    with pytest.raises(TaskError, match=rf"(?s)Changed.{method}\(\) failed:.*in fails\n") as caught:
        data_of(task, None, None)
    assert "raytrain_plus/task_check.py" not in str(caught.value)


def test_a_task_that_cannot_be_constructed_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unmade.py").write_text(
        "from raytrain_plus import Task\n"
        "class Sized(Task):\n"
        "    def __init__(self, size): ...\n"
        "def broken():\n"
        "    return {}['absent']\n"
    )
    with pytest.raises(TaskError, match=r"(?s)'unmade.py:Sized' cannot be made.*'size'$"):
        load_task("unmade.py:Sized")
    with pytest.raises(TaskError, match=r"(?s)broken\(\) fails:.*\['absent'\].*KeyError"):
        load_task("unmade.py:broken")

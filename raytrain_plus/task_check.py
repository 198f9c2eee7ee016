"""Checks a task's attributes and methods before any worker starts."""

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from raytrain_plus.task import Task, TaskError

_CALLS = {
    "model": "model()",
    "optimizer": "optimizer(model)",
    "schedule": "schedule(progress)",
    "forward": "forward(model, batch)",
    "loss": "loss(outputs, batch)",
    "collate": "collate(rows)",
    "measure": "measure(outputs, batch)",
    "predict": "predict(model, batch)",
    "generate": "generate(model, prompt, length, choose)",
    "depends_on": "depends_on()",
    "metrics": "metrics()",
    "update_metric": "update_metric(metric, outputs, batch)",
    "data": "data()",
    "evaluation_data": "evaluation_data()",
}
_NEEDED = ("model", "optimizer", "loss")


def check_form(task: Task) -> None:
    """Check that a task defines what it must, and that its methods accept the right arguments.

    Raises:
        TaskError: it lacks a method, a method takes other arguments, or an attribute has a wrong
            type.
    """
    name = type(task).__name__
    missing = [f"{n}()" for n in _NEEDED if getattr(type(task), n) is getattr(Task, n)]
    if missing:
        raise TaskError(f"task {name} does not define {', '.join(missing)}")
    for method, call in _CALLS.items():
        _check_method(name, method, call, getattr(task, method))
    _check_columns(name, task.columns)
    _check_attribute(name, "target", task.target, (str,), "the name of a column")
    _check_attribute(
        name, "tokens", task.tokens, (str, type(None)), "the name of a column, or None"
    )
    size = task.vocabulary_size
    _check_attribute(name, "vocabulary_size", size, (int, type(None)), "a whole number, or None")
    if task.evaluate_loss not in (None, True, False):
        raise TaskError(
            f"evaluate_loss of task {name} is {task.evaluate_loss!r}, and must be True, False or "
            "None"
        )
    _check_attribute(name, "ignore_index", task.ignore_index, (int,), "a whole number")


def call_task_method(task: Task, method: str) -> Any:
    """Call a method of a task without arguments, and return its result.

    Raises:
        TaskError: it raised; the text has the user's part of the traceback.
    """
    return call_user_code(getattr(task, method), f"{type(task).__name__}.{method}()")


def call_user_code(call: Callable[[], Any], what: str) -> Any:
    """Call a user's function, and return its result.

    Args:
        call: the function, without arguments.
        what: what it is, for the error.

    Raises:
        TaskError: it raised; the text has the user's part of the traceback.
    """
    try:
        return call()
    except TaskError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        here = str(Path(__file__).parent)
        skipped = next((i for i, f in enumerate(frames) if not f.filename.startswith(here)), 0)
        text = [*traceback.format_list(frames[skipped:]), *traceback.format_exception_only(error)]
        raise TaskError(f"{what} failed:\n{''.join(text).rstrip()}") from error


def _check_method(task: str, method: str, call: str, given: Any) -> None:
    if isinstance(given, (nn.Module, type)) or not callable(given):
        kind = f"the class {given.__name__}" if isinstance(given, type) else f"a {_kind(given)}"
        raise TaskError(f"{method} of task {task} is {kind}, and must be a method: def {call}")
    arguments = call.partition("(")[2].rstrip(")").split(", ")
    wanted = f"def {method}({', '.join(['self', *filter(None, arguments)])})"
    try:
        signature: Any = inspect.signature(given)
    except (TypeError, ValueError):
        if not inspect.ismethod(given):  # built in: its signature is not known
            return
        signature, why = "()", "it does not take `self`"
    else:
        try:
            signature.bind(*filter(None, arguments))
        except TypeError as error:
            why = str(error)
        else:
            return
    raise TaskError(
        f"{method}{signature} of task {task} cannot be called as {call}: {why}. Define it as "
        f"{wanted}"
    )


def _check_columns(task: str, columns: Any) -> None:
    if columns is None:
        return
    if isinstance(columns, str) or not isinstance(columns, (Mapping, Sequence)):
        raise TaskError(
            f"columns of task {task} is {columns!r}, and must be a list of names, or a mapping "
            "from name to the shape of one row"
        )
    wrong = [name for name in columns if not isinstance(name, str)]
    if wrong:
        raise TaskError(
            f"columns of task {task} has {wrong[0]!r}, which is not the name of a column"
        )
    doubled = [name for i, name in enumerate(columns) if name in list(columns)[:i]]
    if doubled:
        raise TaskError(f"columns of task {task} has {doubled[0]!r} twice")
    if not columns:
        raise TaskError(f"columns of task {task} is empty: name some, or leave it out for all")
    if isinstance(columns, Mapping):
        for name, shape in columns.items():
            sizes = shape if isinstance(shape, (tuple, list)) else [None]
            if not all(isinstance(size, int) for size in sizes):
                raise TaskError(
                    f"columns of task {task} gives {name!r} the shape {shape!r}, and must give it "
                    "a tuple of whole numbers, such as (1, 28, 28), or () for a number"
                )


def _check_attribute(
    task: str, name: str, value: Any, types: tuple[type, ...], wanted: str
) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        raise TaskError(f"{name} of task {task} is {value!r}, and must be {wanted}")


def _kind(value: Any) -> str:
    return type(value).__name__

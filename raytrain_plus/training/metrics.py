"""Metrics: what each logical rank has gathered becomes one value, as one process would give it.

Each logical rank feeds a copy of the metric. A state is merged over logical ranks as torchmetrics
merges it over processes, by its `dist_reduce_fx`, always in the order of logical ranks:

- `"sum"`, `"max"`, `"min"`: one after the other;
- `"cat"`, and every state that is a list: concatenated;
- a function: it receives the states of all logical ranks, stacked, shape (ranks, ...);
- `None` and `"mean"` for a tensor: refused, unless the metric is one of torchmetrics' own. Nothing
  says what such a state means for several processes, or how many samples each mean stands for.

A metric may hold others (MetricCollection, MinMaxMetric, BootStrapper, sums of metrics): each is
merged by itself.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard, Union

import numpy as np
import torch
from torch import Tensor, nn

from raytrain_plus.task import Task, TaskError
from raytrain_plus.task_check import call_task_method

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

Measure = Union["Metric", "MetricCollection"]
States = dict[str, Tensor]
_ATTRIBUTES, _UPDATES = "!attributes", "!updates"  # no names of states
_Plain = (type(None), bool, int, float, str)
_Gathered = (Tensor, np.ndarray, list, tuple, dict, set)  # types in which users gather samples


def metrics_of(task: Task) -> dict[str, Measure]:
    """Return a task's metrics by name.

    Raises:
        TaskError: `task.metrics()` returned anything else, or a name or a metric that cannot be
            used.
    """
    given = call_task_method(task, "metrics")
    if _is_collection(given):
        given = dict(given.items())
    if not isinstance(given, Mapping):
        raise TaskError(
            f"task.metrics() returned {_described(given)}, and must return a mapping from name to "
            'torchmetrics.Metric, such as {"accuracy": MulticlassAccuracy(10)}'
        )
    for name, metric in given.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise TaskError(
                f"task.metrics() names a metric {name!r}: a name is a text that is not empty and "
                "has no slash"
            )
        _check(name, metric)
    return {name: _apart(metric) for name, metric in given.items()}


def check_metrics(task: Task) -> None:
    """Refuse metrics that cannot be merged exactly.

    Raises:
        TaskError: as `metrics_of`.
    """
    metrics_of(task)


def gathered(name: str, metric: Measure, template: Measure) -> States:
    """Return all that a metric has gathered since it was a copy of `template`.

    Args:
        name: the metric's, for errors.
        metric: the copy that was updated.
        template: the metric as it was.

    Raises:
        TaskError: the metric has gathered something outside of its states.
    """
    found: States = {}
    fresh = _nested(template)
    for i, one in enumerate(_nested(metric)):
        if i >= len(fresh) or one._defaults.keys() != fresh[i]._defaults.keys():  # noqa: SLF001
            raise TaskError(
                f"metric {name!r} ({type(one).__name__}) makes its states in update(): make them "
                "in __init__, so that all workers have the same (a metric of torchmetrics does so "
                "if it is given all of its settings, such as num_classes)"
            )
        for key, value in one.metric_state.items():
            # Copies: metrics may keep one and the same tensor, which safetensors refuses to write.
            if isinstance(value, Tensor):
                found[f"{i}/{key}"] = _copied(value)
            else:
                found |= {f"{i}/{key}#{n:06d}": _copied(v) for n, v in enumerate(value)}
        found[f"{i}/{_UPDATES}"] = torch.tensor(one.update_count)
        changed = _changed(name, fresh[i], one)
        if changed:
            found[f"{i}/{_ATTRIBUTES}"] = torch.frombuffer(
                bytearray(json.dumps(changed).encode()), dtype=torch.uint8
            )
    return found


def merged(name: str, metric: Measure, ranks: Sequence[States]) -> Measure:
    """Fill a metric with what all logical ranks have gathered, and return it.

    Args:
        name: the metric's, for errors.
        metric: a copy of the template, which is changed.
        ranks: what `gathered` returned for each logical rank, in their order; at least one.

    Raises:
        TaskError: the logical ranks differ in what no rule merges.
    """
    for i, one in enumerate(_nested(metric)):
        own = [_below(states, f"{i}/") for states in ranks]
        _set_attributes(name, one, [states.pop(_ATTRIBUTES, None) for states in own])
        one._update_count = sum(int(states.pop(_UPDATES)) for states in own)  # noqa: SLF001
        for key, default in one.metric_state.items():
            reduce: Any = one._reductions[key]  # noqa: SLF001 - it has no public name
            if isinstance(default, Tensor):
                value: Any = _reduced(reduce, [states[key] for states in own])
            else:
                value = [v for states in own for _, v in sorted(_below(states, f"{key}#").items())]
                if _is_custom(reduce) and len(own) > 1:
                    value = reduce(value)
            setattr(one, key, value)
    return metric


def _reduced(reduce: Any, values: Sequence[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    name = getattr(reduce, "__name__", "")
    if name == "dim_zero_cat":
        return torch.cat([v.reshape(1) if v.ndim == 0 else v for v in values])
    if name in _ONE_BY_ONE:
        total = values[0]
        for value in values[1:]:
            total = _ONE_BY_ONE[name](total, value)
        return total
    if name == "dim_zero_mean" and all(torch.equal(v, values[0]) for v in values):
        return values[0]
    stacked = torch.stack(list(values))
    reduced: Tensor = stacked if reduce is None else reduce(stacked)
    return reduced


_ONE_BY_ONE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dim_zero_sum": torch.add,
    "dim_zero_max": torch.maximum,
    "dim_zero_min": torch.minimum,
}


def _is_custom(reduce: Any) -> bool:
    return callable(reduce) and not getattr(reduce, "__name__", "").startswith("dim_zero_")


def _check(name: str, metric: Any) -> None:
    if not _is_metric(metric) and not _is_collection(metric):
        raise TaskError(
            f"metric {name!r} is {_described(metric)}, and must be a torchmetrics.Metric or a "
            "torchmetrics.MetricCollection"
        )
    for one in _nested(metric):
        kind = type(one).__name__
        if _is_one_of(one, "torchmetrics.wrappers.running", "Running"):
            raise TaskError(
                f"metric {name!r} ({kind}) measures the last updates only, and an evaluation has "
                "no last one: its parts are computed by several workers. Use the metric inside"
            )
        own = any(
            base.__module__.startswith("torchmetrics.") and base.__module__ not in _BASES
            for base in type(one).__mro__
        )
        for key, reduce in one._reductions.items():  # noqa: SLF001
            tensor = isinstance(one._defaults[key], Tensor)  # noqa: SLF001
            mean = getattr(reduce, "__name__", "") == "dim_zero_mean"
            if own or not (mean or (reduce is None and tensor)):
                continue
            raise TaskError(
                f"metric {name!r} ({kind}) cannot be merged over workers: its state {key!r} has "
                f"dist_reduce_fx={'mean' if mean else None!r}. Use 'sum', 'cat', 'max', 'min', or "
                "a function of all workers' states stacked; for a mean keep the sum and the "
                "number of samples, both summed"
            )


_BASES = ("torchmetrics.metric", "torchmetrics.wrappers.abstract")  # users derive from these


# Kinds are told apart without importing torchmetrics, which takes two seconds: a task that measures
# nothing, or by a class that only looks like one of torchmetrics, does not need it.


def _is_metric(given: Any) -> "TypeGuard[Metric]":
    kept = ("metric_state", "_reductions", "_defaults", "update", "compute")
    return not isinstance(given, type) and all(hasattr(given, name) for name in kept)


def _is_collection(given: Any) -> "TypeGuard[MetricCollection]":
    return _is_one_of(given, "torchmetrics.collections", "MetricCollection")


def _is_one_of(given: Any, module: str, name: str) -> bool:
    return any(base.__module__ == module and base.__name__ == name for base in type(given).__mro__)


def _apart(metric: Measure) -> Measure:
    """Let each metric of a collection update itself: groups of them would share their states."""
    if _is_collection(metric):
        metric._enable_compute_groups = False  # noqa: SLF001 - public in the constructor only
        metric._groups_checked = False  # noqa: SLF001
    for one in vars(metric).get("_modules", {}).values():
        if one is not None:
            _apart(one)
    return metric


def _nested(metric: Measure) -> "list[Metric]":
    """Return a metric and all that it holds, each once, in an order that is always the same."""
    found: list[Metric] = []
    seen: set[int] = set()
    waiting: list[Any] = [metric]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if _is_metric(one):
            found.append(one)
        waiting += reversed(list(_held(one)))
    return found


def _held(one: Any) -> Iterator[Any]:
    if isinstance(one, nn.Module):
        yield from (value for key, value in vars(one).items() if key not in _bookkeeping())
        yield from vars(one)["_modules"].values()
    elif isinstance(one, Mapping):
        yield from one.values()
    elif isinstance(one, (list, tuple)):
        yield from one


def _bookkeeping() -> frozenset[str]:
    """Return the attributes that torchmetrics itself keeps on every metric."""
    torchmetrics = sys.modules.get("torchmetrics")
    return _attributes_of(torchmetrics) if torchmetrics else _OF_ANY


_OF_ANY = frozenset(("_update_count", "_defaults", "_reductions"))


@cache
def _attributes_of(torchmetrics: Any) -> frozenset[str]:
    class Bare(torchmetrics.Metric):  # type: ignore[misc]
        def update(self) -> None: ...

        def compute(self) -> None: ...

    return frozenset(vars(Bare()))


def _changed(name: str, before: "Metric", after: "Metric") -> dict[str, Any]:
    """Return the plain attributes, not states, that `update` has changed."""
    changed: dict[str, Any] = {}
    skipped = {*_bookkeeping(), *after._defaults}  # noqa: SLF001
    for key, value in vars(after).items():
        if key in skipped or _same(vars(before).get(key), value):
            continue
        if isinstance(value, _Plain):
            changed[key] = value if not isinstance(value, str) else str(value)
        elif isinstance(value, torch.dtype):
            changed[key] = {"dtype": str(value).removeprefix("torch.")}
        elif isinstance(value, _Gathered):
            raise _outside(name, after, key)
    return changed


def _set_attributes(name: str, metric: "Metric", told: Sequence[Tensor | None]) -> None:
    texts = {bytes(one.numpy()) for one in told if one is not None}
    values = [json.loads(text) for text in texts]
    for one in values:
        for key, value in one.items():
            if any(other.get(key, value) != value for other in values):
                raise _outside(name, metric, key)
            is_dtype = isinstance(value, dict)
            setattr(metric, key, getattr(torch, value["dtype"]) if is_dtype else value)


def _outside(name: str, metric: "Metric", key: str) -> TaskError:
    return TaskError(
        f"metric {name!r} ({type(metric).__name__}) gathers in its attribute {key!r}, which is no "
        f"state: what one worker gathers there is lost to the others. Make it a state: "
        f"self.add_state({key!r}, default=..., dist_reduce_fx='sum') for a tensor, or with "
        "default=[] and dist_reduce_fx='cat' for a list of tensors"
    )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(v, other[k]) for k, v in one.items())
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, (*_Plain, set, torch.dtype)):
        return bool(one == other)
    return True  # an object of unknown kind: a setting, not what was gathered


def _below(states: States, prefix: str) -> States:
    return {k.removeprefix(prefix): v for k, v in states.items() if k.startswith(prefix)}


def _copied(value: Tensor) -> Tensor:
    return torch.as_tensor(value).detach().cpu().contiguous().clone()


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"

"""From a user's settings to a run: checks everything that can be checked before a worker starts."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import sys
import sysconfig
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import ray.train
import torch
from torch import Tensor

from raytrain_plus import exits, user_data
from raytrain_plus.algorithms import Aspect, AspectError, Weave
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.retention import Retention
from raytrain_plus.clock import Clock, Lengths, run_length
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.names import InvalidNameError, check_name
from raytrain_plus.observe import journal
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.redaction import redact
from raytrain_plus.seeds import seed_global_generators
from raytrain_plus.stopping import EarlyStopping, Rule
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.locations import local_path
from raytrain_plus.storage.store import Folder, Store
from raytrain_plus.streams import label_skew
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.labels import check_same
from raytrain_plus.streams.loader import Batch, load_part, steps_per_epoch
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.source import Source, closed_on_error
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.vocabulary import check_one_tokenizer, check_vocabulary
from raytrain_plus.task import Task, TaskError, collate_of
from raytrain_plus.task_check import call_task_method, check_form
from raytrain_plus.training.attributes import same
from raytrain_plus.training.building import check_optimizer_early
from raytrain_plus.training.evaluation import (
    LOSS,
    measures_anything,
    measures_loss,
    named_in,
    named_sets,
)
from raytrain_plus.training.initial_weights import hash_of
from raytrain_plus.training.metrics import check_metrics, metrics_of
from raytrain_plus.training.process_state import generator_bytes, process_kept
from raytrain_plus.user_code import Code, CodeFile, code_behind, is_users
from raytrain_plus.user_data import open_users_data

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")
_KEYS = "keys of a run file"  # the attribute of an error

_LEAST_EVALUATION_ROWS = 64
_PROBE_SECONDS = 15.0  # for a store that is to hold a run to answer
_SOME_OF_A_KIND = 0.001  # of Ray's resource `accelerator_type:X`, of which each such node has 1
_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DEFAULT_STORAGE = "~/ray_results"
_UNNAMED = re.compile(r"ray_train_run-\d{4}(-\d\d){2}_\d\d(-\d\d){2}")


class ConfigError(ValueError):
    """A setting that is not possible; the message says which one, and what to do."""


def about(*keys: str) -> Callable[[Callable[_Given, _Made]], Callable[_Given, _Made]]:
    """Let the errors of a function name the settings that it checks; see `keys_of`."""

    def wrapped(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
        @functools.wraps(function)
        def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
            try:
                return function(*args, **kwargs)
            except ValueError as error:
                vars(error).setdefault(_KEYS, keys)
                raise

        return call

    return wrapped


def keys_of(error: ValueError) -> tuple[str, ...]:
    """Return the keys of a run file that an error is about, the likeliest first; or nothing."""
    return tuple(vars(error).get(_KEYS, ()))


def check_platform(system: str = sys.platform) -> None:
    """Check that workers can run on this system.

    Raises:
        ConfigError: it is not Linux.
    """
    if system != "linux":
        raise ConfigError(
            f"workers need Linux (they use /proc and memfd_create), and this is {system}: train in "
            "a container or on a Linux machine, or in this process alone (--workers 0)"
        )


@about("batch_size", "logical_ranks")
def check_sizes(batch_size: int, logical_ranks: int, workers: tuple[int, int]) -> None:
    """Check the settings that depend on numbers alone.

    Raises:
        ConfigError: they do not fit together.
    """
    _check_workers(workers, logical_ranks)
    if batch_size < 1 or batch_size % logical_ranks:
        lower = max(logical_ranks, batch_size // logical_ranks * logical_ranks)
        raise ConfigError(
            f"batch_size {batch_size} cannot be divided by {logical_ranks} logical ranks: use "
            f"{lower} or {lower + logical_ranks}, or another number of logical ranks"
        )


@about("workers", "logical_ranks")
def _check_workers(workers: tuple[int, int], logical_ranks: int) -> None:
    least, most = workers
    if least < 1 or most < least:
        raise ConfigError(
            f"workers is {least}:{most}; the least number must be at least 1 and not above the "
            "most. 0 alone means a local run, in this process"
        )
    if logical_ranks < 1:
        raise ConfigError(f"logical_ranks is {logical_ranks}; it must be at least 1")
    if most > logical_ranks:
        raise ConfigError(
            f"{most} workers cannot share {logical_ranks} logical ranks, each computes at least "
            f"one: raise logical_ranks to {most} or more, or lower the number of workers"
        )


def worker_range(scaling: ray.train.ScalingConfig) -> tuple[int, int]:
    """Return the least and the most workers of a ScalingConfig.

    Raises:
        ConfigError: it sets a field that raytrain_plus does not support.
    """
    refused = {
        "trainer_resources": scaling.trainer_resources,
        "use_tpu": scaling.use_tpu,
        "topology": scaling.topology,
        "elastic_resize_monitor_interval_s": scaling.elastic_resize_monitor_interval_s != 60.0,
    }
    _refuse("ScalingConfig", refused)
    workers = scaling.num_workers
    return (workers, workers) if isinstance(workers, int) else (workers[0], workers[1])


@about("workers", "spares", "isa", "worker_runtime_env", "faults", "gpu")
def workers_of(
    scaling: ray.train.ScalingConfig,
    run: ray.train.RunConfig,
    elastic: ElasticConfig,
    faults: Sequence[Fault],
) -> tuple[tuple[int, int], bool]:
    """Return the least and the most workers, and whether the run is local: in this process alone.

    Raises:
        ConfigError: something is asked for that is not supported, or not in a local run.
    """
    workers = worker_range(scaling)
    check_run_config(run)
    if workers != (0, 0):
        return workers, False
    asked = {
        "spares": elastic.spares,
        "worker_pool": elastic.worker_pool,
        "isa": elastic.isa,
        "worker_runtime_env": run.worker_runtime_env,
        "faults": faults,
    }
    given = [name for name, value in asked.items() if value]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be used with 0 workers: a local run is in this process "
            "alone. Leave it out, or train with 1 worker or more"
        )
    if worker_resources(scaling).get("GPU") and not torch.cuda.is_available():
        raise ConfigError(
            "a local run is to use a GPU, and torch finds none in this process: leave use_gpu "
            "(--gpu) out"
        )
    return (1, 1), True


def worker_needs(scaling: ray.train.ScalingConfig) -> dict[str, Any]:
    """Return what each worker asks Ray for: `resources` and `placement` of a RunSpec."""
    return {"resources": worker_resources(scaling), "placement": worker_placement(scaling)}


@about("placement_strategy", "label_selector")
def worker_placement(scaling: ray.train.ScalingConfig) -> dict[str, Any]:
    """Return the options by which Ray chooses the node of each worker.

    Workers come and go one at a time, so that each has a place of its own, and not one in a
    placement group: PACK and SPREAD are wishes, as in Ray.

    Raises:
        ConfigError: the workers would differ, or could only be placed together.
    """
    strategy, selector = scaling.placement_strategy, scaling.label_selector
    if strategy not in ("PACK", "SPREAD"):
        raise ConfigError(
            f"ScalingConfig(placement_strategy={strategy!r}): workers are placed one at a time, so "
            "that a lost one never blocks the others. Choose PACK or SPREAD, or keep the workers "
            "on some nodes by label_selector"
        )
    if isinstance(selector, list):
        if any(one != selector[0] for one in selector):
            raise ConfigError(
                f"ScalingConfig(label_selector={selector!r}): all workers are alike, as any of "
                "them may be replaced by any other. Give one selector for all of them, such as "
                '{"ray.io/market-type": "spot"}; alternatives go into one value: "in(a,b)"'
            )
        selector = selector[0] if selector else None
    spread = {"scheduling_strategy": "SPREAD"} if strategy == "SPREAD" else {}
    return {**({"label_selector": dict(selector)} if selector else {}), **spread}


@about("gpu", "accelerator_type", "resources_per_worker")
def worker_resources(scaling: ray.train.ScalingConfig) -> dict[str, float]:
    """Return what each worker asks Ray for. Default: one CPU, and one GPU if `use_gpu`.

    An `accelerator_type` becomes a small amount of Ray's resource of that name, as in Ray Train. A
    worker then runs only on nodes with that kind of GPU.

    Raises:
        ConfigError: a worker would hold more than one GPU, or a fraction of one.
    """
    resources = dict(scaling.resources_per_worker or {"CPU": 1})
    if scaling.use_gpu:
        resources.setdefault("GPU", 1)
    gpus = resources.get("GPU", 0)
    if gpus not in (0, 1):
        raise ConfigError(
            f"resources_per_worker asks for {gpus:g} GPUs, and a worker computes on one: NCCL "
            "refuses two workers on one GPU, and a second GPU would lie idle. Ask for "
            '{"GPU": 1}, and set the number of workers by num_workers'
        )
    kind = scaling.accelerator_type
    if kind and not gpus:
        raise ConfigError(
            f"accelerator_type is {kind!r}, and the workers hold no GPU: set use_gpu=True (--gpu), "
            "or leave the type out"
        )
    if kind:
        resources[f"accelerator_type:{kind}"] = _SOME_OF_A_KIND
    return {name: float(amount) for name, amount in resources.items() if amount}


def check_run_config(run: ray.train.RunConfig) -> None:
    """Refuse fields that would be ignored.

    Raises:
        ConfigError: it sets a field that raytrain_plus does not support.
    """
    refused = {
        "storage_filesystem": run.storage_filesystem,
        "logging_config": run.logging_config != ray.train.LoggingConfig(),
    }
    _refuse("RunConfig", refused)
    failure = run.failure_config
    if failure is None:
        return
    plain = ray.train.FailureConfig()
    names = [field.name for field in dataclasses.fields(plain)]
    changed = {name: getattr(failure, name) != getattr(plain, name) for name in names}
    # Both values mean no limit: lost workers never end a run.
    _refuse("FailureConfig", {**changed, "max_failures": failure.max_failures not in (0, -1)})


@about("keep_best")
def retention_of(run: ray.train.RunConfig, task: Task, evaluation_data: Any) -> Retention:
    """Return which checkpoints are kept.

    Args:
        run: its CheckpointConfig says which. Default: all, as in Ray Train.
        task: its metrics, and the training loss as `loss`, can be the score.
        evaluation_data: as the trainer gets it; None for none.

    Raises:
        ConfigError: the score is not a metric of the run.
    """
    asked = run.checkpoint_config or ray.train.CheckpointConfig()
    score = asked.checkpoint_score_attribute
    if score is not None:
        what = "CheckpointConfig sets checkpoint_score_attribute to"
        _check_measured(what, score, ["loss"], task, evaluation_data)
    return Retention(asked.num_to_keep, score, asked.checkpoint_score_order)


def uses_of_metrics(
    run: ray.train.RunConfig, stop: Sequence[Rule], task: Task, evaluation_data: Any
) -> dict[str, Any]:
    """Return `retention` and `stop` of a RunSpec; see `retention_of` and `check_stop`."""
    check_stop(stop, task, evaluation_data)
    return {"retention": retention_of(run, task, evaluation_data), "stop": tuple(stop)}


@about("early_stopping")
def check_stop(stop: Sequence[Rule], task: Task, evaluation_data: Any) -> None:
    """Check that early stopping looks at a metric that an evaluation measures.

    Raises:
        ConfigError: it does not, so that it would never stop the run.
    """
    for rule in stop:
        if isinstance(rule, EarlyStopping):
            _check_measured("early stopping looks at", rule.metric, [], task, evaluation_data)


def _check_measured(
    what: str, name: str, further: Sequence[str], task: Task, evaluation_data: Any
) -> None:
    """Refuse the name of a metric that a run does not have."""
    sets = named_sets(evaluation_data)
    known = [*further, *(named_in(one, metric) for one in sets for metric in _measured(task))]
    open_ended = bool(sets) and type(task).measure is not Task.measure
    if name not in known and not open_ended:
        ways = ["name one of these"] * bool(known) + ["give data to evaluate on"] * (not sets)
        raise ConfigError(
            f"{what} {name!r}, and the run measures {', '.join(known) or 'nothing'}: "
            f"{', or '.join(ways)}"
        )


def _measured(task: Task) -> list[str]:
    """Return the names of what an evaluation measures, as far as they are known."""
    return [*sorted(metrics_of(task)), *([LOSS] if measures_loss(task) else [])]


def _refuse(what: str, fields: Mapping[str, Any]) -> None:
    given = [name for name, value in fields.items() if value]
    if given:
        raise ConfigError(
            f"{what} sets {', '.join(given)}, which raytrain_plus does not support yet: leave it "
            "out"
        )


def check_task(
    task: Task, weights: str | os.PathLike[str] | None = None, *, partial: bool = False
) -> None:
    """Check that a task defines what it must, and let it start from weights if some are given.

    Args:
        task: the task.
        weights: as for `with_initial_weights`. Default: the task's own.
        partial: load those that fit.

    Raises:
        ConfigError: the weights cannot be found.
        TaskError: it does not, it has another form, or its metrics cannot be merged over workers.
    """
    check_form(task)
    check_metrics(task)
    check_optimizer_early(task)
    if weights is not None:
        with_initial_weights(task, weights, partial=partial)
    elif partial:
        raise ConfigError("partial_weights is set without initial_weights: leave it out")


def warnings_of(task: Task, evaluation_data: Any) -> list[str]:
    """Return what a user should know before a run begins, one sentence each."""
    if evaluation_data is None or measures_anything(task):
        return []
    return [
        (
            f"there is evaluation data, and task {type(task).__name__} has no metrics and sets "
            "evaluate_loss to False: nothing is evaluated. Define metrics(), or leave it out"
        )
    ]


@about("algorithms")
def check_algorithms(algorithms: Sequence[Aspect]) -> None:
    """Check that aspects can be used together.

    Raises:
        AspectError: they cannot.
    """
    for aspect in algorithms:
        if not isinstance(aspect, Aspect):
            raise AspectError(f"algorithms holds {aspect!r}, which is not a raytrain_plus Aspect")
    Weave(algorithms)


def data_of(
    task: Task,
    data: Any,
    evaluation_data: Any,
    run: ray.train.RunConfig | None = None,
    elastic: ElasticConfig | None = None,
) -> tuple[Any, Any]:
    """Return the data to train and to evaluate on: what is given, or else the task's own.

    Args:
        task: the task.
        data: what the trainer is given; None for nothing.
        evaluation_data: likewise.
        run: names the storage, where also data is kept that must be written first.
        elastic: has the options of that storage.

    Raises:
        ConfigError: there is nothing to train on.
        DataError: the data has a form that cannot be read.
    """
    with exits.as_errors("the task's data()"):
        data = data if data is not None else call_task_method(task, "data")
    if data is None:
        raise ConfigError("no training data: give `data`, or define the task's data()")
    storage = None if run is None else run.storage_path
    options = None if elastic is None else elastic.checkpoint_options
    held_out = evaluation_data_of(task, evaluation_data, storage, options)
    return user_data.travelling(data, _root_of(storage), options), held_out


@about("evaluation_data")
def evaluation_data_of(
    task: Task, data: Any, storage: str | None = None, options: Mapping[str, Any] | None = None
) -> Any:
    """Return the data to evaluate on, as `data_of`; None for none.

    Raises:
        ConfigError: a set has no data, or a name that is not possible.
    """
    with exits.as_errors("the task's evaluation_data()"):
        held_out = data if data is not None else call_task_method(task, "evaluation_data")
    root = _root_of(storage)
    held_out = user_data.evaluation_sets(held_out)
    if isinstance(held_out, Mapping):
        _check_set_names(held_out)
        return {name: user_data.travelling(one, root, options) for name, one in held_out.items()}
    return None if held_out is None else user_data.travelling(held_out, root, options)


def _root_of(storage: str | None) -> str:
    """Return the folder or URL in which runs are kept."""
    path = local_path(storage or DEFAULT_STORAGE)
    return str(path) if path is not None else str(storage)


def _check_set_names(sets: Mapping[str, Any]) -> None:
    for name, data in sets.items():
        if not isinstance(name, str) or not _SET_NAME.fullmatch(name):
            raise ConfigError(
                f"evaluation_data has a set named {name!r}; a name has letters, digits, '-', '_' "
                "and '.'"
            )
        if data is None:
            raise ConfigError(f"evaluation_data has no data for {name!r}: leave the name out")
    if not sets:
        raise ConfigError("evaluation_data is empty: name some sets, or leave it out")


def absolute(data: Any) -> Any:
    """Return data as it goes to another process; see `user_data.travelling`."""
    return user_data.travelling(data, _root_of(None))


@about("checkpoint_storage")
def with_absolute_checkpoint_storage(elastic: ElasticConfig) -> ElasticConfig:
    """Return a configuration with an absolute path for checkpoints.

    Raises:
        ConfigError: the path is deleted with a Ray job.
    """
    storage = elastic.checkpoint_storage
    path = None if storage is None else local_path(storage)
    if path is None:
        return elastic
    check_lasting(path, f"checkpoint storage {storage}")
    return dataclasses.replace(elastic, checkpoint_storage=str(path))


def check_lasting(path: Path, what: str) -> None:
    """Refuse a path in the copy of a working directory that Ray makes for a job, and deletes.

    Raises:
        ConfigError: it is there.
    """
    if "runtime_resources" in path.parts:
        raise ConfigError(
            f"{what} means {path}, which is in the copy of the working directory that Ray has made "
            "for this job, and goes away with it: give an absolute path that all nodes share, or a "
            "URL where one is taken"
        )


def code_of(task: Task, algorithms: Sequence[Aspect], data: Any) -> dict[str, CodeFile]:
    """Return the user's code in a task, its aspects, and what transforms its data."""
    return code_behind([task, *algorithms, *user_data.code_in(data)], import_paths())


def with_absolute_path(task: Task | str) -> Task | str:
    """Return a task; if it is named by a file, with the file's absolute path."""
    if not isinstance(task, str):
        return task
    module, _, attribute = task.rpartition(":")
    return f"{Path(module).resolve()}:{attribute}" if module.endswith(".py") else task


def with_options(options: Mapping[str, Any], *named: Any) -> list[Any]:
    """Return data with the options of its store, if a URL names it; other data unchanged.

    Raises:
        ConfigError: there are options, and no data is named by the URL of a store.
    """
    if not options:
        return list(named)
    remote = [isinstance(name, str) and local_path(name) is None for name in named]
    if not any(remote) and not any(isinstance(one, Stream | Mixture) for one in named):
        raise ConfigError(
            f"the storage options {', '.join(options)} are for a store, and no data is given by "
            "the URL of one: leave them out, or give --data s3://bucket/folder"
        )
    return [
        Stream(name, storage_options=options) if isinstance(name, str) and elsewhere else name
        for name, elsewhere in zip(named, remote, strict=True)
    ]


def open_for(
    task: Task,
    data: Any,
    what: str,
    *,
    hash_data: bool = False,
) -> Source:
    """Open data and compare it with what a task needs.

    Args:
        task: the task.
        data: the data.
        what: its name in an error.
        hash_data: derive the data's identity from hashes of all its bytes.

    Raises:
        DataError: the data is missing, empty, or of another schema.
    """
    key = "data" if what == "training data" else "evaluation_data"
    return about(key)(_opened)(task, data, what, hash_data=hash_data)


def _opened(
    task: Task,
    data: Any,
    what: str,
    *,
    hash_data: bool,
) -> Source:
    names = None if task.columns is None else list(task.columns)
    try:
        source = open_users_data(data, names, hash_data=hash_data)
        source.collate = collate_of(task)
        with closed_on_error(source):
            if source.transform is None:
                check_vocabulary(source.vocabularies, task.vocabulary_size)
            shapes = _shapes(source)
    except (DataError, StorageError) as error:
        raise DataError(f"{what}: {error}") from error
    with closed_on_error(source):
        _check_fits(task, shapes, what)
    return source


def _check_fits(task: Task, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Compare the shapes of columns with what a task needs.

    Raises:
        DataError: they do not fit.
    """
    names = list(task.columns or ())
    missing = [name for name in names if name not in shapes]
    if missing:
        raise DataError(
            f"{what}: the task asks for the columns {', '.join(missing)}, and the transform gives "
            f"{', '.join(shapes)}"
        )
    if isinstance(task.columns, Mapping):
        for name, shape in task.columns.items():
            found = shapes[name]
            if tuple(found) != tuple(shape):
                raise DataError(
                    f"{what}: the task asks for column {name!r} with rows of shape {tuple(shape)}, "
                    f"and the data has {tuple(found)}"
                )
    inputs = [name for name in shapes if name != task.target]
    if type(task).forward is Task.forward and len(inputs) != 1:
        raise DataError(
            f"{what}: the columns besides the target {task.target!r} are {', '.join(inputs)}, and "
            "the task's default forward() needs one: set the task's `columns` or `target`, or "
            "define forward(model, batch)"
        )
    if type(task).update_metric is Task.update_metric and metrics_of(task):
        _need_target(task, shapes, what)


def describe_task(
    task: Task,
    settings: Mapping[str, Any] | None,
    code: Code,
    algorithms: Sequence[Aspect],
    scaling: ray.train.ScalingConfig,
) -> dict[str, Any]:
    """Return the part of a run's identity that follows from the task, its code and its aspects."""
    accelerator = scaling.accelerator_type
    hashes = {name: file.sha256 for name, file in code.items()}
    return {
        "task settings": dict(settings or {}),
        "task code": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
        "code": hashes,
        "algorithms": {a.name: a.model_dump(mode="json") for a in algorithms if not a.observes},
        **({"accelerator": accelerator} if accelerator else {}),
        **_depended_on(task),
    }


def _depended_on(task: Task) -> dict[str, str]:
    """Return what a task says that its result depends on, and the hash of its initial weights.

    Raises:
        TaskError: the task fails, or the weights cannot be read.
    """
    said = call_task_method(task, "depends_on")
    found = {str(name): str(value) for name, value in said.items()}
    if task.initial_weights is not None:
        found["initial weights"] = about("initial_weights")(hash_of)(task.initial_weights)
        found["partial weights"] = str(task.partial_weights)
    return found


def weights_of(task: Task) -> tuple[str, bool] | None:
    """Return where a task's initial weights are, and whether those that fit suffice."""
    return None if task.initial_weights is None else (task.initial_weights, task.partial_weights)


@about("initial_weights")
def with_initial_weights(task: Task, place: str | os.PathLike[str], *, partial: bool) -> None:
    """Let a task start from weights.

    Args:
        task: the task.
        place: a safetensors file, a folder that has one, or the folder of a run, whose newest
            checkpoint is used.
        partial: load what fits.

    Raises:
        ConfigError: the run has no whole checkpoint.
    """
    path = Path(place).expanduser().absolute()
    if (path / journal.FILE_NAME).is_file():
        name, _ = checkpointer.newest_whole(Store(path))
        if name is None:
            raise ConfigError(
                f"initial_weights names the run {path}, which has no whole checkpoint"
            )
        path /= name
    task.initial_weights, task.partial_weights = str(path), partial


def describe_data(task: Task, source: Source, evaluation_data: Any) -> dict[str, str]:
    """Return the part of a run's identity that follows from the data, and release the source.

    Raises:
        DataError: the evaluation data cannot be read, or does not fit the task.
    """
    described = {f"data {key}": value for key, value in source.described().items()}
    sorted_by = label_skew.told(label_skew.skew_of(source, task.target), [task.target])
    if sorted_by is not None:
        warnings.warn(f"training data: {sorted_by}", stacklevel=3)
    source.release()  # the cache may need the room of its files for the evaluation data
    for name, data in named_sets(evaluation_data).items():
        what = f"evaluation data {name}".rstrip()
        held_out = open_for(task, data, what, hash_data=source.hash_data)
        with contextlib.closing(held_out):
            names = ("the training data", f"the {what}")
            check_same(source.labels, held_out.labels, *names)
            check_one_tokenizer(source.vocabularies, held_out.vocabularies, *names)
            _check_targets(task.target, source, held_out)
            described[what] = held_out.identity
    return described


def _check_targets(target: str, source: Source, held_out: Source) -> None:
    """Refuse targets that are text in one of the two and numbers in the other.

    Raises:
        DataError: they are.
    """
    sources = (source, held_out)
    if any(one.transform is not None or target not in one.columns for one in sources):
        return
    column, other = (one.columns[target] for one in sources)
    if (column.dtype == object) != (other.dtype == object):
        raise DataError(
            f"the target column {target!r} is {column} in the training data and {other} in the "
            "evaluation data: give both the same values. `raytrain-plus data write --label "
            f"{target}` turns names into numbers, and `--labels-from STREAM` gives them those of "
            "another stream."
        )


def _need_target(task: Task, columns: Iterable[str], what: str) -> None:
    if task.target not in columns:
        raise DataError(
            f"{what}: the target column {task.target!r} is not among {', '.join(columns)}: "
            "set the task's `target`"
        )


def _shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Return the shape of one sample's value in each column, as the task gets it."""
    if source.transform is None and source.collate is None:
        return {name: column.shape for name, column in source.columns.items()}
    try:
        batch = probe(source, 1)
    except Exception as error:
        if isinstance(error, DataError | StorageError | TaskError):
            raise
        raise DataError(f"the first sample cannot be read: {error!r}") from error
    return {
        name: tuple(value.shape[1:])
        if isinstance(value, Tensor)
        else ((-1,) if isinstance(value[0], Tensor) else ())
        for name, value in batch.items()
    }


def probe(source: Source, rows: int) -> Batch:
    """Return the first rows of the data, which each worker computes to prove its arithmetic.

    Raises:
        DataError: they cannot be read.
    """
    rows = min(rows, source.total_rows)
    made = load_part(source, source.plain_order(1), 0, 0, 0, rows)
    if source.collate is not None:
        _check_collate(source, rows, made)
    return made


def _check_collate(source: Source, rows: int, made: Batch) -> None:
    """Check that the task's `collate` is a function of its rows.

    Raises:
        TaskError: it draws random numbers, or makes another batch of the same rows.
    """
    drawn = "draws random numbers, which would be others on other workers: draw them in forward()"
    with process_kept():
        seed_global_generators(1)
        before = generator_bytes()
        again = load_part(source, source.plain_order(1), 0, 0, 0, rows)
        if generator_bytes() != before:
            raise TaskError(f"task.collate() {drawn}, whose generators are seeded for each part")
    differing = [n for n, value in again.items() if n not in made or not same(value, made[n])]
    if differing or made.keys() - again.keys():
        raise TaskError(
            f"task.collate() makes another column {(differing or sorted(made))[0]!r} of the same "
            "rows the second time: it must depend on the rows alone"
        )


@about("batch_size", "duration", "evaluate_every", "checkpoint_every")
def clock(
    source: Source,
    task: Task,
    *,
    duration: str,
    evaluate_every: str | Mapping[str, str],
    batch_size: int,
    logical_ranks: int,
    checkpoint_every: str | None = None,
) -> Clock:
    """Return the lengths of a run.

    Args:
        source: the training data.
        task: the task.
        duration: of the run.
        evaluate_every: how often to evaluate; or how often each set, by name.
        batch_size: samples per step.
        logical_ranks: parts of a batch.
        checkpoint_every: how often to keep the state. Default: at the end only.

    Raises:
        DurationError: a duration does not parse.
        DataError: the task names a column of tokens that the data does not have.
        ValueError: the batch is larger than the data.
    """
    every = evaluate_every if isinstance(evaluate_every, Mapping) else {"": evaluate_every}
    order = source.order(logical_ranks, 0, batch_size // logical_ranks)
    source.check_room(logical_ranks)
    epoch = steps_per_epoch(order, batch_size // logical_ranks)
    lengths = Lengths(
        steps_per_epoch=epoch,
        batch_size=batch_size,
        tokens_per_sample=_tokens_per_sample(
            source, task, [duration, *every.values(), checkpoint_every or ""]
        ),
    )
    total = run_length(duration, lengths)
    each = {name: run_length(text, lengths, total) for name, text in every.items()}
    return Clock(
        **vars(lengths),
        total_steps=total,
        evaluate_every=min(each.values()),
        evaluate_each=() if len(set(each.values())) == 1 else tuple(each.items()),
        checkpoint_every=None
        if checkpoint_every is None
        else run_length(checkpoint_every, lengths, total),
    )


@about("evaluate_every")
def intervals(every: str | Mapping[str, str], sets: Sequence[str]) -> dict[str, str]:
    """Return how often each evaluation set is due.

    Raises:
        ConfigError: an interval is given for a set that does not exist.
    """
    if not isinstance(every, Mapping):
        return dict.fromkeys(sets or [""], every)
    unknown = [name for name in every if name not in sets]
    if unknown:
        raise ConfigError(
            f"evaluate_every has intervals for {', '.join(map(repr, unknown))}, and the sets of "
            f"evaluation data are {', '.join(filter(None, sets)) or 'not named'}"
        )
    return {name: every.get(name, "1ep") for name in sets or [""]}


def _tokens_per_sample(source: Source, task: Task, lengths: Sequence[str]) -> float:
    """Return the tokens of a sample; rows of any length are read and counted only if needed."""
    if task.tokens is None:
        return 0
    shapes = _shapes(source)
    if task.tokens not in shapes:
        raise DataError(
            f"the task's column of tokens {task.tokens!r} is not among {', '.join(shapes)}: set "
            "the task's `tokens`"
        )
    column = source.columns.get(task.tokens)
    as_stored = source.transform is None and source.collate is None
    if as_stored and column is not None and column.kind in ("string", "binary"):
        raise DataError(
            f"the task's column of tokens {task.tokens!r} holds values of kind {column.kind}, "
            "which have no number of tokens: name a column of token numbers, or leave `tokens` out"
        )
    if source.collate is not None and column is not None and column.kind == "list":
        shapes = {task.tokens: (-1,)}  # padding is not counted ahead
    if -1 not in shapes[task.tokens]:
        return math.prod(shapes[task.tokens])
    if not any(text.strip().endswith("tok") for text in lengths):
        return 0
    if source.transform is not None:
        raise DataError(
            f"the transform gives the task's column of tokens {task.tokens!r} with rows of any "
            "length, which cannot be counted before it has run on all rows: let it give rows of "
            "one length, or give durations in steps (ba), samples (sp) or epochs (ep)"
        )
    return source.count_items(task.tokens) / source.total_rows


def evaluation_rows(batch_size: int, logical_ranks: int) -> int:
    """Return how many samples an evaluation computes in one forward."""
    return max(_LEAST_EVALUATION_ROWS, batch_size // logical_ranks)


def run_name(run: ray.train.RunConfig, *, resume: bool) -> str:
    """Return a run's name; if none was given, a unique one.

    Ray names such a run after the second in which its RunConfig was made.
    """
    name = str(run.name)
    return f"{name}-{uuid.uuid4().hex[:8]}" if not resume and _UNNAMED.fullmatch(name) else name


def folder_of(run: ray.train.RunConfig, elastic: ElasticConfig, *, resume: bool) -> Folder:
    """Return the folder of a run; it may be missing if its checkpoints are elsewhere.

    Raises:
        ConfigError: as for `run_folder`.
    """
    name = run_name(run, resume=resume)
    must_be_there = resume and not elastic.checkpoint_storage
    options = elastic.checkpoint_options
    return run_folder(run.storage_path, name, resume=must_be_there, options=options)


@about("storage", "name")
def run_folder(
    storage: str | None,
    name: str,
    *,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Folder:
    """Return a run's folder after testing that it can be written; the run creates it later.

    Args:
        storage: where runs are kept, a path or a URL.
        name: the run's.
        resume: it must be there.
        options: for the file system of a URL.

    Raises:
        ConfigError: the name is not valid; the storage cannot be written, or cannot hold a run; or
            there is nothing to resume.
    """
    try:
        check_name(name)
    except InvalidNameError as error:
        raise ConfigError(str(error)) from error
    text = storage or DEFAULT_STORAGE
    root = local_path(text)
    if root is None:
        return _folder_in_store(text, name, resume=resume, options=options)
    folder = root.resolve() / name
    check_lasting(folder, f"storage path {text}")
    if resume and not folder.is_dir():
        raise ConfigError(f"there is no run to resume in {folder}")
    is_new = not folder.exists()
    probe = folder / f".writable-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
        if is_new:
            folder.rmdir()  # a run that is refused leaves nothing behind
    except OSError as error:
        raise ConfigError(
            f"storage path {folder} cannot be written: {error}. Give a folder that this user may "
            "write to"
        ) from error
    return folder


def _folder_in_store(
    url: str, name: str, *, resume: bool, options: Mapping[str, Any] | None
) -> Store:
    """Return a run's folder in an object store after testing that the store can hold a run."""
    try:
        store = Store(url, options, deadline=_PROBE_SECONDS).inside(name)
        if resume and not journal_of(store).exists():
            raise ConfigError(f"there is no run to resume in {store}")
        why = "" if store.creates_conditionally() else (
            "it writes an object although there is one already, if it is to create one. So two "
            "drivers could not be kept apart"
        )  # fmt: skip
        store.check_times()
    except NotImplementedError as error:
        why = f"its library cannot create an object only if there is none ({error})"
    except StorageError as error:
        raise ConfigError(f"storage path {redact(url)} cannot be used: {error}") from error
    if why:
        raise ConfigError(
            f"storage path {redact(url)} cannot hold a run: {why}. Give the URL of a store that "
            "can, such as S3, or a folder that all nodes share; checkpoints alone may be there "
            "(--checkpoint-storage)"
        )
    return Store(url, options).inside(name)


@about("name", "storage")
def check_fresh(folder: Folder) -> None:
    """Refuse to overwrite another run.

    Raises:
        ConfigError: the folder contains a run.
    """
    if journal_of(folder).exists():
        raise ConfigError(
            f"there is a run in {folder} already: give another --name, or --resume to continue it"
        )


def import_paths() -> list[str]:
    """Return the folders from which workers import what the driver could import."""
    paths = [Path.cwd(), *(Path(path).resolve() for path in sys.path if path)]
    commands = Path(sysconfig.get_path("scripts")).resolve()  # Python adds a command's own folder
    return list(
        dict.fromkeys(
            str(path) for path in paths if path.exists() and path != commands and is_users(path)
        )
    )

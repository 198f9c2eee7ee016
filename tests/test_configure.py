"""Settings that cannot work are refused before a worker starts, with value and alternative."""

import dataclasses
import re
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from torch import nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import Running

from raytrain_plus import configure
from raytrain_plus.algorithms import Aspect, AspectError, GradientClipping, LabelSmoothing
from raytrain_plus.checkpoint.retention import Retention
from raytrain_plus.clock import DurationError
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.observe.journal import Journal
from raytrain_plus.observe.stored_journal import open_journal
from raytrain_plus.stopping import EarlyStopping, StopAt
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from raytrain_plus.task import Task, TaskError


class Fine(Task):
    def model(self):
        return nn.Linear(2, 2)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")


def with_(**attributes):
    """Return a task that is valid except for some attributes."""
    return type("Changed", (Fine,), attributes)()


def says(error, *parts):
    """Expect an error whose text holds these parts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(part) for part in parts))


def table(rows=40, **more):
    x = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((rows, 2), np.float32))
    return pa.table({"x": x, "label": np.arange(rows) % 2, **more})


# -- numbers


@pytest.mark.parametrize(
    ("batch_size", "ranks", "workers", "parts"),
    [
        (8, 8, (0, 2), ["workers is 0:2", "at least 1"]),
        (8, 8, (3, 2), ["workers is 3:2", "not above the most"]),
        (8, 0, (1, 1), ["logical_ranks is 0", "must be at least 1"]),
        (8, 4, (1, 5), ["5 workers cannot share 4 logical ranks", "raise logical_ranks to 5"]),
        (20, 8, (1, 2), ["batch_size 20 cannot be divided by 8", "use 16 or 24"]),
        (3, 8, (1, 2), ["batch_size 3 cannot be divided by 8", "use 8 or 16"]),
        (0, 8, (1, 2), ["batch_size 0", "use 8 or 16"]),
        (-8, 8, (1, 2), ["batch_size -8", "use 8 or 16"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(batch_size, ranks, workers, parts):
    with says(ConfigError, *parts):
        configure.check_sizes(batch_size, ranks, workers)


@given(st.integers(-20, 200), st.integers(1, 40))
def test_the_proposed_alternative_is_accepted(batch_size, ranks):
    try:
        configure.check_sizes(batch_size, ranks, (1, ranks))
    except ConfigError as error:
        proposed = re.search(r"use (\d+) or (\d+)", str(error))
        for size in proposed.groups():
            configure.check_sizes(int(size), ranks, (1, ranks))
    else:
        assert batch_size > 0
        assert batch_size % ranks == 0


# -- Ray Train's configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_tpu", True),
        ("topology", "2x2"),
    ],
)
def test_scaling_that_would_be_ignored_is_refused(field, value):
    with says(ConfigError, f"ScalingConfig sets {field}", "leave it out"):
        configure.worker_range(ScalingConfig(**{field: value}))


@pytest.mark.parametrize(
    ("given", "placement"),
    [
        ({}, {}),
        ({"label_selector": {"zone": "a"}}, {"label_selector": {"zone": "a"}}),
        ({"num_workers": 2, "label_selector": [{"z": "a"}] * 2}, {"label_selector": {"z": "a"}}),
        ({"placement_strategy": "SPREAD"}, {"scheduling_strategy": "SPREAD"}),
    ],
)
def test_where_workers_may_run_is_what_ray_train_says(given, placement):
    assert configure.worker_placement(ScalingConfig(**given)) == placement


@pytest.mark.parametrize("strategy", ["STRICT_PACK", "STRICT_SPREAD"])
def test_workers_that_could_only_be_placed_together_are_refused(strategy):
    with says(ConfigError, strategy, "Choose PACK or SPREAD"):
        configure.worker_placement(ScalingConfig(placement_strategy=strategy))


def test_workers_with_different_selectors_are_refused():
    different = ScalingConfig(num_workers=2, label_selector=[{"zone": "a"}, {"zone": "b"}])
    with says(ConfigError, "all workers are alike", "in(a,b)"):
        configure.worker_placement(different)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storage_filesystem", pa.fs.LocalFileSystem()),
        ("logging_config", ray.train.LoggingConfig(log_level="DEBUG")),
    ],
)
def test_run_settings_that_would_be_ignored_are_refused(field, value):
    with says(ConfigError, f"RunConfig sets {field}", "leave it out"):
        configure.check_run_config(RunConfig(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_failures", 2),
        ("controller_failure_limit", 3),
        ("max_preemption_failures", 0),
        ("relax_collectives_on_preemption", True),
        ("preemption_grace_s", 5.0),
    ],
)
def test_limits_on_failures_that_would_be_ignored_are_refused(field, value):
    if field not in {one.name for one in dataclasses.fields(FailureConfig)}:
        pytest.skip(f"this version of Ray has no {field}")
    with says(ConfigError, f"FailureConfig sets {field}", "leave it out"):
        configure.check_run_config(RunConfig(failure_config=FailureConfig(**{field: value})))


def test_checkpoints_are_kept_by_ray_trains_config():
    measuring = with_(metrics=lambda _: {"accuracy": MulticlassAccuracy(2)})
    asked = RunConfig(checkpoint_config=CheckpointConfig(3, "accuracy", "min"))
    configure.check_run_config(asked)
    kept = configure.retention_of(asked, measuring, "data")
    assert kept == Retention(3, "accuracy", "min")
    assert configure.retention_of(RunConfig(), measuring, None) == Retention()
    asked = RunConfig(checkpoint_config=CheckpointConfig(2, "loss", "min"))
    assert configure.retention_of(asked, Fine(), None) == Retention(2, "loss", "min")


@pytest.mark.parametrize(
    ("score", "evaluates", "parts"),
    [
        ("acuracy", True, ["'acuracy'", "measures loss, accuracy: name one"]),
        ("accuracy", False, ["'accuracy'", "measures loss:", "or give data to evaluate on"]),
    ],
)
def test_a_score_that_is_not_measured_is_refused(score, evaluates, parts):
    task = with_(metrics=lambda _: {"accuracy": MulticlassAccuracy(2)})
    asked = RunConfig(checkpoint_config=CheckpointConfig(2, score))
    with says(ConfigError, "checkpoint_score_attribute", *parts):
        configure.retention_of(asked, task, "data" if evaluates else None)


@pytest.mark.parametrize(
    ("metric", "evaluates", "parts"),
    [
        ("acuracy", True, ["'acuracy'", "measures accuracy: name one"]),
        ("accuracy", False, ["'accuracy'", "measures nothing: give data to evaluate on"]),
    ],
)
def test_early_stopping_by_what_is_not_measured_is_refused(metric, evaluates, parts):
    task = with_(metrics=lambda _: {"accuracy": MulticlassAccuracy(2)})
    stop = [StopAt(name="logged", above=1.0), EarlyStopping(metric=metric)]
    with says(ConfigError, "early stopping", *parts):
        configure.check_stop(stop, task, "data" if evaluates else None)
    configure.check_stop([EarlyStopping(metric="accuracy")], task, "data")


def test_plain_settings_are_accepted():
    """The control of both tests."""
    configure.check_run_config(RunConfig(name="run", storage_path="here"))
    configure.check_run_config(
        RunConfig(failure_config=FailureConfig(), checkpoint_config=CheckpointConfig())
    )
    configure.check_run_config(RunConfig(failure_config=FailureConfig(max_failures=-1)))
    assert configure.worker_range(ScalingConfig()) == (1, 1)


def test_workers_are_a_number_or_a_range():
    assert configure.worker_range(ScalingConfig(num_workers=3)) == (3, 3)
    assert configure.worker_range(ScalingConfig(num_workers=(2, 5))) == (2, 5)


@pytest.mark.parametrize(
    ("settings", "resources"),
    [
        ({}, {"CPU": 1.0}),
        ({"use_gpu": True}, {"CPU": 1.0, "GPU": 1.0}),
        (
            {"use_gpu": True, "accelerator_type": "A100"},
            {"CPU": 1.0, "GPU": 1.0, "accelerator_type:A100": 0.001},
        ),
        ({"resources_per_worker": {"CPU": 2, "disk": 0}}, {"CPU": 2.0}),
    ],
)
def test_each_worker_requests_one_cpu_by_default(settings, resources):
    assert configure.worker_resources(ScalingConfig(**settings)) == resources


@pytest.mark.parametrize("gpus", [0.5, 2])
def test_a_worker_holds_one_gpu_or_none(gpus):
    scaling = ScalingConfig(use_gpu=True, resources_per_worker={"GPU": gpus})
    with says(ConfigError, f"asks for {gpus:g} GPUs", "a worker computes on one", '{"GPU": 1}'):
        configure.worker_resources(scaling)


def test_a_kind_of_gpu_needs_a_gpu():
    with says(ConfigError, "accelerator_type is 'A100'", "--gpu"):
        configure.worker_resources(ScalingConfig(accelerator_type="A100"))


# -- task and algorithms


@pytest.mark.parametrize("missing", [["model"], ["optimizer", "loss"]])
def test_a_task_that_lacks_something_is_refused(missing):
    task = with_(**{name: getattr(Task, name) for name in missing})
    with says(TaskError, "Changed does not define", *[f"{name}()" for name in missing]):
        configure.check_task(task)
    configure.check_task(Fine())


def test_a_task_with_metrics_that_cannot_be_merged_is_refused():
    metrics = {"last": Running(SumMetric())}
    with says(TaskError, "'last'", "Running", "the last updates only"):
        configure.check_task(with_(metrics=lambda _: metrics))


@pytest.mark.parametrize(
    ("algorithms", "parts"),
    [
        (["GradientClipping"], ["'GradientClipping'", "not a raytrain_plus Aspect"]),
        ([GradientClipping], ["not a raytrain_plus Aspect"]),
        ([LabelSmoothing(), LabelSmoothing()], ["LabelSmoothing is given twice", "give it once"]),
        (
            [
                GradientClipping(),
                type("Own", (Aspect,), {"conflicts_with": ["GradientClipping"]})(),
            ],
            ["Own and GradientClipping", "drop one"],
        ),
    ],
)
def test_incompatible_algorithms_are_refused(algorithms, parts):
    with says(AspectError, *parts):
        configure.check_algorithms(algorithms)
    configure.check_algorithms([LabelSmoothing(), GradientClipping()])


# -- data


@pytest.mark.parametrize(
    ("task", "data", "parts"),
    [
        (Fine(), "nowhere/at-all", ["training data:", "nowhere/at-all"]),
        (Fine(), table().slice(0, 0), ["training data:", "no rows"]),
        (with_(columns=["image"]), table(), ["training data:", "image"]),
        (
            with_(columns={"x": (3, 4), "label": ()}),
            table(),
            ["column 'x' with rows of shape (3, 4)", "the data has (2,)"],
        ),
        (
            Fine(),
            table(more=np.ones(40)),
            ["besides the target 'label' are x, more", "set the task's `columns` or `target`"],
        ),
        (with_(columns=["label"]), table(), ["besides the target 'label'", "needs one"]),
        (
            with_(
                target="digit",
                columns=["x"],
                metrics=lambda _: {"accuracy": MulticlassAccuracy(2)},
            ),
            table(),
            ["target column 'digit' is not among x", "set the task's `target`"],
        ),
    ],
)
def test_data_that_does_not_suit_the_task_is_refused(task, data, parts):
    with says(DataError, *parts):
        configure.open_for(task, data, "training data")


def test_data_that_suits_is_opened():
    task = with_(columns={"x": (2,), "label": ()})
    assert configure.open_for(task, table(extra=np.ones(40)), "training data").total_rows == 40
    own = with_(forward=lambda _, model, batch: model(batch["x"]))
    assert len(configure.open_for(own, table(extra=np.ones(40)), "data").columns) == 3


# -- lengths


def clock_of(source, duration, every, batch_size, **attributes):
    return configure.clock(
        source,
        with_(**attributes),
        duration=duration,
        evaluate_every=every,
        batch_size=batch_size,
        logical_ranks=4,
    )


def test_tokens_are_counted_if_the_task_names_their_column():
    source = open_source(table(), None)
    counted = clock_of(source, "48tok", "0.5dur", 8, tokens="x")
    assert (counted.tokens_per_sample, counted.total_steps, counted.evaluate_every) == (2, 3, 1)
    with says(DurationError, "tokens"):
        clock_of(source, "48tok", "1ep", 8)
    with says(DataError, "'words'", "x, label"):
        clock_of(source, "48tok", "1ep", 8, tokens="words")


@pytest.mark.parametrize("kind", ["table", "folder", "stream"])
def test_tokens_of_rows_of_any_length_are_counted(kind, tmp_path):
    ids = [[1, 2, 3]] * 20 + [[]] * 4 + [[4]] * 16
    rows = pa.table({"ids": ids, "label": [0] * 40})
    data = rows
    if kind == "folder":
        (tmp_path / "d").mkdir()
        for number in range(2):
            pq.write_table(rows.slice(20 * number, 20), tmp_path / "d" / f"{number}.parquet")
        data = tmp_path / "d"
    elif kind == "stream":
        with StreamWriter(tmp_path / "s", file_size=200) as writer:
            writer.write(rows)
        data = Stream(tmp_path / "s", cache=tmp_path / "cache")
    source = open_source(data)
    counted = clock_of(source, "760tok", "38tok", 8, tokens="ids")  # 76 in 40 rows, 15.2 a step
    assert (counted.tokens_per_sample, counted.total_steps, counted.evaluate_every) == (1.9, 50, 2)
    assert counted.batch_tokens == 15
    # The data is not read for this.
    assert clock_of(source, "1ep", "1ep", 8, tokens="ids").tokens_per_sample == 0
    text = open_source(pa.table({"ids": ["a", "b"] * 20, "label": [0] * 40}))
    with says(DataError, "'ids'", "of kind string"):
        clock_of(text, "760tok", "1ep", 8, tokens="ids")


def test_a_clock_counts_whole_batches():
    source = open_source(table(43), None)
    clock = clock_of(source, "2.5ep", "1ep", 8)
    assert (clock.steps_per_epoch, clock.total_steps, clock.evaluate_every) == (5, 12, 5)
    assert clock.batch_size == 8
    assert clock.checkpoint_every is None


def test_checkpoints_have_the_given_interval():
    source, sizes = open_source(table(43), None), {"batch_size": 8, "logical_ranks": 4}
    every = {"duration": "10ep", "evaluate_every": "1ep"}
    for text, steps in (("2ep", 10), ("0.1dur", 5), ("7ba", 7)):
        clock = configure.clock(source, Fine(), checkpoint_every=text, **every, **sizes)
        assert clock.checkpoint_every == steps
    with says(DurationError, "'now and then'"):
        configure.clock(source, Fine(), checkpoint_every="now and then", **every, **sizes)


@pytest.mark.parametrize(
    ("duration", "every", "batch_size", "error", "parts"),
    [
        ("ten", "1ep", 8, DurationError, ["'ten'", "write 10ep"]),
        ("1ep", "often", 8, DurationError, ["'often'", "write 10ep"]),
        ("1ep", "1ep", 80, ValueError, ["batch is larger than the data", "40 rows", "smaller"]),
    ],
)
def test_invalid_lengths_are_refused(duration, every, batch_size, error, parts):
    with says(error, *parts):
        clock_of(open_source(table(), None), duration, every, batch_size)


def test_an_evaluations_batch_is_at_least_as_large_as_a_steps():
    assert configure.evaluation_rows(64, 8) == 64
    assert configure.evaluation_rows(4096, 8) == 512


# -- folders


def test_a_run_has_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for storage in (str(tmp_path / "a"), (tmp_path / "b").as_uri(), "~/c", None):
        folder = configure.run_folder(storage, "run")
        assert folder.parent.is_dir()
        assert not folder.exists()  # a refused run leaves no folder behind
        assert folder.is_relative_to(tmp_path)
        assert folder.name == "run"


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", ".."])
def test_a_name_that_is_not_a_folder_name_is_refused(tmp_path, name):
    with says(ConfigError, f"run name {name!r}", "letters and digits"):
        configure.run_folder(str(tmp_path), name)
    assert not list(tmp_path.iterdir())


class Overwriting(MemoryFileSystem):
    """Creates an object even if there is one."""

    protocol = "overwriting"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        del mode
        super().pipe_file(path, value, **kwargs)


class Timeless(MemoryFileSystem):
    """Does not tell when an object was written."""

    protocol = "timeless"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    def modified(self, path):
        raise NotImplementedError


def test_a_run_may_be_in_a_store_that_creates_objects_only_if_there_are_none():
    fsspec.register_implementation("overwriting", Overwriting, clobber=True)
    folder = configure.run_folder("memory://runs", "run")
    assert (str(folder), folder.name, folder.parent) == (
        "memory://runs/run",
        "run",
        "memory://runs",
    )
    assert not MemoryFileSystem().find("/runs")  # a refused run leaves nothing behind
    configure.check_fresh(folder)
    with says(ConfigError, "storage path overwriting://runs cannot hold a run", "two drivers"):
        configure.run_folder("overwriting://runs", "run")
    fsspec.register_implementation("timeless", Timeless, clobber=True)
    with says(ConfigError, "storage path timeless://runs cannot be used", "does not tell when"):
        configure.run_folder("timeless://runs", "run")
    with says(ConfigError, "there is no run to resume in memory://runs/absent"):
        configure.run_folder("memory://runs", "absent", resume=True)
    open_journal(folder).write("warning", text="a line")
    with says(ConfigError, "there is a run in memory://runs/run already"):
        configure.check_fresh(folder)
    assert configure.run_folder("memory://runs", "run", resume=True).url == folder.url
    with says(ConfigError, "storage path nowhere://runs cannot be used"):
        configure.run_folder("nowhere://runs", "run")


def test_storage_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with says(ConfigError, f"{tmp_path / 'file' / 'run'} cannot be written", "Give a folder"):
        configure.run_folder(str(tmp_path / "file"), "run")


def test_a_run_is_never_overwritten(tmp_path):
    configure.check_fresh(tmp_path)
    Journal(tmp_path).close()
    with says(ConfigError, f"there is a run in {tmp_path} already", "another --name, or --resume"):
        configure.check_fresh(tmp_path)


def test_relative_paths_are_those_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    data, held_out = configure.data_of(Task(), "train.parquet", Path("a%20b"))
    assert (data, held_out) == (f"{here}/train.parquet", f"{here}/a%20b")
    data, held_out = configure.data_of(Task(), "file:///a%20b", "s3://bucket/a%20b")
    assert (data, held_out) == ("/a b", "s3://bucket/a%20b")
    stream, _ = configure.data_of(Task(), Stream("train", window=3), None)
    assert (stream.url, stream.window) == (f"{here}/train", 3)
    mixture, _ = configure.data_of(Task(), Mixture({"one": Stream("one")}), None)
    assert mixture.streams["one"].url == f"{here}/one"
    assert configure.with_absolute_path("task.py:Mine") == f"{here}/task.py:Mine"
    assert configure.with_absolute_path("package.task:Mine") == "package.task:Mine"
    for storage, meant in (("kept", f"{here}/kept"), ("s3://b/kept", "s3://b/kept"), (None, None)):
        elastic = configure.with_absolute_checkpoint_storage(
            ElasticConfig(checkpoint_storage=storage)
        )
        assert elastic.checkpoint_storage == meant


def test_a_runs_folder_outlives_its_job(tmp_path, monkeypatch):
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "package"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with says(ConfigError, "storage path runs", str(folder / "runs"), "absolute path"):
        configure.run_folder("runs", "mine")
    with says(ConfigError, "checkpoint storage kept", str(folder / "kept")):
        configure.with_absolute_checkpoint_storage(ElasticConfig(checkpoint_storage="kept"))
    assert not list(folder.iterdir())
    configure.run_folder(str(tmp_path), "mine")


def test_a_missing_run_cannot_be_resumed(tmp_path):
    with says(ConfigError, "there is no run to resume in", "absent"):
        configure.run_folder(str(tmp_path), "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_workers_have_the_drivers_import_path(tmp_path, monkeypatch):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "mine").mkdir()
    listed = [tmp_path / "mine", tmp_path / "site-packages", tmp_path / "absent"]
    of_python = [sysconfig.get_path("stdlib"), sysconfig.get_path("scripts")]
    monkeypatch.setattr(sys, "path", ["", *map(str, listed), *of_python])
    monkeypatch.chdir(tmp_path)
    assert configure.import_paths() == [str(Path.cwd()), str(tmp_path / "mine")]


def test_evaluation_sets_have_names_and_intervals():
    names = ["dev", "test"]
    assert configure.intervals("2ep", names) == {"dev": "2ep", "test": "2ep"}
    assert configure.intervals({"dev": "5ba"}, names) == {"dev": "5ba", "test": "1ep"}
    with says(ConfigError, "intervals for 'train'", "are dev, test"):
        configure.intervals({"train": "5ba"}, names)
    with says(ConfigError, "intervals for 'dev'", "not named"):
        configure.intervals({"dev": "5ba"}, [])
    table = pa.table({"x": [0.5] * 64, "label": [0] * 64})
    for wrong, said in (({"a/b": table}, "'a/b'"), ({}, "is empty"), ({"dev": None}, "no data")):
        with says(ConfigError, "evaluation_data", said):
            configure.data_of(Fine(), table, wrong)
    assert configure.data_of(Fine(), table, {"dev": table})[1] == {"dev": table}


def test_each_evaluation_set_is_due_at_its_own_steps():
    source = configure.open_for(Fine(), pa.table({"x": [0.5] * 64, "label": [0] * 64}), "data")
    sizes = {"batch_size": 8, "logical_ranks": 2, "duration": "2ep"}
    clock = configure.clock(source, Fine(), evaluate_every={"dev": "3ba", "test": "1ep"}, **sizes)

    def due(name=None):
        return [step for step in range(17) if clock.evaluation_due(step, name)]

    assert due("dev") == [3, 6, 9, 12, 15, 16]
    assert due("test") == [8, 16]
    assert due() == sorted({*due("dev"), *due("test")})
    assert clock.evaluate_every == 3
    same = configure.clock(source, Fine(), evaluate_every={"dev": "1ep", "test": "1ep"}, **sizes)
    assert same.evaluate_each == ()
    assert [step for step in range(17) if same.evaluation_due(step, "dev")] == [8, 16]


@pytest.mark.parametrize("name", ["dev/accuracy", "test/accuracy"])
def test_the_score_may_be_a_metric_of_a_named_set(name):
    task = with_(metrics=lambda _: {"accuracy": MulticlassAccuracy(2)})
    asked = RunConfig(checkpoint_config=CheckpointConfig(2, name))
    assert configure.retention_of(asked, task, {"dev": "data", "test": "data"}) == Retention(
        2, name, "max"
    )
    with says(ConfigError, "measures loss, dev/accuracy: name one"):
        configure.retention_of(
            RunConfig(checkpoint_config=CheckpointConfig(2, "a")), task, {"dev": "d"}
        )

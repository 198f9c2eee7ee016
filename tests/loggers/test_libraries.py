"""The loggers that are built in, with the real libraries where they are small."""

import types
from pathlib import Path

import pytest
import torch
from tensorboardX.proto import event_pb2

from raytrain_plus.algorithms.samples import png
from raytrain_plus.loggers import MLflowLogger, TensorBoardLogger, WandbLogger
from raytrain_plus.loggers.feed import Feed
from tests.loggers.test_feed import Clock, events, until_done, write
from tests.observe import journals


def fed(folder, make, group=None):
    clock = Clock()
    feed = Feed("it", make, folder, group, clock)
    until_done(feed, clock)
    return feed


def resumed(folder):
    again = [journals.run_line(30.0, run_id="r1", resumed_step=6), journals.step(31.0, 7)]
    write(folder, [*again, journals.end(32.0, 7)])


def scalars(folder):
    """Return (tag, step, value) of all event files, in order."""
    found = []
    for path in sorted(Path(folder).glob("events*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            found += [
                (one.tag, event.step, one.simple_value)
                for one in event.summary.value
                if one.HasField("simple_value")
            ]
    return found


def test_tensorboard_has_each_step_once_through_a_resume(tmp_path):
    write(tmp_path, events())
    fed(tmp_path, TensorBoardLogger)
    resumed(tmp_path)
    fed(tmp_path, TensorBoardLogger)
    found = scalars(tmp_path / "tensorboard")
    losses = sorted((step, value) for tag, step, value in found if tag == "loss")
    assert losses == [(i, pytest.approx(2.0 / i)) for i in range(1, 8)]
    assert ("evaluation/accuracy", 3, pytest.approx(0.3)) in found


def test_mlflow_finds_its_run_again(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'mlruns'}"
    write(tmp_path, events())
    fed(tmp_path, lambda: MLflowLogger(tracking_uri=uri), "a sweep")
    (tmp_path / "loggers" / "it.json").unlink()  # MLflow itself has the position
    resumed(tmp_path)
    fed(tmp_path, lambda: MLflowLogger(tracking_uri=uri), "a sweep")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("a sweep")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(i, 2.0 / i) for i in range(1, 8)]
    assert run.data.params["identity.seed"] == "17"
    assert run.data.tags["raytrain_plus.digest"] == "e" * 64
    assert run.info.status == "FINISHED"
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["report.html"]
    page = Path(client.download_artifacts(run.info.run_id, "report.html")).read_text()
    assert "7 of 100 steps" in page  # the one of the last end replaces the one before


def test_an_artifact_that_mlflow_cannot_store_is_named_and_nothing_else_is_lost(
    tmp_path, monkeypatch
):
    from mlflow.tracking import MlflowClient

    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    uri = f"file:{tmp_path / 'mlruns'}"
    write(tmp_path, events())
    fed(tmp_path, lambda: MLflowLogger(tracking_uri=uri))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("raytrain_plus")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["raytrain_plus.not_stored.report.html"] == "no space left"
    assert (run.info.status, run.data.tags["raytrain_plus.digest"]) == ("FINISHED", "e" * 64)


def sampled(folder):
    """Write a run whose evaluation shows a row with its image, and a text."""
    picture = png(torch.zeros(4, 4, 1, dtype=torch.uint8))
    image = "samples/step_00000003/row_0.png"
    (folder / image).parent.mkdir(parents=True)
    (folder / image).write_bytes(picture)
    samples = [
        {"row": "0", "prediction": "cat", "image": image},
        {"prompt": "a|b", "text": "c\nd"},
    ]
    lines = list(events())
    at = next(i for i, one in enumerate(lines) if one["event"] == "evaluate")
    lines[at] = {**lines[at], "samples": samples}
    write(folder, lines)
    return picture


TABLE = """| row | prediction | image | prompt | text |
| --- | --- | --- | --- | --- |
| 0 | cat | samples/step_00000003/row_0.png |  |  |
|  |  |  | a\\|b | c<br>d |"""


def test_tensorboard_shows_samples(tmp_path):
    picture = sampled(tmp_path)
    fed(tmp_path, TensorBoardLogger)
    (path,) = (tmp_path / "tensorboard").glob("events*")
    content = path.read_bytes()
    assert picture in content
    assert TABLE.encode() in content


def test_mlflow_stores_samples(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'mlruns'}"
    picture = sampled(tmp_path)
    fed(tmp_path, lambda: MLflowLogger(tracking_uri=uri))
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("raytrain_plus").experiment_id])
    stored = Path(client.download_artifacts(run.info.run_id, "samples/step_00000003"))
    assert (stored / "row_0.png").read_bytes() == picture
    assert (stored / "samples.md").read_text() == TABLE


def test_wandb_shows_samples(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", wandb)
    sampled(tmp_path)
    fed(tmp_path, WandbLogger)
    (table,) = [row["samples"] for row in wandb.logged if "samples" in row]
    assert table["columns"] == ["row", "prediction", "image", "prompt", "text"]
    image = {"image of": str(tmp_path / "samples/step_00000003/row_0.png")}
    assert table["data"] == [["0", "cat", image, "", ""], ["", "", "", "a|b", "c\nd"]]


class Wandb:
    """Records what W&B's interface gets: init, log, summary, finish."""

    def __init__(self):
        self.inits, self.logged, self.summary, self.finished = [], [], {}, []
        self.saved = []
        self.Settings = types.SimpleNamespace

    def Image(self, path):  # noqa: N802 - W&B's name
        return {"image of": path}

    def Table(self, columns, data):  # noqa: N802
        return {"columns": columns, "data": data}

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.logged.append(values)
        self.summary |= values

    def save(self, path, base_path, policy):
        self.saved.append((Path(path).relative_to(base_path), policy))

    def finish(self, exit_code):
        self.finished.append(exit_code)


def test_wandb_continues_one_run_and_groups_a_sweep(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", wandb)
    write(tmp_path, events())
    fed(tmp_path, lambda: WandbLogger(project="p"), "a sweep")
    (tmp_path / "loggers" / "it.json").unlink()
    resumed(tmp_path)
    fed(tmp_path, lambda: WandbLogger(project="p"), "a sweep")
    assert {one["id"] for one in wandb.inits} == {"r1"}
    assert {(one["project"], one["group"], one["resume"]) for one in wandb.inits} == {
        ("p", "a sweep", "allow")
    }
    steps = [(row["step"], row["loss"]) for row in wandb.logged if "loss" in row]
    assert steps == [(i, 2.0 / i) for i in range(1, 8)]
    assert wandb.summary["digest"] == "e" * 64
    assert wandb.finished[-1] == 0
    assert wandb.saved == [(Path("report.html"), "now")] * 2  # once for each end of the run
    assert {row["odd"] for row in wandb.logged if "odd" in row} == {"nan"}

"""A trained model gives the numbers of its run, and each row is predicted once, in order."""

import json
import warnings
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import raytrain_plus
from raytrain_plus.checkpoint.checkpointer import kept
from raytrain_plus.checkpoint.export import export, write
from raytrain_plus.cli import app
from raytrain_plus.configure import ConfigError
from raytrain_plus.inference import predict as predicting
from raytrain_plus.inference.loaded import job_of
from raytrain_plus.inference.predict import parts_of
from raytrain_plus.inference.trained_model import find_model
from raytrain_plus.observe import journal
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError
from raytrain_plus.task import TaskError, TaskWarning
from tests.inference.tasks import NAME, Classes, trained_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("inference"))


def told(folder):
    found = journal.read(folder / "run")
    return {e["step"]: e["metrics"] for e in found if e["event"] == "evaluate"}


def test_an_evaluation_repeats_the_numbers_of_the_run(folder):
    of_run = told(folder)
    steps = [one.step for one in kept(Store(folder / "run"))]
    assert len(steps) >= 2
    for step in steps:
        metrics = of_run[step]
        assert metrics.keys() == {
            f"{a}/{b}" for a in ("near", "far") for b in ("accuracy", "spread")
        }
        found = raytrain_plus.evaluate(NAME, folder / "run", checkpoint=str(step))
        assert found == metrics
    assert of_run[steps[-1]] != of_run[12]  # the control


def test_the_best_checkpoint_is_found_by_a_metric(folder):
    of_run = told(folder)
    steps = [one.step for one in kept(Store(folder / "run"))]
    ordered = sorted(steps, key=lambda step: of_run[step]["far/spread"])
    run = str(folder / "run")
    for checkpoint, step in (("best:far/spread:min", ordered[0]), ("best:far/spread", ordered[-1])):
        assert find_model(run, storage="", checkpoint=checkpoint).step == step
    assert find_model(run, storage="").step == 12
    first = min(steps)
    assert find_model("run", storage=str(folder), checkpoint=str(first)).step == first
    for wrong, why in (
        ("99", f"has no checkpoint of step 99; it has {first}, "),
        ("best:nothing", "has the metric 'nothing'; there are far/accuracy"),
        ("newest", "is not `latest`"),
    ):
        with pytest.raises(ConfigError, match=why):
            find_model(run, storage="", checkpoint=wrong)
    with pytest.raises(FileNotFoundError, match="no model 'other'"):
        find_model("other", storage=str(folder))


def test_exported_weights_give_the_same_numbers(folder):
    task = Classes()
    write(export(task, folder / "run" / "checkpoint_00000012"), folder / "model.safetensors")
    sizes = {"batch_size": 64, "logical_ranks": 4}
    data = {"near": folder / "near.parquet", "far": folder / "far.parquet"}
    found = raytrain_plus.evaluate(NAME, folder / "model.safetensors", data=data, **sizes)
    assert found == told(folder)[12]
    with pytest.raises(ConfigError, match="there is no data to evaluate on"):
        raytrain_plus.evaluate(NAME, folder / "model.safetensors", **sizes)


def test_data_that_has_changed_is_refused_unless_it_is_given(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint_00000012").symlink_to(folder / "run" / "checkpoint_00000012")
    text = (folder / "run" / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace("far.parquet", "train.parquet"))
    (run / "journal.jsonl").symlink_to(folder / "run" / "journal.jsonl")
    with pytest.raises(ConfigError, match="evaluation data far is other data"):
        raytrain_plus.evaluate(NAME, run)
    (run / "run.yaml").write_text(text)
    assert raytrain_plus.evaluate(NAME, run) == told(folder)[12]  # the control
    far = raytrain_plus.evaluate(NAME, run, data=folder / "far.parquet")
    assert far["accuracy"] == told(folder)[12]["far/accuracy"]


def test_rows_are_predicted_once_and_in_order(folder):
    table = raytrain_plus.predict(
        NAME, folder / "run", folder / "rows.parquet", keep=["id"], batch_size=32
    )
    assert table.column_names == ["id", "logits", "class", "calls"]
    assert table["id"].to_pylist() == list(range(1000))
    # By hand: the same batches, the same draws, and no trace of one batch in the next.
    stored = pq.read_table(folder / "rows.parquet")
    again = raytrain_plus.predict(NAME, folder / "run", stored.slice(960), batch_size=32)
    assert set(table["calls"].to_pylist()) == set(again["calls"].to_pylist())
    other = raytrain_plus.predict(NAME, folder / "run", stored, batch_size=64)
    assert other["logits"] != table["logits"]  # the control: the draws follow the batches


def test_parts_hold_all_rows_and_no_single_row():
    for n in (1, 2, 255, 256, 4096, 4097, 4098, 100_001, 2_000_000):
        for size in (1, 2, 256):
            parts = parts_of(n, size)
            assert parts[0][0] == 0
            assert parts[-1][1] == n
            assert all(one[1] == other[0] for one, other in pairwise(parts))
            assert len(parts) <= 257
            assert all(start % size == 0 for start, _ in parts)
            if size > 1 and n > 1:
                assert all(stop - start > 1 for start, stop in parts)


class StoppedError(Exception):
    """Stands for what ends a process."""


def test_a_killed_prediction_is_no_folder_and_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "_LEAST_ROWS", 128)
    found = find_model(str(folder / "run"), storage="")
    job, task = job_of(NAME, found)
    out = tmp_path / "out"
    how = {"data": str(folder / "rows.parquet"), "keep": ["id"], "batch_size": 8}
    work = predicting.predicting(job, task, **how)
    assert len(work.parts) == 8

    def stop(done, of):
        assert of == 1000
        if done >= 384:
            raise StoppedError

    with pytest.raises(StoppedError):
        predicting.written(work, out, 0, progress=stop)
    assert not out.exists()
    partial = tmp_path / "out.partial"
    first = partial / "rows-000000000000.parquet"
    before = first.stat().st_mtime_ns
    (partial / "rows-000000000128.parquet").write_bytes(b"PAR1 cut")
    other = predicting.predicting(job, task, **{**how, "batch_size": 16})
    with pytest.raises(ConfigError, match=r"other settings \(batch_size\)"):
        predicting.written(other, out, 0, resume=True)
    assert predicting.written(work, out, 0, resume=True) == 256
    assert not partial.exists()
    table = pq.read_table(out)
    assert table["id"].to_pylist() == list(range(1000))
    assert table.equals(raytrain_plus.predict(NAME, folder / "run", **how))
    assert (out / first.name).stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="exists already"):
        predicting.written(work, out, 0)


def test_what_a_task_predicts_is_checked(folder):
    def with_prediction(made):
        class Other(Classes):
            def predict(self, model, batch):
                return made(super().predict(model, batch))

        return raytrain_plus.predict(Other(), folder / "run", folder / "rows.parquet")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TaskWarning)  # the code is not that of the run
        alone = with_prediction(lambda found: found["logits"].half())
        assert alone.schema == pa.schema({"prediction": pa.list_(pa.float32(), 4)})
        for made, why in (
            (lambda _: None, "returned a NoneType for the rows 0 to 255"),
            (lambda found: (found["logits"],), "returned a tuple"),
            (lambda found: found["logits"][:5], "returned 5 rows for the rows 0 to 255"),
            (lambda found: {"a": found["class"][1:]}, "column 'a' as 255 rows"),
            (lambda _: {}, "returned no column"),
        ):
            with pytest.raises(TaskError, match=why):
                with_prediction(made)
    with pytest.raises(DataError, match="no column other to keep; it has x, id"):
        raytrain_plus.predict(NAME, folder / "run", folder / "rows.parquet", keep=["other"])


def test_this_process_is_left_as_it_was(folder):
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    raytrain_plus.predict(NAME, folder / "run", folder / "rows.parquet", threads=2)
    after = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert torch.get_num_threads() == 1


def test_the_commands_print_one_object(folder, tmp_path):
    def said(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments), "--storage", str(folder)])
        assert done.exit_code == 0, done.output
        return done

    found = json.loads(said("evaluate", NAME, "run", "--json").stdout.splitlines()[-1])
    assert (found["run"], found["step"]) == ("run", 12)
    assert found["metrics"] == told(folder)[12]
    assert "far/accuracy" in said("evaluate", NAME, "run", "--checkpoint", "best:loss").stdout
    data = ("--data", folder / "rows.parquet", "--keep", "id")
    found = json.loads(
        said("predict", NAME, "run", tmp_path / "out", *data, "--json").stdout.splitlines()[-1]
    )
    assert (found["rows"], found["files"], found["step"]) == (1000, 1, 12)
    assert pq.read_table(tmp_path / "out").column_names[0] == "id"
    done = CliRunner().invoke(app, ["predict", NAME, "run", str(tmp_path / "out"), *map(str, data)])
    assert (done.exit_code, "exists already" in done.output) == (2, True)

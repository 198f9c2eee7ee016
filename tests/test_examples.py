"""The examples run as their users run them, in a short form and mostly in this process."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.observe import journal
from tests import tutorial
from tests.algorithms.side import forget, import_transformers

EXAMPLES = tutorial.ROOT / "examples"
NAMES = {path.name for path in EXAMPLES.iterdir() if not path.name.startswith((".", "_"))}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working folder; what an example imports from its own folder is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before, threads = set(sys.modules), torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if Path(file).is_relative_to(tmp_path) or Path(file).is_relative_to(EXAMPLES):
            del sys.modules[name]


def program(name, *arguments):
    """Run the main function of an example."""
    return runpy.run_path(str(EXAMPLES / name))["main"](list(arguments))


def copied(name, folder):
    """Copy the files of an example's folder into the working folder."""
    for path in (EXAMPLES / name).iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())


def command(*words):
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, (done.output, done.stderr)
    return done.stdout


def journal_of(folder):
    (path,) = folder.glob("runs/*/journal.jsonl")
    return list(journal.each(path))


def test_images_from_a_folder(place):
    copied("images_from_folder", place)
    runpy.run_path("make_photos.py")["main"]("photos", 100)
    for part in ("train", "test"):
        command("data", "write", f"photos/{part}", f"data/{part}")
    told = command(
        "train", "--config", "run.yaml", "--workers", "0", "--duration", "2ba",
        "--batch-size", "16", "--json",
    )  # fmt: skip
    summary = json.loads(told.splitlines()[-1])
    assert summary["steps"] == 2
    assert "accuracy" in summary["metrics"]
    assert (Path(summary["folder"]) / "metrics.csv").exists()


@pytest.mark.filterwarnings("ignore")
def test_tabular(place, capsys):
    program("tabular.py", "--duration", "4ep")
    told = capsys.readouterr().out
    assert re.search(r"test: accuracy 0\.\d+, area under the curve 0\.\d+", told)
    steps = [event for event in journal_of(place) if event["event"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.filterwarnings("ignore")
def test_a_gpt_from_text(place):
    import_transformers()
    pytest.importorskip("tokenizers")
    copied("gpt", place)
    (place / "book.txt").write_text("def speak(words):\n    return print(words)\n" * 200)
    make = runpy.run_path("make_corpus.py")["main"]
    make(*["book.txt"] * 10)
    for part in ("train", "test"):
        command(
            "data", "tokenize", f"{part}.parquet", f"data/{part}", "--tokenizer", "tokenizer",
            "--pack", "129", "--overlap", "1", "--end", "<|end|>", "--remainder", "drop",
            "--processes", "1",
        )  # fmt: skip
    small = ("--setting", "layers=1", "--setting", "width=16")
    told = command(
        "train", "--config", "run.yaml", "--workers", "0", "--duration", "3ba",
        "--name", "gpt", "--batch-size", "8", "--json", *small,
    )  # fmt: skip
    summary = json.loads(told.splitlines()[-1])
    assert summary["tokens"]["trained"] == 3 * 8 * 129
    assert summary["metrics"]["evaluation_loss"] < 8
    command("export", "task.py:Language", "gpt", "model.safetensors", "--storage", "runs", *small)
    forget()


@pytest.mark.filterwarnings("ignore")
def test_lora(place, capsys):
    import_transformers()
    pytest.importorskip("peft")
    program("lora.py", "--steps", "2", "--files", "5", "--tuning", "2ba")
    forget()
    told = capsys.readouterr().out
    assert re.search(r"with adapters: +\d\.\d+", told)
    assert "Return the" in told
    *_, adapter = (place / "runs/lora").glob("checkpoint_*/model.safetensors")
    (base,) = (place / "runs/base").glob("model.safetensors")
    assert adapter.stat().st_size < base.stat().st_size / 2


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module(place, capsys):
    import_transformers()
    pytest.importorskip("lightning.pytorch")
    program("lightning_module.py", "--steps", "30")
    forget()
    found = re.findall(
        r"best val_accuracy (0\.\d{4})|plain module: (0\.\d{4})", capsys.readouterr().out
    )
    assert found[0][0] == found[1][1]  # the best checkpoint is the one that was measured
    assert list(place.glob("runs/*/tensorboard/events*"))


def test_the_baseline_and_the_methods_of_the_sweep_train(place):
    from ray.train import RunConfig, ScalingConfig

    from raytrain_plus import ElasticTrainer

    copy = place / "sweep_example.py"
    copy.write_bytes((EXAMPLES / "sweep.py").read_bytes())
    sweep = runpy.run_path(str(copy))["SWEEP"]
    assert sweep.loaded_task().metrics().keys() == {sweep.objective.metric}
    assert len(sweep.design.runs) == 8
    result = ElasticTrainer(
        task=sweep.task,
        task_settings=dict(sweep.space.baseline.task),
        batch_size=sweep.space.baseline.batch_size,
        duration="2ba",
        logical_ranks=sweep.logical_ranks,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="baseline", storage_path=str(place / "runs")),
    ).fit()
    assert "accuracy" in result.metrics


def cells():
    return json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]


@pytest.mark.filterwarnings("ignore")
def test_the_cells_of_the_notebook_run_in_order(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {"__name__": "notebook"}
    short = {"WORKERS = 2": "WORKERS = 0", 'duration="10ep"': 'duration="2ep"'}
    for cell in cells():
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            for full, less in short.items():
                source = source.replace(full, less)
            exec(compile(source, cell["id"], "exec"), namespace)
    assert namespace["result"].metrics["digest"] == namespace["again"].metrics["digest"]
    assert namespace["result"].metrics["accuracy"] > 0.5
    assert len(namespace["steps"]) == namespace["result"].metrics["steps"]


def test_the_notebook_is_kept_without_outputs():
    for cell in cells():
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_each_example_is_listed_with_what_it_shows_and_tested():
    listed = (EXAMPLES / "README.md").read_text()
    page = (tutorial.ROOT / "docs/examples.md").read_text()
    tested = (
        Path(__file__).read_text()
        + (tutorial.ROOT / "tests/end_to_end/test_spot_example.py").read_text()
    )
    for name in NAMES - {"README.md"}:
        assert f"]({name}" in listed, name
        assert f"/{name}" in page, name
        assert f'"{name}"' in tested, name

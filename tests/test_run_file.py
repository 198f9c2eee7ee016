"""A run file: what it may say, its mistakes with their places, and what a run writes of itself."""

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
from typer.testing import CliRunner

from raytrain_plus import ElasticConfig, ElasticTrainer, Mixture, Stream, run_file
from raytrain_plus.algorithms import BlurPool, MixUp
from raytrain_plus.cli import app
from raytrain_plus.cli import train as command
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.plain_yaml import YamlError, dump_yaml, load_yaml
from raytrain_plus.run_file import RunFileError, RunSettings, read_run_file
from raytrain_plus.task import TaskError

TASK = """
import dataclasses
import torch
from torch import nn
from raytrain_plus import Task
from raytrain_plus.algorithms import Aspect

@dataclasses.dataclass
class Small(Task):
    rate: float = 0.1
    def model(self):
        return nn.Linear(4, 2)
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.rate)
    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")

class Mine(Aspect):
    depth: int = 1

def augment(sample, generator):
    return sample
"""
MODULE = "task_of_the_run_file"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project in a folder that is not the working folder."""
    project = tmp_path / "project"
    project.mkdir()
    (project / f"{MODULE}.py").write_text(TASK)
    image = pa.array([[0.0] * 4] * 100, pa.list_(pa.float32(), 4))
    pq.write_table(pa.table({"image": image, "label": [0, 1] * 50}), project / "data.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield project
    sys.modules.pop(MODULE, None)


def written(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def settings_of(path, **options):
    return command._settings(command._file(path), options)


MISTAKES = {
    "batch_sise: 8\n": "1:1: there is no key batch_sise: did you mean batch_size?",
    "xyzzy: 8\n": "1:1: there is no key xyzzy: the keys are task, task_settings,",
    "seed: 1\nbatch_size: many\n": "2:13: batch_size is 'many'; it must be a whole number",
    "batch_size: true\n": "1:13: batch_size is True; it must be a whole number",
    "batch_size: 8.5\n": "1:13: batch_size is 8.5; it must be a whole number",
    "gpu: 1\n": "1:6: gpu is 1; it must be true or false",
    "name: 7\n": "1:7: name is 7; it must be text; put quotes around it",
    "keep: -1\n": "1:7: keep is -1; it must be at least 0",
    "isa: sse\n": "1:6: isa is 'sse'; it must be 'default', 'avx2' or 'avx512'",
    "hang_deadline: .nan\n": "1:16: hang_deadline: nan is not a finite number",
    "duration: 10 fortnights\n": "1:11: duration '10 fortnights' is not a number and a unit",
    "checkpoint_every: sometimes\n": "1:19: checkpoint_every: duration 'sometimes' is not",
    "duration: 10\n": "1:11: duration is 10; it must be text",
    "workers: [1, 2, 3]\n": "1:10: workers [1, 2, 3] is neither a number",
    "workers: many\n": "1:10: workers 'many' is neither a number",
    "keep_best: loss:up\n": "1:12: keep_best: 'loss:up' is not METRIC",
    "data: ''\n": "1:7: data: it is empty",
    "data:\n  url: a\n  windoe: 2\n": "3:3: there is no key data.windoe: did you mean window?",
    "data:\n  window: 2\n": "2:3: data has no url",
    "data: {streams: {a: {url: x, shuffle: 2}}}\n": "1:39: data.streams.a.shuffle is 2; it must be",
    "data: {streams: {a: {url: x}}, blok: 2}\n": "1:32: there is no key data.blok: did you mean b",
    "algorithms: [BlurPool]\n": "1:13: algorithms is ['BlurPool']; it must be a mapping",
    "algorithms:\n  Blurpol: {}\n": "2:3: no algorithm is called 'Blurpol'",
    "algorithms:\n  MixUp: {alfa: 1}\n": "2:3: settings of MixUp: alfa",
    "faults:\n  - {step: 3, action: hug}\n": "2:23: faults.0.action is 'hug'; it must be 'kill'",
    "faults:\n  - {step: 3, action: kill, phas: x}\n": "2:29: there is no key faults.0.phas: did",
    "[1, 2]\n": "1:1: a run file is a mapping",
}  # fmt: skip


LATE = {
    "batch_size: 30\nlogical_ranks: 8\n": "2 batch_size 30 cannot be divided by 8 logical",
    "logical_ranks: 3\nbatch_size: 16\n": "3 batch_size 16 cannot be divided by 3 logical",
    "workers: 9\n": "2 9 workers cannot share 8 logical ranks",
    "batch_size: 800\n": "2 the batch is larger than the data",
    "evaluate_every: {a: 1ep}\n": "2 evaluate_every has intervals for 'a'",
    "seed: 3\nearly_stopping: {acc: {}}\n": "3 early stopping looks at 'acc'",
    "keep_best: acc\n": "2 CheckpointConfig sets checkpoint_score_attribute to 'acc'",
    "initial_weights: nowhere\n": "2 initial weights",
    "evaluation_data: nowhere\n": "2 evaluation data: ",
    "accelerator_type: H100\n": "2 accelerator_type is 'H100', and the workers hold no GPU",
    "storage: /dev/null/runs\n": "2 storage path",
}  # fmt: skip


@pytest.mark.parametrize("text", LATE)
def test_what_is_found_when_a_run_is_made_names_the_line_of_its_key(folder, text):
    rest = "" if "batch_size" in text else "batch_size: 16\n"
    path = written(folder, f"task: {MODULE}.py:Small\n{text}{rest}")
    options = ["--config", str(path), "--data", "project/data.parquet"]
    done = CliRunner().invoke(app, ["train", *options])
    assert done.exit_code == 2
    line, _, why = LATE[text].partition(" ")
    assert re.match(rf"error: {path}:{line}:\d+: {re.escape(why)}", done.stderr), done.stderr


def test_an_error_about_an_option_names_no_line_of_the_file(folder):
    path = written(folder, f"task: {MODULE}.py:Small\ndata: data.parquet\nbatch_size: 32\n")
    for options, line in (("--batch-size=30", False), ("--logical-ranks=3", True)):
        done = CliRunner().invoke(app, ["train", "--config", str(path), options])
        assert done.exit_code == 2
        assert (f"{path}:3:13: batch_size 32" in done.stderr) == line, done.stderr
        assert "cannot be divided" in done.stderr


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_has_its_place_its_value_and_what_is_allowed(tmp_path, text):
    path = written(tmp_path, text)
    with pytest.raises(RunFileError) as found:
        read_run_file(path)
    assert str(found.value).startswith(f"{path}:{MISTAKES[text]}")


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    path = written(tmp_path, "seed: x\nbach_size: 3\nduration: 1ep\nkeep: -1\n")
    with pytest.raises(RunFileError) as found:
        read_run_file(path)
    told = str(found.value).splitlines()
    assert told[0] == f"{path} has 3 mistakes:"
    assert [line.split(":")[1] for line in told[1:]] == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 2\n", ["'seed' was given in line 1 already", "line 2, column 1"]),
        ("seed: [1\n", ["line 2, column 1"]),
        ("seed: !!python/object/apply:os.system [id]\n", ["os.system"]),
    ],
)
def test_what_is_not_plain_yaml_is_refused(tmp_path, text, words):
    with pytest.raises(RunFileError) as found:
        read_run_file(written(tmp_path, text))
    assert all(word in str(found.value) for word in words)
    with pytest.raises(RunFileError, match="cannot be read"):
        read_run_file(tmp_path / "gone.yaml")


def test_values_are_read_as_yaml_1_2_says():
    text = "a: 1:3\nb: 3e-4\nc: no\nd: 2026-01-01\ne: 010\nf: ~\ng:\nh: .5\ni: '1'\nj: 0x10\n"
    assert load_yaml(text) == {
        "a": "1:3", "b": 3e-4, "c": "no", "d": "2026-01-01", "e": 10, "f": None, "g": None,
        "h": 0.5, "i": "1", "j": 16,
    }  # fmt: skip


def test_plain_data_is_read_as_it_was_written():
    values = ["1e5", "1:3", "no", "null", "~", "", "0x1", "a: b", "# x", "\n", "ä", "true", ".5"]
    plain = {"v": values, "w": [1e-5, 3e-4, 0.1, -1, True, None, float("inf")], "x": {"y": {}}}
    assert load_yaml(dump_yaml(plain)) == plain
    with pytest.raises(YamlError, match="not plain data"):
        dump_yaml({"a": object()})


def test_paths_are_those_of_the_files_folder_and_options_override_keys(folder):
    path = written(
        folder,
        f"""
task: {MODULE}.py:Small
task_settings: {{rate: 3e-4}}
data: data.parquet
evaluation_data: s3://bucket/data
storage: ~/runs
checkpoint_storage: kept
workers: 1:3
batch_size: 16
algorithms:
  MixUp: {{alpha: 0.5}}
  {MODULE}.py:Mine: {{depth: 2}}
""",
    )
    path = path.relative_to(Path.cwd())
    settings = settings_of(path)
    assert settings.task == f"project/{MODULE}.py:Small"
    assert (settings.data, settings.evaluation_data) == ("project/data.parquet", "s3://bucket/data")
    assert (settings.storage, settings.checkpoint_storage) == ("~/runs", "project/kept")
    assert (settings.workers, settings.task_settings) == ("1:3", {"rate": 3e-4})
    assert settings.import_paths == ["project"]
    changed = settings_of(
        path,
        batch_size=32,
        data="other.parquet",
        workers="4:4",
        task_settings=None,
        algorithms=["MixUp:alpha=0.2", "BlurPool"],
        bitwise=False,
    )
    assert (changed.batch_size, changed.data, changed.workers) == (32, "other.parquet", 4)
    assert changed.bitwise is False
    assert changed.algorithms == {
        "MixUp": {"alpha": 0.2},
        f"project/{MODULE}.py:Mine": {"depth": 2},
        "BlurPool": {},
    }
    made = run_file.aspects(changed)
    assert [type(one).__name__ for one in made] == ["MixUp", "Mine", "BlurPool"]
    assert made[0].alpha == 0.2


def test_a_recipe_of_the_file_is_below_its_keys_and_one_of_the_command_above(folder):
    (folder / "mild.yaml").write_text(
        "duration: 3ep\nbatch_size: 24\ntask: {rate: 0.5}\nalgorithms: {BlurPool: {}}\n"
    )
    text = f"task: {MODULE}.py:Small\nbatch_size: 16\nalgorithms: {{MixUp: {{}}}}\n"
    file = written(folder, text + "recipe: mild.yaml\n")
    of_file = settings_of(file)
    assert (of_file.batch_size, of_file.duration) == (16, "3ep")
    assert (of_file.task_settings, set(of_file.algorithms)) == (
        {"rate": 0.5},
        {"BlurPool", "MixUp"},
    )
    of_option = settings_of(written(folder, text), recipe=str(folder / "mild.yaml"))
    assert of_option.batch_size == 24
    both = settings_of(written(folder, text), recipe=str(folder / "mild.yaml"), batch_size=8)
    assert both.batch_size == 8


def test_the_defaults_are_those_of_the_trainer():
    trainer = inspect.signature(ElasticTrainer).parameters
    elsewhere = {
        "scaling_config", "run_config", "elastic", "resume", "allow_change", "accept_changed_code",
        "extend",
        "stop",  # the keys early_stopping and stop_at
    }  # fmt: skip
    keys = RunSettings.model_fields
    assert set(trainer) - elsewhere <= set(keys), "add a key to raytrain_plus/run_file.py"
    for name in ("batch_size", "duration", "evaluate_every", "seed", "logical_ranks", "hash_data"):
        assert keys[name].default == trainer[name].default
    fields = {one.name: one for one in dataclasses.fields(ElasticConfig)}
    assert set(fields) - set(keys) == {"worker_pool"}, "add a key to raytrain_plus/run_file.py"
    for name in set(fields) & set(keys) - {"checkpoint_options"}:
        assert keys[name].default == fields[name].default
    for ours, theirs in ((run_file.StreamSettings, Stream), (run_file.MixtureSettings, Mixture)):
        given = {one.name: one for one in dataclasses.fields(theirs)}
        assert list(ours.model_fields) == list(given)
        for name, field in ours.model_fields.items():
            if not field.is_required() and field.default_factory is None:
                assert field.default == given[name].default
    assert set(get_type_hints(Stream)) >= set(run_file.StreamSettings.model_fields)


def trainer_of(path, **options):
    return ElasticTrainer(**run_file.arguments(settings_of(path, **options)))


def identity(trainer):
    return {**trainer._identity, "workers": trainer.spec.workers, "elastic": trainer.spec.elastic}


def test_what_a_run_writes_makes_the_same_run(folder):
    file = written(
        folder,
        f"""
task: {MODULE}:Small
task_settings: {{rate: 0.3}}
data: {{url: data.parquet, cache: cache, window: 2, transform: "{MODULE}.py:augment"}}
evaluation_data: data.parquet
storage: runs
name: first
workers: 2:3
batch_size: 16
duration: 2ep
checkpoint_every: never
rebalance_above: null
keep_best: loss:min
threads: 2
resources_per_worker: {{blue: 0.5}}
algorithms: {{"{MODULE}:Mine": {{depth: 2}}, MixUp: {{alpha: 0.5}}}}
loggers: {{csv: null, tensorboard: {{folder: board}}}}
group: trials
early_stopping: {{evaluation_loss: {{patience: 2, mode: min}}}}
stop_at: {{loss: {{below: 0.01}}}}
faults: [{{step: 3, action: kill, phase: forward}}, {{step: 4, action: add}}]
""",
    )
    first = trainer_of(file)
    run_file.write(first.spec.folder, first._run_file)
    again = trainer_of(first.spec.folder / "run.yaml")
    assert identity(again) == identity(first)
    assert again.spec.name != "first"
    assert again.spec.folder.parent == folder / "runs"
    assert (again.spec.faults, again.spec.retention) == (first.spec.faults, first.spec.retention)
    assert (again.spec.logger_names, again.spec.group) == (["csv", "tensorboard"], "trials")
    assert again.spec.loggers == first.spec.loggers
    assert again.spec.stop == first.spec.stop
    assert len(first.spec.stop) == 2
    assert again.spec.resources == first.spec.resources == {"CPU": 2.0, "blue": 0.5}
    assert again._run_file == first._run_file.replace("run first.", f"run {again.spec.name}.")
    other = trainer_of(first.spec.folder / "run.yaml", seed=18)
    assert identity(other) != identity(first)  # the control


def test_the_file_of_a_run_trains_it_again_to_the_same_digest(folder):
    file = written(
        folder,
        f"""
task: {MODULE}.py:Small
task_settings: {{rate: 0.3}}
data: data.parquet
storage: runs
workers: 0
batch_size: 16
duration: 3ba
name: first
algorithms: {{LabelSmoothing: {{smoothing: 0.2}}}}
""",
    )

    def digest(*arguments):
        done = CliRunner().invoke(app, ["train", *arguments, "--json"])
        assert done.exit_code == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        return said["digest"], said["run"]

    of_first, _ = digest("--config", str(file))
    again = ["--config", str(folder / "runs" / "first" / "run.yaml")]
    of_second, name = digest(*again)
    assert of_second == of_first
    assert name != "first"
    assert (folder / "runs" / name / "run.yaml").exists()
    assert digest(*again, "--seed", "18")[0] != of_first  # the control


def test_secrets_are_not_written_and_asked_for_again(folder):
    file = written(
        folder,
        f"""
task: {MODULE}.py:Small
data: data.parquet
batch_size: 16
checkpoint_storage: memory://user:hunter2@bucket/x
checkpoint_options: {{key: AKIAQWERTY123456, secret: hunter2, endpoint_url: http://here}}
worker_runtime_env: {{env_vars: {{WANDB_API_KEY: hunter2, LEVEL: info}}}}
""",
    )
    text = trainer_of(file)._run_file
    assert "hunter2" not in text
    assert "AKIA" not in text
    assert "endpoint_url: http://here" in text
    assert "LEVEL: info" in text
    told = (
        r"checkpoint_options\.key, checkpoint_options\.secret, checkpoint_storage, "
        r"worker_runtime_env\.env_vars\.WANDB_API_KEY stands for a secret.*--checkpoint-option"
    )
    with pytest.raises(RunFileError, match=told):
        run_file.arguments(settings_of(written(folder, text)))


def test_what_only_python_has_is_named_in_a_comment(folder, tmp_path):
    sys.path.insert(0, str(folder))
    small = __import__(MODULE).Small
    trainer = ElasticTrainer(
        task=small(rate=0.2),
        data=pq.read_table(folder / "data.parquet"),
        batch_size=16,
        algorithms=[MixUp(alpha=0.5), BlurPool()],
        faults=[Fault(step=2, action="add")],
        run_config=ray.train.RunConfig(name="from-python", storage_path=str(tmp_path / "runs")),
    )
    assert "#   task: the object" in trainer._run_file
    assert "#   data: a <class 'pyarrow.lib.Table'>" in trainer._run_file
    layer = read_run_file(written(folder, trainer._run_file)).layer
    assert "task" not in layer
    assert layer["algorithms"] == {
        "MixUp": MixUp(alpha=0.5).model_dump(),
        "BlurPool": BlurPool().model_dump(),
    }
    with pytest.raises(TaskError, match="no task is named"):
        settings_of(folder / "run.yaml")


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("task: gone.py:Small\n", [], ["run.yaml:1:7: task file ", "gone.py does not exist"]),
        (f"task: {MODULE}.py:Smal\n", [], ["run.yaml:1:7:", "no attribute 'Smal'"]),
        (f"task: {MODULE}.py:Small\nrecipe: none/such\n", [], ["run.yaml:2:9: there is no recipe"]),
        (f"task: {MODULE}.py:Small\n", ["--recipe", "none/such"], ["error: there is no recipe"]),
        (
            f"task: {MODULE}.py:Small\n",
            ["--duration", "10"],
            ["error: duration '10' is not a numb"],
        ),
        (f"task: {MODULE}.py:Small\ndata: d\n", ["--set", "x"], ["No such option"]),
        ("{}\n", [], ["no task is named", "--config"]),
    ],
)
def test_the_command_tells_the_place(folder, text, arguments, words):
    path = written(folder, text)
    result = CliRunner().invoke(app, ["train", "--config", str(path), *arguments])
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_evaluation_sets_are_named_in_the_file_and_by_options(folder):
    (folder / "run.yaml").write_text(
        f"task: {MODULE}:Small\n"
        "data: data.parquet\n"
        "evaluation_data:\n  dev: data.parquet\n  test: {url: s3://bucket/test, shuffle: false}\n"
        "evaluate_every: {dev: 5ba}\n"
    )
    file = read_run_file(folder / "run.yaml")
    options = run_file.layer_of_options(
        {"evaluation_data": ["test=project/data.parquet"], "evaluate_every": ["test=2ba"]}
    )
    settings = run_file.merged([file.layer, options])
    made = run_file.arguments(run_file.merged([file.layer, options, {"workers": 1}]))
    assert made["evaluation_data"] == {
        "dev": str(folder / "data.parquet"),
        "test": "project/data.parquet",
    }
    assert settings.evaluate_every == {"dev": "5ba", "test": "2ba"}
    one = run_file.layer_of_options({"evaluation_data": ["x.parquet"], "evaluate_every": ["3ba"]})
    assert run_file.merged([file.layer, one]).evaluation_data == "x.parquet"
    for texts, words in ((["a", "b"], "'a' has no name"), (["a=1", "a=2"], "'a' is given twice")):
        with pytest.raises(RunFileError, match=words):
            run_file.layer_of_options({"evaluation_data": texts})
    (folder / "run.yaml").write_text("evaluate_every:\n  dev: soon\n")
    with pytest.raises(RunFileError, match=r"run.yaml:2:8: .*'soon'"):
        read_run_file(folder / "run.yaml")

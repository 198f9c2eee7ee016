"""A run has the same bits whatever form its data has, and says what it cannot read."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from ray.train import RunConfig, ScalingConfig
from torch import nn

from raytrain_plus import ElasticConfig, ElasticTrainer, StreamWriter, Task
from raytrain_plus.configure import ConfigError
from raytrain_plus.run_file import FILE_NAME, arguments, layer_of_options, merged, read_run_file
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.map_dataset import MapDataset
from raytrain_plus.streams.ray_data import written_stream
from raytrain_plus.user_data import is_code
from tests.streams.side import import_aside

N = 48
TABLE = pa.table({"input": np.linspace(0, 1, N), "label": np.linspace(1, 3, N)})


class Line(Task):
    def model(self):
        return nn.Linear(1, 1).double()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def forward(self, model, batch):
        return model(batch["input"].unsqueeze(1)).squeeze(1)

    def loss(self, outputs, batch):
        return (outputs - batch["label"]) ** 2


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        row = TABLE.slice(i, 1).to_pylist()[0]
        return torch.tensor(row["input"], dtype=torch.float64), np.float64(row["label"])


def trainer(folder, data, name="r", **more):
    return ElasticTrainer(
        task=Line(),
        data=data,
        batch_size=8,
        logical_ranks=2,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name=name, storage_path=str(folder)),
        elastic=ElasticConfig(checkpoint_every=None),
        **more,
    )


def test_all_forms_of_the_same_rows_train_to_the_same_bits(tmp_path, monkeypatch):
    datasets = import_aside("datasets")
    pq.write_table(TABLE, tmp_path / "a.parquet")
    TABLE.to_pandas().to_csv(tmp_path / "a.csv", index=False)
    datasets.Dataset(TABLE).save_to_disk(tmp_path / "saved")
    mapped = datasets.load_from_disk(tmp_path / "saved")
    (tmp_path / "factory_of_rows.py").write_text(
        "import pyarrow.parquet as pq\n"
        f"def rows():\n    return pq.read_table({str(tmp_path / 'a.parquet')!r}).to_pandas()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    forms = {
        "table": TABLE,
        "csv": [tmp_path / "a.csv"],
        "rows": Pairs(),
        "mapped": mapped,
        "function of a file": f"{tmp_path}/factory_of_rows.py:rows",
    }
    digests = {}
    for number, (name, data) in enumerate(forms.items()):
        digests[name] = trainer(tmp_path / "runs", data, f"r{number}").fit().metrics["digest"]
    assert set(digests.values()) == {digests["table"]}, digests
    other = trainer(tmp_path / "runs", TABLE.slice(0, N - 1), "other").fit().metrics["digest"]
    assert other != digests["table"]  # negative control


def test_a_run_file_names_lists_and_functions(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    TABLE.to_pandas().to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "made.py").write_text("def rows():\n    return 1\n")
    run = trainer(tmp_path / "runs", [tmp_path / "a.csv"], "listed")
    run.fit()
    kept = yaml.safe_load((tmp_path / "runs" / "listed" / FILE_NAME).read_text())
    assert kept["data"] == [str(tmp_path / "a.csv")]
    (tmp_path / "run.yaml").write_text("data: [a.csv]\nevaluation_data: made.py:rows\n")
    settings = merged([read_run_file(tmp_path / "run.yaml").layer, layer_of_options({})])
    found = arguments(settings.model_copy(update={"name": "x", "task": "made:rows"}))
    assert found["data"] == [str(tmp_path / "a.csv")]
    assert found["evaluation_data"] == f"{tmp_path}/made.py:rows"
    assert is_code("made:rows")
    assert not any(map(is_code, ("s3://a/b", "data/a.csv", "a.csv", str(tmp_path))))


def test_a_function_that_gives_no_data_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    functions = {"none": "None", "fails": "1 / 0", "number": "1"}
    text = "".join(f"def {name}():\n    return {what}\n" for name, what in functions.items())
    (tmp_path / "no_rows.py").write_text(text)
    for name, words in (
        ("none", "'no_rows:none' returns None, which is no data"),
        ("fails", r"'no_rows:fails': fails\(\) fails:\n(.*\n)*.*ZeroDivisionError"),
        ("number", "data is a int, but must be"),
        ("absent", "the module has no attribute 'absent'"),
    ):
        with pytest.raises((DataError, ConfigError, ValueError), match=words):
            trainer(tmp_path / "runs", f"no_rows:{name}")
    sys.modules.pop("no_rows")


def test_all_splits_but_the_training_split_are_evaluated(tmp_path):
    datasets = import_aside("datasets")
    made = datasets.Dataset(TABLE)
    splits = datasets.DatasetDict({"train": made, "validation": made, "test": made})
    run = trainer(tmp_path / "runs", splits, evaluation_data=splits)
    assert sorted(run.spec.evaluation_data) == ["test", "validation"]


def test_a_dataset_is_resumed_only_with_the_same_rows(tmp_path):
    class Others(Pairs):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + (i == 0), y

    trainer(tmp_path, Pairs()).fit()
    trainer(tmp_path, MapDataset(Pairs()), resume=True)
    with pytest.raises(ValueError, match="data content"):
        trainer(tmp_path, Others(), resume=True)


class RayLike:
    """As `ray.data.Dataset`: its blocks may have any sizes, and its order is kept if asked for."""

    def __init__(self, table):
        self.table, self.orders = table, []
        self.context = type("Context", (), {})()
        self.context.execution_options = type("Options", (), {"preserve_order": False})()

    def iter_batches(self, *, batch_size, batch_format):
        assert batch_format == "pyarrow"
        self.orders.append(self.context.execution_options.preserve_order)
        for start in range(0, self.table.num_rows, batch_size):
            yield self.table.slice(start, batch_size)


RayLike.__name__, RayLike.__module__ = "Dataset", "ray.data.dataset"


def test_a_ray_dataset_is_written_once(tmp_path, capsys):
    data = RayLike(TABLE)
    first = trainer(tmp_path, data)
    place = first.spec.data.url
    assert place.startswith(str(tmp_path / "ray_data"))
    assert data.orders == [True]
    assert not data.context.execution_options.preserve_order
    assert written_stream(RayLike(TABLE), str(tmp_path / "ray_data")).url == place
    assert "its 48 rows are in" in capsys.readouterr().err
    assert written_stream(RayLike(TABLE.slice(1)), str(tmp_path / "ray_data")).url != place
    assert len(list((tmp_path / "ray_data").iterdir())) == 2
    with pytest.raises(DataError, match="no rows"):
        written_stream(RayLike(TABLE.slice(0, 0)), str(tmp_path / "ray_data"))
    assert len(list((tmp_path / "ray_data").iterdir())) == 2  # nothing is left behind
    with StreamWriter(tmp_path / "s") as writer:
        writer.write(TABLE)
    assert (
        first.fit().metrics["digest"]
        == trainer(tmp_path, tmp_path / "s", "q").fit().metrics["digest"]
    )

"""The task learns its sample, in plain PyTorch: `pytest`."""

import pyarrow.csv
import pytest
import torch

import prepare_data
from task import Table


def prepared(folder):
    path = folder / "sample.csv"
    prepare_data.write_sample(path, rows=1000)
    return prepare_data.prepare(path, "leaves")


def batch_of(table):
    return {name: torch.tensor(table[name].to_pylist()) for name in table.column_names}


def test_the_sample_is_learned(tmp_path):
    torch.manual_seed(0)
    train, evaluation, settings = prepared(tmp_path)
    batch = batch_of(train)
    task = Table(**settings)
    model = task.model()
    optimizer = task.optimizer(model)
    for _ in range(60):
        losses = task.loss(task.forward(model, batch), batch)
        assert losses.shape == (800,)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    held_out = batch_of(evaluation)
    model.eval()
    found = task.forward(model, held_out).argmax(1)
    correct = (found == held_out["label"]).float().mean()
    most_frequent = held_out["label"].bincount().max() / len(held_out["label"])
    assert correct > most_frequent + 0.1


@pytest.mark.parametrize("columns", [["age", "leaves"], ["plan", "leaves"]])
def test_a_table_of_numbers_or_of_texts_alone(tmp_path, columns):
    prepare_data.write_sample(tmp_path / "all.csv", rows=50)
    some = pyarrow.csv.read_csv(tmp_path / "all.csv").select(columns)
    pyarrow.csv.write_csv(some, tmp_path / "some.csv")
    train, _, settings = prepare_data.prepare(tmp_path / "some.csv", "leaves")
    task = Table(**settings)
    assert set(task.columns) == set(train.column_names)
    assert task.forward(task.model(), batch_of(train)).shape == (40, 2)


def test_the_settings_of_run_yaml_are_those_of_the_sample(tmp_path):
    _, _, settings = prepared(tmp_path)
    task = Table()
    assert settings == {
        "numbers": task.numbers, "categories": list(task.categories), "classes": task.classes,
    }  # fmt: skip

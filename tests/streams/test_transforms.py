"""The error of a failing transform names the row; a transform's result is checked."""

import io

import pyarrow as pa
import pytest
import torch

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter


@pytest.fixture
def stream(tmp_path):
    with StreamWriter(tmp_path / "s", file_size="1KB") as writer:
        writer.write({"x": i, "name": f"{i}.png"} for i in range(200))

    def make(transform, **settings):
        return Stream(tmp_path / "s", cache=tmp_path / "c", transform=transform, **settings)

    return make


def load(stream):
    source = open_source(stream)
    return source, load_part(source, source.plain_order(1), 0, 0, 0, 200)


def fails(sample, generator):
    del generator
    if sample["name"] == "150.png":
        raise OSError("cannot identify image")
    return sample


def skips(sample, generator):
    del generator
    return None if sample["name"] == "150.png" else sample


def other(sample, generator):
    del generator
    return {**sample, "z": 2} if sample["name"] == "150.png" else sample


def fewer(sample, generator):
    del generator
    return {"x": sample["x"]} if sample["name"] == "150.png" else sample


def a_list(sample, generator):
    del sample, generator
    return [1]


def shape(sample, generator):
    del generator
    return {"y": torch.zeros(2, 2) if sample["name"] == "150.png" else torch.zeros(2, 3)}


def kind(sample, generator):
    del generator
    return {"y": "text" if sample["name"] == "150.png" else 1}


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (fails, "fails on {row}: OSError.*cannot identify image"),
        (skips, "returns nothing for {row}.*dictionary"),
        (other, "other columns.*'z'.*for {row}"),
        (fewer, "other columns.*for {row}"),
        (a_list, "returns list .*dictionary"),
        (shape, r"shape \(2, 2\) for {row}"),
        (kind, "str for {row}"),
    ],
)
def test_the_row_and_the_file_are_named(transform, words, stream):
    source = open_source(stream(transform))
    files, rows = source.plain_order(1).locate(0, 0, 150, 151)
    row = rf"row {rows[0] + 1} \(counted from 1\) of {source.shards[files[0]].where}"
    assert files[0] > 0
    with pytest.raises(DataError, match=words.format(row=row)):
        load(stream(transform))


def test_a_batch_transform_names_its_rows(stream):
    def batch(given, generator):
        del given, generator
        raise KeyError("missing")

    with pytest.raises(DataError, match=r"fails on 200 rows, the first of them row 1 .*KeyErr"):
        load(stream(batch, per="batch"))


def test_correct_results_are_returned(stream):
    def right(sample, generator):
        noise = torch.rand(1, generator=generator)
        return {"y": sample["x"] * 2, "noise": noise, "name": sample["name"]}

    _, batch = load(stream(right))
    assert batch["y"].tolist() == list(range(0, 400, 2))
    assert batch["name"][7] == "7.png"


def test_rows_of_a_single_file_are_numbered_in_the_file(tmp_path):
    path = tmp_path / "a.arrow"
    table = pa.table({"x": range(10)})
    with pa.ipc.new_file(io.FileIO(path, "w"), table.schema) as writer:
        writer.write_table(table)
    source = open_source(path)
    assert source.named(7, 0) == f"row 8 (counted from 1) of {path}"

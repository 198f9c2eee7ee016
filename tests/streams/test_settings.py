"""Settings of data that are wrong are named, with what they must be."""

import math

import numpy as np
import pyarrow as pa
import pytest

from raytrain_plus.storage.errors import StorageError, StoreError
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.convert import Wanted, read_any
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.test_plain import read_all


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": "8"}, "window is '8', but must be at least 1 file"),
        ({"window": 1.5}, "window is 1.5, but must be at least 1 file"),
        ({"window": True}, "window is True"),
        ({"window": 0}, "window is 0"),
        ({"deadline": math.nan}, "deadline is nan, but must be above 0 seconds"),
        ({"deadline": "5"}, "deadline is '5'"),
        ({"shuffle": "no"}, "shuffle is 'no', but must be True or False"),
        ({"split": 3}, "split is 3"),
        ({"columns": {"x"}}, "columns is {'x'}, but must be a list of names"),
        ({"columns": [1]}, r"columns is \[1\]"),
        ({"columns": "x"}, "columns is 'x'"),
        ({"transform": "decode"}, "transform is 'decode', but must be a function"),
        ({"storage_options": "secret=s3cr3t"}, "storage_options is <class 'str'>"),
        ({"per": "row"}, "per is 'row'"),
    ],
)
def test_a_setting_of_a_stream_that_is_wrong_is_named(settings, words):
    with pytest.raises(DataError, match=words) as caught:
        Stream("somewhere", **settings)
    assert "s3cr3t" not in str(caught.value)
    assert Stream("somewhere", window=np.int64(2)).window == 2  # the control


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"streams": [Stream("a")]}, "streams is .* must be a mapping from name to Stream"),
        ({"streams": {"a": "folder"}}, "must be a mapping from name to Stream"),
        ({"weights": [1]}, "weights is .* must be a mapping from name to number"),
        ({"weights": {"a": "1"}}, "must be a mapping from name to number"),
        ({"block": 1.5}, "block is 1.5, but must be at least 1 sample"),
        ({"changes": {"5": {"a": 1}}}, "a step of `changes` is '5'"),
    ],
)
def test_a_setting_of_a_mixture_that_is_wrong_is_named(settings, words):
    with pytest.raises(DataError, match=words):
        Mixture(**{"streams": {"a": Stream("a")}, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parallel": "4"}, "parallel is '4', but must be at least 1 file"),
        ({"labels": ["a"]}, "labels is .* must be a mapping from column"),
        ({"labels": {"x": [1, 2]}}, "labels of column 'x' are 1, 2, but must be a list"),
        ({"schema": {"x": "int"}}, r"schema is .* must be a pyarrow\.Schema"),
        ({"deadline": 0}, "deadline is 0"),
    ],
)
def test_a_setting_of_a_writer_that_is_wrong_is_named(settings, words, tmp_path):
    with pytest.raises(DataError, match=words):
        StreamWriter(tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("place", ["", "  ", "a\0b", 3])
def test_a_place_that_is_none_is_refused_at_once(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with StreamWriter(tmp_path / "train") as writer:
        writer.write({"x": 1})
    for opens in (Stream, StreamWriter, read_any):
        with pytest.raises(StorageError, match=r"not a path or URL|must be a path or a URL"):
            opens(place)
    assert read_all("train") == {"x": [1]}  # the control


def test_a_name_that_is_too_long_is_an_error_about_it():
    with pytest.raises(DataError, match=r"aaa cannot be read: .*name too long"):
        open_source("a" * 5000)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with StreamWriter("~/train") as writer:
        writer.write({"x": 1})
    assert (tmp_path / "train" / "index.json").exists()
    assert read_all("~/train") == {"x": [1]}


def test_a_split_of_a_stream_without_splits_is_refused(tmp_path):
    with StreamWriter(tmp_path / "s") as writer:
        writer.write({"x": 1})
    for opens in (
        lambda split: open_source(Stream(tmp_path / "s", split=split)).close(),
        lambda split: read_any(tmp_path / "s", None, Wanted(split=split)),
    ):
        with pytest.raises(DataError, match="a stream without splits"):
            opens("test")
        opens("all")


def test_a_file_on_this_machine_that_is_cut_short_is_refused_without_waiting(tmp_path):
    with StreamWriter(tmp_path / "s") as writer:
        writer.write({"x": 1})
    (file,) = (tmp_path / "s").glob("part*")
    content = file.read_bytes()
    store = Store(tmp_path / "s", deadline=1e6)
    assert store.read(file.name, len(content)) == content
    file.write_bytes(content[:-5])
    with pytest.raises(StoreError, match=f"is cut short: .* than the {len(content):,} that its"):
        store.read(file.name, len(content))


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ([1, None, 3], 2),
        ([[1], [2, None]], 2),
        (["a", "b", None], 3),
        (pa.array([[1, 2], [3, None]], pa.list_(pa.int64(), 2)), 2),
        (pa.chunked_array([[1, 2], [3, None]]), 4),
    ],
)
def test_nulls_are_named_by_their_row(values, row):
    with pytest.raises(DataError, match=f"holds nulls .the first in row {row}, counted from 1"):
        open_source(pa.table({"x": values}))

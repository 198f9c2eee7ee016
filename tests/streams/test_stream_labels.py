"""Labels: which number means which class, and how well they are mixed."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.check import inspect_stream
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.convert import Data, RowBatch, Wanted, names_of, read_any
from raytrain_plus.streams.label_skew import WORTH_A_WARNING, SkewMeter, skew, skew_of, told
from raytrain_plus.streams.labels import check_same, labels_of
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.reorder import mixed
from raytrain_plus.streams.stream import Stream, read_manifest
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.test_plain import read_all

PNG = b"\x89PNG\r\n\x1a\n"


def images(folder, **counts):
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            (folder / label / f"{number:03}.png").write_bytes(PNG + bytes([number]))
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["data", *map(str, arguments), "--json"])
    assert result.exit_code == code, result.stderr
    return result.stderr if code else json.loads(result.stdout.splitlines()[-1])


def numbers(folder):
    rows = read_all(folder)
    return {name.split("/")[0]: label for name, label in zip(rows["name"], rows["label"])}  # noqa: B905


def test_names_are_kept_and_can_be_given_to_another_stream(tmp_path):
    train = images(tmp_path / "photos", cats=2, dogs=1, owls=1)
    val = images(tmp_path / "more", cats=1, owls=1)
    assert run("write", train, tmp_path / "t")["labels"] == {"label": ["cats", "dogs", "owls"]}
    assert numbers(tmp_path / "t") == {"cats": 0, "dogs": 1, "owls": 2}
    run("write", val, tmp_path / "v")
    run("write", val, tmp_path / "w", "--labels-from", tmp_path / "t")
    assert numbers(tmp_path / "w") == {"cats": 0, "owls": 2}
    one, other, same = (open_source(tmp_path / name).labels for name in "tvw")
    check_same(one, same, "t", "w")
    with pytest.raises(
        DataError, match=r"column 'label' has other labels in v than in t: 1 is 'owls'"
    ):
        check_same(one, other, "t", "v")
    images(val, bats=1)
    message = run("write", val, tmp_path / "x", "--labels-from", tmp_path / "t", code=2)
    assert "'bats', which are not among the given labels" in message


def test_splits_of_images_have_the_same_numbers(tmp_path):
    photos = tmp_path / "photos"
    images(photos / "train", cats=2, dogs=1, owls=1)
    images(photos / "val", cats=1, owls=1)
    images(photos / "test", owls=1, wolves=1)
    images(photos / "test" / "_hidden", x=1)
    images(photos / "other", bats=1)
    everywhere = {"label": ["cats", "dogs", "owls", "wolves"]}
    for split, number in (("train", 2), ("val", 2), ("test", 2)):
        assert run("write", photos / split, tmp_path / split)["labels"] == everywhere
        assert numbers(tmp_path / split)["owls"] == number
        chosen = ("--split", split, "--order", "kept")
        assert run("write", photos, tmp_path / f"{split}2", *chosen)["labels"] == everywhere
        assert set(read_all(tmp_path / f"{split}2")["label"]) == set(
            read_all(tmp_path / split)["label"]
        )
    # Folders without a label in common are not splits of one data set.
    images(tmp_path / "a" / "train", cats=1, dogs=1)
    images(tmp_path / "a" / "test", unknown=1, other=1)
    assert run("write", tmp_path / "a" / "train", tmp_path / "t")["labels"] == {
        "label": ["cats", "dogs"]
    }


def test_splits_of_text_have_the_same_numbers(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text("t,kind\na,dog\nb,cat\n")
    (tmp_path / "d" / "val.csv").write_text("t,kind\na,owl\nb,dog\n")
    (tmp_path / "d" / "test.csv").write_text("t\na\n")
    for split, kinds in (("train", [1, 0]), ("val", [2, 1])):
        written = run("write", tmp_path / "d", tmp_path / split, "--split", split, "--label=kind")
        assert written["labels"] == {"kind": ["cat", "dog", "owl"]}
        assert read_all(tmp_path / split)["kind"] == kinds


def test_label_names_survive_parquet(tmp_path):
    with StreamWriter(tmp_path / "s", labels={"y": ["cat", "dog"]}) as writer:
        writer.write([{"y": 0}, {"y": 1}])
    manifest = read_manifest(Store(tmp_path / "s"))
    assert labels_of(manifest.schema) == {"y": ("cat", "dog")}
    run("convert", tmp_path / "s", tmp_path / "p", "--to", "parquet")
    stored = pq.read_schema(next((tmp_path / "p").glob("*.parquet")))
    assert labels_of(stored) == {"y": ("cat", "dog")}
    for data in (tmp_path / "p", Stream(tmp_path / "p", cache=tmp_path / "cache")):
        assert open_source(data).labels == {"y": ("cat", "dog")}
    assert run("write", tmp_path / "p", tmp_path / "s2")["labels"] == {"y": ["cat", "dog"]}


def test_text_becomes_numbers_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("t,kind\na,dog\nb,cat\nc,dog\n")
    (tmp_path / "b.csv").write_text("t,kind\na,owl\n")
    written = run("write", tmp_path / "a.csv", tmp_path / "s", "--label", "kind")
    assert written["labels"] == {"kind": ["cat", "dog"]}
    assert read_all(tmp_path / "s") == {"t": ["a", "b", "c"], "kind": [1, 0, 1]}
    message = run(
        "write", tmp_path / "b.csv", tmp_path / "u", "--labels-from", tmp_path / "s", code=2
    )
    assert "b.csv, row 1: column 'kind' holds 'owl'" in message
    message = run("write", tmp_path / "a.csv", tmp_path / "u", "--label", "t2", code=2)
    assert "there is no column 't2'" in message
    back = run("convert", tmp_path / "s", tmp_path / "s2", "--to", "stream")
    assert back["labels"] == {"kind": ["cat", "dog"]}


def test_a_writer_compares_numbers_with_their_names(tmp_path):
    def write(folder, value):
        with StreamWriter(tmp_path / folder, labels={"y": ["a", "b"]}) as writer:
            writer.write({"y": 0})
            writer.write({"y": value})

    write("s", 1)
    assert inspect_stream(tmp_path / "s")["labels"] == {"y": ("a", "b")}
    for value, words in (
        (2, "row 2: column 'y' is 2, but its 2 labels"),
        (-1, "is -1"),
        (0.5, "whole"),
    ):
        with pytest.raises(DataError, match=words):
            write("t", value)
    with pytest.raises(DataError, match="a list of different names"):
        StreamWriter(tmp_path / "u", labels={"y": ["a", "a"]})


def test_names_of_hugging_face_are_read(tmp_path):
    def open_stream(folder):
        return open_source(Stream(folder, cache=tmp_path / "cache"))

    def file(name, names):
        features = {"y": {"names": names, "_type": "ClassLabel"}, "x": {"_type": "Value"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        schema = pa.schema([("x", pa.int64()), ("y", pa.int64())], metadata)
        pq.write_table(pa.table({"x": [1, 2], "y": [0, 1]}, schema=schema), tmp_path / name)
        return tmp_path / name

    one = file("a.parquet", ["cat", "dog"])
    assert open_source(one).labels == {"y": ("cat", "dog")}
    assert run("write", one, tmp_path / "s")["labels"] == {"y": ["cat", "dog"]}
    (tmp_path / "d").mkdir()
    one.rename(tmp_path / "d" / "a.parquet")
    file("d/b.parquet", ["dog", "cat"])
    for read in (open_source, read_any, open_stream):
        with pytest.raises(DataError, match="other labels"):
            read(tmp_path / "d")
    alone = Stream(tmp_path / "d" / "a.parquet", cache=tmp_path / "cache")
    assert open_source(alone).labels == {"y": ("cat", "dog")}
    assert labels_of(pa.schema([], {"huggingface": "[]"})) == {}


def test_streams_of_a_mixture_must_have_the_same_names(tmp_path):
    for name, names in (("a", ["x", "y"]), ("b", ["y", "x"]), ("c", ["x", "y"])):
        with StreamWriter(tmp_path / name, labels={"y": names}) as writer:
            writer.write([{"y": 0}, {"y": 1}])
    streams = {name: Stream(tmp_path / name, cache=tmp_path / "cache") for name in "abc"}
    assert open_source(Mixture({"a": streams["a"], "c": streams["c"]})).labels == {"y": ("x", "y")}
    with pytest.raises(DataError, match="other labels in stream 'b' than in stream 'a'"):
        open_source(Mixture({"a": streams["a"], "b": streams["b"]}))


def test_training_and_evaluation_data_of_other_names_are_refused(tmp_path):
    from raytrain_plus import configure
    from raytrain_plus.task import Task

    for name, names in (("a", ["x", "y"]), ("b", ["y", "x"])):
        with StreamWriter(tmp_path / name, labels={"label": names}) as writer:
            writer.write([{"v": 0.5, "label": 0}, {"v": 0.5, "label": 1}])
    task = Task()
    source = configure.open_for(task, tmp_path / "a", "training data")
    described = configure.describe_data(task, source, tmp_path / "a")
    assert described["data labels"]
    with pytest.raises(DataError, match="other labels in the evaluation data than in the training"):
        configure.describe_data(task, source, tmp_path / "b")


@pytest.mark.parametrize("names", [["x", "y"], [b"x", b"y"]])
def test_targets_that_are_names_in_one_of_two_and_numbers_in_the_other_are_refused(names):
    from raytrain_plus import configure
    from raytrain_plus.task import Task

    numbers, texts = (pa.table({"v": [0.5, 1.5], "label": given}) for given in ([0, 1], names))
    for data, held_out in ((numbers, texts), (texts, numbers)):
        source = configure.open_for(Task(), data, "training data")
        with pytest.raises(
            DataError, match=r"target column 'label' is .* in the training data and"
        ):
            configure.describe_data(Task(), source, held_out)
        assert configure.describe_data(Task(), source, data)["evaluation data"]  # the control


# -- how well they are mixed

ROWS, LABELS = 1400, 10


def table(order):
    labels = np.repeat(np.arange(LABELS), ROWS // LABELS)
    if order == "mixed":
        labels = np.random.default_rng(0).permutation(labels)
    elif order == "in turns":
        labels = np.sort(labels.reshape(-1, 5, 28), axis=None).reshape(LABELS, -1).T.ravel()
    return pa.table({"x": np.arange(ROWS), "label": labels})


@pytest.mark.parametrize(
    ("order", "low", "high"), [("sorted", 0.8, 1), ("mixed", 0, 0.05), ("in turns", 0, 0.01)]
)
@pytest.mark.parametrize("rows", [1, 7, 1400])
def test_the_skew_is_measured_while_rows_are_written(order, low, high, rows, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with StreamWriter(tmp_path / "s") as writer:
            for batch in table(order).to_batches(max_chunksize=rows):
                writer.write(batch)
    found = run("inspect", tmp_path / "s")["label_skew"]
    assert found.keys() == {"label"}
    assert low <= found["label"] <= high
    sorted_by = [str(one.message) for one in caught if "sorted by 'label'" in str(one.message)]
    assert len(sorted_by) == (order == "sorted")
    assert open_source(tmp_path / "s").label_skew == found


def test_columns_of_many_values_are_not_labels():
    meter = SkewMeter()
    meter.see(pa.table({"id": np.arange(5000), "one": np.zeros(5000, int), "v": np.zeros(5000)}))
    assert meter.measured() == {}


def test_a_long_stream_is_measured_in_bounded_memory():
    meter = SkewMeter()
    for number in range(300):
        meter.see(pa.table({"y": np.full(1000, number // 30)}))
    assert meter.measured()["y"] > 0.85
    assert len(meter._columns["y"]._counts) < 1100


@given(
    st.lists(
        st.dictionaries(st.integers(0, 5), st.integers(1, 50), min_size=1), min_size=1, max_size=8
    )
)
def test_the_skew_is_between_none_and_one_label_per_batch(stretches):
    assert 0 <= skew(stretches) <= 1


def test_the_skew_of_mixed_and_of_sorted_rows():
    assert skew([{0: 100}, {1: 100}]) == 1
    assert skew([{0: 50, 1: 50}] * 4) == 0
    draw = np.random.default_rng(1)
    drawn = [
        dict(zip(*np.unique(draw.integers(0, 500, 2000), return_counts=True), strict=False))
        for _ in range(8)
    ]
    assert skew(drawn) < 0.05
    assert told({"y": WORTH_A_WARNING / 2}) is None
    assert "'y'" in told({"y": 2 * WORTH_A_WARNING})


@pytest.mark.parametrize("order", ["sorted", "mixed"])
@pytest.mark.parametrize("kind", ["numbers", "text"])
def test_a_folder_is_sampled_before_a_run(order, kind, tmp_path):
    (tmp_path / "d").mkdir()
    whole = table(order)
    if kind == "text":
        whole = whole.set_column(1, "label", whole["label"].cast(pa.string()))
    for number in range(40):
        pq.write_table(whole.slice(35 * number, 35), tmp_path / "d" / f"{number:03}.parquet")
    found = skew_of(open_source(tmp_path / "d"), "label")["label"]
    assert (found > WORTH_A_WARNING) == (order == "sorted")
    pq.write_table(whole, tmp_path / "whole.parquet")
    assert skew_of(open_source(tmp_path / "whole.parquet"), "label") == {}  # is mixed by rows


def test_a_run_warns_of_sorted_rows_at_its_start(tmp_path):
    from raytrain_plus import configure
    from raytrain_plus.task import Task

    for order in ("sorted", "mixed"):
        with StreamWriter(tmp_path / order, warn=False) as writer:
            writer.write(table(order))
    task = Task()
    source = configure.open_for(task, tmp_path / "sorted", "training data")
    with pytest.warns(UserWarning, match="training data: the rows are sorted by 'label'"):
        configure.describe_data(task, source, None)
    source = configure.open_for(task, tmp_path / "mixed", "training data")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        configure.describe_data(task, source, None)


def test_rows_are_mixed_on_request_and_images_always(tmp_path):
    pq.write_table(table("sorted"), tmp_path / "a.parquet")
    kept = run("write", tmp_path / "a.parquet", tmp_path / "kept")
    assert read_all(tmp_path / "kept")["x"] == list(range(ROWS))
    assert kept["label_skew"]["label"] > 0.8
    found = run(
        "write", tmp_path / "a.parquet", tmp_path / "s", "--order", "mixed", "--file-size", "3KB"
    )
    assert found["label_skew"]["label"] < 0.05
    rows = read_all(tmp_path / "s")
    assert sorted(rows["x"]) == list(range(ROWS))
    assert dict(zip(rows["x"], rows["label"], strict=False)) == dict(
        enumerate(table("sorted")["label"].to_pylist())
    )
    run("write", tmp_path / "a.parquet", tmp_path / "again", "--order", "mixed")
    assert read_all(tmp_path / "again") == rows
    run("write", tmp_path / "a.parquet", tmp_path / "other", "--order", "mixed", "--seed", "1")
    assert read_all(tmp_path / "other")["x"] != rows["x"]

    folder = images(tmp_path / "images", cats=40, dogs=40)
    assert run("write", folder, tmp_path / "i")["label_skew"]["label"] < 0.2
    assert run("write", folder, tmp_path / "j", "--order", "kept")["label_skew"]["label"] > 0.9
    assert sorted(read_all(tmp_path / "i")["name"]) == read_all(tmp_path / "j")["name"]


def test_every_kind_of_column_is_mixed(tmp_path):
    rows = [
        {"x": number, "v": np.full((2, 3), number), "t": str(number), "l": [number] * (number % 3)}
        for number in range(100)
    ]
    with StreamWriter(tmp_path / "s", file_size=300) as writer:
        writer.write(rows)
    data = mixed(read_any(tmp_path / "s"), 3, tmp_path / "scratch")
    assert isinstance(data, Data)
    with StreamWriter(tmp_path / "m") as writer:
        for batch in data.batches:
            assert isinstance(batch, RowBatch)
            writer.write(batch.table)
    found = read_all(tmp_path / "m")
    assert sorted(found["x"]) == list(range(100))
    assert found["x"] != list(range(100))
    for x, v, t, some in zip(found["x"], found["v"], found["t"], found["l"], strict=True):
        assert (v, t, some) == ([[x] * 3] * 2, str(x), [x] * (x % 3))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["cat", "cat ", "dog"], "column 'y': the labels 'cat' and 'cat ' look the same"),
        (["caf\u00e9", "cafe\u0301"], r"labels 'cafe\\u0301' and 'caf\\xe9' look the same"),
        (["cat", "", "dog"], r"a\.csv, row 2: the label in column 'y' is ''"),
        (["cat", "dog", "\t"], r"a\.csv, row 3: the label in column 'y' is '\\t'"),
    ],
)
def test_labels_that_look_the_same_or_are_empty_are_refused(tmp_path, texts, words):
    rows = "".join(f"{text},1\n" for text in texts)
    (tmp_path / "a.csv").write_text(f"y,x\n{rows}", encoding="utf-8")
    with pytest.raises(DataError, match=words):
        names_of(str(tmp_path / "a.csv"), None, Wanted(), ["y"])


def test_a_row_without_a_label_is_refused(tmp_path):
    pq.write_table(pa.table({"y": ["cat", None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2: the label in column 'y' is None"):
        names_of(str(tmp_path / "a.parquet"), None, Wanted(), ["y"])


def test_folders_of_images_that_look_the_same_are_refused(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(PNG)
    with pytest.raises(DataError, match="look the same"):
        read_any(tmp_path)

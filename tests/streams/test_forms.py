"""The same rows have the same batches, and the same order, in each form that a user may have."""

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.map_dataset import MapDataset
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from tests.streams.noisy_rows import Noisy
from tests.streams.side import import_aside

N = 40
X = np.linspace(0, 1, N)
Y = np.arange(N) % 3
TABLE = pa.table({"input": X, "label": Y})


class ByRow(torch.utils.data.Dataset):
    def __init__(self, pair=False):
        self.pair = pair

    def __len__(self):
        return N

    def __getitem__(self, i):
        row = {"input": torch.tensor(X[i]), "label": int(Y[i])}
        return tuple(row.values()) if self.pair else row


def parts(data, seed=3):
    """Return what two lanes read in the first steps of an epoch."""
    source = open_source(data)
    order = source.order(2, seed, 5)
    rows = min(15, order.shortest_lane)
    found = [load_part(source, order, 1, lane, 0, rows) for lane in (0, 1)]
    source.close()
    return found


def equal(one, other):
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def polars_like():
    class DataFrame:
        def to_arrow(self):
            return TABLE.cast(pa.schema([("input", pa.float64()), ("label", pa.int64())]))

    DataFrame.__module__ = "polars.dataframe.frame"
    return DataFrame()


def test_forms_in_memory_are_read_as_a_table():
    tensors = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    forms = {
        "batch": TABLE.to_batches()[0],
        "pandas": TABLE.to_pandas(),
        "polars": polars_like(),
        "tensors": tensors,
        "subset": Subset(
            TensorDataset(torch.from_numpy(X[::-1].copy()), torch.from_numpy(Y[::-1].copy())),
            list(range(N))[::-1],
        ),
        "rows": ByRow(),
        "pairs": ByRow(pair=True),
        "concatenated": ConcatDataset([Subset(ByRow(), range(10)), Subset(ByRow(), range(10, N))]),
        "wrapped": MapDataset(ByRow()),
    }
    expected = parts(TABLE)
    for name, data in forms.items():
        assert equal(parts(data), expected), name
    assert not equal(parts(TABLE, seed=4), expected)  # negative control
    assert not equal(parts(pa.table({"input": X[::-1], "label": Y})), expected)


def test_polars_frames_are_read_if_polars_is_there():
    polars = import_aside("polars")
    assert equal(parts(polars.from_arrow(TABLE)), parts(TABLE))
    coded = polars.DataFrame({"c": ["a", "b"]}, schema={"c": polars.Categorical})
    assert open_source(coded).columns["c"].kind == "string"
    with pytest.raises(DataError, match=r"LazyFrame of polars.*collect\(\)"):
        open_source(coded.lazy())
    with pytest.raises(DataError, match=r"Series of polars"):
        open_source(coded["c"])


def write_texts(folder):
    frame = TABLE.to_pandas()
    frame.to_csv(folder / "a.csv", index=False)
    frame[:15].to_csv(folder / "part-1.csv", index=False)
    frame[15:].to_csv(folder / "part-2.csv.gz", index=False)
    lines = [json.dumps(row) + "\n" for row in TABLE.to_pylist()]
    (folder / "a.jsonl").write_text("".join(lines))
    return folder


def test_text_is_read_as_the_table_that_it_holds(tmp_path):
    folder = write_texts(tmp_path)
    expected = parts(TABLE)
    for data in (
        folder / "a.csv",
        f"{folder}/part-*",
        [folder / "part-1.csv", folder / "part-2.csv.gz"],
        [f"{folder}/part-*"],
        Stream(folder / "a.csv"),
        folder / "a.jsonl",
    ):
        assert equal(parts(data), expected), data


def test_text_is_identified_by_its_files_or_their_bytes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x\n1\n2\n")
    one, hashed = open_source(path).identity, open_source(path, hash_data=True).identity
    assert open_source(path).identity == one
    (tmp_path / "b").mkdir()
    copy = tmp_path / "b" / "a.csv"
    copy.write_text("x\n1\n2\n")
    assert open_source(copy, hash_data=True).identity == hashed
    assert open_source(copy).identity != one  # of another time
    path.write_text("x\n1\n3\n")
    assert open_source(path, hash_data=True).identity != hashed


def test_settings_of_a_stream_count_for_text_and_arrow_files(tmp_path):
    (tmp_path / "train.csv").write_text("x,y\n1,2\n3,4\n")
    (tmp_path / "test.csv").write_text("x,y\n5,6\n")
    with pytest.raises(DataError, match=r"several splits"):
        open_source(tmp_path)

    def doubled(sample, generator):
        del generator
        return {"x": sample["x"] * 2}

    stream = Stream(tmp_path, split="train", columns=["x"], transform=doubled, shuffle=False)
    source = open_source(stream)
    assert load_part(source, source.order(1, 0, 2), 0, 0, 0, 2)["x"].tolist() == [2, 6]
    assert source.described()["shuffle"] is False
    (tmp_path / "holed.jsonl").write_text('{"x": 1}\n{"x": null}\n')
    with pytest.raises(DataError, match=r"'x' of .*holed.jsonl, row 2 holds nulls"):
        open_source(tmp_path / "holed.jsonl")
    filled = open_source(Stream(tmp_path / "holed.jsonl", fill={"x": 7}))
    assert load_part(filled, filled.plain_order(1), 0, 0, 0, 2)["x"].tolist() == [1, 7]


def test_a_list_of_files_is_read_as_the_folder_that_has_them(tmp_path):
    for number, rows in enumerate((TABLE[:10], TABLE[10:25], TABLE[25:])):
        pq.write_table(rows, tmp_path / f"{number}.parquet")
    names = [tmp_path / f"{number}.parquet" for number in range(3)]
    assert equal(parts(names), parts(tmp_path))
    assert equal(parts([f"{tmp_path}/[01].parquet", names[2]]), parts(tmp_path))
    assert not equal(parts(names[::-1]), parts(tmp_path))  # the order of a list is its own
    (tmp_path / "a.csv").write_text("x\n1\n")
    for wrong, words in (
        ([], "empty list"),
        ([names[0], names[0]], r"0\.parquet.* more than once"),
        ([names[0], tmp_path / "a.csv"], r"several forms \(.csv, .parquet\)"),
        ([names[0], "s3://bucket/a.parquet"], "files of this machine and URLs"),
        ([{"x": 1}], "a list that holds a dict"),
        ([tmp_path / "nowhere.parquet"], "does not exist"),
    ):
        with pytest.raises(DataError, match=words):
            open_source(wrong)


def test_what_has_no_row_numbers_is_refused_by_name():
    class Endless(IterableDataset):
        def __iter__(self):
            yield {"x": 1}

    for data, words in (
        (Endless(), "Endless is an IterableDataset.*StreamWriter"),
        (torch.utils.data.DataLoader(ByRow()), r"DataLoader.*data=loader\.dataset"),
        (pd.Series([1]), "Series of pandas"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "more than one column 'a'"),
        (SimpleNamespace(), "is a SimpleNamespace, but must be"),
    ):
        with pytest.raises(DataError, match=words):
            open_source(data)


def test_missing_numbers_of_pandas_are_nulls():
    frame = pd.DataFrame({"x": [1.0, np.nan]})
    with pytest.raises(DataError, match=r"'x' of the table holds nulls .the first in row 2"):
        open_source(frame)


# -- map-style datasets


class Rows:
    """Rows by a function, as a user's dataset may be."""

    def __init__(self, make, count=N):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.make(i)


def first(data, rows=4, **settings):
    source = open_source(data)
    for name, value in settings.items():
        setattr(source, name, value)
    batch = load_part(source, source.plain_order(1), 0, 0, 0, rows)
    source.close()
    return batch


def test_rows_of_any_structure_become_columns():
    class Picture:
        """Like an image of PIL."""

        def __init__(self, pixels):
            self.__array_interface__ = pixels.__array_interface__
            self._pixels = pixels

        def getbands(self):
            return ("R", "G", "B")

    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)

    def make(i):
        return {
            "image": Picture(pixels + i),
            "grey": Picture(pixels[..., 0]),
            "array": np.float32([i, 1]),
            "number": np.int16(i),
            "text": f"t{i}",
            "boxes": {"xy": np.zeros((i, 2)), "names": ["a"] * i},
            "ragged": torch.arange(i),
        }

    batch = first(Rows(make))
    assert batch["image"].shape == (4, 3, 2, 4)
    assert torch.equal(batch["image"][1], torch.from_numpy(pixels + 1).permute(2, 0, 1))
    assert batch["grey"].shape == (4, 1, 2, 4)
    assert (batch["array"].dtype, batch["number"].dtype) == (torch.float32, torch.int16)
    assert batch["text"] == ["t0", "t1", "t2", "t3"]
    assert batch["boxes"][2]["names"] == ["a", "a"]
    assert batch["boxes"][2]["xy"].shape == (2, 2)
    assert [len(one) for one in batch["ragged"]] == [0, 1, 2, 3]


def test_columns_are_selected_and_named():
    source = open_source(ByRow(), ["label"])
    assert list(load_part(source, source.plain_order(1), 0, 0, 0, 2)) == ["label"]
    named = MapDataset(Rows(lambda i: (i, i, i)), names=["a", "b", "c"])
    assert list(first(named)) == ["a", "b", "c"]
    for data, words in (
        (Rows(lambda i: (i, i, i)), r"row 1 of the dataset Rows has 3 elements: name each"),
        (Rows(lambda i: {"a": i} if i < 39 else {"b": i}), "row 40 .* has the columns 'b'.* 'a'"),
        (Rows(lambda i: 1 / (i - 39)), r"row 40 of the dataset Rows: .*ZeroDivisionError"),
        (Rows(lambda i: i, 0), "Rows has no rows"),
    ):
        with pytest.raises(DataError, match=words):
            first(data)
    with pytest.raises(DataError, match=r"has no column 'z'; it has 'input', 'label'"):
        open_source(ByRow(), ["z"])


def test_shapes_may_differ_if_the_task_makes_the_batch():
    data = Rows(lambda i: {"x": torch.zeros(i % 2 + 1, 3)})
    with pytest.raises(DataError, match=r"the dataset gives column 'x' in different .*`collate`"):
        first(data)
    batch = first(data, collate=lambda rows: {"n": torch.tensor([len(row["x"]) for row in rows])})
    assert batch["n"].tolist() == [1, 2, 1, 2]


def test_a_transform_gets_a_generator_of_its_own():
    def noisy(sample, generator):
        return {"x": sample["input"] + torch.rand(1, generator=generator)}

    data = MapDataset(ByRow(), transform=noisy)
    assert equal(parts(data), parts(MapDataset(ByRow(), transform=noisy)))


def test_random_rows_are_made_apart_and_follow_from_the_seed():
    source = open_source(MapDataset(Noisy(), processes=2))
    state = torch.get_rng_state()
    order = source.plain_order(2)
    both = [load_part(source, order, 0, lane, 0, 3) for lane in (0, 1)]
    alone = load_part(source, order, 0, 1, 1, 2)
    assert torch.equal(alone["x"][0], both[1]["x"][1])  # in whatever order they are read
    later = load_part(source, order, 1, 1, 1, 2)
    assert torch.equal(later["i"], alone["i"])
    assert not torch.equal(later["x"], alone["x"])  # other noise in another epoch
    assert torch.equal(torch.get_rng_state(), state)  # the training draws from it
    wanted = [(lane, row) for lane in (0, 1) for row in range(6)] * 5
    with ThreadPoolExecutor(4) as pool:  # an audit reads a part while the loader reads ahead
        found = list(
            pool.map(lambda at: load_part(source, order, 0, at[0], at[1], at[1] + 1), wanted)
        )
    for (lane, row), part in zip(wanted, found, strict=True):
        assert torch.equal(part["x"], load_part(source, order, 0, lane, row, row + 1)["x"])
    with pytest.raises(DataError, match=r"row 15 of the dataset Noisy: .*fourteen"):
        load_part(source, order, 0, 0, 14, 15)
    assert source.identity == open_source(Noisy()).identity
    source.close()


def test_rows_that_are_no_function_of_their_number_are_refused():
    own = np.random.default_rng(1)
    with pytest.raises(DataError, match=r"another row of the same number.*transform"):
        open_source(Rows(lambda _: own.random()))
    calls = iter(range(10_000))
    with pytest.raises(DataError, match=r"another row of the same number"):
        open_source(Rows(lambda _: next(calls)))


def test_a_dataset_travels_as_it_was_before_its_first_row():
    class Lazy(Rows):
        handle = None

        def __getitem__(self, i):
            self.handle = self.handle or threading.Lock()  # as a file, which cannot be pickled
            return i

    source = open_source(Lazy(None))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity
    held = Rows(lambda i: i)
    held.lock = threading.Lock()
    with pytest.raises(DataError, match=r"Rows cannot be pickled.*module:function"):
        pickle.dumps(open_source(held))


def test_a_dataset_is_identified_by_its_length_and_some_rows():
    one = open_source(ByRow()).identity
    assert open_source(ByRow()).identity == one
    assert open_source(Subset(ByRow(), range(30))).identity != one
    other = Rows(lambda i: {"input": torch.tensor(X[i]), "label": int(Y[i]) + (i == N - 1)})
    assert open_source(other).identity != one


def test_tokens_of_a_dataset_are_not_counted():
    source = open_source(Rows(lambda i: {"ids": torch.arange(i)}))
    assert source.columns["ids"].kind == "list"
    with pytest.raises(DataError, match=r"only be counted by making all of its rows"):
        source.count_items("ids")


# -- Hugging Face


@pytest.fixture(scope="module")
def datasets():
    return import_aside("datasets")


def test_a_dataset_of_hugging_face_is_read_where_it_is(datasets, tmp_path):
    datasets.Dataset(TABLE).save_to_disk(tmp_path / "d", num_shards=2)
    loaded = datasets.load_from_disk(tmp_path / "d")
    assert len(loaded.cache_files) == 2
    expected = parts(TABLE)
    assert equal(parts(loaded), expected)
    assert equal(parts(datasets.Dataset(TABLE)), expected)  # in memory
    shuffled = loaded.shuffle(seed=1)
    order = [row["input"] for row in shuffled]
    assert order != X.tolist()
    assert equal(parts(shuffled), parts(pa.table(shuffled.to_dict())))
    some = shuffled.select(range(5, 35))
    assert equal(parts(some), parts(pa.table(some.to_dict())))
    kept = loaded.filter(lambda row: row["label"] > 0, load_from_cache_file=False)
    renamed = kept.rename_column("label", "class").with_format("torch")
    assert equal(parts(renamed), parts(pa.table(kept.to_dict()).rename_columns(["input", "class"])))
    one_column = loaded.with_format(columns=["label"])
    assert list(open_source(one_column).columns) == ["label"]


def test_a_dataset_of_hugging_face_is_identified_by_files_and_rows(datasets, tmp_path):
    datasets.Dataset(TABLE).save_to_disk(tmp_path / "d")
    one = datasets.load_from_disk(tmp_path / "d")
    again = datasets.load_from_disk(tmp_path / "d")
    assert open_source(one).identity == open_source(again).identity
    assert open_source(one.shuffle(seed=1)).identity == open_source(again.shuffle(seed=1)).identity
    others = [one.shuffle(seed=2), one.select(range(1, N)), one.select(range(N - 1)), one]
    assert len({open_source(other).identity for other in others}) == len(others)
    assert open_source(one, hash_data=True).identity != open_source(one).identity
    copy = pickle.loads(pickle.dumps(open_source(one)))
    assert copy.identity == open_source(one).identity


def test_features_of_hugging_face_are_kept(datasets, tmp_path):
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["cat", "owl"]),
            "pixels": datasets.Array2D((2, 2), "float32"),
            "chat": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "tags": datasets.Sequence(datasets.Value("string")),
        }
    )
    rows = {
        "label": [1, 0],
        "pixels": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        "chat": [[{"role": "user", "content": "hi"}], []],
        "tags": [["a"], []],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "saved")
    (tmp_path / "hub").mkdir()
    made.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    for data in (
        made,
        datasets.load_from_disk(tmp_path / "saved"),
        tmp_path / "saved",
        tmp_path / "hub",
        Stream(tmp_path / "hub", split="train", cache=tmp_path / "c"),
    ):
        source = open_source(data)
        assert source.labels["label"] == ("cat", "owl"), data
        batch = load_part(source, source.plain_order(1), 0, 0, 0, 2)
        assert torch.equal(batch["pixels"], torch.tensor(rows["pixels"], dtype=torch.float32))
        assert batch["chat"] == rows["chat"]
        assert batch["tags"] == rows["tags"]


def test_splits_and_streams_of_hugging_face(datasets, tmp_path):
    made = datasets.Dataset(TABLE)
    splits = datasets.DatasetDict({"train": made, "test": made.select(range(5))})
    assert equal(parts(splits), parts(TABLE))
    assert open_source(datasets.DatasetDict({"all": made})).total_rows == N
    with pytest.raises(DataError, match=r"the splits 'a', 'b', none of them 'train'"):
        open_source(datasets.DatasetDict({"a": made, "b": made}))
    with pytest.raises(DataError, match=r"IterableDataset of Hugging Face.*streaming=False"):
        open_source(made.to_iterable_dataset())
    with pytest.raises(DataError, match=r"set_transform.*`map`"):
        open_source(made.with_transform(lambda row: row))
    splits.save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"holds several splits"):
        open_source(tmp_path / "d")
    assert equal(parts(Stream(tmp_path / "d", split="train")), parts(tmp_path / "d" / "train"))

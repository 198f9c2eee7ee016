"""What a folder means: the same in train, in a Stream and in data write, or one clear error."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain_plus.streams.columns import DataError, LeftOutWarning
from raytrain_plus.streams.convert import Data, Wanted, read_any, write_parquet
from raytrain_plus.streams.folders import is_hidden, matching, select, split_of
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.arrow_data import write_ipc
from tests.streams.test_plain import read_all

PNG = b"\x89PNG\r\n\x1a\n"


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def written(source, to, **choice):
    data = read_any(source, None, choice.get("choice"))
    with StreamWriter(to, labels=data.labels) as writer:
        for batch in data.batches:
            writer.write(batch.table, batch.place)
    return read_all(to)


@pytest.fixture
def ways(tmp_path):
    """The three ways to read a folder, each a function of its path."""
    counted = iter(range(100))
    return {
        "train": lambda path: read_all(str(path)),
        "Stream": lambda path: read_all(Stream(str(path), cache=tmp_path / "cache")),
        "data write": lambda path: written(str(path), tmp_path / f"written-{next(counted)}"),
    }


def everywhere(ways, path):
    found = {name: way(path) for name, way in ways.items()}
    assert found["train"] == found["Stream"] == found["data write"]
    return found["train"]


def refused(ways, path, words):
    for way in ways.values():
        with pytest.raises(DataError, match=words):
            way(path)


def test_subfolders_are_part_of_a_folder(ways, tmp_path):
    parquet(tmp_path / "d" / "a.parquet", x=[1, 2])
    parquet(tmp_path / "d" / "more" / "deep" / "b.parquet", x=[3])
    assert everywhere(ways, tmp_path / "d") == {"x": [1, 2, 3]}


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/a-checkpoint.parquet",
        "_temporary/0/part-0.parquet",
        ".hidden.parquet",
        "_metadata.parquet",
        "_delta_log/a.parquet",
        "a.parquet~",
        "a.parquet.tmp",
        ".a.parquet.crc",
        "b.parquet.part",
        "out.tmp/a.parquet",
        "lost+found/a.parquet",
        "@eaDir/a.parquet",
        "__MACOSX/a.parquet",
        "_SUCCESS",
        "README.md",
        "dataset_info.json",
        "preview.png",
    ],
)
def test_hidden_temporary_and_foreign_files_are_not_data(name, ways, tmp_path):
    parquet(tmp_path / "d" / "a.parquet", x=[1, 2])
    parquet(tmp_path / "d" / name, x=[9])
    assert everywhere(ways, tmp_path / "d") == {"x": [1, 2]}


@pytest.mark.parametrize("name", ["b.parquet", "more/b.parquet", "a=1_/b.parquet", "x_.parquet"])
def test_files_that_are_not_hidden_are_data(name):
    assert not is_hidden(name)


@pytest.mark.parametrize(
    ("values", "expected"),
    [(["0", "1"], [0, 1]), (["a", "b"], ["a", "b"]), (["007", "12"], ["007", "12"]),
     (["a%20b", "c"], ["a b", "c"]), (["-1", "3"], [-1, 3]), (["1", "b"], ["1", "b"])],
)  # fmt: skip
def test_folders_named_like_partitions_are_columns(values, expected, ways, tmp_path):
    for number, value in enumerate(values):
        parquet(tmp_path / "d" / f"label={value}" / "p.parquet", x=[number, number + 10])
    by_value = dict(zip(values, expected, strict=True))
    found = [(x, label) for n, v in enumerate(values) for x, label in ((n, v), (n + 10, v))]
    rows = everywhere(ways, tmp_path / "d")
    assert sorted(zip(rows["x"], rows["label"], strict=True)) == sorted(
        (x, by_value[label]) for x, label in found
    )
    assert read_all(tmp_path / "d", ["label"])["label"] == rows["label"]


def test_partitions_are_part_of_the_datas_identity(tmp_path):
    from raytrain_plus.streams.opening import open_source

    for value in (0, 1):
        parquet(tmp_path / f"d{value}" / f"label={value}" / "p.parquet", x=[1])
    one, other = (open_source(tmp_path / f"d{value}") for value in (0, 1))
    assert one.identity != other.identity


def test_a_files_own_column_wins_over_its_folders(ways, tmp_path):
    parquet(tmp_path / "d" / "label=1" / "p.parquet", x=[1], label=[1.5])
    assert everywhere(ways, tmp_path / "d") == {"x": [1], "label": [1.5]}


def test_partitions_that_do_not_agree_are_refused(ways, tmp_path):
    parquet(tmp_path / "d" / "label=1" / "p.parquet", x=[1])
    parquet(tmp_path / "d" / "q.parquet", x=[1])
    refused(ways, tmp_path / "d", "in folders for the columns 'label'.* in folders for none")
    parquet(tmp_path / "n" / "label=__HIVE_DEFAULT_PARTITION__" / "p.parquet", x=[1])
    refused(ways, tmp_path / "n", "column 'label' is null")


def test_partitions_in_s3_are_columns_too(server, tmp_path):
    import s3fs

    bucket, options = server.fresh_bucket(), server.options()
    for value in (0, 1):
        parquet(tmp_path / "d" / f"label={value}" / "p.parquet", x=[value])
    s3fs.S3FileSystem(**options).put(str(tmp_path / "d"), f"{bucket}/d", recursive=True)
    place = f"s3://{bucket}/d"
    expected = {"x": [0, 1], "label": [0, 1]}
    cache = {"cache": tmp_path / "cache", "storage_options": options}
    assert read_all(Stream(place, **cache)) == expected
    assert read_all(Stream(f"{place}/label=1/*.parquet", **cache)) == {"x": [1]}
    batches = read_any(place, options).batches
    assert pa.concat_tables(batch.table for batch in batches).to_pydict() == expected


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("train.parquet", "validation.parquet"),
        ("train/a.parquet", "test/a.parquet"),
        ("train/a.parquet", "val/a.parquet"),
        ("en/train/a.parquet", "en/dev/a.parquet"),
        ("digits_train.parquet", "digits_eval.parquet"),
    ],
)
def test_train_and_test_are_never_read_as_one(train, test, ways, tmp_path):
    parquet(tmp_path / "d" / train, x=[1, 2])
    parquet(tmp_path / "d" / test, x=[9])
    refused(ways, tmp_path / "d", r"holds several splits: .*train \(1 files\).*pattern")
    name = train.split("/")
    pattern = "/".join([*name[:-1], "*train*"]) if len(name) == 1 else "/".join([*name[:-1], "*"])
    assert everywhere(ways, tmp_path / "d" / pattern) == {"x": [1, 2]}
    chosen = Stream(tmp_path / "d", split="train", cache=tmp_path / "c")
    assert read_all(chosen) == {"x": [1, 2]}
    everything = Stream(tmp_path / "d", split="all", cache=tmp_path / "c")
    assert sorted(read_all(everything)["x"]) == [1, 2, 9]
    with pytest.raises(DataError, match="no split 'nope'"):
        read_all(Stream(tmp_path / "d", split="nope", cache=tmp_path / "c"))


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.csv", "train"),
        ("a/Training/x.parquet", "train"),
        ("x-test.jsonl", "test"),
        ("dev-1.parquet", "validation"),
        ("latest.parquet", None),
        ("contest-1.parquet", None),
        ("my-test-bench.parquet", None),
        ("trains/a.parquet", None),
    ],
)
def test_the_split_of_a_name(path, split):
    assert split_of(path) == split


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.parquet", ["a.parquet"]),
        ("**/*.parquet", ["a.parquet", "b/c.parquet", "b/d/e.parquet"]),
        ("b", ["b/c.parquet", "b/d/e.parquet"]),
        ("b/?.parquet", ["b/c.parquet"]),
        ("[!b]*", ["a.parquet", "f.csv"]),
    ],
)
def test_patterns(pattern, found):
    paths = ["a.parquet", "b/c.parquet", "b/d/e.parquet", "f.csv"]
    assert matching(paths, pattern) == found


def test_links_are_followed_but_nothing_counts_twice(ways, tmp_path):
    blob = parquet(tmp_path / "blobs" / "1234", x=[1, 2])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.parquet").symlink_to(blob)
    assert everywhere(ways, tmp_path / "d") == {"x": [1, 2]}
    (tmp_path / "d" / "b.parquet").symlink_to("a.parquet")
    refused(ways, tmp_path / "d", "'b.parquet' in .* is a link to .* in the same folder")
    (tmp_path / "d" / "b.parquet").unlink()
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    refused(ways, tmp_path / "d", "'loop' in .* is a link to .* in the same folder")
    (tmp_path / "d" / "loop").rename(tmp_path / "d" / ".loop")
    assert everywhere(ways, tmp_path / "d") == {"x": [1, 2]}
    (tmp_path / "d" / "c.parquet").symlink_to("gone")
    refused(ways, tmp_path / "d", "a link to a file that is not there")


def test_files_of_a_killed_writer_are_not_data(ways, tmp_path):
    def killed():
        with StreamWriter(tmp_path / "d" / "s", file_size=100) as writer:
            writer.write([{"x": number} for number in range(100)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert list((tmp_path / "d" / "s").glob("*.arrow"))
    refused(ways, tmp_path / "d" / "s", "not a complete stream.*killed")
    refused(ways, tmp_path / "d", "not a complete stream.*killed")
    with StreamWriter(tmp_path / "d" / "s") as writer:
        writer.write({"x": 1})
    assert everywhere(ways, tmp_path / "d" / "s") == {"x": [1]}
    refused(ways, tmp_path / "d", "has 1 data sets in it: 's'")


def test_incomplete_parquet_is_not_data(ways, tmp_path):
    with StreamWriter(tmp_path / "s", file_size=500) as writer:
        writer.write([{"x": number} for number in range(1000)])

    def killed():
        for number, batch in enumerate(read_any(tmp_path / "s").batches):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        write_parquet(Data(killed()), str(tmp_path / "back"))
    assert len(list((tmp_path / "back").glob("*.parquet"))) == 2
    refused(ways, tmp_path / "back", "is incomplete.*killed")
    with pytest.raises(DataError, match="contains data already"):
        write_parquet(Data(iter(())), str(tmp_path / "back"))
    shutil.rmtree(tmp_path / "back")
    write_parquet(read_any(tmp_path / "s"), str(tmp_path / "back"))
    assert everywhere(ways, tmp_path / "back") == {"x": list(range(1000))}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["000000.tar"], "data write"),
        (["a.tfrecord"], "TFRecord files.*StreamWriter"),
        (["a.h5"], "an HDF5 file.*h5py"),
        (["x.npy", "y.npy"], "NumPy's arrays.*np.load"),
        (["a.pkl"], "a pickle, which may run any code"),
        (["a.pt"], "torch.save"),
        (["a.mds"], "MDS"),
        (["a.txt"], "plain text"),
        (["p.parquet", "_delta_log/00000000000000000000.json"], "Delta Lake.*deltalake"),
        (["data/p.parquet", "metadata/v1.metadata.json"], "Iceberg"),
        (["_versions/1.manifest", "data/a.lance"], "Lance"),
        ([".zgroup", "x/.zarray", "x/0.0"], "Zarr"),
        (["cats/1.png"], "data write"),
        (["a.csv"], "a.csv has no line with the names of its columns"),
        (["a.parquet", "b.csv"], "several forms"),
        ([], "no data file, and no file at all"),
        (["notes.docx"], "no data file, but only .docx"),
    ],
)
def test_other_formats_are_named_for_what_they_are(files, words, tmp_path):
    (tmp_path / "d").mkdir()
    for name in files:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"")
    for data in (str(tmp_path / "d"), Stream(tmp_path / "d", cache=tmp_path / "c")):
        with pytest.raises(DataError, match=f"(?s){words}"):
            read_all(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"version": 2, "shards": [{"format": "mds"}]}', "an MDS data set"),
        ('{"chunks": [{"filename": "c.bin"}], "config": {}}', "a LitData data set"),
        ('{"weight_map": {}}', "not a manifest"),
    ],
)
def test_an_unsupported_index_is_refused_with_the_name_of_its_library(text, words, ways, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "index.json").write_text(text)
    refused(ways, tmp_path / "d", words)


def test_a_folder_of_save_to_disk_is_read(ways, tmp_path):
    (tmp_path / "d").mkdir()
    for name, values in (("data-00000-of-00001", ["a", "b"]), ("cache-1234", ["z"])):
        write_ipc(pa.table({"t": values}), tmp_path / "d" / f"{name}.arrow", stream=True)
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / "d" / name).write_text("{}")
    assert everywhere(ways, tmp_path / "d") == {"t": ["a", "b"]}


@pytest.mark.parametrize("way", ["train", "data write"])
def test_the_names_of_columns_matter_and_their_order_does_not(way, ways, tmp_path):
    parquet(tmp_path / "d" / "a.parquet", x=[1], y=[2])
    parquet(tmp_path / "d" / "b.parquet", y=[4], x=[3])
    assert ways[way](tmp_path / "d") == {"x": [1, 3], "y": [2, 4]}
    parquet(tmp_path / "d" / "c.parquet", x=[5], y=[6], z=[7])
    with pytest.raises(
        DataError, match=r"a\.parquet and .*c\.parquet differ in their columns.*'z'"
    ):
        ways[way](tmp_path / "d")


def test_files_of_several_types_are_widened_or_refused_by_name(tmp_path):
    parquet(tmp_path / "d" / "a.parquet", x=[1, 2])
    parquet(tmp_path / "d" / "b.parquet", x=[0.5])
    assert written(tmp_path / "d", tmp_path / "s1") == {"x": [1, 2, 0.5]}
    parquet(tmp_path / "d" / "b.parquet", x=["text"])
    with pytest.raises(DataError, match=r"int64 in .*a\.parquet and string in .*b\.parquet"):
        written(tmp_path / "d", tmp_path / "s2")
    parquet(tmp_path / "d" / "a.parquet", x=[1, 2**53 + 1])
    parquet(tmp_path / "d" / "b.parquet", x=[0.5])
    with pytest.raises(DataError, match=r"row 2: column 'x'"):
        written(tmp_path / "d", tmp_path / "s3")


def test_select_is_by_name_at_any_depth():
    found = select(["b/1.parquet", "a.parquet", "b.parquet", "b/0.parquet"], "it")
    assert [each.path for each in found.files] == [
        "a.parquet", "b/0.parquet", "b/1.parquet", "b.parquet",
    ]  # fmt: skip


def test_an_existing_name_with_pattern_characters_is_not_a_pattern(tmp_path):
    parquet(tmp_path / "a[1].parquet", x=[1])
    assert read_all(str(tmp_path / "a[1].parquet")) == {"x": [1]}
    with pytest.raises(DataError, match="no file at all"):
        read_all(str(tmp_path / "nothing-*.parquet"))


# -- what pandas leaves in files


@pytest.mark.parametrize("at", ["a", "b", "c"])
@pytest.mark.parametrize("kind", ["null", "list of null", "another type", "no column"])
def test_a_file_without_rows_is_no_reason_to_refuse_the_others(ways, tmp_path, at, kind):
    nothing = {
        "null": {"x": pa.nulls(0), "t": pa.nulls(0)},
        "list of null": {"x": pa.array([], pa.list_(pa.null())), "t": pa.nulls(0)},
        "another type": {"x": pa.array([], pa.timestamp("s")), "t": pa.array([], pa.int8())},
        "no column": {},
    }
    parquet(tmp_path / "d" / f"{at}.parquet", **nothing[kind])
    for number, name in enumerate(sorted({"a", "b", "c"} - {at})):
        parquet(tmp_path / "d" / f"{name}.parquet", x=[[number, 1], [2]], t=["q", "r"])
    wanted = {"x": [[0, 1], [2], [1, 1], [2]], "t": ["q", "r", "q", "r"]}
    assert everywhere(ways, tmp_path / "d") == wanted
    source = open_source(str(tmp_path / "d"))
    assert source.count_items("x") == 6
    assert len(source.rows) == 3  # its place in the order of files is kept


def test_files_with_rows_are_compared_whatever_files_without_rows_say(ways, tmp_path):
    parquet(tmp_path / "d" / "a.parquet", x=pa.nulls(0))
    parquet(tmp_path / "d" / "b.parquet", x=[1])
    parquet(tmp_path / "d" / "c.parquet", x=["one"])
    refused(ways, tmp_path / "d", r"[bc]\.parquet.*[bc]\.parquet|no type holds both")
    shutil.rmtree(tmp_path / "d")
    parquet(tmp_path / "d" / "a.parquet", x=pa.nulls(0))
    for name in ("train", "Stream"):
        with pytest.raises(DataError, match="has no rows"):
            ways[name](tmp_path / "d")
    with pytest.raises(DataError, match="nothing was written"):
        ways["data write"](tmp_path / "d")


def test_the_unnamed_index_of_a_frame_is_no_column(ways, tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [4, 5, 6], "t": ["a", "b", "c"]})
    (tmp_path / "d").mkdir()
    frame.loc[[2, 0, 1]].to_parquet(tmp_path / "d" / "a.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "d" / "a.parquet").names  # the control
    for place in (tmp_path / "d", tmp_path / "d" / "a.parquet"):
        with pytest.warns(LeftOutWarning, match="'__index_level_0__' is left out.*pandas"):
            assert everywhere(ways, place) == {"x": [6, 4, 5], "t": ["c", "a", "b"]}
    wanted = ("__index_level_0__", "x")
    assert read_all(Stream(str(tmp_path / "d"), columns=wanted, cache=tmp_path / "cache")) == {
        "__index_level_0__": [2, 0, 1], "x": [6, 4, 5],
    }  # fmt: skip
    with pytest.warns(LeftOutWarning, match="__index_level_0__"):
        chosen = written(tmp_path / "d", tmp_path / "chosen", choice=Wanted(columns=wanted))
    assert chosen == {"x": [6, 4, 5]}  # a stream that has the column: training leaves it out
    frame.set_index("t").to_parquet(tmp_path / "d" / "a.parquet")
    assert everywhere(ways, tmp_path / "d") == {"x": [4, 5, 6], "t": ["a", "b", "c"]}


def test_frames_with_and_without_an_index_are_rows_of_one_stream(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [4, 5, 6]})
    with StreamWriter(tmp_path / "s") as writer:
        writer.write(frame)
        with pytest.warns(LeftOutWarning, match="__index_level_0__"):
            writer.write(frame.loc[[2, 0, 1]])
        with pytest.warns(LeftOutWarning, match="__index_level_0__"):
            writer.write(pa.Table.from_pandas(frame.loc[[1, 2, 0]]))
    assert read_all(tmp_path / "s") == {"x": [4, 5, 6, 6, 4, 5, 5, 6, 4]}
    with pytest.warns(LeftOutWarning, match="__index_level_0__"):
        assert read_all(pa.Table.from_pandas(frame.loc[[1, 2, 0]])) == {"x": [5, 6, 4]}


# -- what other tools leave in folders


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train.parquet", "testset.parquet"),
        ("digitsTrain.parquet", "digitsTest2.parquet"),
        ("digits_train_small.parquet", "digits_test_small.parquet"),
        ("train_data/a.parquet", "test_data/a.parquet"),
        ("my-training/a.parquet", "my-holdout/a.parquet"),
        ("train.parquet/part-0.parquet", "test.parquet/part-0.parquet"),
        ("split=train/a.parquet", "split=test/a.parquet"),
    ],
)
def test_splits_are_known_by_many_names(ways, tmp_path, one, other):
    parquet(tmp_path / "d" / one, x=[1])
    parquet(tmp_path / "d" / other, x=[2])
    refused(ways, tmp_path / "d", "holds several splits: test .* train ")
    chosen = read_all(Stream(str(tmp_path / "d"), split="train", cache=tmp_path / "cache"))
    assert chosen["x"] == [1]


@pytest.mark.parametrize("names", [("label=train", "label=test"), ("contest", "latest")])
def test_names_that_only_look_like_splits_are_none(ways, tmp_path, names):
    for number, name in enumerate(names):
        parquet(tmp_path / "d" / name / "a.parquet", x=[number])
    assert sorted(everywhere(ways, tmp_path / "d")["x"]) == [0, 1]


def test_labels_of_images_may_begin_like_splits_but_splits_are_no_labels(tmp_path):
    def image(path):
        path.parent.mkdir(parents=True)
        path.write_bytes(PNG)

    image(tmp_path / "a" / "test_tubes" / "1.png")
    image(tmp_path / "a" / "train_stations" / "1.png")
    assert read_any(tmp_path / "a").labels == {"label": ("test_tubes", "train_stations")}
    image(tmp_path / "b" / "test_images" / "cats" / "1.png")
    image(tmp_path / "b" / "train_images" / "cats" / "1.png")
    image(tmp_path / "b" / "train_images" / "dogs" / "1.png")
    with pytest.raises(DataError, match="holds several splits"):
        read_any(tmp_path / "b")
    assert read_any(tmp_path / "b", None, Wanted(split="test")).labels == {
        "label": ("cats", "dogs")
    }


@pytest.mark.parametrize("name", ["b.parquet.gz", "b.csv.lz4", "more/b.jsonl.ZIP"])
def test_files_that_are_packed_in_another_way_are_not_passed_over(ways, tmp_path, name):
    parquet(tmp_path / "d" / "a.parquet", x=[1])
    (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "d" / name).write_bytes(b"packed")
    refused(ways, tmp_path / "d", f"{name}' in .* is packed in a way that is not read")
    (tmp_path / "d" / name).rename(tmp_path / "d" / "notes.gz")
    assert everywhere(ways, tmp_path / "d") == {"x": [1]}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv", "a.jsonl", "cats/a.png"])
def test_a_pointer_of_git_lfs_is_not_read_as_data(tmp_path, name):
    path = tmp_path / "d" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n")
    with pytest.raises(DataError, match="is not the data, but a Git LFS pointer to it"):
        written(tmp_path / "d", tmp_path / "s")
    if name == "a.parquet":
        for place in (str(path), Stream(str(tmp_path / "d"), cache=tmp_path / "cache")):
            with pytest.raises(DataError, match="is not the data, but a Git LFS pointer"):
                read_all(place)


def test_an_image_without_bytes_is_refused(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png is empty \(0 bytes\)"):
        written(tmp_path, tmp_path / "s")


def test_a_name_that_is_not_utf8_is_refused_by_name(ways, tmp_path):
    path = parquet(tmp_path / "d" / "a.parquet", x=[1])
    path.rename(path.parent / os.fsdecode(b"a\xff.parquet"))
    refused(ways, tmp_path / "d", r"a\\udcff\.parquet' is a name that is not UTF-8")


@pytest.mark.parametrize("name", ["a.parq", "a.PQ", "a.parquet"])
def test_parquet_has_several_endings(ways, tmp_path, name):
    parquet(tmp_path / "d" / name, x=[1])
    assert everywhere(ways, tmp_path / "d") == {"x": [1]}

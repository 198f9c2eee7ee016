"""MDS, LitData and WebDataset, as the libraries themselves wrote them: see `shards/README.md`."""

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.convert import Wanted, read_any
from raytrain_plus.streams.png import png_of_raw
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.shards import make
from tests.streams.test_plain import read_all

HERE = Path(make.__file__).parent
SMALL = {"text": [f"ünï {n}" for n in range(60)], "int": [-n for n in range(60)]}


def rows_of(place, **choice):
    """Return the rows of a source, without a stream between."""
    batches = list(read_any(place, None, Wanted(**choice)).batches)
    tables = [batch.table for batch in batches]
    columns = tables[0].column_names
    return {name: [v for t in tables for v in t[name].to_pylist()] for name in columns}


def written(place, folder, **choice):
    data = read_any(place, None, Wanted(**choice))
    with StreamWriter(folder, warn=False) as writer:
        for batch in data.batches:
            writer.write(batch.table, batch.place)
    return read_all(folder)


def same_picture(content, mode, shade):
    return np.array_equal(
        np.asarray(Image.open(io.BytesIO(content))), np.asarray(make.picture(mode, shade))
    )


def test_every_encoding_of_mds(tmp_path):
    found = written(HERE / "mds", tmp_path / "s", types={"str_decimal": pa.string()})
    expected = [make.mds_row(number) for number in range(4)]
    for name in ("data", "text", "int", "uint8", "int32", "float16", "float64", "str_int",
                 "str_float"):  # fmt: skip
        assert found[name] == [row[name] for row in expected], name
    for name in ("any", "typed", "fixed"):
        assert found[name] == [row[name].tolist() for row in expected], name
    assert found["str_decimal"] == ["0.1000", "1.1000", "2.1000", "3.1000"]
    assert [json.loads(text) for text in found["json"]] == [row["json"] for row in expected]
    for number in range(4):
        assert same_picture(found["pil"][number], "RGB", number)
        assert same_picture(found["png"][number], "L", number)
        assert found["jpeg"][number].startswith(b"\xff\xd8")
        assert Image.open(io.BytesIO(found["jpeg"][number])).size == (3, 2)


@pytest.mark.parametrize("packing", ["zstd", "gz", "bz2", "br", "snappy"])
def test_packed_shards_of_mds(packing):
    assert rows_of(HERE / f"mds-{packing}", columns=["text", "int"]) == SMALL


def test_lists_of_pictures_are_kept():
    found = rows_of(HERE / "mds-odd", columns=["images", "pil", "array"])
    assert [len(found[name][0]) for name in ("images", "pil", "array")] == [2, 2, 1]
    assert same_picture(found["pil"][0][1], "RGB", 2)
    assert all(one.startswith(b"\xff\xd8") for one in (*found["images"][0], *found["array"][0]))


def test_every_serializer_of_litdata(tmp_path):
    found = written(HERE / "litdata", tmp_path / "s", types={"nested.a": pa.int16()})
    expected = [make.litdata_row(number) for number in range(5)]
    for name in ("text", "flag", "int", "float", "data"):
        assert found[name] == [row[name] for row in expected], name
    for name in ("array", "flat", "tensor"):
        assert found[name] == [row[name].tolist() for row in expected], name
    assert found["tokens"] == [list(range(number + 1)) for number in range(5)]
    assert found["nested.a"] == [0, 1, 2, 3, 4]
    assert [json.loads(text) for text in found["nested.b"]] == [[n, f"x{n}"] for n in range(5)]
    for number in range(5):
        assert same_picture(found["pil"][number], "RGB", number)


def test_lists_of_any_length_of_litdata():
    found = rows_of(HERE / "litdata-tokens")
    assert found == {"value": [[n, n + 1, n + 2] for n in range(0, 15, 3)]}


@pytest.mark.parametrize("level", ["chunk", "batch", "sample"])
def test_packed_chunks_of_litdata(level):
    found = rows_of(HERE / f"litdata-{level}")
    assert found["text"] == SMALL["text"]
    assert found["x"] == [[n, 1] for n in range(60)]


def test_chunks_of_litdata_that_hold_arrow():
    assert rows_of(HERE / "litdata-arrow") == SMALL
    assert rows_of(HERE / "litdata-arrow", columns=["int"]) == {"int": SMALL["int"]}


def test_tuples_of_litdata_get_numbers_as_names():
    assert rows_of(HERE / "litdata-tuple") == {"0": [0, 1, 2], "1": ["x0", "x1", "x2"]}
    names = {"0": "x", "1": "y"}
    assert rows_of(HERE / "litdata-tuple", names=names) == {"x": [0, 1, 2], "y": ["x0", "x1", "x2"]}


def test_samples_of_webdataset(tmp_path):
    found = written(HERE / "webdataset", tmp_path / "s", split="train")
    assert found["__key__"] == [f"a/{number:03d}" for number in range(5)]
    assert found["cls"] == [0, 1, 2, 3, 4]
    assert found["txt"] == [f"ünï {number}" for number in range(5)]
    assert found["npy"] == [[number, 0.5] for number in range(5)]
    assert [json.loads(text) for text in found["json"]] == [{"n": n, "é": [1]} for n in range(5)]
    for number in range(5):
        assert same_picture(found["seg.png"][number], "L", number)
        assert found["jpg"][number].startswith(b"\xff\xd8")
    assert rows_of(HERE / "webdataset" / "test-00.tar") == {
        "__key__": ["one"], "txt": ["x"], "cls": [1]
    }  # fmt: skip
    with pytest.raises(DataError, match=r"holds several splits: test .* train"):
        rows_of(HERE / "webdataset")
    texts = rows_of(f"{HERE}/webdataset/train*", columns=["cls"], types={"cls": pa.string()})
    assert texts == {"cls": ["0", "1", "2", "3", "4"]}


def test_arrays_of_free_length_are_lists_of_their_type(tmp_path):
    files = []
    for number, length in enumerate((2, 2, 3)):
        file = io.BytesIO()
        np.save(file, np.full(length, number, np.float16))
        files.append((f"{number}.npy", file.getvalue()))
    tar(tmp_path / "a.tar", files)
    column = next(read_any(tmp_path / "a.tar").batches).table["npy"]
    assert column.type == pa.list_(pa.float16())
    assert written(tmp_path / "a.tar", tmp_path / "s")["npy"] == [[0, 0], [1, 1], [2, 2, 2]]
    tar(tmp_path / "b.tar", files[:2])
    fixed = {"npy": pa.list_(pa.float32(), 2)}
    column = next(read_any(tmp_path / "b.tar", None, Wanted(types=fixed)).batches).table["npy"]
    assert column.type == fixed["npy"]
    with pytest.raises(DataError, match=r"sample '2': column 'npy' holds .* float32\[2\]"):
        rows_of(tmp_path / "a.tar", types=fixed)
    file = io.BytesIO()
    np.save(file, np.zeros(2, np.int8))
    tar(tmp_path / "c.tar", [*files, ("3.npy", file.getvalue())])
    with pytest.raises(DataError, match="sample '3': column 'npy' holds arrays of several types"):
        rows_of(tmp_path / "c.tar")


@pytest.mark.parametrize(
    ("name", "choice", "words"),
    [
        ("mds-odd", {}, r"column 'x' holds pickles.*--columns"),
        ("litdata-pickle", {}, r"column 'x' holds pickles.*--columns"),
        ("mds", {}, r"column 'str_decimal' holds decimals.*--type str_decimal=string"),
        ("mds", {"columns": ["other"]}, r"no column 'other'; it has 'any'"),
        ("litdata-tuple", {"columns": ["2"]}, r"no column '2'; it has '0', '1'"),
        ("mds", {"split": "train"}, r"has no splits"),
        ("mds", {"columns": ["text"], "types": {"text": pa.int8()}}, r"shard\.00000\.mds, row 1"),
    ],
)
def test_what_is_not_read_is_refused_by_name(name, choice, words):
    with pytest.raises(DataError, match=words):
        rows_of(HERE / name, **choice)


def test_the_folder_of_a_split(tmp_path):
    for name in ("train", "val"):
        shutil.copytree(HERE / "mds-gz", tmp_path / "d" / name)
    with pytest.raises(DataError, match=r"has 2 data sets in it: 'train', 'val'.*--split"):
        rows_of(tmp_path / "d")
    assert rows_of(tmp_path / "d", split="validation", columns=["int"]) == {"int": SMALL["int"]}
    with pytest.raises(DataError, match="2 data sets"):
        rows_of(tmp_path / "d", split="test")


@pytest.mark.parametrize("name", ["mds", "mds-zstd", "litdata", "litdata-chunk", "litdata-batch",
                                  "litdata-sample", "litdata-arrow"])  # fmt: skip
def test_every_damage_is_noticed_or_changes_no_length(name, tmp_path):
    shutil.copytree(HERE / name, tmp_path / "d")
    types = {"str_decimal": pa.string()} if name == "mds" else {}
    whole = rows_of(tmp_path / "d", types=types)
    file = min(path for path in (tmp_path / "d").iterdir() if path.name != "index.json")
    content = file.read_bytes()
    for cut in (0, 3, 11, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(DataError, match=file.name):
            rows_of(tmp_path / "d", types=types)
    for place in range(0, len(content), max(1, len(content) // 40)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = rows_of(tmp_path / "d", types=types)
        except DataError:
            continue
        assert not name.startswith("mds")  # its index has hashes
        assert {key: len(values) for key, values in found.items()} == {
            key: len(values) for key, values in whole.items()
        }
    file.unlink()
    with pytest.raises(DataError, match=f"{file.name} is missing"):
        rows_of(tmp_path / "d", types=types)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 3}, "version 3"),
        ({"format": "json"}, "of the format 'json'"),
        ({"raw_data": {"basename": "../../etc/passwd", "bytes": 1}}, "not in its folder"),
        ({"column_encodings": ["lines", "int"]}, "the encoding 'lines'"),
        ({"samples": 3}, r"do not fit to the 3 rows"),
        ({"column_names": None}, r"of an MDS data set .* is damaged or of a version"),
    ],
)
def test_an_index_that_is_not_as_it_should_be_is_refused(change, words, tmp_path):
    shutil.copytree(HERE / "mds-gz", tmp_path / "d")
    for path in (tmp_path / "d").glob("*.gz"):
        (tmp_path / "d" / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    index = json.loads((tmp_path / "d" / "index.json").read_text())
    index["shards"][0].update({"zip_data": None} | change)
    (tmp_path / "d" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=words):
        rows_of(tmp_path / "d")


def tar(path, files, form="w"):
    with tarfile.open(path, form) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PAIR = [("1.txt", b"a"), ("1.cls", b"1")]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([*PAIR, ("2.txt", b"b")], r"sample '2': its columns differ.*lacks 'cls'"),
        ([*PAIR, ("1.CLS", b"2")], r"'1\.CLS' stands twice"),
        ([*PAIR, ("README", b"")], r"'README', which has no name or no extension"),
        ([("1.cls", b"one")], r"sample '1': column 'cls' holds b'one'"),
        ([("1.json", b"{")], r"column 'json' holds"),
        ([("1.txt", b"\xff")], r"column 'txt' holds"),
        ([("1.pth", b"x")], r"'pth' is a pickle"),
        ([("1.npy", b"x")], r"column 'npy' holds"),
    ],
)
def test_tar_files_that_are_no_samples_are_refused(files, words, tmp_path):
    with pytest.raises(DataError, match=words):
        rows_of(tar(tmp_path / "a.tar", files))


def test_tar_files_that_are_cut_short_or_joined_are_refused(tmp_path):
    files = [(f"{n}.txt", b"%d" % n) for n in range(5)]
    content = tar(tmp_path / "a.tar", files).read_bytes()
    whole = rows_of(tmp_path / "a.tar")
    assert whole["txt"] == ["0", "1", "2", "3", "4"]
    for cut in (1024, 1024 * 5, 700, 1):  # at the end of a member, of all, and inside of one
        (tmp_path / "a.tar").write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"a\.tar is no tar file, is damaged or cut short"):
            rows_of(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(content * 2)
    with pytest.raises(DataError, match="more after its end"):
        rows_of(tmp_path / "a.tar")
    packed = gzip.compress(content)
    for cut in (len(packed), len(packed) - 9):
        (tmp_path / "b.tgz").write_bytes(packed[:cut])
        if cut == len(packed):
            assert rows_of(tmp_path / "b.tgz") == whole
            continue
        with pytest.raises(DataError, match=r"b\.tgz"):
            rows_of(tmp_path / "b.tgz")


def test_links_and_notes_in_tar_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/._1.txt", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
        member = tarfile.TarInfo("d/" + "é" * 150 + ".txt")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    assert rows_of(tmp_path / "a.tar") == {"__key__": ["d/" + "é" * 150], "txt": ["x"]}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("1.txt")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match="is a link or a special file"):
        rows_of(tmp_path / "a.tar")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_raw_pictures_become_png_without_loss(mode):
    picture = make.picture(mode, 7)
    raw = np.array([3, 2, len(mode)], np.uint32).tobytes() + mode.encode() + picture.tobytes()
    again = Image.open(io.BytesIO(png_of_raw(raw)))
    assert again.mode == mode
    assert np.array_equal(np.asarray(again), np.asarray(picture))
    with pytest.raises(ValueError, match=r"bytes for a picture of 3 x 2"):
        png_of_raw(raw[:-1])
    with pytest.raises(ValueError, match="mode 'F'"):
        png_of_raw(np.array([3, 2, 1], np.uint32).tobytes() + b"F" + bytes(24))

"""Damaged or hostile data is an error that names it: no crash, no flood of memory, no wrong rows.

Each damage comes from a fixed sequence, so that a failure can be reproduced.
"""

import io
import json
import os
import struct
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain_plus.storage.errors import StorageError
from raytrain_plus.streams import decoding
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.parquet_footer import read_footer
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.reading_damage import MEMORY, SECONDS, all_rows, answers, damaged

ROWS = 60


def every_form():
    """Return a table with each form of column that is read."""
    numbers = np.arange(ROWS)
    flat = np.arange(ROWS * 4, dtype=np.float64)
    return pa.table(
        {
            "whole": numbers,
            "text": [f"word {k} ä" for k in numbers],
            "large text": pa.array([f"x{k}" for k in numbers], pa.large_string()),
            "bytes": [bytes([k]) * k for k in numbers],
            "list": [list(range(k % 5)) for k in numbers],
            "fixed": pa.FixedSizeListArray.from_arrays(flat, 4),
            "flag": [bool(k % 2) for k in numbers],
            "category": pa.array([f"c{k % 3}" for k in numbers]).dictionary_encode(),
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(flat.reshape(ROWS, 2, 2)),
            "view": pa.array([f"longer than twelve bytes {k}" for k in numbers], pa.string_view()),
        }
    )


def ipc(compression=None, new=pa.ipc.new_file):
    sink = pa.BufferOutputStream()
    table = every_form()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=25)
    return sink.getvalue().to_pybytes()


def parquet(**settings):
    sink = io.BytesIO()
    pq.write_table(every_form(), sink, **settings)
    return sink.getvalue()


FORMS = {
    "raw.arrow": ipc,
    "zstd.arrow": lambda: ipc("zstd"),
    "lz4.arrow": lambda: ipc("lz4"),
    "stream.arrow": lambda: ipc(new=pa.ipc.new_stream),
    "coded.parquet": parquet,
    "plain.parquet": lambda: parquet(use_dictionary=False, compression="none", row_group_size=25),
}


def check(found, undamaged):
    """Check the results of damaged files; returns how many were refused."""
    for path, answer in found.items():
        assert answer["outcome"] in ("rows", "refused"), (path, answer)
        assert answer["seconds"] < SECONDS, (path, answer)
        assert answer["peak"] * 1024 < MEMORY, (path, answer)
        if answer["outcome"] == "refused":
            assert len(answer["error"]) > 20
    refused = sum(answer["outcome"] == "refused" for answer in found.values())
    assert refused > len(found) / 10  # the damage has an effect
    assert undamaged["outcome"] == "rows"  # the control
    return refused


def test_a_damaged_file_is_refused_or_read_and_never_ends_the_process(tmp_path):
    paths = {}
    for name, form in FORMS.items():
        content = form()
        paths[name] = [tmp_path / name, *(tmp_path / f"{seed}-{name}" for seed in range(60))]
        paths[name][0].write_bytes(content)
        for seed, path in enumerate(paths[name][1:]):
            path.write_bytes(damaged(content, seed))
    found = answers([path for of_form in paths.values() for path in of_form])
    for whole, *others in paths.values():
        check({path: found[path] for path in others}, found[whole])


def write_stream(folder):
    with StreamWriter(folder, file_size="2KB") as writer:
        writer.write(every_form())
    return folder


def test_a_damaged_stream_is_refused_or_gives_the_right_rows(tmp_path):
    """Manifests, files and the node's cached copies: data with a hash is never read wrong."""
    whole = write_stream(tmp_path / "whole")
    names = sorted(path.name for path in whole.iterdir())
    paths = []
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        victim = names[seed % len(names)] if seed % 2 else "index.json"
        for name in names:
            content = (whole / name).read_bytes()
            if name == victim:
                content = damaged(content, seed)
            (folder / name).write_bytes(content)
        paths.append(folder)
    found = answers([*paths, whole], "stream")
    undamaged = found.pop(whole)
    check(found, undamaged)
    right = undamaged["digest"]
    for seed, path in enumerate(paths):
        if seed % 2 and found[path]["outcome"] == "rows":
            assert found[path]["digest"] == right, path


HOSTILE = {
    "a billion rows": lambda m: {**m, "rows": 10**9, "files": [{**m["files"][0], "rows": 10**9}]},
    "rows beyond counting": lambda m: {**m, "rows": 10**30},
    "a huge file": lambda m: {**m, "files": [{**m["files"][0], "raw_bytes": 10**15}]},
    "no schema": lambda m: {**m, "arrow_schema": "AAAA"},
    "not base64": lambda m: {**m, "arrow_schema": "ä"},
    "a path": lambda m: {**m, "files": [{**m["files"][0], "name": "../x"}]},
    "other columns": lambda m: {**m, "columns": {"other": "int64"}},
    "rows below zero": lambda m: {**m, "rows": -1},
    "a list": lambda m: [m],
    "deep": lambda m: {**m, "columns": json.loads("[" * 500 + "]" * 500)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused_at_once(name, tmp_path):
    folder = write_stream(tmp_path / "s")
    manifest = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(HOSTILE[name](manifest)))
    began = time.monotonic()
    with pytest.raises(DataError):
        open_source(folder)
    assert time.monotonic() - began < SECONDS


def test_a_small_file_that_declares_much_data_is_refused_before_memory_is_allocated():
    bomb = pa.table({"x": np.zeros(60_000_000 // 8, np.int64)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(
        sink, bomb.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_table(bomb)
    content = sink.getvalue().to_pybytes()
    assert len(content) < 20_000
    with pytest.raises(DataError, match="takes more than 1,000,000 bytes"):
        decoding.decode(content, "it", is_parquet=False, most=1_000_000)
    sink = io.BytesIO()
    pq.write_table(pa.table({"t": ["long " * 1000] * 20_000}), sink)
    assert len(sink.getvalue()) < 20_000
    with pytest.raises(DataError, match="takes more than 1,000,000 bytes"):
        decoding.decode(sink.getvalue(), "it", is_parquet=True, most=1_000_000)
    assert decoding.decode(sink.getvalue(), "it", is_parquet=True).num_rows == 20_000  # the control


def test_data_that_decodes_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    values = pa.array(["x" * 10_000])
    table = pa.table({"t": pa.DictionaryArray.from_arrays(np.zeros(1000, np.int8), values)})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert len(all_rows(tmp_path / "a.arrow")) == 64  # the control
    monkeypatch.setattr(decoding, "memory_left", lambda: 5_000_000)
    with pytest.raises(DataError, match="takes 10,000,000 bytes of memory"):
        all_rows(tmp_path / "a.arrow")


def test_one_flipped_bit_in_an_offset_names_the_file(tmp_path):
    table = pa.table({"text": [f"s{i}" for i in range(100)]})
    path = tmp_path / "d.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    content = bytearray(path.read_bytes())
    at = content.find(struct.pack("<5i", 0, 2, 4, 6, 8))
    content[at + 4 * 5 + 3] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.arrow cannot be read.*offset"):
        all_rows(path)


def test_text_that_is_not_utf_8_names_the_file(tmp_path):
    raw = pa.array([b"fine", b"\xff\xfe"])
    table = pa.table({"text": raw.view(pa.string())})
    path = tmp_path / "d.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    source = open_source(path)
    order = source.plain_order(1)
    assert load_part(source, order, 0, 0, 0, 1)["text"] == ["fine"]
    with pytest.raises(DataError, match=r"d\.arrow cannot be read.*utf-8"):
        load_part(source, order, 0, 0, 1, 2)


# -- Parquet footers


def with_number(content, before, after):
    """Return Parquet whose footer has another number of rows in one place, of equal length."""
    zigzag = [bytes([n << 1 & 0x7F | 0x80, n >> 6]) for n in (before, after)]
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:]
    places = [i for i in range(len(footer)) if footer.startswith(zigzag[0], i)]
    for at in places:
        yield content[:start] + footer[:at] + zigzag[1] + footer[at + 2 :]


def test_a_footer_with_a_wrong_number_of_rows_is_refused(tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": np.arange(1000)}), sink, write_statistics=False)
    content = sink.getvalue()
    assert read_footer(content, "it").rows == 1000
    refused = 0
    for number, lie in enumerate(with_number(content, 1000, 500)):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(lie)
        try:
            source = open_source(path)
        except (DataError, StorageError) as error:
            refused += path.name in str(error)
        else:  # a number that is not a number of rows
            rows = load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)
            assert rows["x"].tolist() == list(range(1000))
    assert refused >= 3  # of the file, the row group and the column


@pytest.mark.parametrize("options", [{}, {"row_group_size": 7}, {"use_dictionary": False}])
def test_our_footer_reader_agrees_with_pyarrow(options):
    table = every_form()
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    footer, metadata = read_footer(sink.getvalue(), "it"), pq.read_metadata(sink)
    assert footer.rows == metadata.num_rows == ROWS
    assert footer.is_exact
    described = [
        metadata.row_group(g).column(c)
        for g in range(metadata.num_row_groups)
        for c in range(metadata.num_columns)
    ]
    for chunk, column in zip(footer.chunks, described, strict=True):
        assert ".".join(chunk.leaf.path) == column.path_in_schema
        assert chunk.values == column.num_values
        assert chunk.nulls == column.statistics.null_count
    if len(footer.chunks) == len(table.schema):  # otherwise dictionaries count once for each group
        decoded = decoding.decode(sink.getvalue(), "it", is_parquet=True)
        assert 0.7 < footer.decoded / decoded.nbytes < 1.4


def test_footers_that_are_damaged_in_the_cache_are_read_again(tmp_path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    for number in range(2):
        pq.write_table(pa.table({"x": np.arange(100)}), data / f"{number}.parquet")
    assert open_source(Stream(data, cache=cache)).total_rows == 200
    (kept,) = cache.glob("footers-*.json")
    content = kept.read_bytes()
    assert content.count(b'"rows": 100') == 2
    kept.write_bytes(content.replace(b'"rows": 100', b'"rows": 101'))
    assert open_source(Stream(data, cache=cache)).total_rows == 200
    assert kept.read_bytes() == content
    kept.write_bytes(b"")
    assert open_source(Stream(data, cache=cache)).total_rows == 200
    time_before = kept.stat().st_mtime_ns
    os.utime(kept, ns=(1, 1))
    open_source(Stream(data, cache=cache))
    assert kept.stat().st_mtime_ns == 1 != time_before  # the control: an undamaged footer is used

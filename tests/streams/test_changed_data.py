"""Data whose content has changed is never read as the old data."""

import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter

HALF = 50


def write(folder, first=0, form="parquet"):
    """Write two files whose sizes do not depend on their values."""
    folder.mkdir(exist_ok=True)
    for number in range(2):
        table = pa.table({"y": np.arange(HALF) + first + number * HALF})
        path = folder / f"{number}.{form}"
        if form == "parquet":
            pq.write_table(table, path, compression="none", use_dictionary=False)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    return folder


def rows(source):
    return load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)["y"].tolist()


def opened(folder, kind, **settings):
    data = folder if kind == "path" else Stream(folder, cache=folder.parent / "cache")
    return open_source(data, **settings)


def as_old(folder):
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))


KINDS = [("path", "parquet"), ("path", "arrow"), ("stream", "parquet")]


@pytest.mark.parametrize(("kind", "form"), KINDS)
def test_other_values_of_the_same_size_count_as_other_data(kind, form, tmp_path):
    folder = write(tmp_path / "data", form=form)
    as_old(folder)
    before, sizes = opened(folder, kind).identity, [p.stat().st_size for p in folder.iterdir()]
    assert opened(folder, kind).identity == before  # the control
    hashed = opened(folder, kind, hash_data=True).identity
    write(folder, first=1000, form=form)
    assert [p.stat().st_size for p in folder.iterdir()] == sizes
    source = opened(folder, kind)
    assert source.identity != before
    assert rows(source) == list(range(1000, 1000 + 2 * HALF))  # not the cached copy
    assert opened(folder, kind, hash_data=True).identity != hashed
    # A hash also notices what no time shows, and only changes of content.
    as_old(folder)
    assert opened(folder, kind, hash_data=True).identity != hashed
    write(folder, form=form)
    assert opened(folder, kind, hash_data=True).identity == hashed


@pytest.mark.parametrize(("kind", "form"), KINDS)
def test_a_file_replaced_during_a_run_is_noticed(kind, form, tmp_path):
    folder = write(tmp_path / "data", form=form)
    source = opened(folder, kind)
    order = source.plain_order(1)
    assert load_part(source, order, 0, 0, 0, 10)["y"].tolist() == list(range(10))
    write(tmp_path / "other", first=1000, form=form)
    for name in (f"0.{form}", f"1.{form}"):
        (tmp_path / "other" / name).replace(folder / name)
    with pytest.raises(DataError, match=rf"1\.{form} was replaced or overwritten"):
        load_part(source, order, 0, 0, HALF, HALF + 10)


def test_a_mapped_file_overwritten_in_place_is_noticed(tmp_path):
    folder = write(tmp_path / "data", form="arrow")
    source = opened(folder, "path")
    order = source.plain_order(1)
    load_part(source, order, 0, 0, 0, 10)
    other = (write(tmp_path / "other", first=1000, form="arrow") / "0.arrow").read_bytes()
    with (folder / "0.arrow").open("r+b") as file:
        file.write(other)
    with pytest.raises(DataError, match=r"0\.arrow was replaced or overwritten"):
        load_part(source, order, 0, 0, 10, 20)
    (folder / "0.arrow").write_bytes(b"")  # reading the mapping now would end the process
    with pytest.raises(DataError, match="replaced or overwritten"):
        load_part(source, order, 0, 0, 10, 20)


def test_a_local_stream_overwritten_in_place_is_noticed(tmp_path):
    with StreamWriter(tmp_path / "s", compression="none", file_size="1KB") as writer:
        writer.write({"y": i} for i in range(500))
    source = open_source(tmp_path / "s")
    order = source.plain_order(1)
    load_part(source, order, 0, 0, 0, 10)
    path = min((tmp_path / "s").glob("*.arrow"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(DataError, match=path.name):
        load_part(source, order, 0, 0, 10, 20)


def test_data_in_a_store_that_changes_is_noticed(server, tmp_path):
    bucket, files = server.fresh_bucket(), server.files()
    contents = [
        [path.read_bytes() for path in sorted(write(tmp_path / str(first), first).iterdir())]
        for first in (0, 1000)
    ]

    def put(version):
        for number, content in enumerate(contents[version]):
            files.pipe_file(f"{bucket}/d/{number}.parquet", content)

    def stream(cache):
        options = server.options()
        return Stream(f"s3://{bucket}/d", storage_options=options, cache=tmp_path / cache)

    put(0)
    source = open_source(stream("a"))
    assert load_part(source, source.plain_order(1), 0, 0, 0, 10)["y"].tolist() == list(range(10))
    put(0)
    assert open_source(stream("a")).identity == source.identity  # the same content again
    put(1)
    again = open_source(stream("a"))
    assert again.identity != source.identity
    assert rows(again)[0] == 1000
    with pytest.raises(DataError, match=r"1\.parquet was replaced or overwritten"):
        load_part(source, source.plain_order(1), 0, 0, HALF, HALF + 10)


@pytest.mark.parametrize(
    ("info", "changed"),
    [
        ({"ETag": "a", "LastModified": 1}, {"ETag": "b", "LastModified": 1}),
        ({"etag": "a", "md5Hash": "x"}, {"etag": "a", "md5Hash": "y"}),
        ({"generation": 1}, {"generation": 2}),
        ({"version_id": "1"}, {"version_id": "2"}),
        ({"mtime": 1.5}, {"mtime": 2.5}),
        ({"Last-Modified": "Mon"}, {"Last-Modified": "Tue"}),
        ({"modificationTime": 1}, {"modificationTime": 2}),
        ({"created": 1}, {"created": 2}),
        ({"content_hash": "1"}, {"content_hash": "2"}),
    ],
)
def test_every_property_that_a_file_system_offers_shows_a_change(info, changed, monkeypatch):
    store = Store("memory://validators")
    told = {}
    monkeypatch.setattr(store._fs, "info", lambda _: {"size": 1, "name": "x", **told})
    told |= info
    before = store.stat("x")
    assert store.stat("x") == before
    assert before.validator
    told |= changed
    assert store.stat("x") != before


def test_hashes_show_changes_in_a_store_that_knows_only_sizes(monkeypatch, tmp_path):
    store = Store("memory://sizes")
    folder = write(tmp_path / "data")
    for path in folder.iterdir():
        store.write(path.name, path.read_bytes())
    kind = type(store._fs)
    info = kind.info

    def bare(self, path, **options):
        return {k: v for k, v in info(self, path, **options).items() if k != "created"}

    monkeypatch.setattr(kind, "info", bare)

    def identities():
        stream = Stream("memory://sizes", cache=tmp_path / "c")
        return [open_source(stream, hash_data=h).identity for h in (False, True)]

    before = identities()
    for path in write(folder, first=1000).iterdir():
        store.write(path.name, path.read_bytes())
    after = identities()
    assert after[0] == before[0]  # as the docs say
    assert after[1] != before[1]


def test_the_identity_of_lists_and_texts_in_memory_depends_on_their_values():
    table = pa.table({"t": ["ab", "", "ä"], "l": [[1, 2], [], [3]], "b": [b"1", b"23", b""]})
    identity = open_source(table).identity
    chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert open_source(chunks).identity == identity
    large = table.set_column(0, "t", table["t"].cast(pa.large_string()))
    assert open_source(large).identity == identity
    padded = pa.concat_tables([table, table]).combine_chunks().slice(3)
    assert open_source(padded).identity == identity
    for name, values in (
        ("t", ["a", "b", "ä"]),
        ("l", [[1], [2], [3]]),
        ("b", [b"12", b"3", b""]),
    ):
        other = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        assert open_source(other).identity != identity


def test_a_replaced_file_is_not_waited_for(tmp_path):
    """Otherwise a shorter file would be requested until the deadline."""
    folder = write(tmp_path / "data")
    source = open_source(Stream(folder, cache=tmp_path / "cache", deadline=600.0))
    (folder / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="replaced or overwritten"):
        source.shards[0].open(threading.Event())

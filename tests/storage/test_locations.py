"""One rule for locations: all commands read the same folder for the same text."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.locations import file_system, local_path, parse_options
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.check import inspect_stream, verify_stream
from raytrain_plus.streams.convert import read_any
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter

NAMES = ["my data", "100%", "a%20b", "a#b", "a?b=c", "größe", "a::b", "[1]*", "~x", "a+b&c", "日本"]


def rows(data):
    source = open_source(data)
    return load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)["x"].tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["path", "text", "uri"])
def test_all_readers_and_writers_use_the_same_folder(form, name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    pq.write_table(pa.table({"x": [1, 2, 3]}), folder / "0.parquet")
    place = {"path": Path, "text": str, "uri": Path.as_uri}[form]
    cache = tmp_path / "cache"
    assert rows(place(folder)) == [1, 2, 3]
    assert rows(Stream(place(folder), cache=cache)) == [1, 2, 3]
    batches = read_any(place(folder)).batches
    written = tmp_path / "out" / name
    with StreamWriter(place(written)) as writer:
        for batch in batches:
            writer.write(batch.table)
    assert (written / "index.json").exists()
    assert rows(place(written)) == rows(Stream(place(written), cache=cache)) == [1, 2, 3]
    assert inspect_stream(place(written))["rows"] == 3
    assert verify_stream(place(written))["problems"] == []
    store = Store(place(written)).inside(name)  # as checkpoints are kept
    store.write("x", b"1")
    assert (written / name / "x").read_bytes() == b"1"
    assert Store(store.url).read("x") == b"1"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_a_path_survives_the_conversion_to_a_url(name):
    path = Path("/") / "folder" / name
    assert local_path(path.as_uri()) == path.absolute()
    assert local_path(Store(path).url) == path.absolute()


def test_other_places_are_not_local():
    for url in ("s3://b/x", "memory://x", "simplecache::s3://b/x", "https://h/x?y=/a"):
        assert local_path(url) is None
    assert local_path("file://localhost/a%20b") == local_path("file:/a b") == Path("/a b")
    for url in ("file://elsewhere/train", "file://relative"):
        with pytest.raises(StorageError, match="not on this machine"):
            local_path(url)
    with pytest.raises(StorageError, match=r"nothing://x cannot be read"):
        file_system("nothing://x", {})


def test_options_are_parsed_by_type():
    given = [
        "anon=false",
        "ssl=True",
        "n=4",
        "f=0.5",
        "none=null",
        "profile=dev",
        'client_kwargs={"region_name": "eu", "deep": {"x": [1, true]}}',
        "key=0123",
        "secret=1e5",
        "aws_access_key_id=42",
        "url=http://host/?a=b",
        'quoted="4"',
        "empty=",
    ]
    assert parse_options(given) == {
        "anon": False,
        "ssl": True,
        "n": 4,
        "f": 0.5,
        "none": None,
        "profile": "dev",
        "client_kwargs": {"region_name": "eu", "deep": {"x": [1, True]}},
        "key": "0123",
        "secret": "1e5",
        "aws_access_key_id": "42",
        "url": "http://host/?a=b",
        "quoted": "4",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["x"], "'x' is not of the form KEY=VALUE"),
        (["=x"], "KEY=VALUE"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["client_kwargs={region: eu}"], "'client_kwargs' begins like JSON"),
    ],
)
def test_empty_options_are_refused(given, words):
    with pytest.raises(StorageError, match=words):
        parse_options(given)


def test_an_option_of_the_wrong_type_ends_at_once_and_is_named(server, proxy):
    bucket = server.fresh_bucket()
    server.files().pipe_file(f"{bucket}/x", b"1")
    options = server.options(proxy.url) | {"max_concurrency": 4, "default_block_size": 5_000_000}
    assert Store(f"s3://{bucket}", options).read("x") == b"1"
    with pytest.raises(StorageError, match="client_kwargs"):
        Store(f"s3://{bucket}", options | {"client_kwargs": "text"}, deadline=30.0).read("x")

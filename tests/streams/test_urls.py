"""Data at https:// and hf:// URLs, from a server on this machine."""

import ssl

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain_plus.storage import locations
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.hub_server import hub_server, write_certificate
from tests.streams.side import FOLDERS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "served" / "data").mkdir(parents=True)
    for name, values in (("train-00000-of-00002", [1, 2]), ("train-00001-of-00002", [3])):
        pq.write_table(pa.table({"x": values}), tmp_path / "served" / "data" / f"{name}.parquet")
    pq.write_table(pa.table({"x": [9]}), tmp_path / "served/data/test-00000-of-00001.parquet")
    (tmp_path / "served" / "data" / "a.csv").write_text("x\n5\n6\n")
    with StreamWriter(tmp_path / "served" / "stream") as writer:
        writer.write({"x": 7})
    return tmp_path / "served"


def rows(data):
    source = open_source(data)
    batch = load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)
    source.close()
    return batch["x"].tolist()


def test_files_of_a_web_server_are_read_by_name(folder):
    with hub_server(folder) as url:
        one, other = (f"{url}/data/train-0000{n}-of-00002.parquet" for n in (0, 1))
        assert rows(one) == [1, 2]
        assert rows([one, other]) == [1, 2, 3]
        assert rows([other, one]) == [3, 1, 2]
        assert rows([one]) == [1, 2]
        assert rows(f"{url}/data/a.csv") == [5, 6]
        for name in ("nowhere.parquet", "nowhere.csv"):
            with pytest.raises(DataError, match=rf"{name} .* no such file"):
                open_source(f"{url}/{name}")
        assert rows(f"{url}/stream") == [7]  # its manifest names the files
        for wrong, words in (
            (f"{url}/data", "web server does not list .*name each file"),
            (f"{url}/data/*.parquet", r"\*.parquet is a pattern, and a web server"),
            ([one, one], "a file twice"),
            ([one, f"{url}/data/a.csv"], "several forms"),
            ([one, "https://elsewhere/b.parquet"], "in several stores"),
        ):
            with pytest.raises(DataError, match=words):
                open_source(wrong)


def test_a_web_server_with_tls_is_read(folder, tmp_path):
    certificate = write_certificate(tmp_path / "both.pem")
    trusted = {"ssl": ssl.create_default_context(cafile=certificate)}
    with hub_server(folder, certificate) as url:
        place = f"{url}/data/train-00000-of-00002.parquet"
        assert rows(Stream(place, storage_options=trusted)) == [1, 2]
        with pytest.raises(DataError, match="not there or not trusted"):  # negative control
            open_source(place)


def test_a_repository_of_the_hub_is_read_by_split(folder, monkeypatch):
    for one in FOLDERS:  # its library imports others at its first request
        monkeypatch.syspath_prepend(one)
    pytest.importorskip("huggingface_hub")
    with hub_server(folder) as url:
        options = {"storage_options": {"endpoint": url}}
        for split, expected in (("train", [1, 2, 3]), ("test", [9])):
            (folder / "data" / "a.csv").unlink(missing_ok=True)
            stream = Stream("hf://datasets/me/it/data", split=split, **options)
            assert rows(stream) == expected
        assert "blobid" in open_source(stream).shards[0].identify()[2]
        with pytest.raises(DataError, match="holds several splits"):
            open_source(Stream("hf://datasets/me/it/data", **options))


def test_a_missing_library_of_the_hub_is_named(monkeypatch):
    def missing(*_, **__):
        raise ImportError("no huggingface_hub")

    monkeypatch.setattr(locations.fsspec.core, "url_to_fs", missing)
    with pytest.raises(StorageError, match=r"pip install 'raytrain-plus\[datasets\]'"):
        open_source("hf://datasets/me/it")

"""The command `data` as a user runs it: data is written, checked and converted."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.streams.convert import read_any
from tests.algorithms.side import FOLDER

TABLE = pa.table({"x": np.arange(300), "name": [f"row {i}" for i in range(300)]})
PNG = b"\x89PNG\r\n\x1a\n"


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == code, result.stderr
    return result


def answered(*arguments, code=0):
    lines = run(*arguments, "--json", code=code).stdout.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def as_parquet(folder):
    pq.write_table(TABLE.slice(0, 200), folder / "a.parquet")
    pq.write_table(TABLE.slice(200), folder / "b.parquet")
    return folder


def as_arrow(folder):
    with pa.ipc.new_file(folder / "a.arrow", TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=70)
    return folder / "a.arrow"


def as_csv(folder):
    rows = TABLE.to_pylist()
    (folder / "a.csv").write_text("\n".join(["x,name", *(f"{r['x']},{r['name']}" for r in rows)]))
    return folder / "a.csv"


def as_json_lines(folder):
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, TABLE.to_pylist())))
    return folder


@pytest.mark.parametrize("form", [as_parquet, as_arrow, as_csv, as_json_lines])
def test_written_data_can_be_converted_back(form, tmp_path):
    (tmp_path / "source").mkdir()
    source, stream, back = form(tmp_path / "source"), tmp_path / "s", tmp_path / "back"
    written = answered("write", source, stream, "--file-size", "2KB")
    assert written["rows"] == 300
    assert written["files"] > 2
    assert set(written["columns"]) == {"x", "name"}
    assert answered("inspect", stream) == written
    checked = answered("verify", stream)
    assert (checked["problems"], checked["extra"]) == ([], [])
    assert answered("convert", stream, back)["rows"] == 300
    assert pq.read_table(back).to_pylist() == TABLE.to_pylist()
    other = answered("convert", stream, tmp_path / "t", "--to", "stream", "--compression", "none")
    assert (other["rows"], other["files"], other["compression"]) == (300, 1, "none")


def test_a_folder_of_images_per_label(tmp_path):
    for label, count in (("cat", 3), ("dog", 2)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "images" / label / f"{number}.png").write_bytes(PNG + bytes([number]))
    assert answered("write", tmp_path / "images", tmp_path / "s", "--order", "kept")["rows"] == 5
    run("convert", tmp_path / "s", tmp_path / "back")
    rows = pq.read_table(tmp_path / "back").to_pylist()
    assert [(row["name"], row["label"]) for row in rows] == [
        ("cat/0.png", 0), ("cat/1.png", 0), ("cat/2.png", 0), ("dog/0.png", 1), ("dog/1.png", 1)
    ]  # fmt: skip
    assert rows[4]["image"] == PNG + b"\x01"
    (tmp_path / "images" / "stray.png").write_bytes(PNG)
    assert "has no label" in run("write", tmp_path / "images", tmp_path / "t", code=2).stderr


def test_to_and_from_s3(server, tmp_path):
    bucket = server.fresh_bucket()
    options = server.options()
    given = []
    for key in ("key", "secret"):
        given += ["--storage-option", f"{key}={options[key]}"]
    given += ["--storage-option", f"endpoint_url={options['client_kwargs']['endpoint_url']}"]
    local = as_arrow(tmp_path)
    assert answered("write", local, f"s3://{bucket}/s", *given)["rows"] == 300
    assert answered("verify", f"s3://{bucket}/s", *given)["problems"] == []


def test_a_damaged_stream_is_reported_with_status_one(tmp_path):
    run("write", as_arrow(tmp_path), tmp_path / "s")
    (file,) = (tmp_path / "s").glob("*.arrow")
    file.write_bytes(b"X" + file.read_bytes()[1:])
    found = answered("verify", tmp_path / "s", code=1)
    assert file.name in found["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["write", "gone.parquet", "s"], "gone.parquet"),
        (["write", "empty", "s"], "no file"),
        (["write", "data.txt", "s"], ".txt"),
        (["write", "data.csv", "s", "--file-size", "huge"], "huge"),
        (["write", "data.csv", "s", "--storage-option", "key"], "KEY=VALUE"),
        (["write", "data.csv", "nokind://x"], "nokind"),
        (["inspect", "nowhere"], "nowhere"),
        (["verify", "empty"], "no data file"),
        (["inspect", "killed"], "not a complete stream"),
        (["verify", "killed"], "not a complete stream"),
        (["verify", "."], "not a complete stream"),
    ],
)
def test_wrong_input_is_one_clear_line_and_status_two(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "part-000000-0123456789ab.arrow").write_text("x")
    (tmp_path / "data.txt").write_text("x")
    (tmp_path / "data.csv").write_text("x\n1\n")
    result = run(*arguments, code=2)
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_data_set_is_not_overwritten(tmp_path):
    source = as_arrow(tmp_path)
    run("write", source, tmp_path / "s")
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    assert "there is a data set" in run("write", source, tmp_path / "s", code=2).stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before


def test_a_warning_is_a_sentence(tmp_path):
    rows = [f"{number // 50},{number}" for number in range(500)]
    (tmp_path / "a.csv").write_text("\n".join(["label,x", *rows]))
    told = run("write", tmp_path / "a.csv", tmp_path / "s").stderr
    assert told.startswith("warning: the rows are sorted by 'label' (label skew 0.")
    assert "UserWarning" not in told
    assert run("write", tmp_path / "a.csv", tmp_path / "t", "--order", "mixed").stderr == ""


def test_a_stream_is_not_written_into_its_source(tmp_path):
    (tmp_path / "d").mkdir()
    as_csv(tmp_path / "d")
    for place in ("d", "d/stream"):
        assert "lies in" in run("write", tmp_path / "d", tmp_path / place, code=2).stderr
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a.csv"]


def test_nulls_are_filled_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("age,city\n1,a\n,b\n3,\n")
    fills = ("--null-value", "", "--fill", "age=-1", "--fill", "city=nowhere")
    run("write", tmp_path / "a.csv", tmp_path / "s", *fills)
    (batch,) = read_any(tmp_path / "s").batches
    assert batch.table.to_pydict() == {"age": [1, -1, 3], "city": ["a", "b", "nowhere"]}
    for fill, words in (("age", "is not of the form"), ("age=x", "row 1: filling column 'age'")):
        said = run("write", tmp_path / "a.csv", tmp_path / "t", *fills[:2], "--fill", fill, code=2)
        assert words in said.stderr


SHARDS = Path(__file__).parent / "streams" / "shards"


def test_shards_of_other_tools_become_parquet_or_a_stream(tmp_path):
    chosen = ["--columns", "text,int", "--type", "int=int16", "--rename", "text=words"]
    for name in ("mds-zstd", "litdata-arrow"):
        run("convert", SHARDS / name, tmp_path / f"{name}.p", *chosen)
        found = pq.read_table(tmp_path / f"{name}.p")
        assert found.schema.field("int").type == pa.int16()
        assert found.to_pydict() == {
            "words": [f"ünï {n}" for n in range(60)],
            "int": [-n for n in range(60)],
        }
    written = answered("write", SHARDS / "webdataset", tmp_path / "s", "--split", "train")
    assert (written["rows"], written["columns"]["cls"]) == (5, "int64")
    refused = run("convert", SHARDS / "mds", tmp_path / "t", code=2).stderr
    assert "--type str_decimal=string" in refused
    assert "incomplete" in run("write", tmp_path / "t", tmp_path / "u", code=2).stderr


def test_the_dialect_of_csv_and_nulls(tmp_path):
    (tmp_path / "a.csv").write_bytes("1|é\n|'x|y'\n".encode("cp1252"))
    options = ["--delimiter", "|", "--quote", "'", "--encoding", "cp1252", "--header", "n,t"]
    options += ["--null-value", "", "--fill", "n=-1", "--block-size", "64KiB"]
    for to in ("stream", "parquet"):
        run("convert", tmp_path / "a.csv", tmp_path / to, "--to", to, *options)
    run("convert", tmp_path / "stream", tmp_path / "again")
    for name in ("parquet", "again"):
        assert pq.read_table(tmp_path / name).to_pydict() == {"n": [1, -1], "t": ["é", "x|y"]}
    for wrong, words in (
        (["--fill", "n"], "COLUMN=VALUE"),
        (["--rename", "n"], "OLD=NEW"),
        (["--type", "n=long"], "COLUMN=TYPE"),
        (["--delimiter", "||"], "one ASCII character"),
        ([*options, "--fill", "z=1"], "fill column 'z'"),
    ):
        assert words in run("write", tmp_path / "a.csv", tmp_path / "x", *wrong, code=2).stderr


def test_text_becomes_tokens(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"</s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    lines = [{"body": "a b a", "n": 1}, {"body": "b c", "n": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ["--tokenizer", tmp_path / "tokenizer.json", "--column", "body", "--end", "</s>"]
    options += ["--processes", "1", "--into", "ids"]
    told = answered("tokenize", tmp_path / "a.jsonl", tmp_path / "s", *options, "--pack", "4")
    assert {name: told[name] for name in ("documents", "tokens", "padding", "end")} == {
        "documents": 2, "tokens": 7, "padding": 1, "end": ["</s>"]
    }  # fmt: skip
    assert told["vocabularies"]["ids"]["size"] == 4
    run("convert", tmp_path / "s", tmp_path / "p")
    rows = pq.read_table(tmp_path / "p").to_pydict()
    assert rows["ids"] == [[1, 2, 1, 0], [2, 3, 0, 0]]
    assert rows["document_ids"] == [[0, 0, 0, 0], [1, 1, 1, -1]]
    copied = answered("convert", tmp_path / "s", tmp_path / "t", "--to", "stream")
    assert copied["vocabularies"] == told["vocabularies"]
    assert "tokens of the tokenizer" in run("inspect", tmp_path / "s").stdout
    assert (
        "--end none"
        in run("tokenize", tmp_path / "a.jsonl", tmp_path / "u", *options[:4], code=2).stderr
    )

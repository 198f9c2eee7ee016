"""CSV and JSON lines: the type of a column follows from all rows, and nothing is lost."""

import csv
import gzip
import json
import random

import pyarrow as pa
import pytest

from raytrain_plus.streams.columns import DataError, LeftOutWarning
from raytrain_plus.streams.convert import Wanted, read_any
from raytrain_plus.streams.text import Dialect
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.test_plain import read_all

MANY = 20_000  # rows of more than one block


def written(source, folder, **choice):
    data = read_any(source, None, Wanted(**choice))
    with StreamWriter(folder, warn=False) as writer:
        for batch in data.batches:
            writer.write(batch.table, batch.place)
    return read_all(folder)


def csv_file(path, rows, names=("x", "t")):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
    return path


def rows_of(path):
    return [row for batch in read_any(path).batches for row in batch.table.to_pylist()]


def json_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("early", "late", "expected"),
    [
        (1, 2.5, [1.0, 2.5]),
        ([], [1], [[], [1]]),
        ([1], [0.5], [[1.0], [0.5]]),
        ("2024-01-02", "2024-01-03 10:00:00", ["2024-01-02", "2024-01-03 10:00:00"]),
        ("2024-01-02", "tomorrow", ["2024-01-02", "tomorrow"]),
        (1, -(2**53), [1, -(2**53)]),
        (2**62, 2**63 - 1, [2**62, 2**63 - 1]),
        ("007", "NA", ["007", "NA"]),
        (True, False, [True, False]),
    ],
)
def test_json_values_are_kept(early, late, expected, tmp_path):
    rows = [{"x": early, "t": "a" * 100}] * MANY + [{"x": late, "t": "b"}]
    found = written(json_file(tmp_path / "a.jsonl", rows), tmp_path / "s")
    assert [found["x"][0], found["x"][-1]] == expected
    assert len(found["x"]) == MANY + 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('{"x": 1}\n{"x": 2, "y": 3}\n', r"a\.jsonl, row 2: its columns differ.*'y'"),
        ('{"x": 1}\n{}\n', r"row 2: it has no column"),
        ('{}\n{"x": 1}\n', r"row 1: it has no column"),
        ('{"x": 1}\n{"x": null}\n', r"row 2: column 'x' holds nulls"),
        ('{"x": 1}\n{"x": "1"}\n', r"row 2: column 'x': '1' \(text\) does not go together"),
        ('{"x": 1}\n{"x": true}\n', r"row 2: column 'x'"),
        ('{"x": 1}\n[1]\n', r"row 2: it is \[1\]"),
        ('{"x": 1}\n{"x": 1\n', r"line 2 is not JSON"),
        ('{"x": 1, "x": 2}\n', r"more than one 'x'"),
        ('{"x": 1e400}\n', r"1e400 is outside of float64"),
        ('{"x": 0.5}\n{"x": 9007199254740993}\n', r"row 2: column 'x': 9007199254740993"),
        ('{"x": 18446744073709551616}\n', r"row 1: column 'x': 18446744073709551616"),
        ('{"x": {"a": 1}}\n{"x": {"a": "b"}}\n', r"row 2: column 'x'"),
        ('{"x": "\\ud800"}\n', r"row 1: column 'x': .* cannot be stored"),
    ],
)
def test_json_that_cannot_be_stored_is_refused_with_its_place(rows, words, tmp_path):
    (tmp_path / "a.jsonl").write_text(rows)
    with pytest.raises(DataError, match=words):
        written(tmp_path / "a.jsonl", tmp_path / "s")


def test_later_columns_of_json_are_refused_or_left_out_by_name(tmp_path):
    rows = [{"x": 1, "t": "a" * 100}] * MANY + [{"x": 2, "t": "b", "y": 3}]
    path = json_file(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a\.jsonl, row 20,001: .*'y'"):
        written(path, tmp_path / "s")
    assert set(written(path, tmp_path / "t", columns=["t", "x"])) == {"x", "t"}
    with pytest.raises(DataError, match="no column 'y'"):
        written(path, tmp_path / "u", columns=["y"])


def test_long_rows_one_list_and_compressed_files_are_read(tmp_path):
    rows = [{"x": 1, "t": "a" * 3_000_000}, {"x": 2, "t": "b"}]
    assert written(json_file(tmp_path / "a.jsonl", rows), tmp_path / "s1")["x"] == [1, 2]
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    assert written(tmp_path / "b.json", tmp_path / "s2")["x"] == [1, 2]
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert written(tmp_path / "c.jsonl.gz", tmp_path / "s3")["x"] == [1, 2]
    csv_file(tmp_path / "d.csv", [(1, "a"), (2, "b" * 20_000_000), (3, "c")])
    found = written(tmp_path / "d.csv", tmp_path / "s4")
    assert (found["x"], list(map(len, found["t"]))) == ([1, 2, 3], [1, 20_000_000, 1])


@pytest.mark.parametrize(
    ("early", "late", "kind"),
    [
        ("1", "1.5", float),
        ("1", "1e3", float),
        ("1.5", "nan", float),
        ("1", "-inf", float),
        ("1", "-3", int),
        ("9223372036854775807", "1", int),
        ("true", "False", bool),
        ("2024-01-02", "2024-01-03 10:00", str),
        ("007", "12", str),
        ("12", "007", str),
        ("1", "abc", str),
        ("NA", "Berlin", str),
        ("", "Berlin", str),
        ("+491234", "+495678", str),
        ("18446744073709551616", "1", str),
        ("1_000", "2", str),
        ("0x10", "2", str),
        ("1 ", "2", str),
    ],
)
@pytest.mark.filterwarnings("ignore:column 'x' is kept as text")
def test_csv_values_lose_nothing_of_their_text(early, late, kind, tmp_path):
    path = csv_file(tmp_path / "a.csv", [(early, "a" * 1000)] * MANY + [(late, "b")])
    found = written(path, tmp_path / "s")["x"]
    expected = {"true": True, "False": False} if kind is bool else {}
    for text, value in ((early, found[0]), (late, found[-1])):
        want = expected.get(text, kind(text))
        assert value == want or (value != value and want != want)  # noqa: PLR0124 - NaN
        assert type(value) is kind
    assert len(found) == MANY + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,t\n1,a\n,b\n", r"a\.csv, row 2: column 'x' has no value \(''\)"),
        ("x,t\n1,a\nNA,b\n", r"row 2: column 'x' has no value \('NA'\)"),
        ("x,t\n1.5,a\n9007199254740993,b\n", r"row 2: column 'x' holds 9007199254740993"),
        ("x,t\n1.5,a\n1e400,b\n", r"row 2: column 'x' holds 1e400"),
        ("x,t\n1,a\n2\n", r"a\.csv, row 2: it has 1 fields \('2'\), and the first line names 2"),
        ("x,x\n1,2\n", "more than one column 'x'"),
        ("1,2\n3,4\n", "holds numbers .*add such a line"),
        ("x;t\n1;2\n", "not separated by commas"),
        ("", "no line with the names"),
        ("x,t\n", "nothing was written"),
    ],
)
def test_csv_that_cannot_be_stored_is_refused_with_its_place(text, words, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        written(tmp_path / "a.csv", tmp_path / "s")


def test_quoted_newlines_are_part_of_a_value(tmp_path):
    draw = random.Random(0)
    rows = [
        (i, "\n".join("w" * draw.randint(1, 60) for _ in range(draw.randint(1, 6))))
        for i in range(MANY)
    ]
    found = written(csv_file(tmp_path / "a.csv", rows), tmp_path / "s")
    assert list(zip(found["x"], found["t"], strict=True)) == rows


def test_csv_types_follow_from_all_files(tmp_path):
    (tmp_path / "d").mkdir()
    csv_file(tmp_path / "d" / "a.csv", [(12, "1"), (13, "2")])
    csv_file(tmp_path / "d" / "b.csv", [("0.5", "007")], names=("t", "x"))
    with pytest.warns(UserWarning, match=r"'x' is kept as text, since .*b\.csv, row 1 has '007'"):
        found = written(tmp_path / "d", tmp_path / "s")
    assert found == {"x": ["12", "13", "007"], "t": [1, 2, 0.5]}
    csv_file(tmp_path / "d" / "c.csv", [(1, 2, 3)], names=("x", "t", "z"))
    with pytest.raises(DataError, match=r"a\.csv and .*c\.csv differ in their columns, by 'z'"):
        written(tmp_path / "d", tmp_path / "s2")


def test_a_file_with_a_byte_order_mark_and_tabs_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfx,t\r\n1,a\r\n")
    (tmp_path / "b.tsv").write_text("x\tt\n1\ta,b\n")
    assert written(tmp_path / "a.csv", tmp_path / "s1") == {"x": [1], "t": ["a"]}
    assert written(tmp_path / "b.tsv", tmp_path / "s2") == {"x": [1], "t": ["a,b"]}
    data = read_any(tmp_path / "a.csv", None, Wanted(columns=["t"]))
    assert pa.concat_tables(batch.table for batch in data.batches).to_pydict() == {"t": ["a"]}


@pytest.mark.parametrize(
    "content",
    [
        b'x,y\n1,"a\n2,b\n3,c\n',
        b'x,y\n1,"',
        b'x,y\n1,a\n2,"b""\n',
        b'y\n"',
        b'y\n"a',
    ],
)
def test_a_quoted_field_that_is_never_closed_is_refused(content, tmp_path):
    """Otherwise all later rows would become its value."""
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.csv ends within a quoted field"):
        rows_of(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "last"),
    [
        (b'x,y\n1,""', ""),
        (b'x,y\n1,""""', '"'),
        (b'x,y\n1,"a\nb"\n', "a\nb"),
        (b'x,y\r\n1,5" disk\r\n', '5" disk'),
        (b"x,y\n1,a", "a"),
        (b"\xef\xbb\xbfx,y\r1,a\r\r", "a"),
    ],
)
def test_a_quoted_field_that_is_closed_at_the_very_end_is_kept(content, last, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    assert rows_of(tmp_path / "a.csv") == [{"x": 1, "y": last}]


@pytest.mark.parametrize("text", ["x,y\n1,ä\n".encode("utf-16"), "ä,y\n1,a\n".encode("latin-1")])
def test_a_header_in_another_encoding_is_reported(text, tmp_path):
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(DataError, match=r"a\.csv is not UTF-8"):
        rows_of(tmp_path / "a.csv")


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-20],
        lambda packed: packed + b"garbage",
        lambda packed: packed[:-8] + bytes(4) + packed[-4:],
        lambda packed: packed[: len(packed) // 2] + b"\xff" * 9 + packed[len(packed) // 2 + 9 :],
        gzip.decompress,
    ],
)
def test_a_damaged_compressed_file_is_named(ending, damage, tmp_path):
    lines = [b"x"] if ending == ".csv" else []
    lines += [b"%d" % i if ending == ".csv" else b'{"x": %d}' % i for i in range(3000)]
    path = tmp_path / f"a{ending}.gz"
    packed = gzip.compress(b"\n".join(lines))
    path.write_bytes(packed)
    assert len(rows_of(path)) == 3000
    path.write_bytes(damage(packed))
    with pytest.raises(DataError, match=rf"a{ending}\.gz"):
        rows_of(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x,t\n1,a\n\n2,b,c\n3,d\n", r"row 2: it has 3 fields \('2,b,c'\).* names 2.*Quote"),
        (b'x,t\n1,"a\nb"\n2\n', r"row 2: it has 1 fields \('2'\)"),
        (b"x,t\n" + b"1,a\n" * MANY + b"1\n", r"row 20,001: it has 1 fields"),
        (b"x,t\n1,a\n2,caf\xe9\n", r"row 2: column 't' is not UTF-8 \(b'caf\\xe9'\)"),
        (b"x,t\n" + b"1,a\n" * MANY + b"1,\xff\n", r"row 20,001: column 't' is not UTF-8"),
    ],
)
def test_a_row_that_is_no_csv_is_named(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        rows_of(tmp_path / "a.csv")


def test_the_index_that_pandas_writes_is_no_column(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"x": [4, 5]}).to_csv(tmp_path / "a.csv")
    with pytest.warns(LeftOutWarning, match=r"first column of .*a\.csv has no name and is left"):
        assert rows_of(tmp_path / "a.csv") == [{"x": 4}, {"x": 5}]
    (tmp_path / "b.csv").write_text("x,\n1,\n2,\n")
    with pytest.raises(DataError, match=r"column 2 of .*b\.csv has no name"):
        rows_of(tmp_path / "b.csv")
    assert written(tmp_path / "b.csv", tmp_path / "s", columns=["x"]) == {"x": [1, 2]}


DIALECTS = {
    "a.csv": (b"x;t\n1;'a;b'\n2;'it''s'\n", {"delimiter": ";", "quote": "'"}),
    "b.csv": (b'x,t\n1,a\\,b\n2,say \\"no\\"\n', {"escape": "\\"}),
    "c.tsv": (b'1\t"a\n2\tb"\n', {"quote": None, "header": ("x", "t")}),
    "d.csv": ("x,t\n1,é\n2,ü\n".encode("cp1252"), {"encoding": "cp1252"}),
    "e.csv": ("x|t\n1|é\n2|ü\n".encode("utf-16"), {"encoding": "utf-16", "delimiter": "|"}),
    "f.csv": (b"x,t\n1,a\n2,b\n", {"block_size": 4}),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_of_csv(name, tmp_path):
    content, settings = DIALECTS[name]
    (tmp_path / name).write_bytes(content)
    texts = {
        "a": ["a;b", "it's"], "b": ["a,b", 'say "no"'], "c": ['"a', 'b"'],
        "d": ["é", "ü"], "e": ["é", "ü"], "f": ["a", "b"],
    }  # fmt: skip
    found = written(tmp_path / name, tmp_path / "s", dialect=Dialect(**settings))
    assert found == {"x": [1, 2], "t": texts[name[0]]}


@pytest.mark.parametrize(
    ("content", "settings", "words"),
    [
        (b"x\n\xe9\n", {}, r"row 1: column 'x' is not UTF-8 .*--encoding"),
        (b"x\n1\n\x81\n", {"encoding": "cp1252"}, r"near line 3: it is not charmap"),
        (b"1,2\n3\n", {"header": ("a", "b")}, r"row 2: it has 1 fields .* the header has 2"),
        (b"x,y\n1,NA\n", {"nulls": ("NA",)}, r"row 1: column 'y' holds nulls"),
        (b"x;y\n1;2\n", {}, r"Name the character \(`--delimiter`\)"),
        (b"1,2\n", {}, r"--header A,B"),
        (b'x\n"1\n', {}, r"not closed.*--quote none"),
    ],
)
def test_text_of_another_dialect_is_refused_with_a_hint(content, settings, words, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        written(tmp_path / "a.csv", tmp_path / "s", dialect=Dialect(**settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delimiter": "||"}, "one ASCII character"),
        ({"quote": ","  , "delimiter": ","}, "different characters"),
        ({"encoding": "klingon"}, "encoding 'klingon' is not known"),
        ({"header": ("a", "a")}, "names a column twice"),
        ({"block_size": 0}, "block size"),
    ],
)  # fmt: skip
def test_a_dialect_that_cannot_be_is_refused(settings, words):
    with pytest.raises(DataError, match=words):
        Dialect(**settings)


def test_types_and_names_are_given(tmp_path):
    (tmp_path / "a.csv").write_text("zip,n,t\n123,1,NA\n456,2,b\n")
    choice = {
        "types": {"zip": pa.string(), "n": pa.uint8()},
        "names": {"n": "t", "t": "n"},
        "columns": ["zip", "n", "t"],
    }
    found = written(tmp_path / "a.csv", tmp_path / "s", **choice)
    assert found == {"zip": ["123", "456"], "t": [1, 2], "n": ["NA", "b"]}
    for wrong, words in (
        ({"types": {"y": pa.int8()}}, r"row 1: a type is given for column 'y'"),
        ({"names": {"y": "x"}}, r"no column 'y' to rename"),
        ({"names": {"n": "t"}}, r"two columns would be named 't'"),
        ({"types": {"t": pa.int8()}}, r"a\.csv, row 1: column 't' holds 'NA', which int8"),
    ):
        with pytest.raises(DataError, match=words):
            written(tmp_path / "a.csv", tmp_path / "t", **wrong)


@pytest.mark.parametrize("frames", [1, 2])
def test_zstandard_is_unpacked_to_its_end(frames, tmp_path):
    lines = [b"x\n", *(b"%d\n" % number for number in range(50_000))]
    half = len(lines) // 2 if frames == 2 else len(lines)
    codec = pa.Codec("zstd")
    packed = b"".join(
        codec.compress(b"".join(some), asbytes=True)
        for some in (lines[:half], lines[half:])
        if some
    )
    (tmp_path / "a.csv.zst").write_bytes(packed)
    assert written(tmp_path / "a.csv.zst", tmp_path / "s") == {"x": list(range(50_000))}
    (tmp_path / "a.csv.zst").write_bytes(packed[:-9])
    with pytest.raises(DataError, match=r"a\.csv\.zst cannot be read"):
        written(tmp_path / "a.csv.zst", tmp_path / "t")
    (tmp_path / "a.csv.zst").write_bytes(packed + b"more")
    with pytest.raises(DataError, match=r"a\.csv\.zst cannot be read"):
        written(tmp_path / "a.csv.zst", tmp_path / "t")

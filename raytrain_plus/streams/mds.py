"""Reads MDS, the format of MosaicML Streaming: `index.json` and its shards.

The library itself is not needed. A shard has the number of its rows, their offsets as uint32, and
the rows. A row has the sizes of the columns whose size is not fixed, as uint32, and the values. All
encodings are read except pickles. Encoded pictures stay as they are, and raw ones become PNG.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.png import png_of_raw
from raytrain_plus.streams.shards import Selection, check_inside, decoded, free, pieces, sizes_in
from raytrain_plus.streams.unpacking import unpacked

Decode = Callable[[bytes], Any]
Read = Callable[[str], bytes]

_SCALARS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_SCALARS += ["float16", "float32", "float64"]
_ARRAYS = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32",
    34: "float32", 64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip
_TEXTS = ("str_int", "str_float", "str_decimal", "json")


def _text(content: bytes) -> str:
    return content.decode("utf-8")


def _scalar(kind: str, content: bytes) -> Any:
    (value,) = np.frombuffer(content, np.dtype(kind).newbyteorder("<"))
    return value


def _array(kind: str | None, shape: tuple[int, ...] | None, content: bytes) -> Any:
    at, is_fixed = 0, shape is not None
    if kind is None:
        kind, at = _ARRAYS[content[0]], 1
    if shape is None:
        dimensions, width = content[at] >> 2, 1 << (content[at] % 4)
        end = at + 1 + dimensions * width
        shape = tuple(np.frombuffer(content[at + 1 : end], f"<u{width}").tolist())
        at = end
    array = np.frombuffer(content[at:], np.dtype(kind).newbyteorder("<")).reshape(shape)
    return array if is_fixed else free(array)


def _listed(decode: Decode, header: int, content: bytes) -> list[Any]:
    """Return a list, which has the number of its items and their sizes after a header."""
    count = int.from_bytes(content[header : header + 4], "little")
    at = header + 4 + 4 * count
    sizes = sizes_in(content[header + 4 : at])
    ends = at + np.cumsum(sizes)
    if len(sizes) != count or (count and ends[-1] != len(content)):
        raise ValueError("its sizes do not fit to its length")
    return [decode(content[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def _json(content: bytes) -> str:
    """Return JSON as it is stored, after checking that it is JSON."""
    json.loads(content)
    return _text(content)


_ENCODINGS: dict[str, Decode] = {
    "bytes": bytes, "jpeg": bytes, "png": bytes, "str": _text, "pil": png_of_raw, "json": _json,
    "int": functools.partial(_scalar, "int64"), "str_int": int, "str_float": float,
    "list[pil]": functools.partial(_listed, png_of_raw, 4),
    "list[jpeg]": functools.partial(_listed, bytes, 4),
    "list[png]": functools.partial(_listed, bytes, 4),
    "jpeg_array": functools.partial(_listed, bytes, 0),
    "jpegarray": functools.partial(_listed, bytes, 0),
    **{kind: functools.partial(_scalar, kind) for kind in _SCALARS},
}  # fmt: skip


def mds_rows(
    index: Mapping[str, Any],
    where: str,
    read: Read,
    exists: Callable[[str], bool],
    wanted: Selection,
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a data set, each with its place.

    Args:
        index: the content of `index.json`.
        where: the data set's folder, for errors.
        read: returns the bytes of a file in the folder.
        exists: says whether a file is in the folder.
        wanted: the columns.

    Raises:
        DataError: a shard is damaged or missing, or a column has an encoding that is not read.
    """
    for shard in index["shards"]:
        if shard.get("format") != "mds" or shard.get("version") != 2:
            raise DataError(
                f"{where} has a shard of the format {shard.get('format')!r}, version "
                f"{shard.get('version')!r}; MDS of version 2 is read here: write it again as that."
            )
        content, file = _content(shard, where, read, exists)
        names, sizes = list(shard["column_names"]), list(shard["column_sizes"])
        encodings = dict(zip(names, shard["column_encodings"], strict=True))
        decoders = {
            name: _decoder(encodings[name], name, where, as_text=name in wanted.texts)
            for name in wanted.of(names, where)
        }
        for row, piece in enumerate(pieces(content, int(shard["samples"]), file), 1):
            place = f"{file}, row {row:,}"
            values = dict(zip(names, _values(piece, sizes, place), strict=True))
            yield (
                place,
                {
                    name: decoded(decode, values[name], name, place)
                    for name, decode in decoders.items()
                },
            )


def count_of(index: Mapping[str, Any]) -> int:
    """Return the number of rows."""
    return sum(int(shard["samples"]) for shard in index["shards"])


def _content(
    shard: Mapping[str, Any], where: str, read: Read, exists: Callable[[str], bool]
) -> tuple[bytes, str]:
    """Return the unpacked bytes of a shard, and its name in errors."""
    raw, packed = shard["raw_data"], shard.get("zip_data")
    name = check_inside(raw["basename"], where)
    if packed is None or (exists(name) and not exists(check_inside(packed["basename"], where))):
        content = read(name)
        _check(content, raw, f"{where}/{name}")
        return content, f"{where}/{name}"
    stored = check_inside(packed["basename"], where)
    content = read(stored)
    _check(content, packed, f"{where}/{stored}")
    file = f"{where}/{stored}"
    return unpacked(content, str(shard["compression"]), int(raw["bytes"]), file), file


def _check(content: bytes, stated: Mapping[str, Any], where: str) -> None:
    if len(content) != stated["bytes"]:
        raise DataError(
            f"{where} has {len(content):,} bytes, and its index says {stated['bytes']:,}: it is "
            "cut short or was overwritten. Copy it again."
        )
    for algorithm, digest in stated.get("hashes", {}).items():
        if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
            continue
        if hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() != digest:
            raise DataError(
                f"{where} is damaged: its {algorithm} differs from that in its index. Copy it "
                "again."
            )


def _values(row: bytes, sizes: list[int | None], place: str) -> Iterator[bytes]:
    """Yield the bytes of a row's values."""
    free = sum(not size for size in sizes)
    given = iter(sizes_in(row[: 4 * free]).tolist())
    at = 4 * free
    try:
        lengths = [size or next(given) for size in sizes]
    except StopIteration:
        lengths = [-1]
    if at + sum(lengths) != len(row) or len(lengths) != len(sizes):
        raise DataError(
            f"{place}: the sizes of its values do not fit to its length: it is damaged."
        )
    for length in lengths:
        yield row[at : at + length]
        at += length


def _decoder(encoding: str, column: str, where: str, *, as_text: bool) -> Decode:
    """Return the function that decodes a column.

    Raises:
        DataError: its encoding is not read here.
    """
    name, _, more = encoding.partition(":")
    if as_text and name in _TEXTS:
        return _text
    if name == "ndarray":
        kind, _, shape = more.partition(":")
        sizes = tuple(map(int, shape.split(","))) if shape else None
        return functools.partial(_array, kind or None, sizes)
    if name in _ENCODINGS:
        return _ENCODINGS[name]
    if name == "pkl":
        raise DataError(
            f"{where}: column {column!r} holds pickles, which may run any code when they are "
            "loaded. Leave it out (`--columns`), or write the data again where you trust it."
        )
    if name == "str_decimal":
        raise DataError(
            f"{where}: column {column!r} holds decimals, which no number here holds exactly. Keep "
            f"them as text (`--type {column}=string`), or as floats (`--type {column}=float64`)."
        )
    raise DataError(
        f"{where}: column {column!r} has the encoding {encoding!r}, which is not known here: leave "
        "it out (`--columns`)."
    )

"""Reads the chunks of LitData: `index.json` and its chunks.

The library itself is not needed. A chunk has the number of its rows, their offsets as uint32, and
the rows. A row has the sizes of its values, as uint32, and the values. Newer versions pack rows in
groups (`LDFZ01`), or keep them as Arrow at the end of the chunk (`LDARW01`). All serializers are
read except pickles. Encoded pictures, sound and films stay as they are.
"""

import functools
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.png import png_of_raw
from raytrain_plus.streams.shards import (
    FreeArray,
    Selection,
    check_inside,
    decoded,
    free,
    pieces,
    sizes_in,
)
from raytrain_plus.streams.unpacking import unpacked_zstandard

Decode = Callable[[bytes], Any]

_FRAMED, _ARROW = b"LDFZ01\0\0", b"LDARW01\0"
# The numbers by which types are stored. None: there is no such NumPy type here.
_TENSORS: tuple[str | None, ...] = (
    "float32", "float32", "float64", "float64", None, None, None, None, "float16", "float16",
    "bfloat16", "uint8", "int8", "int16", "int16", "int32", "int32", "int64", "int64", "bool",
    "uint16",
)  # fmt: skip
_NUMPY: tuple[str | None, ...] = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", None, None, "bool",
)  # fmt: skip


def _text(content: bytes) -> str:
    return content.decode("utf-8")


def _scalar(kind: str, content: bytes) -> Any:
    (value,) = np.frombuffer(content, kind)
    return value


def _numbers(kinds: tuple[str | None, ...], number: int, content: bytes) -> Any:
    kind = kinds[number] if 0 <= number < len(kinds) else None
    if kind is None:
        raise ValueError(f"its numbers are of the type {number}, which is not known here")
    if kind == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(content, np.dtype(kind).newbyteorder("<"))


def _shaped(kinds: tuple[str | None, ...], content: bytes) -> Any:
    """Return an array after its type and shape; newer versions write these from the high byte on.

    The byte order is the one in which the shape fits to the length.
    """
    for order in "<>":
        number, dimensions = struct.unpack(f"{order}II", content[:8])
        end = 8 + 4 * dimensions
        if number < len(kinds) and end <= len(content):
            shape = np.frombuffer(content, f"{order}u4", dimensions, 8).tolist()
            values = _numbers(kinds, number, content[end:])
            if math.prod(shape) == len(values):
                return free(values.reshape(shape))
    raise ValueError("its shape does not fit to its length")


def _json(content: bytes) -> str:
    """Return JSON as text; newer versions store it in a form of their own."""
    if content[:1] > b" ":
        json.loads(content)
        return _text(content)
    value, end = _nested(content, 0)
    if end != len(content):
        raise ValueError("it has more after its end")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _nested(raw: bytes, at: int) -> tuple[Any, int]:
    """Return a value of the tagged form, and where it ends."""
    tag = raw[at]
    if tag in (8, 9):
        return struct.unpack_from("<q" if tag == 8 else "<d", raw, at + 1)[0], at + 9
    if tag == 10:
        return bool(raw[at + 1]), at + 2
    if tag == 11:
        return None, at + 1
    if tag == 7:
        return _string(raw, at + 1)
    (count,) = struct.unpack_from("<I", raw, at + 1)
    return _container(raw, tag, at + 5, count)


def _container(raw: bytes, tag: int, at: int, count: int) -> tuple[Any, int]:
    """Return a list, a dictionary or JSON of some items or bytes, and where it ends."""
    if tag == 0:
        return json.loads(raw[at : at + count]), at + count
    if tag in (2, 3):
        kind = "<i8" if tag == 2 else "<f8"
        return np.frombuffer(raw, kind, count, at).tolist(), at + 8 * count
    if tag == 4:
        return [bool(one) for one in raw[at : at + count]], at + count
    if tag == 1:
        texts = []
        for _ in range(count):
            text, at = _string(raw, at)
            texts.append(text)
        return texts, at
    if tag == 5:
        found = {}
        for _ in range(count):
            key, at = _string(raw, at)
            found[key], at = _nested(raw, at)
        return found, at
    if tag == 6:
        return _records(raw, at, count)
    raise ValueError(f"it has the tag {tag}, which is not known here")


def _records(raw: bytes, at: int, count: int) -> tuple[list[dict[str, Any]], int]:
    """Return dictionaries with the same keys, which are stored once."""
    (many,) = struct.unpack_from("<I", raw, at)
    at += 4
    keys = []
    for _ in range(many):
        key, at = _string(raw, at)
        keys.append(key)
    tags = {0x10: 11, 0x12: 8, 0x13: 9, 0x14: 10}
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for row in rows:
        for key in keys:
            if raw[at] == 0x11:
                row[key], at = _string(raw, at + 1)
            else:
                row[key], size = _nested(bytes([tags[raw[at]]]) + raw[at + 1 : at + 9], 0)
                at += size
    return rows, at


def _string(raw: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", raw, at)
    return raw[at + 4 : at + 4 + length].decode("utf-8"), at + 4 + length


_SERIALIZERS: dict[str, Decode] = {
    "str": _text, "string": _text, "text": _text, "bytes": bytes, "json": _json,
    "bool": lambda content: bool(_scalar("?", content)),
    "int": functools.partial(_scalar, "<i8"), "float": functools.partial(_scalar, "<f8"),
    "numpy": functools.partial(_shaped, _NUMPY), "tensor": functools.partial(_shaped, _TENSORS),
    "pil": png_of_raw,
    **dict.fromkeys(("jpeg", "jpg", "png", "image", "tiff", "tifffile"), bytes),
    **dict.fromkeys(("video", "audio", "file", "pdf", "nifti", "mesh"), bytes),
}  # fmt: skip


def litdata_rows(
    index: Mapping[str, Any], where: str, read: Callable[[str], bytes], wanted: Selection
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a data set, each with its place.

    Args:
        index: the content of `index.json`.
        where: the data set's folder, for errors.
        read: returns the bytes of a file in the folder.
        wanted: the columns. Those of nested values are named like `a.b`, those of tuples by their
            numbers, and the only one of rows that are single values is `value`.

    Raises:
        DataError: a chunk is damaged or missing, or a column has a form that is not read.
    """
    config = index["config"]
    if config.get("encryption"):
        raise DataError(f"{where} is encrypted: write it again without encryption.")
    if not config.get("data_format") or not config.get("data_spec"):
        raise DataError(
            f"{where} is an index of LitData over files of another format: name these files, as in "
            f"'{where}/*.parquet'."
        )
    names, formats = _names(json.loads(config["data_spec"])[1]), list(config["data_format"])
    names = names or ["value"]
    decoders = dict(zip(names, formats, strict=True))
    chosen = wanted.of(names, where)
    ready = {
        name: _decoder(decoders[name], name, where, as_text=name in wanted.texts) for name in chosen
    }
    # The rows of a single list of numbers have no sizes.
    is_bare = len(formats) == 1 and formats[0].startswith("no_header_tensor")
    for chunk in index["chunks"]:
        name = check_inside(chunk["filename"], where)
        file, content = f"{where}/{name}", read(name)
        if content.endswith(_ARROW):
            yield from _arrow_rows(content, int(chunk["chunk_size"]), file, wanted)
            continue
        for row, piece in enumerate(_pieces(content, chunk, config, file), 1):
            place = f"{file}, row {row:,}"
            values = [piece] if is_bare else _values(piece, len(formats), place)
            given = dict(zip(names, values, strict=True))
            yield (
                place,
                {name: decoded(decode, given[name], name, place) for name, decode in ready.items()},
            )


def count_of(index: Mapping[str, Any]) -> int:
    """Return the number of rows."""
    return sum(int(chunk["chunk_size"]) for chunk in index["chunks"])


def _names(spec: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the values in a tree, in their order."""
    children = spec["children_spec"]
    if not children:
        return [prefix] if prefix else []
    keys = list(range(len(children)))
    if str(spec["type"]).endswith(("dict", "Dict")):
        keys = json.loads(spec["context"])
    names = []
    for key, child in zip(keys, children, strict=True):
        names += _names(child, f"{prefix}.{key}" if prefix else str(key))
    return names


def _pieces(
    content: bytes, chunk: Mapping[str, Any], config: Mapping[str, Any], file: str
) -> Iterator[bytes]:
    """Yield the bytes of each row of a chunk."""
    count = int(chunk["chunk_size"])
    if content.startswith(_FRAMED):
        yield from _framed(content, count, file)
        return
    level = config.get("compression_level")
    is_packed = str(config.get("compression") or "").startswith("zstd")
    if is_packed and level == "sample":
        for piece in pieces(content, count, file):
            yield unpacked_zstandard(piece, file)
        return
    yield from pieces(unpacked_zstandard(content, file) if is_packed else content, count, file)


def _framed(content: bytes, count: int, file: str) -> Iterator[bytes]:
    """Yield the rows of a chunk that are packed in groups."""
    try:
        _, version, _, stated, _, frames = struct.unpack_from("<8sHHIII", content)
        at = 24 + 4 * (stated + 1)
        offsets = sizes_in(content[24:at])
        given = [struct.unpack_from("<IIQII", content, at + 24 * n) for n in range(frames)]
    except struct.error as error:
        raise DataError(f"{file} is damaged or cut short: copy or write it again.") from error
    body = b"".join(
        unpacked_zstandard(content[start : start + size], file) for _, _, start, size, _ in given
    )
    is_whole = version == 1 and stated == count == len(offsets) - 1 and offsets[-1] == len(body)
    if not is_whole or (np.diff(offsets) < 0).any():
        raise DataError(f"{file} is damaged, or of a version that is not known here.")
    for start, end in zip(offsets.tolist(), offsets[1:].tolist(), strict=False):
        yield body[start:end]


def _arrow_rows(
    content: bytes, count: int, file: str, wanted: Selection
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a chunk that keeps them as Arrow."""
    (size,) = struct.unpack("<I", content[-12:-8])
    start = len(content) - 12 - size
    try:
        table = pa.ipc.open_file(pa.py_buffer(content[max(0, start) : -12])).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged or cut short: {error}") from error
    if table.num_rows != count:
        raise DataError(f"{file} has {table.num_rows:,} rows, and its index says {count:,}.")
    table = table.select(wanted.of(table.column_names, file))
    for row, values in enumerate(table.to_pylist(), 1):
        yield f"{file}, row {row:,}", values


def _values(row: bytes, count: int, place: str) -> list[bytes]:
    """Return the bytes of a row's values."""
    sizes = sizes_in(row[: 4 * count]).tolist()
    if len(sizes) != count or 4 * count + sum(sizes) != len(row):
        raise DataError(
            f"{place}: the sizes of its values do not fit to its length: it is damaged."
        )
    found, at = [], 4 * count
    for size in sizes:
        found.append(row[at : at + size])
        at += size
    return found


def _decoder(given: str, column: str, where: str, *, as_text: bool) -> Decode:
    """Return the function that decodes a column.

    Raises:
        DataError: its serializer is not read here.
    """
    name, _, more = given.partition(":")
    if as_text and name == "json":
        return _json
    if name == "no_header_tensor":
        return lambda content: FreeArray(_numbers(_TENSORS, int(more), content))
    if name == "no_header_numpy":
        return lambda content: FreeArray(_numbers(_NUMPY, int(more), content))
    if name in _SERIALIZERS:
        return _SERIALIZERS[name]
    if name in ("pickle", "graph"):
        raise DataError(
            f"{where}: column {column!r} holds pickles, which may run any code when they are "
            "loaded. Leave it out (`--columns`), or write the data again where you trust it."
        )
    raise DataError(
        f"{where}: column {column!r} was written by the serializer {given!r}, which is not known "
        "here: leave it out (`--columns`)."
    )

"""Reads what a Parquet file's footer declares, without trusting it.

pyarrow's view of a column chunk (`metadata.row_group(i).column(j)`) ends the process if a footer is
damaged, with a C++ exception that Python cannot catch. So the footer, a Thrift structure in the
compact protocol, is read here. Sources: https://github.com/apache/parquet-format (parquet.thrift)
and https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raytrain_plus.streams.columns import DataError

_DEEPEST = 32  # depth of nested structures
_INTEGERS = (4, 5, 6)  # field types of 16, 32 and 64 bits
_REPEATED = 2
_BYTE_ARRAY = 6
# Physical type -> bits of a value in Arrow.
_BITS = {0: 1, 1: 32, 2: 64, 3: 64, 4: 32, 5: 64}
_OFFSET_BYTES = 4


@dataclass(frozen=True)
class Leaf:
    """A column of plain values.

    Attributes:
        path: the names of the fields from the root to it.
        kind: its physical type.
        type_length: the bytes of a value, if its length is fixed.
        repeated: it is inside a list.
    """

    path: tuple[str, ...]
    kind: int
    type_length: int
    repeated: bool


@dataclass(frozen=True)
class Chunk:
    """A leaf's values in one row group.

    Attributes:
        leaf: the leaf.
        rows: rows of the row group.
        values: the number of its values, including empty lists and nulls.
        nulls: the number of nulls and empty lists; None if the writer did not store it.
        decoded: bytes of all values in Arrow; a guess if `is_exact` is false.
        is_exact: whether the writer stored the size of the values.
    """

    leaf: Leaf
    rows: int
    values: int
    nulls: int | None
    decoded: int
    is_exact: bool


@dataclass(frozen=True)
class Footer:
    """A footer whose numbers agree with each other.

    Attributes:
        rows: the rows of the file.
        chunks: the chunks of all row groups and leaves.
    """

    rows: int
    chunks: list[Chunk]

    @property
    def decoded(self) -> int:
        """Bytes of the file's values in Arrow; a guess if `is_exact` is false."""
        return sum(chunk.decoded for chunk in self.chunks)

    @property
    def is_exact(self) -> bool:
        """Whether the writer stored the size of all values."""
        return all(chunk.is_exact for chunk in self.chunks)


def read_footer(tail: bytes | memoryview, where: str) -> Footer:
    """Return what a footer declares.

    Args:
        tail: the end of a file, with at least its footer.
        where: the name of the file in an error.

    Raises:
        DataError: it is damaged, or its numbers of rows do not agree.
    """
    try:
        length = struct.unpack_from("<I", tail, len(tail) - 8)[0]
        if length + 8 > len(tail):
            raise ValueError("it is longer than the file")
        return _footer(_Compact(bytes(tail[-8 - length : -8])).structure())
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        why = error if isinstance(error, ValueError) else "it is cut short, or lacks a field"
        raise DataError(
            f"the footer of {where} is damaged: {why}. Write or copy the file again."
        ) from error


def _footer(declared: dict[int, Any]) -> Footer:
    leaves = list(_leaves(iter(declared[2])))
    rows, groups = declared[3], declared.get(4, [])
    if rows < 0 or rows != sum(group[3] for group in groups):
        raise ValueError("it names different numbers of rows")
    chunks = []
    for group in groups:
        if len(group[1]) != len(leaves):
            raise ValueError(f"it has {len(group[1])} columns, and {len(leaves)} in its schema")
        for leaf, column in zip(leaves, group[1], strict=True):
            chunks.append(_chunk(leaf, column[3], group[3]))
    return Footer(rows, chunks)


def _chunk(leaf: Leaf, said: dict[int, Any], rows: int) -> Chunk:
    values = said[5]
    if said[1] != leaf.kind or rows < 0 or (values != rows if not leaf.repeated else values < rows):
        raise ValueError(
            f"column {'.'.join(leaf.path)!r} has {values} values in a group of {rows} rows"
        )
    if leaf.kind != _BYTE_ARRAY:
        bits = _BITS.get(leaf.kind, 8 * leaf.type_length)
        decoded, is_exact = values * bits // 8, True
    else:
        unencoded = said.get(16, {}).get(1)
        is_exact = unencoded is not None
        decoded = (unencoded if is_exact else said[6]) + _OFFSET_BYTES * values
    if leaf.repeated:
        decoded += _OFFSET_BYTES * rows
    nulls = said.get(12, {}).get(3)
    return Chunk(leaf, rows, values, nulls, decoded, is_exact)


def _leaves(elements: Iterator[dict[int, Any]]) -> Iterator[Leaf]:
    root = next(elements)

    def below(path: tuple[str, ...], children: int, repeated: bool) -> Iterator[Leaf]:
        if len(path) > _DEEPEST:
            raise ValueError("its schema is nested too deeply")
        for _ in range(children):
            element = next(elements, None)
            if element is None:
                raise ValueError("its schema is cut short")
            inside = (*path, element[4].decode())
            within = repeated or element.get(3) == _REPEATED
            if element.get(5):
                yield from below(inside, element[5], within)
            else:
                yield Leaf(inside, element[1], element.get(2, 0), within)

    return below((), root.get(5, 0), False)


class _Compact:
    """A reader of Thrift's compact protocol."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0
        self._depth = 0

    def structure(self) -> dict[int, Any]:
        """Return a structure: number of the field -> value."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        content = self._content
        while head := content[self._at]:
            self._at += 1
            step, kind = head >> 4, head & 0xF
            number = number + step if step else self._zigzag()
            if kind in _INTEGERS:
                fields[number] = self._zigzag()
            else:
                fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        self._at += 1
        self._depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2 | 3:
                return self._byte()
            case _ if kind in _INTEGERS:
                return self._zigzag()
            case 7:
                return struct.unpack("<d", self._bytes(8))[0]
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                return self._list()
            case 11:
                return self._map()
            case 12:
                return self.structure()
        raise ValueError(f"it has a field of unknown type {kind}")

    def _list(self) -> list[Any]:
        head = self._byte()
        size = head >> 4 if head >> 4 != 0xF else self._varint()
        if size > len(self._content) - self._at:
            raise ValueError("it has a list that is longer than the file")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        items = [self._value(head & 0xF) for _ in range(size)]
        self._depth -= 1
        return items

    def _map(self) -> list[tuple[Any, Any]]:
        size = self._varint()
        if size > len(self._content) - self._at:
            raise ValueError("it has a map that is longer than the file")
        if not size:
            return []
        kinds = self._byte()
        return [(self._value(kinds >> 4), self._value(kinds & 0xF)) for _ in range(size)]

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        byte = self._content[self._at]
        self._at += 1
        number, shift = byte & 0x7F, 7
        while byte >= 0x80:
            if shift > 63:
                raise ValueError("it has a number of more than 64 bits")
            byte = self._content[self._at]
            self._at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
        return number

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        if count > len(self._content) - self._at:
            raise IndexError
        self._at += count
        return self._content[self._at - count : self._at]

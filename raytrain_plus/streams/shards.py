"""What the readers of other tools' shards have in common: offsets, and errors with the place."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from raytrain_plus.streams.columns import DataError, listed


@dataclass(frozen=True)
class Selection:
    """Which columns are read, and how.

    Attributes:
        columns: the columns; None for all.
        texts: columns whose values stay the text that is stored, which a caller converts.
    """

    columns: Collection[str] | None = None
    texts: Collection[str] = ()

    def of(self, names: list[str], where: str) -> list[str]:
        """Return the wanted ones of some columns.

        Raises:
            DataError: a wanted column is not there.
        """
        if self.columns is None:
            return names
        if missing := [name for name in self.columns if name not in names]:
            raise DataError(f"{where} has no column {listed(missing)}; it has {listed(names)}.")
        return list(self.columns)


@dataclass(frozen=True, eq=False)
class FreeArray:
    """An array of one dimension, which has another length in other rows.

    Attributes:
        values: its numbers.
    """

    values: npt.NDArray[Any]


def free(array: npt.NDArray[Any]) -> Any:
    """Return an array of one dimension as one of free length, and any other as it is."""
    return FreeArray(array) if array.ndim == 1 else array


def decoded(decode: Callable[[bytes], Any], content: bytes, name: str, place: str) -> Any:
    """Return a stored value.

    Args:
        decode: returns the value of some bytes.
        content: the bytes.
        name: the value's column.
        place: the file and row.

    Raises:
        DataError: the bytes are damaged, or are not such a value.
    """
    try:
        return decode(content)
    except (ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{place}: column {name!r} holds {content!r:.60}, which cannot be read: {error}."
        ) from error
    except Exception as error:  # struct.error
        raise DataError(f"{place}: column {name!r} is damaged: {error}.") from error


def sizes_in(content: bytes) -> npt.NDArray[np.int64]:
    """Return numbers that are stored as uint32; a part of one at the end is left out."""
    return np.frombuffer(content, "<u4", len(content) // 4).astype(np.int64)


def pieces(content: bytes, count: int, where: str) -> Iterator[bytes]:
    """Yield the rows of a shard, which begins with their number and `count` + 1 offsets.

    Raises:
        DataError: it is damaged.
    """
    offsets = sizes_in(content[4 : 8 + 4 * count])
    stated = int.from_bytes(content[:4], "little")
    is_whole = len(offsets) == count + 1 and stated == count
    if not is_whole or (np.diff(offsets) < 0).any() or offsets[-1] != len(content):
        raise DataError(
            f"{where} is damaged or cut short: its {stated:,} rows and its length do not fit to "
            f"the {count:,} rows of its index. Copy or write it again."
        )
    for start, end in zip(offsets.tolist(), offsets[1:].tolist(), strict=False):
        yield content[start:end]


def check_inside(name: Any, where: str) -> str:
    """Return the path of a file that an index names, which must be inside of the folder.

    Raises:
        DataError: it is not.
    """
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where} names a file {name!r}, which is not in its folder.")
    return str(path)

"""Unpacks compressed files, and bytes of formats that are compressed inside.

Zstandard, Brotli and Snappy come from pyarrow, so that nothing else has to be installed.
"""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa

from raytrain_plus.streams.columns import DataError

_BY_FSSPEC = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bz2", ".xz": "xz"}
_ZSTANDARD = (".zst", ".zstd")

SUFFIXES = (".gz", ".bz2", ".xz", *_ZSTANDARD)
"""The suffixes of files that `open_unpacked` unpacks."""

ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a packed file raises if it is damaged or cut short."""


def open_unpacked(fs: Any, path: str) -> IO[bytes]:
    """Open a file of an fsspec file system; if its suffix says that it is packed, unpack it."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in _ZSTANDARD:
        opened: IO[bytes] = fs.open(path, "rb", compression=_BY_FSSPEC.get(suffix))
        return opened
    return io.BufferedReader(_Zstandard(fs.open(path, "rb")))


class _Zstandard(io.RawIOBase):
    """Reads the unpacked bytes of a file of Zstandard, also of several frames."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._unpacked = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._unpacked.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def unpacked(content: bytes, algorithm: str, size: int, where: str) -> bytes:
    """Return bytes that are packed as MDS and LitData name it.

    Args:
        content: what is packed.
        algorithm: `br`, `bz2`, `gz`, `snappy`, `zstd`; a level after a colon is ignored.
        size: the number of unpacked bytes.
        where: the name of the file in an error.

    Raises:
        DataError: it is damaged, has another size, or is packed in another way.
    """
    name = algorithm.partition(":")[0]
    try:
        if name == "gz":
            found = gzip.decompress(content)
        elif name == "bz2":
            found = bz2.decompress(content)
        elif name in ("br", "snappy", "zstd"):
            codec = {"br": "brotli"}.get(name, name)
            found = pa.Codec(codec).decompress(content, size, asbytes=True)
        else:
            raise DataError(
                f"{where} is packed as {algorithm!r}, which is not read here (br, bz2, gz, snappy "
                "and zstd are): write the data set again with one of them."
            )
    except (*ERRORS, ValueError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} is damaged, and cannot be unpacked ({error}).") from error
    if len(found) != size:
        raise DataError(
            f"{where} has {len(found):,} bytes when it is unpacked, and its index says {size:,}: "
            "copy or write the data set again."
        )
    return found


def unpacked_zstandard(content: bytes, where: str) -> bytes:
    """Return bytes that are packed as Zstandard, of any unpacked size.

    Args:
        content: what is packed.
        where: the name of the file in an error.

    Raises:
        DataError: it is damaged or cut short.
    """
    try:
        found: bytes = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{where} is damaged, and cannot be unpacked ({error}).") from error
    return found

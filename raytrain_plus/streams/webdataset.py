"""Reads WebDataset: tar files in which consecutive files with one name form a sample.

`a/001.jpg`, `a/001.cls` and `a/001.seg.png` are one row with the columns `__key__` (`a/001`),
`jpg`, `cls` and `seg.png`. Pictures and files of unknown kinds stay bytes, as they are.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import numpy as np

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.shards import Selection, decoded, free
from raytrain_plus.streams.unpacking import ERRORS

KEY = "__key__"

Decode = Callable[[bytes], Any]

_NUMBERS = ("cls", "cls2", "class", "count", "index", "inx", "id")
_TEXTS = ("txt", "text", "transcript")
_JSON = ("json", "jsn")
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "ckpt")


def webdataset_rows(
    file: IO[bytes], where: str, wanted: Selection
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a tar file, each with its place.

    Args:
        file: the unpacked tar file.
        where: its name in errors.
        wanted: the columns.

    Raises:
        DataError: the file is damaged or cut short, or a member has no place in a row.
    """
    key: str | None = None
    row: dict[str, bytes] = {}
    for name, content in _members(file, where):
        own, extension = _parted(name, where)
        if own != key:
            if key is not None:
                yield _row(key, row, where, wanted)
            key, row = own, {}
        if extension in row:
            raise DataError(
                f"{where}: {name!r} stands twice in its sample (also in other case): rename one."
            )
        row[extension] = content
    if key is not None:
        yield _row(key, row, where, wanted)


def _row(
    key: str, row: dict[str, bytes], where: str, wanted: Selection
) -> tuple[str, dict[str, Any]]:
    place = f"{where}, sample {key!r}"
    values: dict[str, Any] = {}
    for name in wanted.of([KEY, *row], place):
        if name == KEY:
            values[name] = key
            continue
        decode = _decoder(name, place, as_text=name in wanted.texts)
        values[name] = decoded(decode, row[name], name, place)
    return place, values


def _parted(name: str, where: str) -> tuple[str, str]:
    """Return the key of a member, and its extension in small letters."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not (stem and dot and extension):
        raise DataError(
            f"{where} has {name!r}, which has no name or no extension, so that it belongs to no "
            "sample: leave it out of the tar file, or rename it."
        )
    return f"{folder}{slash}{stem}", extension.lower()


def _text(content: bytes) -> str:
    return content.decode("utf-8")


def _number(content: bytes) -> int:
    return int(_text(content))


def _json(content: bytes) -> str:
    json.loads(content)
    return _text(content)


def _array(content: bytes) -> Any:
    return free(np.load(io.BytesIO(content), allow_pickle=False))


def _decoder(name: str, place: str, *, as_text: bool) -> Decode:
    """Return the function that decodes files of an extension."""
    kind = name.rpartition(".")[2]
    if kind in _PICKLES:
        raise DataError(
            f"{place}: {name!r} is a pickle, which may run any code when it is loaded. Leave it "
            "out (`--columns`), or write the data again where you trust it."
        )
    if kind in _TEXTS or (as_text and kind in (*_NUMBERS, *_JSON)):
        return _text
    if kind in _NUMBERS:
        return _number
    if kind in _JSON:
        return _json
    return _array if kind == "npy" else bytes


# -- the tar file


def _members(file: IO[bytes], where: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of a tar file, up to its end.

    Raises:
        DataError: it is damaged, cut short, or goes on after its end; or a member is no file.
    """
    forward = _Forward(file)
    try:
        with tarfile.TarFile(fileobj=cast(Any, forward), mode="r", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []  # they would be kept
                if member.isdir() or _is_note(member.name):
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(
                        f"{where} has {member.name!r}, which is a link or a special file: pack the "
                        "file itself."
                    )
                content = forward.read(member.size)
                if len(content) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name, content
        while rest := forward.read(1 << 20):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there is more after its end, as of a second tar file")
    except (tarfile.TarError, *ERRORS) as error:
        raise DataError(
            f"{where} is no tar file, is damaged or cut short ({error}): copy or pack it again."
        ) from error


def _is_note(name: str) -> bool:
    """Say whether a member is what macOS adds for a file, or a description of the whole tar."""
    base = name.rpartition("/")[2]
    return base.startswith("._") or (base.startswith("__") and base.endswith("__"))


class _Member(tarfile.TarInfo):
    """A member; a tar file that ends without its two empty blocks is an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without the end of a tar file") from error


class _Forward:
    """A file that is read forward only, as a packed one, with the methods that tarfile needs."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._at = file, 0

    def read(self, size: int) -> bytes:
        content = b""
        while len(content) < size and (more := self._file.read(size - len(content))):
            content += more
        self._at += len(content)
        return content

    def tell(self) -> int:
        return self._at

    def seek(self, to: int) -> None:
        while self._at < to and self.read(min(1 << 20, to - self._at)):
            pass

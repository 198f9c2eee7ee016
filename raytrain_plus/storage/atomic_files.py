"""Atomic files on a local disk: complete or absent, also after a loss of power."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

Content = bytes | Sequence[memoryview]
"""What is written: bytes, or views of memory, which are written one after another, not copied."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write(path: Path, content: Content) -> None:
    """Write a file, or replace it; creates its folder.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    with _temporary(path, content) as temporary:
        temporary.replace(path)


def create(path: Path, content: Content) -> None:
    """Write a file that must not exist yet. If two processes try at once, one of them succeeds.

    Raises:
        FileExistsError: it exists.
        OSError: it cannot be written; nothing is left behind.
    """
    with _temporary(path, content) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if path.exists():  # such a file system has no better protection from a race
                raise FileExistsError(errno.EEXIST, "it exists already", str(path)) from error
            temporary.replace(path)


@contextlib.contextmanager
def _temporary(path: Path, content: Content) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(path.parent)) from error
    try:
        with temporary.open("xb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, if the file system can."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(opened)
    finally:
        os.close(opened)

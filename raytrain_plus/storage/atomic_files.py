"""Files on a local disk that are there as a whole or not at all, and outlive a loss of power."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

Content = bytes | Sequence[memoryview]
"""What is written: bytes, or stretches of memory that come one after another, without a copy."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write(path: Path, content: Content) -> None:
    """Write a file, in the place of one that may be there; makes its folder.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    with _temporary(path, content) as temporary:
        temporary.replace(path)


def create(path: Path, content: Content) -> None:
    """Write a file that must not be there yet; of two that try at once, one wins.

    Raises:
        FileExistsError: it is there already.
        OSError: it cannot be written; nothing is left behind.
    """
    with _temporary(path, content) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if path.exists():  # all that such a file system can do about a race
                raise FileExistsError(errno.EEXIST, "there already", str(path)) from error
            temporary.replace(path)


@contextlib.contextmanager
def _temporary(path: Path, content: Content) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
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
    """Bring the names in a folder to the disk, where the file system knows how to."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(opened)
    finally:
        os.close(opened)

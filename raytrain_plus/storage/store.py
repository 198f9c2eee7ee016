"""A folder of objects at any fsspec URL; a fault of the store is retried, and then reported.

A request that stalls, is cut short, reset or refused is made again, with growing breaks, until a
deadline has passed without a byte of progress. Each request runs in a thread of its own, which is
abandoned if it stalls, because the timeouts of the libraries add up to minutes.
"""

import contextlib
import copy
import hashlib
import os
import random
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pyarrow.fs

from raytrain_plus.redaction import redact, secrets_of
from raytrain_plus.storage import atomic_files
from raytrain_plus.storage.atomic_files import Content
from raytrain_plus.storage.errors import (
    ExistsError,
    StorageError,
    StoreError,
    advice_on,
    code_of,
    is_denied,
    is_failed_precondition,
    is_mistyped,
)
from raytrain_plus.storage.locations import file_system, local_path

T = TypeVar("T")

_LARGEST_READ = 16 << 20  # bytes asked for at once: what arrives before a fault is kept
_SMALLEST_READ = 64 << 10
_FIRST_BREAK, _LONGEST_BREAK = 0.05, 5.0  # seconds
_WHOLE_TRIES = 4  # reads of a file whose hash is wrong
_SLOWEST_WRITE = 4 << 20  # bytes per second; a write that is slower has stalled
_LOOK = 0.05  # seconds between two checks whether a read was cancelled


class InterruptedReadError(RuntimeError):
    """A read was cancelled: its data is not wanted any more."""


def store_of(folder: "Folder") -> "Store":
    """Return a run's folder as a store, wherever it is."""
    return folder if isinstance(folder, Store) else Store(folder)


@dataclass(frozen=True)
class Stat:
    """What a store says of an object.

    Attributes:
        size: its bytes.
        validator: what changes with its content: a hash, tag, version or time. Empty where the
            store has none of these: then a change that keeps the size is not noticed.
        exact: the same, and of a local file its inode, which differs between machines.
    """

    size: int
    validator: str
    exact: str


# The names that file systems give it, in lower case without separators, by kind. The first kind
# that a file system has is used.
_VALIDATORS = (
    {"md5", "md5hash", "md5checksum", "contentmd5", "contenthash", "digest", "sha", "sha1",
     "sha256", "blobid", "hex", "crc32c", "crc"},
    {"etag", "versionid", "generation"},
    {"lastmodified", "modified", "modifiedtime", "modificationtime", "datemodified", "mtime",
     "timemodified", "lastwritetime", "updated", "modify", "datetime", "created"},
)  # fmt: skip


def _validator(info: Mapping[str, Any]) -> str:
    """Return what a file system says of an object that changes with its content."""
    said = {re.sub(r"[^a-z0-9]", "", str(key).lower()): value for key, value in info.items()}
    for kind in _VALIDATORS:
        found = [f"{key} {said[key]}" for key in sorted(kind & said.keys()) if said[key]]
        if found:
            return ", ".join(found)
    return ""


def stat_of(path: Path) -> Stat:
    """Return what the file system of this machine says of a file.

    Raises:
        OSError: it is not there.
    """
    found = path.stat()
    validator = f"mtime {found.st_mtime_ns}"
    return Stat(found.st_size, validator, f"{validator}, inode {found.st_ino}")


class Store:
    """A folder at an fsspec URL.

    Args:
        url: `s3://bucket/folder`, `file:///folder`, a path, or any other that fsspec knows.
        options: passed to fsspec's filesystem, such as `{"endpoint_url": ...}` for s3.
        deadline: seconds without progress after which a read or write fails for good.
        stall: seconds after which one request is abandoned and made again.
        part: bytes; a larger object is written in parts of this size.

    Raises:
        StorageError: the scheme of the URL is unknown, or its library is not installed.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        options: Mapping[str, Any] | None = None,
        *,
        deadline: float = 60.0,
        stall: float = 10.0,
        part: int = 32 << 20,
    ) -> None:
        self.part = part
        self.options = dict(options or {})
        self.deadline, self.stall = deadline, min(stall, deadline)
        path = local_path(url)
        self.is_local = path is not None
        self.url = path.as_uri() if path is not None else os.fspath(url).rstrip("/")
        self._fs, self._root = file_system(self.url, self.options)

    @property
    def local_path(self) -> Path:
        """Where a local store is."""
        return Path(self._root)

    @property
    def location(self) -> Path | str:
        """Where the folder is: the path of a local store, the URL of any other."""
        return self.local_path if self.is_local else self.url

    def for_arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Return the file system and the path by which pyarrow reads this folder."""
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs)), self._root

    def __str__(self) -> str:
        return redact(str(self.location))

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.url.rpartition("/")[2] if not self.is_local else self.local_path.name

    @property
    def parent(self) -> str:
        """The path or URL of the folder that this one is in."""
        return str(self.local_path.parent) if self.is_local else self.url.rpartition("/")[0]

    def within(self, deadline: float) -> "Store":
        """Return the same folder with another deadline for a request, in seconds."""
        found = copy.copy(self)
        found.deadline, found.stall = deadline, min(self.stall, deadline)
        return found

    def where(self, name: str) -> str:
        """Return the path or URL of one object, for people."""
        return str(self.local_path / name) if self.is_local else f"{self.url}/{name}"

    def inside(self, folder: str) -> "Store":
        """Return the store of a direct subfolder; StoreError if the name is not that of one."""
        if folder in ("", ".", "..") or "/" in folder or "\0" in folder:
            raise StoreError(f"{folder!r} is no name of a folder in {self.url}")
        found = copy.copy(self)
        root = found._root = self._path(folder)  # noqa: SLF001
        found.url = Path(root).as_uri() if self.is_local else f"{self.url}/{folder}"
        return found

    def read(
        self,
        name: str,
        size: int | None = None,
        sha256: str | None = None,
        *,
        cancelled: threading.Event | None = None,
    ) -> bytes:
        """Return the bytes of an object.

        Args:
            name: its name in the folder.
            size: how many bytes it has; None asks the store.
            sha256: the SHA-256 that they must have, in hex.
            cancelled: when it is set, the read ends at once.

        Raises:
            StoreError: it is absent, or has other bytes, until the deadline.
            InterruptedReadError: `cancelled` was set.
        """
        for _ in range(_WHOLE_TRIES):
            if size is None:
                content = self._insist(lambda: bytes(self._cat(name)), name, cancelled)
            else:
                content = b"".join(self.read_parts(name, size, cancelled))
            if sha256 is None or hashlib.sha256(content).hexdigest() == sha256:
                return content
        raise StoreError(
            f"{self.where(name)} was read {_WHOLE_TRIES} times with other bytes than its manifest "
            "names: it is damaged in the store, or was overwritten. Run `raytrain-plus data "
            "verify` on the data set, and write it again."
        )

    def read_parts(
        self, name: str, size: int, cancelled: threading.Event | None = None
    ) -> Iterator[bytes]:
        """Yield the bytes of an object in order, of which a part at a time is in memory.

        Args:
            name: its name in the folder.
            size: how many bytes it has.
            cancelled: when it is set, the read ends at once.

        Raises:
            StoreError: it is absent, or shorter, until the deadline.
            InterruptedReadError: `cancelled` was set.
        """
        done, step = 0, _LARGEST_READ

        def read() -> bytes:
            nonlocal step
            end = min(size, done + step)
            # If this read fails, the link may be slow: the next one is smaller.
            step = max(_SMALLEST_READ, step // 2)
            got = self._cat(name, done, end)
            if len(got) != end - done and self.is_local:  # a store may cut an answer short
                raise StoreError(
                    f"{self.where(name)} is cut short: it has fewer bytes than the {size:,} that "
                    "its manifest names. Copy or write it again."
                )
            if len(got) != end - done:
                raise OSError(f"{len(got)} bytes arrived of {end - done} that were requested")
            step = _LARGEST_READ
            return got

        while done < size:
            got = self._insist(read, name, cancelled)
            done += len(got)
            yield got

    def find(self, name: str) -> bytes | None:
        """Return the bytes of an object that nothing promises; None if it is not there.

        Raises:
            StoreError: the store cannot be read.
        """

        def found() -> bytes | None:
            try:
                return self._cat(name)
            except FileNotFoundError as error:
                if code_of(error) == "NoSuchBucket":
                    raise
                return None

        return self._insist(found, name, None)

    def touch(self, name: str) -> None:
        """Make an empty object, or renew the time of one.

        Raises:
            StoreError: it cannot be written.
        """
        if not self.is_local:
            self.write(name, b"")
            return
        path = self.local_path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error}") from error

    def age(self, name: str) -> float | None:
        """Return the seconds since an object was written or touched; None if it is not there.

        Both times come from the store, so that the clocks of the hosts do not matter.

        Raises:
            StoreError: the store cannot be used, or keeps no times.
        """
        clock = f".clock-{uuid.uuid4().hex}"
        if (then := self._time_of(name)) is None:
            return None
        try:
            self.touch(clock)
            now = self._time_of(clock)
        finally:
            with contextlib.suppress(StorageError):
                self.delete(clock)
        return max(0.0, now - then) if now is not None else 0.0

    def check_times(self) -> None:
        """Test whether the store tells when an object was written.

        Raises:
            StoreError: it does not, or cannot be used.
        """
        name = f".probe-{uuid.uuid4().hex}"
        self.touch(name)
        try:
            self.age(name)
        finally:
            with contextlib.suppress(StorageError):
                self.delete(name)

    def _time_of(self, name: str) -> float | None:
        def asked() -> float | None:
            try:
                return float(self._fs.modified(self._path(name)).timestamp())
            except NotImplementedError:
                raise StoreError(f"{self} does not tell when an object was written") from None
            except FileNotFoundError as error:
                if code_of(error) == "NoSuchBucket":
                    raise
                return None

        return self._insist(asked, name, None)

    def exists(self, name: str) -> bool:
        """Say whether there is such an object."""
        return self._insist(lambda: bool(self._fs.exists(self._path(name))), name, None)

    def is_file(self) -> bool:
        """Say whether this is an object itself, and no folder of them."""
        return self._insist(lambda: bool(self._fs.isfile(self._root)), "", None)

    def names(self) -> list[str]:
        """Return the names of all objects directly in the folder, sorted.

        Raises:
            StoreError: the folder cannot be listed, or is not there.
        """
        return sorted(n for n, entry in self._entries().items() if entry["type"] == "file")

    def paths(self) -> list[str]:
        """Return the paths of all objects in the folder and below, sorted.

        Raises:
            StoreError: the folder cannot be listed, or is not there.
        """
        prefix = self._root.rstrip("/") + "/"

        def listed() -> list[str]:
            found = (path for path in self._fs.find(self._root) if path.startswith(prefix))
            return sorted(path[len(prefix) :] for path in found if not path.endswith("/"))

        return self._insist(listed, "", None, absent_is_final=True)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of all objects directly in the folder by name; none if it is not there.

        Raises:
            StoreError: the folder cannot be listed.
        """
        entries = self._entries(absent={})
        return {n: int(entries[n]["size"]) for n in sorted(entries) if entries[n]["type"] == "file"}

    def folders(self) -> list[str]:
        """Return the names of the folders directly in this one, sorted; none if it is not there.

        Raises:
            StoreError: the folder cannot be listed.
        """
        entries = self._entries(absent={})
        return sorted(n for n, entry in entries.items() if entry["type"] == "directory")

    def stat(self, name: str) -> "Stat":
        """Return an object's bytes, and what the store says of it that changes with its content.

        Raises:
            StoreError: it is not there, or the store cannot be reached.
        """
        if self.is_local:
            try:
                return stat_of(self.local_path / name)
            except OSError as error:
                raise StoreError(f"{self.where(name)} cannot be read: {error}") from error
        info = self._insist(
            lambda: dict(self._fs.info(self._path(name))), name, None, absent_is_final=True
        )
        validator = _validator(info)
        return Stat(int(info["size"]), validator, validator)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end` (exclusive) of an object."""
        return self._insist(lambda: self._cat(name, start, end), name, None)

    def write(
        self, name: str, content: Content, *, cancelled: threading.Event | None = None
    ) -> None:
        """Write an object atomically: it is complete or absent.

        Args:
            name: its name in the folder, which is made if it is not there.
            content: bytes, or views of memory, of which at most some parts are copied at a time.
                They must not change before this function returns.
            cancelled: when it is set, no further try is made.

        Raises:
            StoreError: it cannot be written within the deadline.
            InterruptedReadError: `cancelled` was set.
        """
        if self.is_local:
            self._write_locally(atomic_files.write, name, content)
            return
        views = [memoryview(content)] if isinstance(content, bytes) else content
        size = sum(view.nbytes for view in views)
        over = threading.Event()  # an abandoned upload must not go on with memory that is reused

        def write() -> None:
            if size > self.part:
                self._upload(name, views, over)
            else:
                self._fs.pipe_file(self._path(name), b"".join(views))

        try:
            stall = self.stall + size / _SLOWEST_WRITE
            self._insist(write, name, cancelled, stall=stall)
        finally:
            over.set()

    def create(self, name: str, content: bytes) -> None:
        """Write an object that must not exist yet. If two try at once, one of them succeeds.

        Raises:
            ExistsError: it exists.
            StoreError: it cannot be written within the deadline.
        """
        if self.is_local:
            self._write_locally(atomic_files.create, name, content)
            return
        self._insist(lambda: self._put_new(name, content), name, None)

    def delete(self, name: str) -> None:
        """Delete an object, if it is there.

        Raises:
            StoreError: it cannot be deleted within the deadline.
        """

        def gone() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

        self._insist(gone, name, None)

    def clear(self) -> None:
        """Delete the folder with all that is in it, if it is there.

        Raises:
            StoreError: something in it cannot be deleted within the deadline.
        """
        if self.is_local:
            try:
                shutil.rmtree(self.local_path)
            except FileNotFoundError:
                return
            except OSError as error:
                raise StoreError(f"{self.url} cannot be deleted: {error}") from error
            return
        for folder in self.folders():
            self.inside(folder).clear()
        for name in self.sizes():
            self.delete(name)

        def forget() -> None:
            with contextlib.suppress(OSError):
                self._fs.rm_file(f"{self._root}/")  # see `_entries`

        self._insist(forget, "", None)

    def creates_conditionally(self) -> bool:
        """Test whether `create` fails in this store if the object exists; some ignore that."""
        if self.is_local:
            return True
        name = f".probe-{uuid.uuid4().hex}"
        self.write(name, b"probe")
        try:
            self.create(name, b"probe")
        except ExistsError:
            return True
        finally:
            with contextlib.suppress(StorageError):
                self.delete(name)
        return False

    # -- one request

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    def _cat(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        content: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
        return content

    def _entries(self, *, absent: Any = None) -> dict[str, dict[str, Any]]:
        """Return what the store says of each entry; `absent` if the folder is not there."""

        def listed() -> dict[str, dict[str, Any]]:
            try:
                entries = self._fs.ls(self._root, detail=True, refresh=True)
            except FileNotFoundError as error:
                if absent is None or code_of(error) == "NoSuchBucket":
                    raise
                return dict(absent)
            # Some servers keep an empty folder, or the folder itself, as an object with a slash.
            real = [e for e in entries if e["type"] != "file" or not e["name"].endswith("/")]
            return {e["name"].rstrip("/").rsplit("/", 1)[-1]: e for e in real}

        return self._insist(listed, "", None, absent_is_final=True)

    def _write_locally(
        self, how: Callable[[Path, Content], None], name: str, content: Content
    ) -> None:
        try:
            how(self.local_path / name, content)
        except FileExistsError as error:
            raise ExistsError(f"{self.where(name)} exists already") from error
        except OSError as error:
            raise StoreError(f"{self.where(name)} cannot be written: {error}") from error

    def _upload(self, name: str, content: Sequence[memoryview], over: threading.Event) -> None:
        """Write an object in parts; it is there when the file is closed, in stores that can."""
        file = self._fs.open(self._path(name), "wb", block_size=self.part)
        try:
            for view in content:
                flat = view.cast("B")
                for start in range(0, flat.nbytes, self.part):
                    if over.is_set():
                        raise InterruptedReadError(name)
                    file.write(flat[start : start + self.part])
            if over.is_set():
                raise InterruptedReadError(name)
            file.close()
        except BaseException:
            with contextlib.suppress(Exception):
                file.discard()
            with contextlib.suppress(Exception):
                file.closed = True  # or the end of its life would write what is there
            raise

    def _put_new(self, name: str, content: bytes) -> None:
        try:
            self._fs.pipe_file(self._path(name), content, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or is_failed_precondition(error):
                raise ExistsError(f"{self.where(name)} exists already") from error
            raise

    def _insist(
        self,
        request: Callable[[], T],
        name: str,
        cancelled: threading.Event | None,
        *,
        absent_is_final: bool = False,
        stall: float | None = None,
    ) -> T:
        """Repeat a request until it succeeds or the deadline has passed.

        An object that a manifest names may appear later, so its absence is retried. With
        `absent_is_final`, nothing promises the object, and its absence is an error at once.
        """
        until = time.monotonic() + self.deadline
        pause, tries = _FIRST_BREAK, 0
        while True:
            tries += 1
            try:
                return _within(request, stall or self.stall, cancelled)
            except (StorageError, InterruptedReadError):
                raise
            except Exception as error:
                absent = absent_is_final and isinstance(error, FileNotFoundError)
                if (final := absent or self._is_final(error)) or time.monotonic() + pause > until:
                    told = str(error) or type(error).__name__
                    after = "" if final else f" {tries} times within {self.deadline:g} s"
                    said = (
                        f"{self.where(name)} could not be reached{after}: {told}"
                        f"{advice_on(error, self.options)}"
                    )
                    raise StoreError(redact(said, secrets_of(self.options))) from error
            if (cancelled or threading.Event()).wait(pause * random.uniform(0.5, 1.0)):
                raise InterruptedReadError(name)
            pause = min(_LONGEST_BREAK, 2 * pause)

    def _is_final(self, error: BaseException) -> bool:
        """Say whether a retry cannot succeed."""
        if isinstance(error, FileNotFoundError):
            return self.is_local or code_of(error) == "NoSuchBucket"
        hopeless = isinstance(error, NotADirectoryError | IsADirectoryError)
        return hopeless or is_denied(error) or is_mistyped(error)


def _within(request: Callable[[], T], seconds: float, cancelled: threading.Event | None) -> T:
    """Return the result of a request; abandons a request that takes too long."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(request())
        except BaseException as error:  # noqa: BLE001 - the thread that waits must see it
            future.set_exception(error)

    threading.Thread(target=run, name="raytrain_plus store", daemon=True).start()
    until = time.monotonic() + seconds
    while True:
        try:
            return future.result(_LOOK if cancelled else seconds)
        except FutureTimeoutError:
            if future.done():
                raise  # the request's own
            if cancelled is not None and cancelled.is_set():
                raise InterruptedReadError from None
            if time.monotonic() >= until:
                raise OSError(f"no answer within {seconds:g} s") from None


Folder: TypeAlias = Path | Store
"""Where a run lives: a local or shared folder, or a folder in an object store."""

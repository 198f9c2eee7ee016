"""A folder of objects at any fsspec URL, read and written so that no fault passes unseen.

A store that stalls, cuts short, resets or refuses is asked again, with longer and longer breaks,
until a deadline of our own has passed without a byte of progress. Every request runs in a thread
of its own that is left behind when it stalls: the libraries' own timeouts multiply to minutes.
"""

import contextlib
import hashlib
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from raytrain_plus.streams.columns import DataError

T = TypeVar("T")

_LARGEST_READ = 16 << 20  # bytes asked for at once: what arrives before a fault is kept
_SMALLEST_READ = 64 << 10
_FIRST_BREAK, _LONGEST_BREAK = 0.05, 5.0  # seconds
_WHOLE_TRIES = 4  # of a file whose bytes all came, and were not those that the manifest names
_LOOK = 0.05  # seconds between two looks at whether the reader has gone away


class StoreError(DataError):
    """A store did not give what it should within the deadline; the message says what it said."""


class ExistsError(DataError):
    """What was to be created is there already."""


class InterruptedReadError(RuntimeError):
    """Whoever wanted the data does not want it any more."""


class Store:
    """A folder at an fsspec URL.

    Args:
        url: `s3://bucket/folder`, `file:///folder`, a path, or any other that fsspec knows.
        options: passed to fsspec's filesystem, such as `{"endpoint_url": ...}` for s3.
        deadline: seconds without progress after which a read or write fails for good.
        stall: seconds after which one request is given up and made again.

    Raises:
        DataError: the URL is of a kind that is not known or whose library is not installed.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        options: Mapping[str, Any] | None = None,
        *,
        deadline: float = 60.0,
        stall: float = 10.0,
    ) -> None:
        self.url = os.fspath(url).rstrip("/")
        if "://" not in self.url:
            self.url = Path(self.url).absolute().as_uri()
        self.options = dict(options or {})
        self.deadline, self.stall = deadline, min(stall, deadline)
        protocol = self.url.split("://", maxsplit=1)[0]
        defaults: dict[str, Any] = {"use_listings_cache": False} if protocol == "s3" else {}
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **{**defaults, **self.options})
        except (ImportError, ValueError) as error:
            raise DataError(f"{self.url} cannot be read: {error}") from error
        self.is_local = protocol in ("file", "local")

    @property
    def local_path(self) -> Path:
        """Where a local store is."""
        return Path(self._root)

    def where(self, name: str) -> str:
        """Return the URL of one object."""
        return f"{self.url}/{name}"

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
            sha256: what they must hash to, in hex.
            cancelled: when it is set, the read ends at once.

        Raises:
            StoreError: it is not there, or not as it should be, within the deadline.
            InterruptedReadError: `cancelled` was set.
        """
        for _ in range(_WHOLE_TRIES):
            if size is None:
                content = self._insist(lambda: bytes(self._cat(name)), name, cancelled)
            else:
                content = self._read_ranges(name, size, cancelled)
            if sha256 is None or hashlib.sha256(content).hexdigest() == sha256:
                return content
        raise StoreError(
            f"{self.where(name)} came {_WHOLE_TRIES} times with other bytes than its manifest "
            "names: it is damaged where it is stored, or was written over. Run `raytrain-plus data "
            "verify` on the data set, and write it again."
        )

    def exists(self, name: str) -> bool:
        """Say whether there is such an object."""
        return self._insist(lambda: bool(self._fs.exists(self._path(name))), name, None)

    def names(self) -> list[str]:
        """Return the names of all objects that stand directly in the folder, sorted.

        Raises:
            StoreError: the folder cannot be listed, or is not there.
        """

        def listed() -> list[str]:
            entries = self._fs.ls(self._root, detail=True, refresh=True)
            return sorted(
                e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "file"
            )

        return self._insist(listed, "", None, absent_is_final=True)

    def stat(self, name: str) -> tuple[int, str]:
        """Return an object's bytes, and what the store says of it that changes with its content."""
        info = self._insist(lambda: dict(self._fs.info(self._path(name))), name, None)
        told = [info.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "size")]
        return int(info["size"]), ":".join(str(one) for one in told if one is not None)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end` (exclusive) of an object."""
        return self._insist(lambda: self._cat(name, start, end), name, None)

    def write(self, name: str, content: bytes) -> None:
        """Write an object: it is there as a whole or not at all.

        Raises:
            StoreError: it cannot be written within the deadline.
        """
        if self.is_local:
            with self._local_temporary(name, content) as temporary:
                temporary.replace(self.local_path / name)
            return
        self._insist(lambda: self._fs.pipe_file(self._path(name), content), name, None)

    def create(self, name: str, content: bytes) -> None:
        """Write an object that must not be there yet; of two that try at once, one wins.

        Raises:
            ExistsError: it is there already.
            StoreError: it cannot be written within the deadline.
        """
        if self.is_local:
            with self._local_temporary(name, content) as temporary:
                try:
                    os.link(temporary, self.local_path / name)
                except FileExistsError as error:
                    raise ExistsError(f"{self.where(name)} is there already") from error
            return
        self._insist(lambda: self._put_new(name, content), name, None)

    def creates_conditionally(self) -> bool:
        """Find out whether `create` is kept by the store, by trying; some ignore the condition."""
        if self.is_local:
            return True
        name = f".probe-{uuid.uuid4().hex}"
        self.write(name, b"probe")
        try:
            self.create(name, b"probe")
        except ExistsError:
            return True
        finally:
            with contextlib.suppress(DataError):
                self._insist(lambda: self._fs.rm_file(self._path(name)), name, None)
        return False

    # -- one request

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    def _cat(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        content: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
        return content

    def _put_new(self, name: str, content: bytes) -> None:
        try:
            self._fs.pipe_file(self._path(name), content, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _is_failed_precondition(error):
                raise ExistsError(f"{self.where(name)} is there already") from error
            raise

    def _read_ranges(self, name: str, size: int, cancelled: threading.Event | None) -> bytes:
        content = bytearray(size)
        done, step = 0, _LARGEST_READ

        def read() -> bytes:
            nonlocal step
            end = min(size, done + step)
            step = max(_SMALLEST_READ, step // 2)  # should this one fail: a slow link has to do
            got = self._cat(name, done, end)
            if len(got) != end - done:
                raise OSError(f"{end - done} bytes were asked for, and {len(got)} came")
            step = _LARGEST_READ
            return got

        while done < size:
            got = self._insist(read, name, cancelled)
            content[done : done + len(got)] = got
            done += len(got)
        return bytes(content)

    def _insist(
        self,
        request: Callable[[], T],
        name: str,
        cancelled: threading.Event | None,
        *,
        absent_is_final: bool = False,
    ) -> T:
        """Make a request again and again, until it succeeds or the deadline has passed.

        What a manifest names and is not there may be about to appear; else nothing says so, and
        `absent_is_final`.
        """
        until = time.monotonic() + self.deadline
        pause, tries = _FIRST_BREAK, 0
        while True:
            tries += 1
            try:
                return _within(request, self.stall, cancelled)
            except (ExistsError, InterruptedReadError):
                raise
            except Exception as error:
                absent = absent_is_final and isinstance(error, FileNotFoundError)
                if (final := absent or self._is_final(error)) or time.monotonic() + pause > until:
                    told = str(error) or type(error).__name__
                    after = "" if final else f" {tries} times within {self.deadline:g} s"
                    raise StoreError(
                        f"{self.where(name)} could not be reached{after}: {told}{_advice(error)}"
                    ) from error
            if (cancelled or threading.Event()).wait(pause * random.uniform(0.5, 1.0)):
                raise InterruptedReadError(name)
            pause = min(_LONGEST_BREAK, 2 * pause)

    def _is_final(self, error: BaseException) -> bool:
        """Say whether asking again is in vain."""
        if isinstance(error, FileNotFoundError):
            return self.is_local or _code(error) == "NoSuchBucket"
        return _is_denied(error) or isinstance(error, NotADirectoryError | IsADirectoryError)

    @contextlib.contextmanager
    def _local_temporary(self, name: str, content: bytes) -> Any:
        folder = self.local_path
        temporary = folder / f".{name}-{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        except OSError as error:
            raise StoreError(f"{self.where(name)} cannot be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)


def _within(request: Callable[[], T], seconds: float, cancelled: threading.Event | None) -> T:
    """Return what a request gives; leaves it behind when it takes too long."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(request())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it must see it
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


def _code(error: BaseException) -> str:
    """Return what a store calls the error, if it is one of botocore's."""
    for one in (error, error.__cause__, error.__context__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _is_failed_precondition(error: BaseException) -> bool:
    return _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict")


def _is_denied(error: BaseException) -> bool:
    return isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError"


def _advice(error: BaseException) -> str:
    if _is_denied(error):
        return (
            ". Check the credentials and their rights, on every node: the environment, the "
            "store's own configuration files, or `storage_options`."
        )
    if isinstance(error, FileNotFoundError):
        return ". Check the URL: there is no such bucket, folder or object."
    return ". Check the network and the store."

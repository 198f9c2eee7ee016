"""Files that a process writes for a run's folder in an object store: first here, then there.

What a worker prints, traces and the files of loggers are written to a folder of the node, in which
each process of the run has a folder of its own. A thread copies what has changed to the run's
folder: small files within seconds, large ones less often. A process that is killed leaves its
folder behind. Another process of the run on the node then copies what is left, and removes it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raytrain_plus.storage import atomic_files
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.store import Folder, Store

_LOOK = 2.0  # seconds between two looks at the files
_RATE = 200e3  # bytes per second at which a file that grows is copied again and again
_PATIENCE = 10.0  # seconds for a request
_END_SECONDS, _END_LOOK = 10.0, 0.1  # seconds to wait for other processes at the end
_ABANDONED = 7 * 86400.0  # seconds after which files that no run has fetched are removed
_LOCK = ".lock"
_LOGS = "logs"


def folder_of(run_id: str) -> Path:
    """Return the folder of a node in which the processes of a run have their folders."""
    return Path(tempfile.gettempdir()) / f"raytrain_plus-runs-{os.getuid()}" / run_id


@contextlib.contextmanager
def staged(folder: Folder, local: Path) -> Iterator[None]:
    """Copy what is written to a process's folder to the run's folder, until the block ends.

    Args:
        folder: the run's. If it is a path, files are written there directly, and this does nothing.
        local: the process's folder on this node.
    """
    if isinstance(folder, Path):
        yield
        return
    staging = Staging(folder.within(_PATIENCE), local)
    try:
        yield
    finally:
        staging.close()


@dataclass(frozen=True)
class StoredFile:
    """A file in a run's folder in an object store, of which each node makes one copy.

    Attributes:
        store: the run's folder.
        name: the file's name in it.
        run_id: the run's id.
    """

    store: Store
    name: str
    run_id: str

    def fetch(self) -> Path:
        """Return this node's copy; it lasts as long as a process of the run here.

        Raises:
            OSError: it cannot be written.
            StoreError: it cannot be read.
        """
        path = folder_of(self.run_id) / self.name
        if not path.exists():
            atomic_files.write(path, self.store.read(self.name))
        return path


def finish(folder: Folder, run: Path, seconds: float = _END_SECONDS) -> None:
    """Copy what the processes of a run have left on this node, after its end.

    Args:
        folder: the run's. If it is a path, this does nothing.
        run: the folder of `folder_of`.
        seconds: to wait for processes that are about to end, and copy their files themselves.
    """
    if isinstance(folder, Path):
        return
    until = time.monotonic() + seconds
    while _folders(run):
        _adopt(folder.within(_PATIENCE), run)
        if not _folders(run) or time.monotonic() > until:
            break
        time.sleep(_END_LOOK)
    _remove_if_unused(run)


class Staging:
    """Copies the files of one process.

    Args:
        store: the run's folder.
        local: the process's folder on this node; it is made.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, store: Store, local: Path) -> None:
        self._store = store
        self._local = local
        self._copies = _Copies(store, local)
        local.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(local)
        _remove_abandoned(local.parent.parent, time.time())
        self._go_on_behind_earlier_logs()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="raytrain_plus staging")
        self._thread.start()

    def close(self) -> None:
        """Copy the rest, and remove the folder."""
        self._over.set()
        self._thread.join(6 * _PATIENCE)
        if self._thread.is_alive():
            return  # the store does not answer; the files stay here
        if self._copies.all():
            shutil.rmtree(self._local, ignore_errors=True)
        os.close(self._lock)
        _adopt(self._store, self._local.parent)
        _remove_if_unused(self._local.parent)

    def _run(self) -> None:
        while not self._over.wait(_LOOK):
            self._copies.due(time.monotonic())
            _adopt(self._store, self._local.parent)

    def _go_on_behind_earlier_logs(self) -> None:
        """Let the process continue behind the logs of the same name that the run has already."""
        worker = self._local.name
        with contextlib.suppress(StorageError, OSError):
            names = [n.split(".") for n in self._store.inside(_LOGS).sizes()]
            there = [parts for parts in names if parts[0] == worker and parts[-1] == "log"]
            numbers = [int(p[1]) for p in there if len(p) == 3 and p[1].isdecimal()]
            if there:
                logs = self._local / _LOGS
                logs.mkdir(exist_ok=True)
                (logs / f"{worker}.{max(numbers, default=0) + 1}.log").touch()


class _Copies:
    """The copies of a folder's files in a store; names that begin with a dot have none."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._copied: dict[Path, tuple[int, int]] = {}  # bytes, time of the last change
        self._due: dict[Path, float] = {}

    def due(self, now: float) -> None:
        """Copy files that have changed, large ones less often.

        Args:
            now: monotonic seconds.
        """
        for path, state in self._changed():
            if now >= self._due.get(path, now):
                self._due[path] = now + state[0] / _RATE
                with contextlib.suppress(OSError, StorageError):  # it is tried again
                    self._copy(path, state)

    def all(self) -> bool:
        """Copy all files that have changed; returns whether that has worked."""
        try:
            for path, state in self._changed():
                self._copy(path, state)
        except (OSError, StorageError):
            return False
        return True

    def _changed(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        for path in sorted(self._folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                if not path.name.startswith(".") and path.is_file() and not path.is_symlink():
                    stat = path.stat()
                    state = stat.st_size, stat.st_mtime_ns
                    if stat.st_size and self._copied.get(path) != state:
                        yield path, state

    def _copy(self, path: Path, state: tuple[int, int]) -> None:
        self._store.write(path.relative_to(self._folder).as_posix(), path.read_bytes())
        self._copied[path] = state


def _adopt(store: Store, run: Path) -> None:
    """Copy and remove the folders of processes that were killed."""
    for folder in _folders(run):
        if (lock := _try_lock(folder)) is not None:
            try:
                if _Copies(store, folder).all():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _folders(run: Path) -> list[Path]:
    try:
        return sorted(path for path in run.iterdir() if (path / _LOCK).exists())
    except OSError:
        return []


def _locked(local: Path) -> int:
    """Make a process's folder, and lock it; returns the lock, which ends with the process."""
    while True:
        local.mkdir(exist_ok=True, mode=0o700)
        lock = os.open(local / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if (local / _LOCK).stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)  # another process has removed what was left of an earlier one


def _try_lock(local: Path) -> int | None:
    """Lock the folder of a process that has ended; None if it lives."""
    try:
        lock = os.open(local / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _remove_abandoned(root: Path, now: float) -> None:
    """Remove what killed processes of other runs have left, if no resume has needed it for long."""
    with contextlib.suppress(OSError):
        for run in root.iterdir():
            newest = max(path.lstat().st_mtime for path in [run, *run.rglob("*")])
            if now - newest < _ABANDONED:
                continue
            locks = [_try_lock(folder) for folder in _folders(run)]
            if None not in locks:
                shutil.rmtree(run, ignore_errors=True)
            for lock in locks:
                if lock is not None:
                    os.close(lock)


def _remove_if_unused(run: Path) -> None:
    """Remove a run's folder on this node once no process of the run has one in it."""
    if not _folders(run):
        shutil.rmtree(run, ignore_errors=True)

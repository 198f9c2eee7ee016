"""Feeds a run's loggers, in an actor of its own on the coordinator's node.

The coordinator never waits for it while the run lives. It reads from the actor's files how far the
loggers are, and writes each trouble to the journal once.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from raytrain_plus.elastic.protocol.messages import RunSpec, import_first
from raytrain_plus.loggers.feed import Feed, await_all, read_cursor
from raytrain_plus.observe import journal
from raytrain_plus.observe.stored_journal import grown_at, journal_of
from raytrain_plus.storage.staging import staged
from raytrain_plus.storage.store import Folder

_LOOK = 1.0  # seconds between two looks at the loggers' troubles
_LOOK_IN_STORE = 10.0  # the same in an object store, where each look is a request
_CLOSE_SECONDS = 20.0  # for loggers to copy their files to an object store
_HANGS = 60.0  # seconds with new events and without progress, after which a logger is named


class LoggerProcess:
    """Feeds loggers, each from a thread of its own.

    Args:
        loggers: pickled.
        names: of them, in the run.
        folder: the run's.
        files: a folder of this node, whose files get into the run's folder.
        group: its sweep, or None.
        import_paths: folders to import their classes from.
    """

    def __init__(
        self,
        loggers: bytes,
        names: Sequence[str],
        folder: Folder,
        files: Path,
        group: str | None,
        import_paths: Sequence[str],
    ) -> None:
        import_first(import_paths)
        self._over = threading.Event()
        self._staging = contextlib.ExitStack()
        self._staging.enter_context(staged(folder, files))
        for i, name in enumerate(names):
            feed = Feed(name, partial(_made, loggers, i), folder, group, files=files)
            threading.Thread(
                target=feed.run, args=(self._over.wait,), daemon=True, name=name
            ).start()

    def close(self) -> None:
        """End, without waiting for a logger that hangs."""
        self._over.set()
        self._staging.close()


def _made(loggers: bytes, i: int) -> Any:
    return cloudpickle.loads(loggers)[i]


@contextlib.contextmanager
def fed_loggers(spec: RunSpec, warn: Callable[[str], None]) -> Iterator[None]:
    """Feed a run's loggers while the block runs, and until they have written its end.

    Args:
        spec: the run.
        warn: writes a warning to the run's journal.
    """
    if not spec.logger_names:
        yield
        return
    try:
        close = _started_here(spec) if spec.is_local else _started(spec)
    except Exception:  # the run matters more than any error here
        logging.getLogger(__name__).warning("no logger of the run is fed", exc_info=True)
        yield
        return
    over = threading.Event()
    watch = _Watch(spec, warn)
    threading.Thread(target=watch.run, args=(over,), daemon=True, name="loggers").start()
    try:
        yield
        end = journal.newest(journal_of(spec.folder), {"end"}).get("end")
        if end is not None:
            await_all(spec.folder, spec.logger_names, end.get("time", 0.0))
    finally:
        over.set()
        with contextlib.suppress(ray.exceptions.RayError):
            close()


def _started_here(spec: RunSpec) -> Callable[[], None]:
    """Feed the loggers from threads of this process, which is the only one of the run."""
    loggers, names, folder, files, group = _described(spec)
    return LoggerProcess(loggers, names, folder, files, group, ()).close


def _started(spec: RunSpec) -> Callable[[], None]:
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    process = (
        ray.remote(LoggerProcess)
        .options(num_cpus=0, memory=1, max_restarts=-1, scheduling_strategy=here)
        .remote(*_described(spec), spec.import_paths)
    )

    def close() -> None:
        if not isinstance(spec.folder, Path):  # its last files get there
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                ray.get(process.close.remote(), timeout=_CLOSE_SECONDS)
        ray.kill(process)

    return close


def _described(spec: RunSpec) -> tuple[bytes, Sequence[str], Folder, Path, str | None]:
    files = spec.output_folder("loggers")
    return spec.loggers, spec.logger_names, spec.folder, files, spec.group


class _Watch:
    """Writes to the journal, once for each logger, that it does not get on."""

    def __init__(self, spec: RunSpec, warn: Callable[[str], None]) -> None:
        self._spec = spec
        self._warn = warn
        self._named: set[str] = set()
        self._journal = journal_of(spec.folder)
        now = time.monotonic()
        self._moved = dict.fromkeys(spec.logger_names, (-1, now))

    def run(self, over: threading.Event) -> None:
        """Look until the run is over."""
        pause = _LOOK if isinstance(self._spec.folder, Path) else _LOOK_IN_STORE
        while not over.wait(pause):
            for name in self._spec.logger_names:
                why = self._trouble(name, time.monotonic())
                if why and name not in self._named:
                    self._named.add(name)
                    self._warn(f"logger {name}: {why}. It is tried again, and the run goes on")

    def _trouble(self, name: str, now: float) -> str:
        cursor = read_cursor(self._spec.folder, name)
        if cursor.trouble:
            return cursor.trouble
        position, since = self._moved[name]
        if cursor.position != position:
            self._moved[name] = cursor.position, now
        elif now - since > _HANGS:
            written = grown_at(self._journal)
            if time.time() - written < now - since - _LOOK:
                return f"it has not written anything for {now - since:.0f} s"
        return ""

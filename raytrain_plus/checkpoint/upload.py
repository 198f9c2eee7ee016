"""A worker's share of a checkpoint, written in the background while training goes on."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytrain_plus.algorithms import Aspect
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.files import CheckpointFile
from raytrain_plus.checkpoint.snapshot import Snapshot
from raytrain_plus.storage.store import Store
from raytrain_plus.training.state import Replica


@dataclass(frozen=True)
class Share:
    """What a worker reports of its share.

    Attributes:
        step: of the checkpoint.
        workers: the group that writes it, in its order.
        files: the files that it has written; None if it could not, or has only begun.
        state: what the first worker adds to the manifest.
        error: why it could not; empty if it has only begun.
        generation: in which the snapshot was taken.
    """

    step: int
    workers: Sequence[str]
    files: Sequence[CheckpointFile] | None = None
    state: dict[str, Any] | None = None
    error: str = ""
    generation: int = 0


class Uploads:
    """Takes snapshots and writes them, one at a time.

    A snapshot reuses the memory of the one before, unless that is still being written to a store
    that stalls. A new checkpoint cancels the one before.

    Args:
        store: where checkpoints are.
        aspects: the run's, for the manifest.
        tell: called with the share, from a thread.
        allowed: called before anything is written; raises if the run has another owner.
        header: the part of a manifest that describes the run.

    Attributes:
        store: where checkpoints are.
    """

    def __init__(
        self,
        store: Store,
        aspects: Sequence[Aspect],
        tell: Callable[[Share], None],
        allowed: Callable[[], None] = lambda: None,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        self.store = store
        self._header = header or {}
        self._aspects = aspects
        self._tell = tell
        self._allowed = allowed
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        self._spare: Snapshot | None = None

    def start(self, replica: Replica, share: int, workers: Sequence[str], generation: int) -> None:
        """Copy the replica's state and start to write it. Training waits for the copy only.

        Args:
            replica: between two steps.
            share: our place in `workers`.
            workers: the writers, in order.
            generation: the present one.
        """
        self._cancelled.set()
        self._cancelled = threading.Event()
        spare, self._spare = self._spare, None
        snapshot = Snapshot.of(replica, spare)
        told = Share(snapshot.step, workers, generation=generation)
        self._thread = threading.Thread(
            target=self._write,
            args=(snapshot, share, told, self._cancelled),
            daemon=True,
            name="raytrain_plus checkpoint",
        )
        self._thread.start()

    def write_alone(self, replica: Replica, store: Store | None = None) -> str:
        """Write a whole checkpoint in this process alone; returns its digest.

        Args:
            replica: between two steps.
            store: where to. Default: where the run's checkpoints are.

        Raises:
            CheckpointError: an update has failed, so that there is no state to keep.
            StoreError: it cannot be written.
        """
        self._cancelled.set()
        self._allowed()
        snapshot = Snapshot.of(replica)
        place = (store or self.store).inside(checkpointer.name_of(snapshot.step))
        files = checkpointer.write_share(place, snapshot, 0, 1)
        state = checkpointer.describe_state(snapshot, self._aspects)
        checkpointer.commit(place, {**self._header, **state}, files)
        return str(state["digest"])

    def finish(self, seconds: float) -> None:
        """Cancel what is being written, and wait for its end, for so many seconds at most."""
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _write(
        self, snapshot: Snapshot, share: int, told: Share, cancelled: threading.Event
    ) -> None:
        self._tell(told)
        try:
            self._allowed()
            place = self.store.inside(checkpointer.name_of(snapshot.step))
            files = checkpointer.write_share(place, snapshot, share, len(told.workers), cancelled)
            state = checkpointer.describe_state(snapshot, self._aspects) if share == 0 else None
            told = replace(told, files=files, state=state)
        except Exception as error:  # noqa: BLE001 - it is reported, and training goes on
            told = replace(told, error=str(error) or type(error).__name__)
        if not cancelled.is_set():
            self._spare = snapshot
            self._tell(told)

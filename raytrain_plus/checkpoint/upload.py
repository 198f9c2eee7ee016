"""A worker's share of a checkpoint, written in the background while training goes on."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytrain_plus.algorithms import Aspect
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.files import CheckpointFile, Layout, Limits, places_of
from raytrain_plus.checkpoint.snapshot import Snapshot, layout_of
from raytrain_plus.storage.store import Store
from raytrain_plus.training.state import Replica


@dataclass(frozen=True)
class Share:
    """What a writer reports of its share.

    Attributes:
        generation: in which the snapshot was taken. With `step` it names the checkpoint.
        step: after which the snapshot was taken.
        writers: how many workers write.
        files: the files that it has written; None if it could not, or has only begun.
        state: what the first writer adds to the manifest.
        error: why it could not; empty if it has only begun.
    """

    generation: int
    step: int
    writers: int
    files: Sequence[CheckpointFile] | None = None
    state: dict[str, Any] | None = None
    error: str = ""


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
        limits: sizes of files and number of writers. Default: see `Limits`.

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
        limits: Limits | None = None,
    ) -> None:
        self.store = store
        self._limits = limits
        self._header = header or {}
        self._aspects = aspects
        self._tell = tell
        self._allowed = allowed
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        self._spare: Snapshot | None = None

    def start(self, replica: Replica, place: int, nodes: Sequence[str], generation: int) -> None:
        """Copy the replica's state and start to write it, if this worker is a writer.

        Training waits for the copy only. The first writer reports at once that it has begun, and
        each writer reports when its files are written.

        Args:
            replica: between two steps.
            place: of this worker in the group.
            nodes: the node of each worker of the group, in order.
            generation: the present one.
        """
        self._cancelled.set()
        self._cancelled = threading.Event()
        spare, self._spare = self._spare, None
        layout = layout_of(replica, len(nodes), self._limits)
        places = places_of(len(layout.shares), nodes)
        if place not in places:
            return
        writer = places.index(place)
        snapshot = Snapshot.of(replica, spare, layout, writer)
        begun = Share(generation, snapshot.step, len(places))
        self._thread = threading.Thread(
            target=self._write,
            args=(snapshot, layout, writer, begun, self._cancelled),
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
        files = checkpointer.write_share(place, snapshot, layout_of(snapshot, 1, self._limits))
        state = checkpointer.describe_state(snapshot, self._aspects)
        checkpointer.commit(place, {**self._header, **state}, files)
        return str(state["digest"])

    def finish(self, seconds: float) -> None:
        """Cancel what is being written, and wait for its end, for so many seconds at most."""
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _write(
        self,
        snapshot: Snapshot,
        layout: Layout,
        writer: int,
        begun: Share,
        cancelled: threading.Event,
    ) -> None:
        if writer == 0:
            self._tell(begun)
        try:
            self._allowed()
            place = self.store.inside(checkpointer.name_of(snapshot.step))
            files = checkpointer.write_share(place, snapshot, layout, writer, cancelled)
            state = checkpointer.describe_state(snapshot, self._aspects) if writer == 0 else None
            told = replace(begun, files=files, state=state)
        except Exception as error:  # noqa: BLE001 - it is reported, and training goes on
            told = replace(begun, error=str(error) or type(error).__name__)
        if not cancelled.is_set():
            self._spare = snapshot
            self._tell(told)

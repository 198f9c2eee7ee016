"""One coordinator at a time: a new coordinator of a run writes a record, and the one before stops.

A coordinator loses its run in two cases. It is replaced if Ray believes it dead and starts another
one, while it still runs for seconds without its node's network. It is taken over if another driver
believes the run dead and resumes it, also on another cluster. In both cases it must neither write
the journal nor make plans.
"""

from contextlib import suppress

from raytrain_plus.storage.errors import ExistsError, StorageError
from raytrain_plus.storage.ownership import FOLDER, Life, Owner, Owners, name_of
from raytrain_plus.storage.store import Folder, Store, store_of


class FencedError(RuntimeError):
    """Another coordinator leads the run now.

    Attributes:
        replaced: Ray has started a new coordinator; otherwise another driver has the run.
    """

    def __init__(self, owner: Owner | None, *, replaced: bool) -> None:
        who = owner or "another process"
        super().__init__(
            "another coordinator leads the run now"
            if replaced
            else f"the run was taken over, because it seemed dead, by {who}. This coordinator ends"
        )
        self.replaced = replaced


def check_claim(store: Store, claim: str) -> None:
    """Check that a run has no other owner, before its checkpoints are changed.

    Args:
        store: where its checkpoints are.
        claim: the claim of its driver.

    Raises:
        FencedError: another driver has it.
        StoreError: the store cannot be read.
    """
    last = Owners(store).latest()
    if last is not None and last.claim != claim:
        raise FencedError(last, replaced=False)


def fenced(store: Store, claim: str) -> FencedError:
    """Return the error of a process that has lost a run.

    Args:
        store: the run's folder.
        claim: the claim of the process.
    """
    last = None
    with suppress(StorageError):
        last = Owners(store).latest()
    return FencedError(last, replaced=last is not None and last.claim == claim)


class Fence:
    """Ensures, by records in a run's folder, that one coordinator leads the run.

    A local folder is looked at with each check. An object store is looked at every few seconds, by
    another thread; there, what the coordinator writes is refused at once (`storage/segments.py`).

    Args:
        folder: the run's folder.
        claim: the claim of the driver that has started the run.
        run_id: the run's id.
        address: the address of the Ray cluster.
    """

    def __init__(
        self, folder: Folder, claim: str = "", run_id: str = "", address: str = ""
    ) -> None:
        self._store = store_of(folder)
        self._owners = Owners(self._store)
        self._found: FencedError | None = None
        self._owner = Owner.this(claim, run_id, "coordinator", address, folder)
        self._life = Life(folder, lambda: None if self._store.is_local else self._look_there())

    def acquire(self) -> None:
        """Become the coordinator that leads the run.

        Raises:
            FencedError: the run was taken over.
        """
        while True:
            last = self._owners.latest()
            if last is not None and last.claim != self._owner.claim:
                raise FencedError(last, replaced=False)
            number = last.number if last is not None else 0
            try:
                self._owner = self._life.follow(self._owners, self._owner, number)
            except ExistsError:
                continue
            return

    def check(self) -> None:
        """Raise FencedError if another coordinator leads, unless the folder cannot be read."""
        if self._store.is_local:
            self._look_here()
        elif self._found is not None:
            raise self._found

    def _look_there(self) -> None:
        with suppress(StorageError):
            last = self._owners.latest()
            if last is not None and last.dump() != self._owner.dump():
                self._found = FencedError(last, replaced=last.claim == self._owner.claim)

    def _look_here(self) -> None:
        folder = self._store.local_path / FOLDER
        try:
            mine = (folder / name_of(self._owner.number)).read_bytes()
        except OSError:
            return
        if mine == self._owner.dump() and not (folder / name_of(self._owner.number + 1)).exists():
            return
        last = self._owners.latest()
        raise FencedError(last, replaced=last is not None and last.claim == self._owner.claim)

    def release(self) -> None:
        """Record that the run has ended, so that it can be resumed at once."""
        self._life.end()

"""One coordinator at a time: a new leader of a run leaves a record, and the leader before it stops.

Two things may go wrong. A coordinator that Ray believes dead may live on for seconds, cut off from
its node or its network, while another has taken its place: it has been replaced. And a run that
was believed dead may have been resumed by another driver, on another cluster: it has been taken
over. In both cases the first coordinator must neither write the journal nor plan.
"""

from pathlib import Path

from raytrain_plus.storage.errors import ExistsError
from raytrain_plus.storage.ownership import FOLDER, Life, Owner, Owners, name_of
from raytrain_plus.storage.store import Store


class FencedError(RuntimeError):
    """Another coordinator leads the run now.

    Attributes:
        replaced: Ray has started it in our place; otherwise another driver has the run.
    """

    def __init__(self, owner: Owner | None, *, replaced: bool) -> None:
        who = owner or "another process"
        super().__init__(
            "another coordinator leads the run now"
            if replaced
            else f"the run was taken over, because it seemed dead: {who}. This one ends"
        )
        self.replaced = replaced


def check_claim(store: Store, claim: str) -> None:
    """Check that no other owner has a run, before its checkpoints are changed.

    Args:
        store: where its checkpoints are.
        claim: of its driver.

    Raises:
        FencedError: another driver has it.
        StoreError: the store cannot be read.
    """
    last = Owners(store).latest()
    if last is not None and last.claim != claim:
        raise FencedError(last, replaced=False)


class Fence:
    """Who leads a run, in the records of its folder.

    Args:
        folder: of the run.
        claim: what this coordinator has in common with the driver that has started the run.
        run_id: the run's.
        address: of the Ray cluster.
    """

    def __init__(self, folder: Path, claim: str = "", run_id: str = "", address: str = "") -> None:
        self._folder = folder
        self._owners = Owners(Store(folder))
        self._owner = Owner.this(claim, run_id, "coordinator", address, folder)
        self._life = Life(folder)

    def take(self) -> None:
        """Lead from now on.

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
        """Raise FencedError if another leads. A folder that was removed says nothing."""
        folder = self._folder / FOLDER
        try:
            mine = (folder / name_of(self._owner.number)).read_bytes()
        except OSError:
            return
        if mine == self._owner.dump() and not (folder / name_of(self._owner.number + 1)).exists():
            return
        last = self._owners.latest()
        raise FencedError(last, replaced=last is not None and last.claim == self._owner.claim)

    def release(self) -> None:
        """The run has ended: anyone may resume it at once."""
        self._life.end()

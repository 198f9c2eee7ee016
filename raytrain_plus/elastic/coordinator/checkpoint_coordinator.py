"""The coordinator's side of checkpoints: it requests, commits and retains them."""

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from raytrain_plus.checkpoint import checkpointer, train_snapshot
from raytrain_plus.checkpoint.files import places_of
from raytrain_plus.checkpoint.retention import Kept
from raytrain_plus.checkpoint.schedule import Attempt, Checkpoints, Shares
from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.observe.journal import Event
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.fencing import FencedError, check_claim

_COMMIT_SECONDS = 30.0  # to wait for a commit under way before the last state is saved


@dataclass(frozen=True)
class CommitReturned:
    """A checkpoint was committed, or could not be.

    Attributes:
        attempt: which.
        error: why not.
        fenced: the run has another owner.
    """

    attempt: Attempt
    error: str = ""
    fenced: FencedError | None = None


class CheckpointCoordinator:
    """The checkpoints of a run.

    Args:
        spec: the run.
        run_log: takes notes.
        tell: called from a thread with the result of an attempt.
        events: of the journal, which name the checkpoints that are there.
    """

    def __init__(
        self,
        spec: RunSpec,
        run_log: RunLog,
        tell: Callable[[CommitReturned], None],
        events: Sequence[Event] = (),
    ) -> None:
        self._spec = spec
        self._run_log = run_log
        self._tell = tell
        self._store = spec.checkpoint_store
        self._distrusted = (0, 0)  # generation, step
        self._generation = 0
        self._members: Sequence[str] = ()
        self._nodes: Sequence[str] = ()
        self._committing: threading.Thread | None = None
        self._listing = threading.Lock()
        self._left_alone = _refused(events)
        there = _there(events)
        self._books = Checkpoints(
            spec.clock.checkpoint_every,
            spec.retention,
            spec.elastic.max_checkpoint_failures,
            there=there,
            step=max((one.step for one in there), default=0),
        )

    @property
    def fatal(self) -> str | None:
        """Why the run must end: too many checkpoints in a row could not be written."""
        return self._books.fatal

    def newest(self) -> tuple[str, int] | None:
        """Return the place and the step of the newest checkpoint that may be used."""
        kept = self._books.kept
        return (self._place(kept[0].name), kept[0].step) if kept else None

    def refuse(self, place: str, why: str) -> None:
        """Stop using a checkpoint: it is damaged, or does not fit."""
        self._books.removed(_name(place))
        self._left_alone.add(_name(place))
        self._run_log.note("checkpoint", folder=place, refused=why)

    def distrust_after(self, step: int, generation: int) -> None:
        """Delete all checkpoints of steps after a step: their state may be wrong.

        Args:
            step: the last step that can be trusted.
            generation: the last generation that has computed later steps.
        """
        wrong = [one.name for one in self._books.kept if one.step > step]
        for name in wrong:
            self.refuse(self._place(name), "its state comes from silent data corruption")
        self._distrusted = (generation, step)
        self._books.give_up()
        self._list(wrong)
        for name in wrong:  # at once: the steps will be computed again, under the same names
            self._remove_one(name)

    def request(self) -> None:
        """Request a checkpoint as soon as possible."""
        self._books.request()

    def next_step(self, step: int, now: float) -> int | None:
        """Return after which step all workers should take a snapshot; None if none is due.

        None is due while one is under way, or when the run's last step comes before it.
        """
        at = self._books.next_step(step, now)
        return at if at is not None and at < self._spec.clock.total_steps else None

    def start_generation(
        self, generation: int, members: Sequence[str], nodes: Sequence[str]
    ) -> None:
        """Note the group, of which a share names only the generation.

        Args:
            generation: its number.
            members: its workers, in order.
            nodes: the node of each, as the workers know them.
        """
        self._generation, self._members, self._nodes = generation, members, nodes

    def written(self, worker: str, share: Share, living: Collection[str], now: float) -> None:
        """Note that a writer has taken a snapshot, or has written its share of one, or could not.

        Args:
            worker: its name.
            share: of which snapshot.
            living: the workers that live.
            now: monotonic seconds.
        """
        if share.generation <= self._distrusted[0] and share.step > self._distrusted[1]:
            return
        self._begin(share, living, now)
        attempt = self._books.under_way
        if attempt is None or attempt.name != (share.generation, share.step):
            return  # the attempt was given up
        if share.error:
            self._failed(attempt, f"{worker}: {share.error}", now)
        elif share.writers != len(attempt.workers):
            why = f"{worker} counts {share.writers} writers, and others {len(attempt.workers)}"
            self._failed(attempt, why, now)
        elif share.files is not None:
            shares = self._books.returned(share.generation, share.step, worker, share)
            if shares is not None and self._run_log.step < share.step:
                self._failed(attempt, "no worker is left that knows all steps before it", now)
            elif shares is not None:
                self._committing = threading.Thread(
                    target=self._commit, args=(shares,), daemon=True
                )
                self._committing.start()

    def _begin(self, share: Share, living: Collection[str], now: float) -> None:
        """Begin an attempt if this is the first message of one of the present generation."""
        is_present = share.generation == self._generation
        if not is_present or not self._books.may_begin(share.generation, share.step):
            return
        writers = [self._members[place] for place in places_of(share.writers, self._nodes)]
        self._books.begin_attempt(share.generation, share.step, writers)
        for gone in writers:
            if gone not in living:
                self._books.lost(gone, now)

    def committed(self, event: CommitReturned, now: float) -> None:
        """Process the result of an attempt.

        Raises:
            FencedError: the run has another owner.
        """
        if event.fenced is not None:
            raise event.fenced
        attempt = event.attempt
        name = checkpointer.name_of(attempt.step)
        if self._books.under_way != attempt:
            if not event.error and all(
                one.name != name for one in self._books.kept
            ):  # distrusted while it was written
                self._remove_one(name)
            return
        if event.error:
            self._failed(attempt, event.error, now)
            return
        self._note(name, attempt.step)
        found = self._metrics(attempt.step)
        self._books.rescore(self._metrics)
        self._tidy(self._books.committed(attempt, name, found), name)

    def save_last(
        self,
        steps: Mapping[str, int],
        save: Callable[[str, int], str],
        rescue: Callable[[str, int], tuple[str, str]] | None = None,
    ) -> tuple[str | None, str]:
        """Make one worker write the last state; returns the place and the digest.

        If the store cannot be written, a worker writes the state to a folder of its own node. If
        that fails, too, the place is that of the newest checkpoint, and there is no digest.

        Args:
            steps: by worker that has the state: its step.
            save: makes a worker write.
            rescue: makes a worker write to a new folder on its node; returns the digest and the
                folder. Default: this is not tried.
        """
        why = ""
        self._settle()
        with contextlib.suppress(StorageError, FencedError):
            self._run_log.sync()  # as before a commit
        for worker, step in steps.items():
            try:
                digest = save(worker, step)
            except RayError as error:
                why = _cause(error)
                self._run_log.note("checkpoint", step=step, error=why)
                continue
            name = checkpointer.name_of(step)
            self._note(name, step)
            self._books.rescore(self._metrics)
            surplus = self._books.add(name, step, self._metrics(step))
            self._list(surplus)
            for one in surplus:
                self._remove_one(one)
            return self._place(name), digest
        for worker, step in steps.items():
            if rescue is None:
                break
            with contextlib.suppress(RayError):
                digest, place = rescue(worker, step)
                due = self._place(checkpointer.name_of(step))
                self._run_log.note("checkpoint", step=step, error=why, elsewhere=place)
                self._run_log.note(
                    "warning",
                    text=f"the state of step {step} could not be written to {due}: {why}. "
                    f"{worker} has written it to {place} on its node: copy that folder to this "
                    "place, and `train --resume` goes on from it",
                )
                return place, digest
        newest = self.newest()
        return newest[0] if newest else None, ""

    def _settle(self) -> None:
        """Wait for the commit under way, so that its checkpoint counts for retention."""
        attempt, committing = self._books.under_way, self._committing
        if attempt is None or committing is None:
            return
        committing.join(_COMMIT_SECONDS)
        name = checkpointer.name_of(attempt.step)
        with contextlib.suppress(StorageError, OSError):
            if any(one.name == name for one in checkpointer.kept(self._store, self._spec.run_id)):
                self._books.give_up()
                self._note(name, attempt.step)
                self._books.add(name, attempt.step, self._metrics(attempt.step))

    def lost(self, worker: str, now: float) -> None:
        """Note that a worker is gone, and its share with it."""
        self._books.lost(worker, now)

    def _place(self, name: str) -> str:
        return str(self._store.inside(name).location)

    def _failed(self, attempt: Attempt, reason: str, now: float) -> None:
        failure = self._books.failed(attempt, reason, now)
        if failure is not None:
            self._run_log.note(
                "checkpoint",
                step=failure.step,
                error=failure.reason,
                failures=failure.in_a_row,
                retry_seconds=failure.delay,
            )

    def _metrics(self, step: int) -> dict[str, Any]:
        """Return the loss of a step, and the metrics of the last evaluation until then.

        If the state itself is still evaluated, the evaluation before it says nothing of it.
        """
        evaluates = self._spec.clock.evaluation_due(step) and self._run_log.evaluated_step < step
        metrics = {} if evaluates else self._run_log.metrics_at(step)
        return {"loss": self._run_log.loss_at(step), **metrics}

    def _note(self, name: str, step: int) -> None:
        place = self._place(name)
        self._run_log.note("checkpoint", step=step, folder=place, metrics=self._metrics(step))

    def _commit(self, shares: Shares) -> None:
        state = shares.returned[0].state
        if state is None:
            why = f"{shares.attempt.workers[0]} has not described the state"
            self._tell(CommitReturned(shares.attempt, why))
            return
        header = {
            **self._spec.manifest_header(self._run_log.environment),
            "metrics": self._metrics(shares.attempt.step),
            "bitwise": self._run_log.bitwise,
            **state,
        }
        files = [entry for one in shares.returned for entry in one.files]
        try:
            self._run_log.sync()  # a checkpoint must not know steps that the journal could lose
            check_claim(self._store, self._spec.claim)
            place = self._store.inside(checkpointer.name_of(shares.attempt.step))
            checkpointer.commit(place, header, files)
        except FencedError as error:
            self._tell(CommitReturned(shares.attempt, str(error), error))
        except (ValueError, OSError) as error:
            self._tell(CommitReturned(shares.attempt, str(error)))
        else:
            self._tell(CommitReturned(shares.attempt))

    def _tidy(self, surplus: Sequence[str], newest: str) -> None:
        """Delete checkpoints that are not retained, and leftovers of attempts before the newest."""

        def tidy() -> None:
            self._list(surplus)
            for name in surplus:
                self._remove_one(name)
            with contextlib.suppress(StorageError, OSError, FencedError):
                check_claim(self._store, self._spec.claim)
                there = checkpointer.names(self._store)
                later = [name for name in there if name >= newest]
                checkpointer.remove_leftovers(self._store, later)
                older = [name for name in there if name < newest and name not in surplus]
                for name in self._forgotten(older):
                    self._remove_one(name)

        threading.Thread(target=tidy, daemon=True).start()

    def _forgotten(self, older: Sequence[str]) -> list[str]:
        """Return checkpoints of this run that the journal does not know, if not all are kept.

        A coordinator that is killed after a commit has not noted it.
        """
        if self._spec.retention.num_to_keep is None:
            return []
        known = {one.name for one in self._books.kept} | self._left_alone
        found = []
        for name in older:
            if name in known:
                continue
            with contextlib.suppress(checkpointer.CheckpointError):
                manifest = checkpointer.read_header(self._store.inside(name))
                if manifest.objection(self._spec.name, self._spec.run_id):
                    self._left_alone.add(name)
                else:
                    found.append(name)
        return found

    def _list(self, leaving: Collection[str]) -> None:
        """Write the list that Ray Train reads, without the checkpoints that will be deleted."""
        with self._listing, contextlib.suppress(StorageError, OSError, FencedError):
            staying = [one for one in self._books.kept if one.name not in leaving]
            check_claim(self._store, self._spec.claim)
            content = train_snapshot.dump(staying, self._spec.retention, ray.__version__)
            self._store.write(train_snapshot.FILE_NAME, content)

    def _remove_one(self, name: str) -> None:
        try:
            check_claim(self._store, self._spec.claim)
            checkpointer.remove(self._store.inside(name), self._spec.run_id)
        except (StorageError, OSError, FencedError):
            return  # retention names it again with the next checkpoint
        self._books.removed(name)
        self._run_log.note("checkpoint", folder=self._place(name), removed=True)


def _there(events: Sequence[Event]) -> list[Kept]:
    """Return the checkpoints that are there, by the events of a journal."""
    found: dict[str, Kept] = {}
    for event in events:
        if event["event"] == "run":
            # Those after the one from which the run was resumed were gone or damaged.
            resumed = event.get("resumed_step", 0)
            found = {name: one for name, one in found.items() if one.step <= resumed}
            name = _name(event.get("resumed_from") or "")
            if checkpointer.is_named(name):  # even if the journal has lost its line
                found.setdefault(name, Kept(name, resumed, {}))
            continue
        if event["event"] != "checkpoint" or event.get("folder") is None:
            continue
        name = _name(event["folder"])
        if not checkpointer.is_named(name):
            continue  # only a checkpoint's name is ever joined to a path or deleted
        if "refused" in event or "removed" in event:
            found.pop(name, None)
        elif "metrics" in event or name not in found:
            found[name] = Kept(name, event["step"], event.get("metrics", {}))
    return list(found.values())


def _refused(events: Sequence[Event]) -> set[str]:
    """Return the checkpoints that cannot be used, by the events of a journal."""
    found: set[str] = set()
    for event in events:
        if event["event"] == "run":
            found |= {_name(place) for place in event.get("refused", {})}
        elif event["event"] == "checkpoint" and event.get("folder") is not None:
            name = _name(event["folder"])
            if "refused" in event:
                found.add(name)
            elif "metrics" in event:
                found.discard(name)  # another one was written under this name
    return found


def _name(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2]


def _cause(error: RayError) -> str:
    """Return in one line why a worker could not do something."""
    cause = getattr(error, "cause", None) or error
    return str(cause).strip() or type(cause).__name__

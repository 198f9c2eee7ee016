"""Resuming a run: from which checkpoint, and whether it is still the same run."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.retention import Kept
from raytrain_plus.configure import ConfigError
from raytrain_plus.observe import journal
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.redaction import redacted
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.store import Folder, Store, store_of

_CODE = "code:"  # prefix of a change of code
_STEPS = "total_steps:"  # prefix of a change of the run's length
_DATA = ("data", "evaluation data")  # in a worker's fingerprint
_COMPUTED = ("initial model", "probe gradient")


@dataclass(frozen=True)
class Resumption:
    """The point from which a run continues.

    Attributes:
        place: the checkpoint's folder, as a path or a URL; None for the beginning.
        step: its committed steps.
        changes: how the run's description differs from before.
        refused: newer checkpoints that cannot be used, and why.
        run_id: tells the run from others of its name; empty if it was not recorded.
        found: the existing checkpoints, if the journal that listed them is lost.
        environment: how the workers computed before; only the parts that must be equal now.
        bitwise: whether all workers before proved to compute the same bits. The journal says it,
            too, unless it is lost.
    """

    place: Path | str | None
    step: int
    changes: Sequence[str]
    refused: Mapping[str, str]
    run_id: str = ""
    found: Sequence[Kept] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    bitwise: bool = True

    def journal_fields(self) -> dict[str, Any]:
        """Return its fields in the journal's `run` line."""
        place = None if self.place is None else str(self.place)
        fields: dict[str, Any] = {"resumed_from": place, "resumed_step": self.step}
        if self.changes:
            fields["changes"] = list(self.changes)
        if self.refused:
            fields["refused"] = dict(self.refused)
        if not self.bitwise:
            fields["bitwise"] = False
        return fields


def last_checkpoint(
    folder: Folder,
    identity: Mapping[str, Any],
    *,
    allow_change: bool = False,
    accept_changed_code: bool = False,
    extend: bool = False,
    store: Store | None = None,
) -> Resumption:
    """Return the newest complete checkpoint of a run to resume, after reading and checking it.

    Args:
        folder: the run's folder, which holds its journal.
        identity: what the run's bits depend on now.
        allow_change: continue with another identity than before.
        accept_changed_code: continue with other code, if nothing else changed.
        extend: continue with more steps than before, if nothing else changed.
        store: where the checkpoints are. Default: the run's folder.

    Raises:
        ConfigError: there is none, although there was one; or the run's description differs. The
            message names the differences.
        StoreError: the store cannot be read.
    """
    store = store or store_of(folder)
    parts = {"": allow_change, _CODE: accept_changed_code, _STEPS: extend}
    allowed = tuple(prefix for prefix, is_allowed in parts.items() if is_allowed)
    if not journal_of(folder).exists():
        return _from_checkpoints(folder, identity, store, allowed)
    changes = _changes(_identity_before(folder), identity)
    _check_changes(changes, folder, allowed)
    run_id = run_id_of(folder)
    computed = _comparable(_environment_before(folder), changes)
    name, refused = checkpointer.newest_whole(store, folder.name, run_id)
    if name is None and not refused and not _has_checkpoints(folder):
        return Resumption(None, 0, changes, {}, run_id, environment=computed)
    if name is None:
        raise ConfigError(
            f"there is no checkpoint in {store.location} to resume from, and the journal lists "
            "some: name the storage that they are in (--checkpoint-storage), or start a new run "
            f"under another name{_listed(refused)}"
        )
    found = store.inside(name)
    step = checkpointer.step_of(found)
    return Resumption(found.location, step, changes, refused, run_id, environment=computed)


def _from_checkpoints(
    folder: Folder, identity: Mapping[str, Any], store: Store, allowed: tuple[str, ...]
) -> Resumption:
    """Continue a run whose folder is lost, but whose checkpoints exist elsewhere."""
    name, refused = checkpointer.newest_whole(store, folder.name)
    if name is None:
        where = store.location
        elsewhere = "" if str(where) == str(folder) else f", and no whole checkpoint in {where}"
        raise ConfigError(f"there is no run to resume in {folder}{elsewhere}{_listed(refused)}")
    place = store.inside(name)
    manifest = checkpointer.read_header(place)
    changes = _changes(manifest.identity, identity)
    _check_changes(changes, store.location, allowed)
    there = checkpointer.kept(store, manifest.run_id)
    computed = _comparable(manifest.environment, changes)
    step, run_id = manifest.step, manifest.run_id
    same = manifest.bitwise
    return Resumption(place.location, step, changes, refused, run_id, there, computed, same)


def rescued_states(run_id: str, step: int, folder: Path | None = None) -> Sequence[str]:
    """Return states of a run that a worker kept on this node because the storage failed.

    Args:
        run_id: of the run.
        step: only later ones count.
        folder: where workers keep them. Default: the folder of temporary files.
    """
    found = []
    for place in sorted(
        (folder or Path(tempfile.gettempdir())).glob(f"{checkpointer.RESCUED}*/checkpoint_*")
    ):
        with contextlib.suppress(OSError, StoreError, checkpointer.CheckpointError):
            if place.parent.stat().st_uid != os.getuid():
                continue
            manifest = checkpointer.read_header(Store(place))
            if run_id and manifest.run_id == run_id and manifest.step > step:
                found.append(str(place))
    return found


def _check_changes(changes: Sequence[str], where: Folder | str, allowed: tuple[str, ...]) -> None:
    """Refuse all changes except those that begin with an allowed prefix."""
    refused = [change for change in changes if not change.startswith(allowed)]
    if not refused:
        return
    if all(change.startswith(_CODE) for change in refused):
        raise ConfigError(
            f"the run in {where} cannot be resumed with other code; {'; '.join(refused)}: put it "
            "back as it was, or start a new run under another name; or continue with the new code "
            "(--accept-changed-code): the run is then marked, and its bits are no longer those of "
            "an undisturbed run"
        )
    if all(change.startswith(_STEPS) for change in refused):
        raise ConfigError(
            f"the run in {where} cannot be resumed with another length; {refused[0]}: give the "
            "same --duration as before; or go on for longer (--extend): schedules and algorithms "
            "then follow the new length, and the bits are those of neither length alone"
        )
    raise ConfigError(
        f"the run in {where} cannot be resumed with other settings; {'; '.join(refused)}: give the "
        "same as before, or start a new run under another name; or allow the change "
        "(--allow-change): its bits are then no longer those of an undisturbed run"
    )


def check_unused(store: Store, run: str) -> None:
    """Check that the storage holds no checkpoints of another run with the same name.

    Raises:
        ConfigError: there are some.
        StoreError: the store cannot be read.
    """
    there = checkpointer.kept(store)
    if there:
        raise ConfigError(
            f"{store.location} holds checkpoints of another run {run!r}, the newest of step "
            f"{there[0].step}: give another --name or --checkpoint-storage, or --resume to "
            "continue that run"
        )


def _listed(refused: Mapping[str, str]) -> str:
    return "".join(f"; {name} is refused: {reason}" for name, reason in refused.items())


def run_id_of(folder: Folder) -> str:
    """Return the id that a run got at its start, from its journal; empty if there is none.

    Raises:
        FileNotFoundError: there is no journal.
    """
    runs = journal.each(journal_of(folder), {"run"})
    return next((str(event["run_id"]) for event in runs if event.get("run_id")), "")


def _has_checkpoints(folder: Folder) -> bool:
    """Say whether the journal lists checkpoints: then there must be some."""
    told = journal.each(journal_of(folder), {"checkpoint"})
    return any("metrics" in event for event in told)


def _identity_before(folder: Folder) -> Mapping[str, Any]:
    """Return the identity that the run started with, with the changes that were allowed since."""
    try:
        described = list(journal.each(journal_of(folder), {"run"}))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no run to resume in {folder}") from error
    allowed = [e.get("identity", {}) for e in described if e.get("changes")]
    before: Mapping[str, Any] = (allowed or [e.get("identity", {}) for e in described[:1]] or [{}])[
        -1
    ]
    return before


def _environment_before(folder: Folder) -> Mapping[str, str]:
    """Return how the run's workers computed the last time; empty if no worker came up."""
    computed: Mapping[str, str] = {}
    for event in journal.each(journal_of(folder), {"environment"}):
        computed = event.get("fingerprint", {})
    return computed


def _comparable(environment: Mapping[str, str], changes: Sequence[str]) -> dict[str, str]:
    """Return the parts of the workers' fingerprint that must be equal now, after allowed changes.

    The data was compared already. The results of the probe follow from what was changed.
    """
    other = [change for change in changes if not change.startswith(_STEPS)]
    left_out = {*_DATA, *(_COMPUTED if other else ())}
    return {key: value for key, value in environment.items() if key not in left_out}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs; both sides as the journal holds them, as JSON and without secrets."""
    before, now = redacted(before), redacted(json.loads(json.dumps(now)))
    return [
        *_code_changes(before, now),
        *(
            f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
            for key in [*now, *sorted(before.keys() - now.keys())]
            if before.get(key) != now.get(key) and key not in ("code", "task code")
        ),
    ]


def _code_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if "code" not in now:
        return []
    was, are = before.get("code"), now["code"]
    if not isinstance(was, dict):
        return [f"{_CODE} was recorded by another version of raytrain_plus, or not at all"]
    return [
        f"{_CODE} {name} {'has changed' if name in was and name in are else how}"
        for names, how in ((are, "is new"), (was, "is not imported any more"))
        for name in names
        if was.get(name) != are.get(name) and not (names is was and name in are)
    ]

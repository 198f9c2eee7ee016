"""Going on with a run: from which checkpoint, and whether it is still the same run."""

import contextlib
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_plus.configure import ConfigError
from raytrain_plus.observe import journal
from raytrain_plus.streams.store import Store
from raytrain_plus.task import Task
from raytrain_plus.training import checkpoint


@dataclass(frozen=True)
class Resumption:
    """From where a run goes on.

    Attributes:
        place: the checkpoint's folder, as a path or a URL; None for the beginning.
        step: its committed steps.
        changes: how the run is now described otherwise than before.
        refused: newer checkpoints that are not used, and why.
    """

    place: Path | str | None
    step: int
    changes: Sequence[str]
    refused: Mapping[str, str]

    def told(self) -> dict[str, Any]:
        """Return what the journal's `run` line tells of it."""
        place = None if self.place is None else str(self.place)
        told: dict[str, Any] = {"resumed_from": place, "resumed_step": self.step}
        if self.changes:
            told["changes"] = list(self.changes)
        if self.refused:
            told["refused"] = dict(self.refused)
        return told


def last_checkpoint(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    allow_change: bool = False,
    store: Store | None = None,
) -> Resumption:
    """Return the newest checkpoint of a run that is to be resumed; it has been read and is whole.

    Args:
        folder: the run's folder, which holds its journal.
        identity: what the run's bits depend on, now.
        allow_change: go on with another identity than before.
        store: where the checkpoints are. Default: the run's folder.

    Raises:
        ConfigError: there is none, though there was one; or the run was described differently,
            naming the differences.
        StoreError: the store cannot be read.
    """
    changes = _changes(_identity_before(folder), identity)
    if changes and not allow_change:
        raise ConfigError(
            f"the run in {folder} cannot be resumed differently; {'; '.join(changes)}: say the "
            "same as before, or start a new run under another name; or allow the change "
            "(--allow-change), and its bits are those of no undisturbed run"
        )
    store = store or Store(folder)
    name, refused = checkpoint.newest_whole(store, folder.name)
    if name is None and not refused and not _has_checkpoints(folder):
        return Resumption(None, 0, changes, {})
    if name is None:
        why = "".join(f"; {name} is refused: {reason}" for name, reason in refused.items())
        raise ConfigError(
            f"there is no checkpoint in {store.local_path if store.is_local else store.url} to "
            "resume from, and the journal tells of some: name the storage that they are in "
            f"(--checkpoint-storage), or start a new run under another name{why}"
        )
    found = store.inside(name)
    place = found.local_path if found.is_local else found.url
    return Resumption(place, checkpoint.step_of(found), changes, refused)


def _has_checkpoints(folder: Path) -> bool:
    """Say whether the journal tells of checkpoints: then there must be some."""
    told = journal.each(folder / journal.FILE_NAME, {"checkpoint"})
    return any("metrics" in event for event in told)


def _identity_before(folder: Path) -> Mapping[str, Any]:
    """Return what the run's first words said, with the changes that were allowed since."""
    try:
        described = list(journal.each(folder / journal.FILE_NAME, {"run"}))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no run to resume in {folder}") from error
    allowed = [e.get("identity", {}) for e in described if e.get("changes")]
    before: Mapping[str, Any] = (allowed or [e.get("identity", {}) for e in described[:1]] or [{}])[
        -1
    ]
    return before


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs, as JSON holds it: the identity before comes from the journal."""
    now = json.loads(json.dumps(now))
    return [
        f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
        for key in [*now, *sorted(before.keys() - now.keys())]
        if before.get(key) != now.get(key)
    ]


def task_code(task: Task) -> str:
    """Return the sha256 over the source files of a task's class and of those it is derived from.

    Files and not classes, as the model mostly stands beside the task. What these files import is
    not looked at. A class whose source is nowhere (typed at a prompt) is left out.
    """
    sources = set()
    for kind in type(task).__mro__:
        if kind not in (Task, object):
            with contextlib.suppress(OSError, TypeError):
                sources.add(inspect.getsource(inspect.getmodule(kind) or kind))
    return hashlib.sha256("\0".join(sorted(sources)).encode()).hexdigest()

"""Finds a trained model: a checkpoint of a run, or weights that were exported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytrain_plus.algorithms.naming import Described
from raytrain_plus.checkpoint import checkpointer, train_snapshot
from raytrain_plus.checkpoint.manifest import MANIFEST
from raytrain_plus.checkpoint.retention import Kept, Retention, ranked
from raytrain_plus.configure import ConfigError
from raytrain_plus.names import possible_folders
from raytrain_plus.observe import journal
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.redaction import redact
from raytrain_plus.storage.store import Store
from raytrain_plus.task import TaskError
from raytrain_plus.training.initial_weights import files_at, hash_of, index_at


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model that was trained.

    Attributes:
        place: the path or URL of a checkpoint's folder, or the path of exported weights.
        is_checkpoint: which of the two it is.
        digest: sha256 of the checkpoint's state, or of the weights.
        options: for the file system of the checkpoint.
        folder: of the run, if it is known.
        run: the name of the run; empty if it is not known.
        step: committed steps.
        identity: what the run's bits depend on; empty for exported weights.
        environment: how the run's workers computed; likewise.
        algorithms: the run's aspects.
        metrics: of the run's own evaluation at or before that step.
    """

    place: str
    is_checkpoint: bool
    digest: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    run: str = ""
    step: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    algorithms: tuple[Described, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)


def find_model(
    model: str,
    *,
    storage: str,
    checkpoint: str = "latest",
    options: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """Find a trained model.

    Args:
        model: the name, folder or URL of a run or of one of its checkpoints; or a safetensors file;
            or a folder that `save_pretrained` has written.
        storage: where runs are searched by name.
        checkpoint: which one of a run: `latest`, a step, or `best:METRIC`, where `best:METRIC:min`
            prefers small values.
        options: for the file system of a URL.

    Raises:
        FileNotFoundError: there is no such model.
        ConfigError: the run has no such checkpoint.
        CheckpointError: the checkpoint is incomplete or damaged.
    """
    given = options or {}
    candidates = possible_folders(model, storage)
    for one in candidates:
        if isinstance(one, str):
            store = Store(one, given)
            if store.exists(MANIFEST):
                return _of_checkpoint(store, given, checkpoint)
            return _of_run(store, given, checkpoint, model)
        path = one.resolve()
        if (path / MANIFEST).is_file():
            return _of_checkpoint(Store(path), {}, checkpoint, path.parent)
        if (path / journal.FILE_NAME).is_file() or (path.is_dir() and _has_checkpoints(path)):
            return _of_run(_checkpoints_of(path, given), given, checkpoint, model, path)
        if path.exists() or index_at(path) is not None:
            return _of_weights(path, checkpoint)
    raise FileNotFoundError(
        f"no model {model!r}: there is no run, no checkpoint and no file of weights in "
        f"{' or '.join(map(str, candidates))}"
    )


def _has_checkpoints(folder: Path) -> bool:
    return bool(checkpointer.names(Store(folder)))


def _checkpoints_of(folder: Path, options: Mapping[str, Any]) -> Store:
    """Return where a run's checkpoints are, which its journal says if it is another place."""
    path = folder / journal.FILE_NAME
    if _has_checkpoints(folder) or not path.is_file():
        return Store(folder)
    newest = journal.newest(path, {"checkpoint"}).get("checkpoint") or {}
    place = str(newest.get("folder", "")).rstrip("/").rpartition("/")[0]
    return Store(place, options) if "://" in place else Store(Path(place or folder))


def _of_run(
    store: Store,
    options: Mapping[str, Any],
    checkpoint: str,
    model: str,
    folder: Path | None = None,
) -> TrainedModel:
    kept = checkpointer.kept(store)
    where = f"run {model!r} ({redact(str(store.location))})"
    if not kept:
        raise ConfigError(f"{where} has no checkpoint yet")
    if checkpoint.startswith("best:"):
        kept = train_snapshot.with_newer_metrics(kept, store)
        here = store.local_path if store.is_local else store
        kept = _with_metrics(kept, journal_of(folder or here))
    name = _chosen(kept, checkpoint, where)
    return _of_checkpoint(store.inside(name), options, "latest", folder)


def _with_metrics(kept: list[Kept], file: journal.Readable) -> list[Kept]:
    """Add what the journal says of evaluations that ended after the checkpoint was written."""
    told: list[Mapping[str, Any]] = []
    if file.exists():
        told = list(journal.each(file, {"evaluate"}))
    found = []
    for one in kept:
        metrics = dict(one.metrics)
        for event in told:
            if event["step"] <= one.step:
                metrics |= event["metrics"]
        found.append(Kept(one.name, one.step, metrics))
    return found


def _chosen(kept: list[Kept], checkpoint: str, where: str) -> str:
    """Return the name of the checkpoint that is asked for.

    Raises:
        ConfigError: there is none.
    """
    if checkpoint == "latest":
        return kept[0].name
    if checkpoint.isdigit():
        steps = {one.step: one.name for one in kept}
        if int(checkpoint) not in steps:
            known = ", ".join(map(str, sorted(steps)))
            raise ConfigError(f"{where} has no checkpoint of step {checkpoint}; it has {known}")
        return steps[int(checkpoint)]
    kind, _, rest = checkpoint.partition(":")
    metric, _, order = rest.rpartition(":") if rest.endswith((":min", ":max")) else (rest, "", "")
    if kind != "best" or not metric:
        raise ConfigError(
            f"checkpoint {checkpoint!r} is not `latest`, a step, `best:METRIC` or `best:METRIC:min`"
        )
    found = sorted({name for one in kept for name in one.metrics})
    if metric not in found:
        raise ConfigError(
            f"no checkpoint of {where} has the metric {metric!r}; there are "
            f"{', '.join(found) or 'none'}"
        )
    by = Retention(None, metric, "min" if order == "min" else "max")
    return ranked(kept, by)[-1].name


def _of_checkpoint(
    store: Store, options: Mapping[str, Any], checkpoint: str, folder: Path | None = None
) -> TrainedModel:
    if checkpoint != "latest":
        raise ConfigError(
            f"checkpoint {checkpoint!r} is asked for, and {store.location} is one checkpoint: "
            "name the run"
        )
    manifest = checkpointer.read_header(store)
    return TrainedModel(
        place=str(store.location),
        is_checkpoint=True,
        digest=manifest.digest,
        options=options,
        folder=folder,
        run=manifest.run,
        step=manifest.step,
        identity=manifest.identity,
        environment=manifest.environment,
        algorithms=tuple(manifest.algorithms),
        metrics=manifest.metrics,
    )


def _of_weights(path: Path, checkpoint: str) -> TrainedModel:
    if checkpoint != "latest":
        raise ConfigError(
            f"checkpoint {checkpoint!r} is asked for, and {path} is no run: name the run"
        )
    if (path / "adapter_config.json").is_file():
        raise ConfigError(
            f"{path} holds an adapter without its base model: export the model with `--setting` "
            "as it was trained, or name the run"
        )
    try:
        files_at(str(path))
    except TaskError as error:
        raise FileNotFoundError(str(error).replace("initial weights", "model", 1)) from None
    return TrainedModel(place=str(path), is_checkpoint=False, digest=hash_of(str(path)))

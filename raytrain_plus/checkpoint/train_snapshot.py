"""A run's checkpoints, listed as Ray Train lists its own: `ray.train.Result.from_path` reads it.

The list lies next to the checkpoints. It is written after each checkpoint, and before one is
deleted, so that it never names one that is gone. A run is resumed from manifests and the journal,
and not from this list. Its metrics are newer than those of the manifests, as an evaluation may end
after the checkpoint of its step. The format is that of `CheckpointManager` in Ray Train v2.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raytrain_plus.checkpoint.retention import Kept, Retention, ranked
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.store import Store

FILE_NAME = "checkpoint_manager_snapshot.json"


def metrics_of(kept: Kept) -> dict[str, Any]:
    """Return a checkpoint's metrics, with its committed steps as `steps`."""
    return {**kept.metrics, "steps": kept.step}


def metrics_in(content: bytes) -> dict[str, dict[str, Any]]:
    """Return the metrics of each checkpoint by its name, from the file's content.

    Raises:
        ValueError: it is no such file.
    """
    try:
        entries = json.loads(content)["checkpoint_results"]
        return {
            str(one["checkpoint_dir_name"]): {
                name: value for name, value in one["metrics"].items() if name != "steps"
            }
            for one in entries
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no list of checkpoints: {error!r}") from error


def with_newer_metrics(kept: Sequence[Kept], store: Store) -> list[Kept]:
    """Return checkpoints with the metrics of evaluations that have ended after them.

    Args:
        kept: the checkpoints, with the metrics of their manifests.
        store: the folder that holds them.
    """
    newer: Mapping[str, Mapping[str, Any]] = {}
    with contextlib.suppress(StorageError, ValueError):
        newer = metrics_in(store.find(FILE_NAME) or b"")
    return [replace(one, metrics={**one.metrics, **newer.get(one.name, {})}) for one in kept]


def dump(kept: Sequence[Kept], retention: Retention, ray_version: str) -> bytes:
    """Return the file's content.

    Args:
        kept: the checkpoints that are there and stay.
        retention: which checkpoints are the best ones. They come last.
        ray_version: of the Ray that will read it; another one gives a clear error.
    """
    entries = {
        one.name: {"checkpoint_dir_name": one.name, "metrics": metrics_of(one)} for one in kept
    }
    order = ranked(kept, retention)
    newest = max(kept, key=lambda one: one.step, default=None)
    content = {
        "ray_version": ray_version,
        "checkpoint_results": [entries[one.name] for one in order],
        "checkpoint_report_indices": [one.step for one in order],
        "latest_checkpoint_result": None if newest is None else entries[newest.name],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 0 if newest is None else newest.step,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    return json.dumps(content, indent=1).encode()

"""A run's checkpoints, listed as Ray Train lists its own: `ray.train.Result.from_path` reads it.

The list lies next to the checkpoints. It is written after each checkpoint, and before one is
deleted, so that it never names one that is gone. Nothing here reads it: manifests and the journal
are what a run is resumed from. The format is that of `CheckpointManager` in Ray Train v2.
"""

import json
from collections.abc import Sequence
from typing import Any

from raytrain_plus.checkpoint.retention import Kept, Retention, ranked

FILE_NAME = "checkpoint_manager_snapshot.json"


def metrics_of(kept: Kept) -> dict[str, Any]:
    """Return a checkpoint's metrics, with its committed steps as `steps`."""
    return {**kept.metrics, "steps": kept.step}


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

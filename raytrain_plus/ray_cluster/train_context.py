"""The context that Ray Train gives to callbacks: its class is private, and callbacks read it."""

from typing import Any

import ray.train


def run_context(run: ray.train.RunConfig, scaling: ray.train.ScalingConfig, run_id: str) -> Any:
    """Return Ray Train's context of a run.

    Args:
        run: its configuration.
        scaling: likewise.
        run_id: tells it from other runs.
    """
    from ray.train.v2._internal.execution.context import TrainRunContext  # noqa: PLC0415 - slow

    context = TrainRunContext(
        run_config=run,
        train_loop_config=None,
        scaling_config=scaling,
        backend_config=ray.train.backend.BackendConfig(),
        dataset_config=ray.train.DataConfig(),
    )
    object.__setattr__(context, "run_id", run_id)
    return context

"""Runs raytrain_plus as a user would, and reads its journal."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train

from benchmarks.tasks import Workload
from raytrain_plus import ElasticConfig, ElasticTrainer
from raytrain_plus.observe import journal

Event = journal.Event
Watcher = Callable[[list[Event]], None]

RUN = "benchmark"


@contextlib.contextmanager
def cluster(slots: int) -> Iterator[None]:
    """Run a separate Ray cluster, even if other clusters run on this machine."""
    ray.init(
        address="local",
        num_cpus=slots,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


def train(
    workload: Workload,
    workers: int | tuple[int, int],
    steps: int,
    watcher: Watcher | None = None,
    **elastic: Any,
) -> list[Event]:
    """Train for a number of steps, with settings of ElasticConfig; returns the journal."""
    config = ElasticConfig(**elastic)
    most = workers if isinstance(workers, int) else workers[1]
    with tempfile.TemporaryDirectory() as storage, cluster(most + config.spares):
        trainer = ElasticTrainer(
            task=workload.task,
            batch_size=workload.batch_size,
            logical_ranks=workload.logical_ranks,
            duration=f"{steps}ba",
            scaling_config=ray.train.ScalingConfig(num_workers=workers),
            run_config=ray.train.RunConfig(name=RUN, storage_path=storage),
            elastic=config,
        )
        trainer.fit(watcher)
        return journal.read(Path(storage) / RUN)


def of_kind(events: list[Event], kind: str, **fields: Any) -> list[Event]:
    """Return the events of one kind with the given values of fields, in order."""
    wanted = {"event": kind, **fields}
    return [e for e in events if all(e.get(key) == value for key, value in wanted.items())]

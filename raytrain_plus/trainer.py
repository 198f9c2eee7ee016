"""ElasticTrainer: configure, fit, get a result."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import pyarrow as pa
import ray
import ray.train

from raytrain_plus import configure
from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.naming import portable
from raytrain_plus.elastic.coordinator import Coordinator
from raytrain_plus.elastic.faults import Fault
from raytrain_plus.elastic.messages import ElasticConfig, Outcome, RunSpec
from raytrain_plus.elastic.pool import NAMESPACE
from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event, Journal
from raytrain_plus.streams.mixing import Mixture
from raytrain_plus.streams.stream import Stream
from raytrain_plus.task import Task, load_task

Data: TypeAlias = pa.Table | Stream | Mixture | str | os.PathLike[str]
Watcher = Callable[[list[Event]], None]

_POLL = 0.2  # seconds between two looks at the journal


class TrainingFailedError(ray.train.TrainingFailedError):  # type: ignore[misc]
    """The run failed; its text is the user's own traceback where there is one.

    Attributes:
        summary: what is known of the run.
    """

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary


class ElasticTrainer:
    """Trains a task with workers that may come and go, to the same bits whatever happens.

    Args:
        task: a Task, or where to import one: `"module:attribute"` or `"file.py:attribute"`.
        task_settings: fields of the task, which is then a dataclass, to set otherwise.
        data: the training data: a Stream or the URL of one, a Mixture, a pyarrow.Table, an Arrow or
            Parquet file, or a folder of them. Default: `task.data()`.
        evaluation_data: likewise for evaluation. Default: `task.evaluation_data()`; without any,
            nothing is evaluated.
        batch_size: samples per step, over all workers. Default 256.
        duration: `"10ep"`, `"500ba"`, `"20000sp"` or `"1000000tok"`. Default `"1ep"`.
        evaluate_every: how often to evaluate, in the same units or as a part of the run, such as
            `"0.1dur"`; also at the end. Default `"1ep"`.
        seed: where all chance comes from. Default 17.
        logical_ranks: V, the parts that a batch is cut into; part of what the bits depend on, and
            the most workers that a run can have. Default 8.
        algorithms: aspects, in any order.
        scaling_config: `num_workers` as a number or (least, most), and resources per worker. The
            least is what a run needs to start; once started it goes on with whoever is left.
        run_config: name and storage path.
        elastic: how to deal with workers that come, go, or hang.
        faults: disturbances on purpose.
        resume: go on with the run of that name from its last checkpoint.

    Raises:
        ValueError: something is wrong with what was given; its subclasses say what.
    """

    def __init__(  # noqa: PLR0913 - the public face: what users say, by name
        self,
        *,
        task: Task | str,
        task_settings: Mapping[str, Any] | None = None,
        data: Data | None = None,
        evaluation_data: Data | None = None,
        batch_size: int = 256,
        duration: str = "1ep",
        evaluate_every: str = "1ep",
        seed: int = 17,
        logical_ranks: int = 8,
        algorithms: Sequence[Aspect] = (),
        scaling_config: ray.train.ScalingConfig | None = None,
        run_config: ray.train.RunConfig | None = None,
        elastic: ElasticConfig | None = None,
        faults: Sequence[Fault] = (),
        resume: bool = False,
    ) -> None:
        scaling = scaling_config or ray.train.ScalingConfig()
        run = run_config or ray.train.RunConfig()
        workers = configure.worker_range(scaling)
        configure.check_sizes(batch_size, logical_ranks, workers)
        configure.check_run_config(run)
        configure.check_algorithms(algorithms)
        loaded = load_task(task, task_settings)
        configure.check_task(loaded)
        data, evaluation_data = configure.data_of(loaded, data, evaluation_data)
        source = configure.open_for(loaded, data, "training data")
        described = {f"data {key}": value for key, value in source.described().items()}
        if evaluation_data is not None:
            held_out = configure.open_for(loaded, evaluation_data, "evaluation data")
            described["evaluation data"] = held_out.identity
            held_out.release()
        sizes = {"batch_size": batch_size, "logical_ranks": logical_ranks}
        lengths = configure.clock(
            source, loaded, duration=duration, evaluate_every=evaluate_every, **sizes
        )
        probe = configure.probe(source, batch_size // logical_ranks)
        source.release()
        name = str(run.name)
        self._resume = resume
        self._identity = {
            "seed": seed,
            **sizes,
            "task settings": dict(task_settings or {}),
            **described,
            "total_steps": lengths.total_steps,
            "algorithms": {a.name: a.model_dump(mode="json") for a in algorithms},
        }
        self.spec = RunSpec(
            name=name,
            folder=configure.run_folder(run.storage_path, name, resume=resume),
            task=task,
            task_settings=dict(task_settings or {}),
            import_paths=configure.import_paths(),
            data=data,
            evaluation_data=evaluation_data,
            batch_size=batch_size,
            logical_ranks=logical_ranks,
            evaluation_rows=configure.evaluation_rows(batch_size, logical_ranks),
            probe=probe,
            clock=lengths,
            seed=seed,
            algorithms=tuple(map(portable, algorithms)),
            workers=workers,
            resources=configure.worker_resources(scaling),
            elastic=elastic or ElasticConfig(),
            faults=tuple(faults),
            runtime_env=dict(run.worker_runtime_env or {}),
        )
        if resume:
            checkpoint = configure.last_checkpoint(self.spec.folder, self._identity)
            self.spec = replace(self.spec, resume_from=checkpoint)
        else:
            configure.check_fresh(self.spec.folder)

    def fit(self, watcher: Watcher | None = None) -> ray.train.Result:
        """Train to the end.

        Args:
            watcher: called now and then with the journal's new events.

        Returns:
            Ray Train's Result: `metrics` (loss, the task's metrics, steps, digest), `checkpoint`
            (a folder with the last state), and `return_value`, the summary that the command line
            prints.

        Raises:
            TrainingFailedError: the run failed; journal and last state are kept.
        """
        began = time.time()
        spec = self.spec
        with cluster(spec.workers[1]) as address:
            self._open_journal(address)
            shared = replace(
                spec,
                data=_shared(spec.data),
                evaluation_data=_shared(spec.evaluation_data),
                probe=ray.put(spec.probe),
            )
            coordinator = _start_coordinator(shared)
            outcome = _follow(coordinator, spec, watcher)
            ray.kill(coordinator)
        summary = self._summary(outcome, time.time() - began)
        if outcome.state == "failed":
            raise TrainingFailedError(outcome.error, summary)
        return ray.train.Result(
            metrics={
                "loss": outcome.loss,
                "steps": outcome.steps,
                "digest": outcome.digest,
                **outcome.metrics,
            },
            checkpoint=ray.train.Checkpoint(outcome.checkpoint) if outcome.checkpoint else None,
            error=None,
            path=str(spec.folder),
            return_value=summary,
        )

    def _open_journal(self, address: str) -> None:
        opened = Journal(self.spec.folder)
        opened.write(
            "run",
            run=self.spec.name,
            address=address,
            resumed=self._resume,
            identity=self._identity,
            total_steps=self.spec.clock.total_steps,
            steps_per_epoch=self.spec.clock.steps_per_epoch,
            batch_size=self.spec.batch_size,
            workers=list(self.spec.workers),
            threads=self.spec.threads,
        )
        opened.close()

    def _summary(self, outcome: Outcome, wall_seconds: float) -> dict[str, Any]:
        return {
            "run": self.spec.name,
            "state": outcome.state,
            "steps": outcome.steps,
            "digest": outcome.digest,
            "loss": outcome.loss,
            "metrics": dict(outcome.metrics),
            "generations": list(outcome.generations),
            "samples": {
                "loaded": outcome.steps * self.spec.batch_size,
                "trained": outcome.samples,
            },
            "tokens": {
                "loaded": outcome.steps * self.spec.clock.batch_tokens,
                "trained": outcome.tokens,
            },
            "algorithms": dict(outcome.costs),
            "device_seconds": round(outcome.device_seconds, 3),
            "wall_seconds": round(wall_seconds, 3),
            "bitwise": outcome.bitwise,
            "faults_left": outcome.faults_left,
            "checkpoint": str(outcome.checkpoint) if outcome.checkpoint else None,
            "folder": str(self.spec.folder),
        }


@contextlib.contextmanager
def cluster(most_workers: int) -> Iterator[str]:
    """Join the running Ray cluster, or run one of our own for as long as it is needed.

    A cluster of our own has a slot for every worker: on one machine more workers than cores are
    slow, but they are what somebody wants who tries out elasticity on a laptop.
    """
    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        slots = max(os.cpu_count() or 1, most_workers)
        ray.init(num_cpus=slots, include_dashboard=False, **quiet)
    except ValueError:  # there is a cluster already: Ray refuses to be told its size
        ray.init(**quiet)
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def _start_coordinator(spec: RunSpec) -> Any:
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    return (
        ray.remote(concurrency_groups={"control": 4})(Coordinator)
        .options(
            name=spec.name,
            namespace=NAMESPACE,
            num_cpus=0,
            max_restarts=0,
            scheduling_strategy=here,
        )
        .remote(spec)
    )


def _follow(coordinator: Any, spec: RunSpec, watcher: Watcher | None) -> Outcome:
    path = spec.folder / journal.FILE_NAME
    offset = path.stat().st_size if path.exists() and spec.resume_from else 0
    running = coordinator.run.remote()
    interrupted = False
    while True:
        try:
            done, _ = ray.wait([running], timeout=_POLL)
            if watcher is not None:
                events, offset = journal.follow(path, offset)
                watcher(events)
            if done:
                outcome: Outcome = ray.get(running)
                return outcome
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True  # the first time, end after the step in flight and keep the state
            coordinator.stop.remote()


def _shared(data: Any) -> Any:
    return ray.put(data.combine_chunks()) if isinstance(data, pa.Table) else data

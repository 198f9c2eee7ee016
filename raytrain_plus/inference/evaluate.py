"""Evaluates a trained model: the same numbers, to the bit, as the run's own evaluation.

The logical ranks of the run are measured one by one, each by any process, as in a run. Their
results are joined in the order of logical ranks.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_plus import configure, run_file
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.worker.process import prepare_process
from raytrain_plus.inference.loaded import Job, Loaded, in_this_process, job_of
from raytrain_plus.inference.trained_model import TrainedModel, find_model
from raytrain_plus.inference.workers import Workers, computed
from raytrain_plus.task import Task, collate_of
from raytrain_plus.training.evaluation import (
    Evaluation,
    measures_anything,
    named_in,
    named_sets,
)
from raytrain_plus.user_data import open_users_data

_BATCH_SIZE, _LOGICAL_RANKS = 256, 8  # the defaults of a run

Progress = Callable[[int, int], None]
"""Is called with what is done and what there is."""


def evaluate(  # noqa: PLR0913 - the public face: what users say, by name
    task: Task | str,
    model: str | Path,
    *,
    data: Any = None,
    checkpoint: str = "latest",
    num_workers: int = 0,
    use_gpu: bool | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    logical_ranks: int | None = None,
    seed: int | None = None,
    task_settings: Mapping[str, Any] | None = None,
    storage_path: str = "~/ray_results",
) -> dict[str, Any]:
    """Measure a trained model, as the run's own evaluation does, to the bit.

    What is not given is as in the run. So with the run's data the numbers are those that the run
    has measured after that step. Exported weights have no run: there the defaults are those of a
    run.

    Args:
        task: the task, or the name of one: `"module:attribute"` or `"file.py:attribute"`.
        model: the name, folder or URL of a run or of one of its checkpoints; a safetensors file as
            `raytrain-plus export` writes it; or a folder that `save_pretrained` has written.
        data: the data, or a mapping of several sets by name. Default: that of the run's own
            evaluation, or else `task.evaluation_data()`.
        checkpoint: which one of a run: `"latest"`, a step such as `"200"`, or `"best:METRIC"`,
            where `"best:METRIC:min"` prefers small values.
        num_workers: processes on Ray; 0 for this process alone. The numbers do not depend on it.
        use_gpu: compute on a GPU. Default: as the run, if there is one.
        threads: per process. Default: as the run.
        batch_size: of the run, from which the rows of one forward follow. Default 256.
        logical_ranks: parts in which the data is measured. Default 8.
        seed: of the run. Default 17.
        task_settings: new values of the task's fields.
        storage_path: where runs are searched by name.

    Returns:
        The value of each metric, by the names that a run gives them.

    Raises:
        ValueError: a setting is wrong; its subclasses say which kind.
        FileNotFoundError: there is no such model.
        InferenceError: the task has failed on a worker.
    """
    found = find_model(str(model), storage=storage_path, checkpoint=checkpoint)
    job, loaded = job_of(
        task, found, task_settings=task_settings, seed=seed, threads=threads, gpu=use_gpu
    )
    return measured(
        job,
        loaded,
        data=data,
        sizes=sizes_of(found, batch_size=batch_size, logical_ranks=logical_ranks),
        workers=num_workers,
    )


def sizes_of(
    model: TrainedModel, *, batch_size: int | None, logical_ranks: int | None
) -> tuple[int, int]:
    """Return the batch size and the logical ranks: what is given, or else those of the run."""
    ranks = logical_ranks or int(model.identity.get("logical_ranks", _LOGICAL_RANKS))
    size = batch_size or int(model.identity.get("batch_size", _BATCH_SIZE))
    configure.check_sizes(size, ranks, (1, 1))
    return size, ranks


def measured(
    job: Job,
    task: Task,
    *,
    data: Any,
    sizes: tuple[int, int],
    workers: int,
    progress: Progress = lambda _done, _of: None,
) -> dict[str, Any]:
    """Return the value of each metric of a model.

    Args:
        job: the model.
        task: its task.
        data: as for `evaluate`.
        sizes: the batch size and the logical ranks.
        workers: how many processes.
        progress: called after each logical rank of a set.

    Raises:
        ConfigError: there is nothing to measure, or no data.
    """
    if not measures_anything(task):
        raise ConfigError(
            f"task {type(task).__name__} measures nothing: define metrics() or measure(), or set "
            "evaluate_loss"
        )
    sets = named_sets(_data_for(task, job.model, data))
    for name, one in sets.items():
        _check_same(task, job.model, name, one, is_given=data is not None)
    batch_size, ranks = sizes
    rows = configure.evaluation_rows(batch_size, ranks)
    work = _Measuring(job=job, sets=sets, ranks=ranks, rows=rows)
    units = [(name, rank) for name in sets for rank in range(ranks)]
    crew = Workers(number=workers, cpus=job.threads, gpu=job.gpu, import_paths=job.import_paths)
    payloads: dict[str, list[bytes]] = {name: [] for name in sets}
    with in_this_process() if not workers else contextlib.nullcontext():
        for done, (place, payload) in enumerate(computed(work, units, crew), 1):
            payloads[units[place][0]].append(payload)
            progress(done, len(units))
    with in_this_process():
        return work.joined(payloads)


@dataclass(frozen=True, kw_only=True)
class _Measuring:
    """Measures logical ranks of evaluation sets.

    Attributes:
        job: the model.
        sets: data by the name of its set.
        ranks: logical ranks.
        rows: samples in one forward.
    """

    job: Job
    sets: Mapping[str, Any]
    ranks: int
    rows: int

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[tuple[str, int]], bytes]]:
        """Load the model; return the function that measures a logical rank of a set."""
        model = Loaded(self.job)
        with contextlib.ExitStack() as closing:
            evaluations = self._evaluations(model.task, closing)

            def measure(unit: tuple[str, int]) -> bytes:
                name, rank = unit
                return evaluations[name].measure(
                    model.step, model.weave, range(rank, rank + 1), model.device
                )

            yield measure

    def joined(self, payloads: Mapping[str, list[bytes]]) -> dict[str, Any]:
        """Return the values of all sets, computed with the settings of a process that measures."""
        prepare_process(self.job.threads, gpu=self.job.gpu)
        with contextlib.ExitStack() as closing:
            evaluations = self._evaluations(self.job.load_task(), closing)
            return {
                named_in(name, metric): value
                for name, one in evaluations.items()
                for metric, value in one.values(self.job.model.step, payloads[name]).items()
            }

    def _evaluations(self, task: Task, closing: contextlib.ExitStack) -> dict[str, Evaluation]:
        found = {}
        columns = None if task.columns is None else list(task.columns)
        for name, data in self.sets.items():
            source = open_users_data(data, columns)
            closing.callback(source.close)
            source.collate = collate_of(task)
            order = source.plain_order(self.ranks)
            found[name] = Evaluation(task, source, order, self.rows, self.job.seed)
        return found


def _data_for(task: Task, model: TrainedModel, data: Any) -> Any:
    """Return the data to evaluate on: what is given, that of the run, or the task's own.

    Raises:
        ConfigError: there is none.
    """
    path = model.folder and model.folder / run_file.FILE_NAME
    if data is None and path is not None and path.is_file():
        data = run_file.evaluation_data_of(path)
    found = configure.evaluation_data_of(task, data)
    if found is None:
        raise ConfigError(
            "there is no data to evaluate on: give it (--data), or define the task's "
            "evaluation_data()"
        )
    return found


def _check_same(task: Task, model: TrainedModel, name: str, data: Any, *, is_given: bool) -> None:
    """Compare data with that of the run, unless it is given.

    Raises:
        ConfigError: it is other data.
    """
    what = f"evaluation data {name}".rstrip()
    meant = model.identity.get(what)
    with contextlib.closing(configure.open_for(task, data, what)) as source:
        if is_given or meant is None or source.identity == meant:
            return
    raise ConfigError(
        f"the {what} is other data than that which the run was evaluated on: give the data (--data)"
    )

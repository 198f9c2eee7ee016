"""Predicts rows: a map over ranges of rows, each computed whole by one process.

The batches follow from the number of rows and the batch size alone. So each row is predicted in the
same batch, with the same bits, on any number of workers and whatever happens to them.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raytrain_plus import configure
from raytrain_plus.configure import ConfigError
from raytrain_plus.inference.columns import batch_columns, predicted_columns
from raytrain_plus.inference.evaluate import Progress
from raytrain_plus.inference.loaded import Job, Loaded, in_this_process, job_of
from raytrain_plus.inference.output import (
    PredictionFolder,
    Rows,
    check_free,
    folder_at,
    sole_writer,
)
from raytrain_plus.inference.trained_model import find_model
from raytrain_plus.inference.workers import Workers, computed
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import load_part, to_device
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.source import Source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.task import Batch, Task, collate_of
from raytrain_plus.training.buffers import Buffers
from raytrain_plus.training.weights import Weights
from raytrain_plus.user_data import open_users_data

BATCH_SIZE = 256
_MOST_PARTS, _LEAST_ROWS = 256, 4096  # of the output; of a part


def predict(  # noqa: PLR0913 - the public face: what users say, by name
    task: Task | str,
    model: str | Path,
    data: Any,
    to: str | Path | None = None,
    *,
    keep: Sequence[str] = (),
    checkpoint: str = "latest",
    num_workers: int = 0,
    batch_size: int = BATCH_SIZE,
    use_gpu: bool | None = None,
    threads: int | None = None,
    resume: bool = False,
    task_settings: Mapping[str, Any] | None = None,
    storage_path: str = "~/ray_results",
) -> pa.Table | Path:
    """Predict each row of data exactly once, in the order of the rows.

    The columns are what `task.predict` returns. Their bits do not depend on the number of workers.

    Args:
        task: the task, or the name of one: `"module:attribute"` or `"file.py:attribute"`.
        model: as for `evaluate`.
        data: the rows, as for training. They may lack the task's target.
        to: the folder to write, of Parquet files whose names sort in the order of the rows. It
            appears when all rows are there. Default: a table is returned.
        keep: stored columns of the data to add.
        checkpoint: as for `evaluate`.
        num_workers: processes on Ray; 0 for this process alone.
        batch_size: rows in one call of `task.predict`.
        use_gpu: compute on a GPU. Default: as the run, if there is one.
        threads: per process. Default: as the run.
        resume: continue with what a killed call has left. Default: begin again.
        task_settings: new values of the task's fields.
        storage_path: where runs are searched by name.

    Returns:
        The table, or the folder.

    Raises:
        ValueError: a setting is wrong; its subclasses say which kind.
        FileNotFoundError: there is no such model.
        InferenceError: the task has failed on a worker.
    """
    found = find_model(str(model), storage=storage_path, checkpoint=checkpoint)
    job, loaded = job_of(task, found, task_settings=task_settings, threads=threads, gpu=use_gpu)
    work = predicting(job, loaded, data=data, keep=keep, batch_size=batch_size)
    if to is None:
        return in_memory(work, num_workers)
    written(work, folder_at(to), num_workers, resume=resume)
    return folder_at(to)


@dataclass(frozen=True, kw_only=True)
class Predicting:
    """Predicts ranges of rows.

    Attributes:
        job: the model.
        data: the rows.
        columns: those that a batch has; None for all.
        keep: stored columns to add.
        batch_size: rows of a batch.
        rows: how many rows there are.
        identity: of the data.
        code: hash of the task's code.
    """

    job: Job
    data: Any
    columns: Sequence[str] | None
    keep: Sequence[str]
    batch_size: int
    rows: int
    identity: str
    code: str

    @property
    def parts(self) -> list[Rows]:
        """The ranges of rows, each of which is one file."""
        return parts_of(self.rows, self.batch_size)

    def description(self) -> dict[str, Any]:
        """Return what the predictions follow from, as JSON holds it."""
        model = self.job.model
        return {
            "format": 1,
            "model": model.digest,
            "run": model.run,
            "step": model.step,
            "task settings": {k: repr(v) for k, v in self.job.task_settings.items()},
            "task code": self.code,
            "data": self.identity,
            "rows": self.rows,
            "batch_size": self.batch_size,
            "columns": None if self.columns is None else list(self.columns),
            "keep": list(self.keep),
            "seed": self.job.seed,
            "threads": self.job.threads,
            "gpu": self.job.gpu,
            "torch": torch.__version__,
        }

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[Rows], bytes]]:
        """Load the model; return the function that predicts some rows, as a Parquet file."""
        model = Loaded(self.job)
        with contextlib.ExitStack() as closing:
            source = open_users_data(self.data, self.columns)
            closing.callback(source.close)
            source.collate = collate_of(model.task)
            kept = None
            if self.keep:
                kept = open_users_data(_as_stored(self.data), list(self.keep))
                closing.callback(kept.close)
            ahead = closing.enter_context(ThreadPoolExecutor(1))

            def predict_rows(rows: Rows) -> bytes:
                table = _predicted(model, source, kept, rows, self, ahead)
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink, compression="zstd")
                return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]

            yield predict_rows


def _as_stored(data: Any) -> Any:
    return replace(data, transform=None) if isinstance(data, Stream) else data


def predicting(
    job: Job, task: Task, *, data: Any, keep: Sequence[str], batch_size: int
) -> Predicting:
    """Check what is to be predicted.

    Raises:
        ConfigError: the batch size is not possible, or the data has no order of its own.
        DataError: the data cannot be read, or lacks a column.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    if isinstance(data, Mixture):
        raise ConfigError(
            "a Mixture has no order in which its rows are stored: predict its streams"
        )
    data = configure.absolute(data)
    stored = open_users_data(_as_stored(data), None)
    with contextlib.closing(stored):
        _check_kept(keep, stored)
        rows, identity = stored.total_rows, stored.identity
        columns = _columns_for(task, data, stored)
    open_users_data(data, columns).close()  # names a column that is missing
    code = {name: file.sha256 for name, file in configure.code_of(task, (), data).items()}
    return Predicting(
        job=job,
        data=data,
        columns=columns,
        keep=tuple(keep),
        batch_size=batch_size,
        rows=rows,
        identity=identity,
        code=hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest(),
    )


def _check_kept(keep: Sequence[str], stored: Source) -> None:
    unknown = [name for name in keep if name not in stored.columns]
    if unknown:
        raise DataError(
            f"the data has no column {', '.join(unknown)} to keep; it has "
            f"{', '.join(stored.columns)}"
        )


def _columns_for(task: Task, data: Any, stored: Source) -> list[str] | None:
    """Return the columns of a batch: the task's, without the target if the data has none."""
    if task.columns is None:
        return None
    has_transform = isinstance(data, Stream) and data.transform is not None
    return [
        name
        for name in task.columns
        if name != task.target or has_transform or name in stored.columns
    ]


def parts_of(rows: int, batch_size: int) -> list[Rows]:
    """Return the ranges of rows that are predicted as one. They follow from both numbers alone."""
    batches = math.ceil(rows / batch_size)
    each = max(math.ceil(batches / _MOST_PARTS), math.ceil(_LEAST_ROWS / batch_size))
    return _cut(0, rows, each * batch_size)


def _cut(start: int, stop: int, size: int) -> list[Rows]:
    """Cut a range. A single row that is left joins the range before: some models need two."""
    starts = range(start, stop, size)
    ends = [*starts[1:], stop]
    cut = list(zip(starts, ends, strict=True))
    if len(cut) > 1 and size > 1 and cut[-1][1] - cut[-1][0] == 1:
        cut[-2:] = [(cut[-2][0], stop)]
    return cut


def _predicted(
    model: Loaded,
    source: Source,
    kept: Source | None,
    rows: Rows,
    work: Predicting,
    ahead: ThreadPoolExecutor,
) -> pa.Table:
    """Return the predictions of some rows."""
    order = source.plain_order(1)
    batches = _cut(*rows, work.batch_size)
    tables = []

    def load(batch: Rows) -> tuple[Batch, Batch]:
        own = load_part(source, order, 0, 0, *batch)
        return own, {} if kept is None else load_part(kept, kept.plain_order(1), 0, 0, *batch)

    step, task = model.step, model.task
    waiting = ahead.submit(load, batches[0])
    with model.weave.around("evaluate", step), torch.no_grad():
        buffers, weights = Buffers(step.model, task), Weights(step.model)
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            own, further = waiting.result()
            if following is not None:
                waiting = ahead.submit(load, following)
            step.model.eval()
            seed_global_generators(seed_for(work.job.seed, "predict", batch[0]))
            what = f"the rows {batch[0]} to {batch[1] - 1}"
            try:
                with weights.unchanged_by("the prediction"):
                    made = task.predict(step.model, to_device(own, model.device))
                    columns = predicted_columns(made, batch[1] - batch[0], what)
            finally:  # what it changes must not reach the next batch
                buffers.restore()
            tables.append(_joined(columns, batch_columns(further)))
    return pa.concat_tables(tables)


def _joined(columns: Mapping[str, pa.Array], kept: Mapping[str, pa.Array]) -> pa.Table:
    both = sorted(columns.keys() & kept.keys())
    if both:
        raise ConfigError(
            f"{', '.join(both)} is a column to keep, and one that task.predict() returns: give "
            "the prediction another name"
        )
    return pa.table({**kept, **columns})


def in_memory(work: Predicting, workers: int) -> pa.Table:
    """Return all predictions as a table."""
    found = {rows: pq.read_table(pa.BufferReader(one)) for rows, one in _each(work, None, workers)}
    return pa.concat_tables([found[rows] for rows in work.parts])


def written(
    work: Predicting,
    folder: Path,
    workers: int,
    *,
    resume: bool = False,
    progress: Progress = lambda _done, _of: None,
) -> int:
    """Write all predictions into a folder; returns how many rows were there already.

    Args:
        work: what to predict.
        folder: the folder, which appears at the end.
        workers: how many processes.
        resume: continue with what is there.
        progress: called with the rows that are done, and all rows.

    Raises:
        ConfigError: the folder exists, or another process writes it.
    """
    check_free(folder)
    with sole_writer(folder):
        output = PredictionFolder(folder, work.description(), resume=resume)
        missing = output.missing(work.parts)
        before = done = work.rows - sum(stop - start for start, stop in missing)
        progress(done, work.rows)
        for rows, content in _each(work, missing, workers):
            output.write(rows, content)
            done += rows[1] - rows[0]
            progress(done, work.rows)
        output.commit(work.parts)
    return before


def _each(
    work: Predicting, parts: Sequence[Rows] | None, workers: int
) -> Iterator[tuple[Rows, bytes]]:
    job = work.job
    parts = work.parts if parts is None else parts
    if not parts:
        return
    crew = Workers(number=workers, cpus=job.threads, gpu=job.gpu, import_paths=job.import_paths)
    with in_this_process() if not workers else contextlib.nullcontext():
        for place, content in computed(work, parts, crew):
            yield parts[place], content

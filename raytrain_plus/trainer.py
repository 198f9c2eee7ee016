"""ElasticTrainer: configure, fit, get a result."""

import contextlib
import math
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import ray
import ray.train
from ray import cloudpickle

from raytrain_plus import configure, interrupts, resume, run_file
from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.naming import portable
from raytrain_plus.checkpoint import checkpointer, train_snapshot
from raytrain_plus.checkpoint.checkpointer import is_named, name_of
from raytrain_plus.checkpoint.retention import Kept, Retention, ranked
from raytrain_plus.elastic import local
from raytrain_plus.elastic.client import control
from raytrain_plus.elastic.client.control import RunFailedError
from raytrain_plus.elastic.client.following import Ended, LostError, Watcher, follow
from raytrain_plus.elastic.client.tune_trial import (
    in_trial,
    lifeline_of_trial,
    placement_in_trial,
)
from raytrain_plus.elastic.coordinator.actor import (
    check_not_running,
    end_coordinator,
    is_running,
    start_coordinator,
)
from raytrain_plus.elastic.coordinator.callbacks import CallbackLogger, ray_checkpoint
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import ElasticConfig, Outcome, RunSpec
from raytrain_plus.elastic.protocol.run_state import RunState
from raytrain_plus.interrupts import Interrupts
from raytrain_plus.loggers import Logger
from raytrain_plus.loggers.feed import await_all
from raytrain_plus.loggers.naming import LOGGERS, check_loggers, names_of
from raytrain_plus.observe import journal
from raytrain_plus.observe.stored_journal import journal_of, open_journal
from raytrain_plus.ray_cluster import joining, own_ray
from raytrain_plus.ray_cluster.gcs import ClusterError
from raytrain_plus.redaction import redact
from raytrain_plus.stopping import Rule
from raytrain_plus.storage import ownership, staging
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.store import Folder, Store
from raytrain_plus.streams.map_dataset import MapDataset
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.stream import Stream
from raytrain_plus.task import Task, load_task
from raytrain_plus.trainable import trainable
from raytrain_plus.training.evaluation import named_sets

# Any: a frame, or a dataset, of a library that need not be installed.
Data: TypeAlias = pa.Table | Stream | Mixture | MapDataset | str | os.PathLike[str] | Any


class TrainingFailedError(RunFailedError, ray.train.TrainingFailedError):  # type: ignore[misc]
    """The run failed; also an error of Ray Train's type."""


class ElasticTrainer:
    """Trains a task with workers that may come and go; the result has the same bits in any case.

    Args:
        task: a Task, or the name of one to import: `"module:attribute"` or `"file.py:attribute"`.
        task_settings: new values of the task's fields; the task must then be a dataclass.
        data: the training data: a file, a folder, a pattern or a list of Arrow, Parquet, CSV or
            JSON lines files; a Stream or the URL of one, or a Mixture; a table of pyarrow, or a
            frame of pandas or polars; a map-style dataset, of PyTorch or your own, or a MapDataset;
            a `datasets.Dataset`; a `ray.data.Dataset`, which is written to a stream below
            `storage_path` first; or the name of a function that returns one of these,
            `"module:function"`. Default: `task.data()`.
        evaluation_data: the same for evaluation, or a mapping of several sets by name, whose
            metrics are named `set/metric`. Default: `task.evaluation_data()`; without any, nothing
            is evaluated.
        batch_size: samples per step, over all workers. Default 256.
        duration: `"10ep"`, `"500ba"`, `"20000sp"` or `"1000000tok"`. Default `"1ep"`.
        evaluate_every: how often to evaluate, in the same units or as a fraction of the run, for
            example `"0.1dur"`; or a mapping from the name of a set to its interval. There is also
            an evaluation at the end. Default `"1ep"`.
        seed: from which all random numbers follow. Default 17.
        logical_ranks: V, the number of parts into which a batch is cut. The bits depend on it, and
            a run cannot have more workers. Default 8.
        algorithms: aspects, in any order.
        scaling_config: `num_workers` as a number or (least, most), and resources per worker. The
            least is what a run needs to start; then it continues with the workers that are left.
            0 workers mean a local run: in this process, without Ray, and with the task's code in
            the thread that calls `fit`.
        run_config: name, storage path (a folder that all nodes share, or a URL such as
            `s3://bucket/runs`), and which checkpoints are kept (by default all).
        elastic: how to handle workers that come, go, or hang; when and where to keep checkpoints.
        faults: faults to inject.
        loggers: where the run's values are written (`raytrain_plus.loggers`). They are fed from the
            journal by a process of their own, and never slow or end the run.
        group: the name under which loggers join the run with others. A sweep sets it.
        stop: rules that end the run before its last step (`raytrain_plus.stopping`), after the
            same step on any number of workers.
        resume: continue the run of that name from its newest complete checkpoint, or from the
            beginning if it has none.
        allow_change: continue even if something on which the bits depend has changed.
        accept_changed_code: continue even if the user's code has changed, but nothing else. The run
            is marked by `changes` in its summary.
        extend: continue a run with a longer `duration` than before, but nothing else changed. From
            there on schedules and algorithms follow the new length, so that the learning rate may
            jump. The run is marked by `changes` in its summary.
        hash_data: read all data at the start, here and at each worker, and compare its SHA-256.
            Default: tables and streams with a manifest are compared by their hashes; other files by
            name, size, and what their store has (a tag, a version, or the time of the last
            change).
        initial_weights: weights to start from: a safetensors file, a folder with one (as written by
            `save_pretrained`, or a checkpoint), or the folder of another run. Default: those that
            `task.model()` makes.
        partial_weights: load the initial weights that fit, and warn of the others by name. Default:
            all must fit.

    Raises:
        ValueError: a setting is wrong; its subclasses say which kind.
    """

    def __init__(  # noqa: PLR0913 - the public face: what users say, by name
        self,
        *,
        task: Task | str,
        task_settings: Mapping[str, Any] | None = None,
        data: Data | None = None,
        evaluation_data: Data | Mapping[str, Data] | None = None,
        batch_size: int = 256,
        duration: str = "1ep",
        evaluate_every: str | Mapping[str, str] = "1ep",
        seed: int = 17,
        logical_ranks: int = 8,
        algorithms: Sequence[Aspect] = (),
        scaling_config: ray.train.ScalingConfig | None = None,
        run_config: ray.train.RunConfig | None = None,
        elastic: ElasticConfig | None = None,
        faults: Sequence[Fault] = (),
        loggers: Sequence[Logger] = (),
        group: str | None = None,
        stop: Sequence[Rule] = (),
        resume: bool = False,
        allow_change: bool = False,
        accept_changed_code: bool = False,
        extend: bool = False,
        hash_data: bool = False,
        initial_weights: str | os.PathLike[str] | None = None,
        partial_weights: bool = False,
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        scaling = scaling_config or ray.train.ScalingConfig()
        run = run_config or ray.train.RunConfig()
        elastic = configure.with_absolute_checkpoint_storage(elastic or ElasticConfig())
        workers, self._is_local = configure.workers_of(scaling, run, elastic, faults)
        configure.check_sizes(batch_size, logical_ranks, workers)
        configure.check_algorithms(algorithms)
        loaded = load_task(task, task_settings)
        configure.check_task(loaded, initial_weights, partial=partial_weights)
        given = {"data": data, "evaluation_data": evaluation_data}
        data, evaluation_data = configure.data_of(loaded, data, evaluation_data, run, elastic)
        intervals = configure.intervals(evaluate_every, [*named_sets(evaluation_data)])
        source = configure.open_for(loaded, data, "training data", hash_data=hash_data)
        with contextlib.closing(source):
            sizes: dict[str, Any] = {"batch_size": batch_size, "logical_ranks": logical_ranks}
            numbers = {"seed": seed, **sizes}
            often = {"duration": duration, "checkpoint_every": elastic.checkpoint_every, **sizes}
            lengths = configure.clock(source, loaded, evaluate_every=intervals, **often)
            probe = configure.probe(source, batch_size // logical_ranks)
            code = configure.code_of(loaded, algorithms, data)
            folder = configure.folder_of(run, elastic, resume=resume)
            self._before, self._resume = ownership.look(folder, self._is_known), resume
            self._warnings = configure.warnings_of(loaded, evaluation_data)
            self._identity = {
                **numbers,
                **configure.describe_task(loaded, task_settings, code, algorithms, scaling),
                **configure.describe_data(loaded, source, evaluation_data),
                "total_steps": lengths.total_steps,
            }
        self.spec = RunSpec(
            name=folder.name,
            folder=folder,
            run_id=ownership.new_claim(),
            task=configure.with_absolute_path(task),
            task_settings=dict(task_settings or {}),
            import_paths=configure.import_paths(),
            code=code,
            cwd=str(Path.cwd()),
            data=data,
            evaluation_data=evaluation_data,
            **numbers,
            evaluation_rows=configure.evaluation_rows(batch_size, logical_ranks),
            probe=probe,
            clock=lengths,
            algorithms=tuple(map(portable, algorithms)),
            workers=workers,
            **configure.worker_needs(scaling),
            elastic=elastic,
            faults=tuple(faults),
            **configure.uses_of_metrics(run, stop, loaded, evaluation_data),
            identity=self._identity,
            runtime_env=dict(run.worker_runtime_env or {}),
            hash_data=hash_data,
            initial_weights=configure.weights_of(loaded),
            is_local=self._is_local,
            **_loggers_of(loggers, group, run, scaling, elastic),
        )
        lasts = {"duration": duration, "evaluate_every": evaluate_every}
        self._run_file = run_file.described(self.spec, scaling, run, given, loggers, **lasts)
        self._found = self._look_at_storage()

    def _look_at_storage(self) -> resume.Resumption | None:
        """Find where a resumed run continues, or check that a new run touches no other run."""
        changes = {n: self._arguments[n] for n in ("allow_change", "accept_changed_code", "extend")}
        folder, store = self.spec.folder, self.spec.checkpoint_store
        self._storage = None if _is_same(store, folder) else store
        self._storage_before = ownership.look_from_storage(self._storage, self._is_known)
        if self._resume:
            return self._resumption(changes)
        configure.check_fresh(folder)
        resume.check_unused(store, self.spec.name)
        return None

    def _resumption(self, changes: Mapping[str, bool]) -> resume.Resumption:
        """Find where the run continues, and let it start there."""
        folder, store = self.spec.folder, self.spec.checkpoint_store
        found = resume.last_checkpoint(folder, self._identity, store=store, **changes)
        self.spec = replace(
            self.spec,
            run_id=found.run_id or self.spec.run_id,
            environment=found.environment,
            allow_change=changes["allow_change"],
        )
        if found.step > self.spec.clock.total_steps:
            raise configure.ConfigError(
                f"the run in {folder} stands at step {found.step}, and is to end after step "
                f"{self.spec.clock.total_steps}: it has nothing more to do. Give a longer duration"
            )
        self._warnings += [
            f"a worker has kept a later state of this run in {kept}, as it could not be kept in "
            f"{store.location}. This run continues from step {found.step}. To continue from that "
            f"state, stop it, copy the folder to {store.location}, and give the command again with "
            "--resume"
            for kept in resume.rescued_states(found.run_id, found.step)
        ]
        if found.place is not None:
            self.spec = replace(self.spec, resume_from=(str(found.place), found.step))
        return found

    def fit(self, watcher: Watcher | None = None) -> ray.train.Result:
        """Train to the end.

        On a cluster that existed before, the run continues if this process ends; `attach` follows
        it again. Only in a trial of Ray Tune, the run ends with the process, so that a trial that
        Tune stops keeps no CPUs. A local run is in this process, and ends with it.

        Args:
            watcher: called now and then with the journal's new events; in a local run from
                another thread. Default: progress is shown on stderr, or as a table in a notebook;
                the environment's RAYTRAIN_PLUS_PROGRESS_INTERVAL sets the seconds between two
                lines, and 0 shows none. A trial of Ray Tune shows none.

        Returns:
            Ray Train's Result: `metrics` (loss, the task's metrics, steps, digest), `checkpoint`
            (a folder with the last state), `best_checkpoints` and `metrics_dataframe` (all that are
            kept, the best one last), and `return_value`, the summary that the command line prints.
            `Result.from_path` opens the folder of the checkpoints again.

        Raises:
            TrainingFailedError: the run failed; journal and last state are kept.
            RunInterrupted: a signal (Ctrl-C, SIGTERM, SIGHUP) ended the run before its last step;
                its last state is kept. It is a KeyboardInterrupt. After SIGTERM and SIGHUP, a
                process without its own handler for them ends by the signal instead.
            ValueError: a run of that name is live on the cluster, or this is not Linux.
        """
        fit = self._fit_here if self._is_local else self._fit_on_ray
        if watcher is not None or in_trial():
            return fit(watcher)
        # Rich draws a random number when it is imported, which importing this package must not.
        from raytrain_plus.observe import progress  # noqa: PLC0415

        with progress.shown(self.spec.name, is_local=self._is_local) as line:
            return fit(line)

    def as_trainable(self) -> Any:
        """Return a trainable for `ray.tune.Tuner`.

        Each trial is a run of this trainer with some arguments changed, in the trial's folder. The
        keys of Tune's `param_space` are arguments of ElasticTrainer. `task_settings` (also as
        `train_loop_config`), `scaling_config` and `elastic` may be mappings, which change what they
        name; `algorithms` may hold names with settings, as on the command line.

        Each evaluation is a result of the trial, with the checkpoint of its step if there is one.
        A trial holds the most workers that it may have. A trial that Tune stops ends its run and
        workers within seconds, and one that it starts again continues its run.

        Raises:
            ConfigError: a trial's config has an unknown key; when Tune makes the trial.
        """
        return trainable(type(self), self._arguments)

    def _fit_on_ray(self, watcher: Watcher | None) -> ray.train.Result:
        configure.check_platform()
        spec = self.spec
        most = spec.workers[1] + spec.elastic.spares
        slots = math.ceil(most * spec.resources.get("CPU", 1))
        with (
            Interrupts() as taken,
            cluster(slots) as joined,
            lifeline_of_trial() as lifeline,
            taken.held(),
        ):
            check_not_running(spec.name)
            with self._claim_ownership(joined.address) as held:
                if self._storage is not None:
                    ownership.acquire_storage(self._storage, held, self._storage_before)
                run_file.write(spec.folder, self._run_file)
                spec = replace(spec, claim=held.owner.claim, address=joined.address)
                spec = replace(spec, placement=placement_in_trial() or spec.placement)
                keep = _put if joined.is_ours else partial(_written_table, spec)
                shared = replace(
                    spec,
                    data=_share_table(spec.data, keep, "train"),
                    evaluation_data=_share_table(spec.evaluation_data, keep, "evaluation"),
                    probe=ray.put(spec.probe) if joined.is_ours else spec.probe,
                    driver=lifeline if spec.worker_pool is None else None,
                )
                ended = self._train(shared, watcher, taken, is_ours=joined.is_ours)
                held.retire()
        _interrupt(ended, taken.number)
        return result_of(ended, spec)

    def _fit_here(self, watcher: Watcher | None) -> ray.train.Result:
        with Interrupts() as taken, taken.held(), self._claim_ownership(ownership.LOCAL) as held:
            if self._storage is not None:
                ownership.acquire_storage(self._storage, held, self._storage_before)
            run_file.write(self.spec.folder, self._run_file)
            spec = replace(self.spec, claim=held.owner.claim, address=ownership.LOCAL)
            offset = self._open_journal(spec)
            try:
                ended, error = local.train(spec, watcher, taken, offset)
            except LostError as lost:
                raise TrainingFailedError(str(lost), lost.summary) from None
            held.retire()
        _interrupt(ended, taken.number)
        try:
            return result_of(ended, spec)
        except TrainingFailedError as failed:
            # With the error's frames, a debugger that looks at it stands in the user's code.
            raise failed.with_traceback(error.__traceback__ if error else None) from error

    def _train(
        self, spec: RunSpec, watcher: Watcher | None, taken: Interrupts, *, is_ours: bool
    ) -> Ended:
        offset = self._open_journal(spec)
        coordinator = start_coordinator(spec)
        try:
            ended = follow(
                spec.name,
                spec.folder,
                watcher,
                offset,
                spec.claim,
                interrupts=taken,
                is_ours=is_ours,
            )
        except LostError as error:
            raise TrainingFailedError(str(error), error.summary) from None
        except BaseException:  # such as the SystemExit by which Tune ends a function
            if spec.driver is not None:
                coordinator.stop.remote()
            raise
        _await_loggers(spec)
        end_coordinator(spec, coordinator)
        staging.finish(spec.folder, spec.node_folder)
        return ended

    def _open_journal(self, spec: RunSpec) -> int:
        """Begin the run in its journal; returns where in the file that is."""
        opened = open_journal(spec.folder, spec.claim)
        offset = journal.size_of(opened.file)
        opened.write("run", **self._described(spec))
        for kept in self._found.found if self._found else ():
            place = spec.checkpoint_store.inside(kept.name)
            opened.write(
                "checkpoint",
                step=kept.step,
                folder=str(place.location),
                metrics=dict(kept.metrics),
            )
        for text in self._warnings:
            opened.write("warning", text=text)
        opened.close()
        return offset

    def _claim_ownership(self, address: str) -> ownership.Held:
        """Become the run's owner, unless another driver has become it since the first check."""

        def is_over(owner: ownership.Owner) -> bool:
            if self._is_local:
                return False
            return owner.address == address and not is_running(self.spec.name)

        return ownership.acquire(self.spec.folder, self.spec.run_id, address, self._before, is_over)

    def _is_known(self, owner: ownership.Owner) -> bool:
        """Say whether an owner's cluster is the one that the run would join, and can ask."""
        if self._is_local:
            return False
        if ray.is_initialized():
            return bool(owner.address == ray.get_runtime_context().gcs_address)
        try:
            return owner.address == joining.head_address()
        except ClusterError:
            return False

    def _described(self, spec: RunSpec) -> dict[str, Any]:
        clock = self.spec.clock
        return {
            "run": self.spec.name,
            "run_id": spec.run_id,
            "claim": spec.claim,
            "address": spec.address,
            "resumed": self._resume,
            "identity": self._identity,
            **(self._found.journal_fields() if self._found else {}),
            "total_steps": clock.total_steps,
            "steps_per_epoch": clock.steps_per_epoch,
            "batch_size": self.spec.batch_size,
            "batch_tokens": clock.batch_tokens,
            "workers": list(self.spec.workers),
            "threads": self.spec.threads,
            "task": self.spec.task if isinstance(self.spec.task, str) else _name(self.spec.task),
            "evaluate_every": clock.evaluate_every,
            "checkpoint_every": clock.checkpoint_every,
            "elastic": self.spec.elastic.for_journal(),
            "ray": ray.__version__,
            "platform": platform.platform(),
            "worker_pool": self.spec.worker_pool,
            **({"local": True} if spec.is_local else {}),
        }


def attach(
    run: str, storage: str, watcher: Watcher | None = None, address: str | None = None
) -> ray.train.Result:
    """Follow a run that another process started, to its end.

    Args:
        run: its name, folder or URL.
        storage: where runs are kept.
        watcher: called now and then with the journal's events, from the run's beginning.
        address: of its cluster; None for the one that its journal names, if this machine vouches
            for it (`ray_cluster/vouched.py`).

    Raises:
        FileNotFoundError: there is no such run.
        SteeringError: it is not live, and has not ended by itself.
        TrainingFailedError: it failed.
    """
    folder = control.folder_of(run, storage)
    with (
        Interrupts() as taken,
        control.reached(folder, address) as name,
        taken.held(),
    ):
        try:
            ended = follow(name, folder, watcher, interrupts=taken)
        except LostError as error:
            raise control.SteeringError(
                f"{error}: `raytrain-plus train --resume --name {name}` continues it"
            ) from None
    _interrupt(ended, taken.number)
    return result_of(ended)


@configure.about("loggers")
def _loggers_of(
    loggers: Sequence[Logger],
    group: str | None,
    run: ray.train.RunConfig,
    scaling: ray.train.ScalingConfig,
    elastic: ElasticConfig,
) -> dict[str, Any]:
    """Return what a RunSpec holds of loggers, and of callbacks, which are fed as loggers are.

    Raises:
        LoggerError: one is of another type, or its library is not installed.
    """
    check_loggers(loggers)
    if run.callbacks:
        options = elastic.checkpoint_options
        loggers = [*loggers, CallbackLogger(run.callbacks, run, scaling, options)]
    pickled = cloudpickle.dumps(list(loggers)) if loggers else b""
    return {
        "loggers": pickled,
        "logger_names": names_of(loggers),
        "group": group,
    }


def _await_loggers(spec: RunSpec) -> None:
    """Wait until the run's loggers have written its end; say which have not."""
    end = journal.newest(journal_of(spec.folder), {"end"}).get("end") or {}
    left = await_all(spec.folder, spec.logger_names, end.get("time", 0.0))
    for name, cursor in left.items():
        why = f": {cursor.trouble}" if cursor.trouble else ""
        kind = name.partition("-")[0]
        rest = f". `raytrain-plus log {spec.folder} --logger {kind}` writes the rest"
        sys.stderr.write(
            f"warning: logger {name} has not written all of the run{why}"
            f"{rest if kind in LOGGERS else ''}\n"
        )


def _interrupt(ended: Ended, number: int) -> None:
    """Raise RunInterrupted if a signal ended a run."""
    if not number or ended.outcome.state is not RunState.STOPPED:
        return
    run, steps, total = (ended.summary[key] for key in ("run", "steps", "total_steps"))
    kept = ended.outcome.checkpoint
    interrupts.redeliver(number)
    raise interrupts.RunInterrupted(
        number,
        f"run {run} was stopped by {signal.Signals(number).name} after {steps} of {total} steps; "
        + (f"its state is kept in {kept}" if kept else "no state is kept")
        + f": `raytrain-plus train ... --resume --name {run}` continues it",
        ended.summary,
    )


def result_of(ended: Ended, spec: RunSpec | None = None) -> ray.train.Result:
    """Return Ray Train's Result.

    A metric of the task with the name loss, steps or digest becomes `evaluation_loss` and so on, so
    that it does not replace the run's own value. A logged scalar whose name is taken becomes
    `logged_` and its name.

    Args:
        ended: how the run ended.
        spec: the run, with the options of its checkpoint store. Default: the address in the journal
            and the machine's own configuration are used.

    Raises:
        TrainingFailedError: the run failed.
    """
    outcome = ended.outcome
    if outcome.state is RunState.FAILED:
        raise TrainingFailedError(outcome.error, ended.summary)
    own = {"loss": outcome.loss, "steps": outcome.steps, "digest": outcome.digest}
    found = {f"evaluation_{k}" if k in own else k: v for k, v in outcome.metrics.items()}
    found |= own
    logged = {f"logged_{k}" if k in found else k: v for k, v in outcome.logged.items()}
    newest, kept = _checkpoints(outcome, spec)
    return ray.train.Result(
        metrics={**logged, **found},
        checkpoint=newest,
        error=None,
        path=ended.summary["folder"],
        return_value=ended.summary,
        best_checkpoints=kept,
        metrics_dataframe=pd.DataFrame([metrics for _, metrics in kept]) if kept else None,
    )


def _checkpoints(
    outcome: Outcome, spec: RunSpec | None
) -> tuple[ray.train.Checkpoint | None, list[tuple[ray.train.Checkpoint, dict[str, Any]]]]:
    """Return the last checkpoint, and all that are there with their metrics, the best one last."""
    if not outcome.checkpoint:
        return None, []
    place, options, retention = str(outcome.checkpoint), None, Retention()
    if spec is not None:
        place = _with_secrets(place, outcome.steps, spec)
        options, retention = spec.elastic.checkpoint_options, spec.retention
    store = Store(place.rstrip("/").rpartition("/")[0], options)
    kept: list[Kept] = []
    with contextlib.suppress(StorageError):  # the run has ended well all the same
        kept = ranked(train_snapshot.with_newer_metrics(checkpointer.kept(store), store), retention)
    listed = [
        (ray_checkpoint(store.inside(one.name)), train_snapshot.metrics_of(one)) for one in kept
    ]
    return ray_checkpoint(Store(place, options)), listed


def _with_secrets(place: str, step: int, spec: RunSpec) -> str:
    """Return a checkpoint's address with passwords and keys, which the journal does not hold."""
    name = place.rstrip("/").rpartition("/")[2]
    store = spec.checkpoint_store.inside(name if is_named(name) else name_of(step))
    address = str(store.location)
    return address if redact(address) == place else place


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process has joined.

    Attributes:
        address: where it is.
        is_ours: whether it ends with this process.
    """

    address: str
    is_ours: bool


@contextlib.contextmanager
def cluster(slots: int) -> Iterator[Cluster]:
    """Join the Ray cluster that is known here, or run our own for as long as it is needed.

    Our own cluster has a slot for every worker. More workers than cores are slow, but they let a
    user try elasticity on a laptop.

    Args:
        slots: CPUs that all workers hold together.
    """
    if ray.is_initialized():
        yield Cluster(ray.get_runtime_context().gcs_address, is_ours=False)
        return
    ours = joining.head_address() is None
    try:
        if ours:
            own_ray.start(max(os.cpu_count() or 1, slots))
        else:
            joining.join()
        yield Cluster(ray.get_runtime_context().gcs_address, is_ours=ours)
    finally:
        ray.shutdown()


def _is_same(store: Store, folder: Folder) -> bool:
    if not isinstance(folder, Path):
        return store.url == folder.url
    return store.is_local and store.local_path.resolve() == folder


def _name(task: Task) -> str:
    return f"{type(task).__module__}:{type(task).__qualname__}"


def _share_table(data: Any, keep: Callable[..., Any], name: str) -> Any:
    if isinstance(data, Mapping):
        return {key: _share_table(one, keep, f"{name}-{key}") for key, one in data.items()}
    return keep(data.combine_chunks(), name) if isinstance(data, pa.Table) else data


def _put(table: pa.Table, name: str) -> Any:
    del name
    return ray.put(table)


def _written_table(spec: RunSpec, table: pa.Table, name: str) -> Any:
    """Write a table where the run's workers find it, also after this process has ended."""
    name = f"{name}.arrow"
    if not isinstance(spec.folder, Path):
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, table.schema) as file:
            file.write_table(table)
        spec.folder.write(name, content.getvalue().to_pybytes())
        return staging.StoredFile(spec.folder, name, spec.run_id)
    path = spec.folder / name
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    return str(path)

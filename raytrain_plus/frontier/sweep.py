"""Runs a sweep: Ray Tune runs elastic trials on a pool of warm workers.

Each session is one Tune experiment. Only the sweep's folder carries over from one session to the
next: its table of finished trials and its proposals.
"""

import contextlib
import logging
import math
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.tune

from raytrain_plus.configure import import_paths
from raytrain_plus.frontier.agenda import CALIBRATION, Agenda, Promote, Promoted
from raytrain_plus.frontier.calibration import Calibration
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.early_stopping import EarlyStopping
from raytrain_plus.frontier.errors import FailedSweepError, SweepError
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.points import FinishedTrial, points
from raytrain_plus.frontier.promotion import PromotionRule, propose
from raytrain_plus.frontier.searching import RecipeSearch
from raytrain_plus.frontier.trials import RecipeTrial, Setting
from raytrain_plus.interrupts import Interrupts, RunInterrupted
from raytrain_plus.loggers import Logger
from raytrain_plus.loggers.naming import check_loggers
from raytrain_plus.storage.locations import local_path
from raytrain_plus.task import Task
from raytrain_plus.trainer import cluster
from raytrain_plus.worker_pool.server import start_worker_pool

Watcher = Callable[[SweepFolder], None]

_LOOK = 1.0  # seconds between two calls of a watcher
_TUNE = {
    # Otherwise Tune writes each result in three more formats: the trials have journals.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Its handler of SIGINT waits for the next result of each trial, and SIGTERM has none.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def run_sweep(  # noqa: PLR0913 - one option each
    sweep: Sweep,
    *,
    storage: str,
    budget: float,
    workers: int | None = None,
    resume: bool = False,
    elastic: bool = True,
    watcher: Watcher | None = None,
    loggers: Sequence[Logger] = (),
) -> dict[str, Any]:
    """Run trials until the budget is used up or no trial is left.

    Args:
        sweep: the sweep.
        storage: folder for sweeps, one folder each; on a cluster all nodes must see it.
        budget: seconds of the whole pool's time, over all sessions.
        workers: number of workers in the pool. Default: as many as fit on the cluster that this
            process joins; without a cluster, one per core of this machine.
        resume: go on with the sweep that is in the folder.
        elastic: move workers to trials that can use more. Default True.
        loggers: where each trial's values are written, in a group of the sweep's name.
        watcher: called about once a second.

    Returns:
        `sweep`, `folder`, `state` (`finished`), `trials` by outcome, `seconds`, `device_seconds`.

    Raises:
        RunInterrupted: a signal ended the sweep, and its trials with it. Its summary has the state
            `interrupted`; `resume` starts these trials again.
        SweepError: the sweep cannot be run as it is defined, or not on this cluster.
        FailedSweepError: too many trials failed, or the budget is too small for the baseline.
    """
    most = workers or os.cpu_count() or 1  # without a cluster
    _check(sweep, budget, workers)
    check_loggers(loggers)
    task = sweep.loaded_task()
    folder = SweepFolder(_root_of(storage) / sweep.name)
    with Interrupts() as taken, folder.held():
        _check_place(sweep, folder, resume=resume)
        cpus = math.ceil(most * sweep.resources.get("CPU", 1))
        with contextlib.ExitStack() as stack:
            joined = stack.enter_context(cluster(cpus))
            workers = workers or (most if joined.is_ours else _room(sweep.resources))
            _check(sweep, budget, workers)
            pool = stack.enter_context(_worker_pool(sweep, workers, elastic=elastic))
            described = sweep.described()
            data = _kept(task, folder.path / "data")
            folder.write("session", sweep=described, workers=workers, budget=budget)
            stack.push(partial(_end_session, sweep, folder, taken))
            setting = Setting(
                sweep=sweep,
                folder=folder.path,
                worker_pool=pool,
                workers=workers,
                data=data,
                loggers=loggers,
            )
            _tune(setting, folder, budget, watcher)
    return _summary(sweep, folder)


def _end_session(
    sweep: Sweep,
    folder: SweepFolder,
    taken: Interrupts,
    kind: Any,
    error: BaseException | None,
    trace: Any,
) -> None:
    """Record the end of a session; give an interrupt the sweep's summary."""
    del kind, trace
    if error is None or isinstance(error, KeyboardInterrupt):
        folder.write("session_end")
    if isinstance(error, KeyboardInterrupt):
        number = taken.number or signal.SIGINT  # Ray raises a plain KeyboardInterrupt
        text = f"the sweep was ended by {signal.Signals(number).name}"
        raise RunInterrupted(number, text, _summary(sweep, folder)) from None


def _tune(setting: Setting, folder: SweepFolder, budget: float, watcher: Watcher | None) -> None:
    sweep = setting.sweep
    sessions = sum(event["event"] == "session" for event in folder.events())
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(RecipeTrial, paths=import_paths(), setting=[ray.put(setting)]),
        # The workers belong to the pool, but Ray requires that a trial asks for some resource.
        ray.tune.PlacementGroupFactory([{"memory": 1}]),
    )
    tuner = ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=RecipeSearch(sweep, folder, agenda_of(sweep), budget, setting.workers),
            scheduler=EarlyStopping(folder, sweep.objective, setting.worker_pool),
            num_samples=-1,
            max_concurrent_trials=at_once(sweep, setting.workers),
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name=f"session-{sessions}",
            storage_path=str(folder.path / "tune"),
            verbose=0,
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Watching(folder, watcher)] if watcher else [],
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with _environment(_TUNE):
        tuner.fit()


def at_once(sweep: Sweep, workers: int) -> int:
    """Return how many trials exist at a time: one more than fit, so the next begins at once."""
    return workers // sweep.least_workers + 1


def agenda_of(sweep: Sweep) -> Agenda:
    """Return the order of a sweep's trials."""
    return Agenda(
        space=sweep.space,
        seeds=sweep.seeds,
        promote=promotions(sweep),
        beyond=sweep.beyond,
        design=sweep.design,
        design_at=sweep.design_at,
        design_seeds=sweep.design_seeds,
        calibrate_every=sweep.calibrate_every,
        sign=sweep.objective.sign,
        explore=sweep.explore,
    )


def promotions(sweep: Sweep) -> Promote:
    """Return the function that promotes recipes to longer durations and to more seeds."""
    rule = PromotionRule(
        durations=sweep.space.rungs, seeds=sweep.seeds, at_most=sweep.most_promoted
    )

    def promote(finished: Sequence[FinishedTrial]) -> list[Promoted]:
        same = [t for t in finished if t.purpose == CALIBRATION and t.outcome == "complete"]
        calibration = Calibration.of(same)
        found = points(calibration.correct(trial) for trial in finished)
        return [(one.recipe, one.seed) for one in propose(found, rule, sweep.objective)]

    return promote


class _Watching(ray.tune.Callback):  # type: ignore[misc]
    def __init__(self, folder: SweepFolder, watcher: Watcher) -> None:
        self._folder = folder
        self._watcher = watcher
        self._next = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune copies this object, and a terminal cannot be copied."""
        return {}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOOK
            self._watcher(self._folder)


@contextlib.contextmanager
def _worker_pool(sweep: Sweep, workers: int, *, elastic: bool) -> Iterator[str]:
    name = f"worker-pool-{uuid.uuid4().hex[:12]}"
    pool = start_worker_pool(
        name,
        workers=workers,
        coordinators=at_once(sweep, workers),
        resources=sweep.resources,
        elastic=elastic,
    )
    try:
        yield name
    finally:
        ray.kill(pool)


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of the block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _room(resources: Mapping[str, float]) -> int:
    """Return how many workers fit on the cluster."""
    there = ray.cluster_resources()
    room = (there.get(name, 0.0) / wanted for name, wanted in resources.items() if wanted)
    return int(min(room, default=1.0))


def _check(sweep: Sweep, budget: float, workers: int | None) -> None:
    if not budget > 0:
        raise SweepError(f"the budget is {budget} s; it must be above zero")
    if workers is not None and workers < 1:
        raise SweepError(
            f"a sweep cannot have {workers} workers: its trials run in the processes of a pool. A "
            "local run, with 0 workers, is for `raytrain-plus train`; give at least 1"
        )
    if workers is not None and workers < sweep.least_workers:
        raise SweepError(
            f"the pool has {workers} workers and a trial needs {sweep.least_workers}: give more "
            "--workers, or lower least_workers"
        )


def _root_of(storage: str) -> Path:
    """Return the folder of all sweeps.

    Raises:
        SweepError: it is a URL.
    """
    root = local_path(storage)
    if root is None:
        raise SweepError(
            f"the storage {storage} is a URL, and a sweep needs a folder that all nodes share, for "
            "its lock and its table of trials: give one. Only the runs of `train` may be in an "
            "object store"
        )
    return root.resolve()


def _check_place(sweep: Sweep, folder: SweepFolder, *, resume: bool) -> None:
    if not resume:
        if folder.exists:
            raise SweepError(
                f"there is a sweep in {folder.path} already: --resume goes on with it; or give "
                "another --storage"
            )
        return
    sessions = [event for event in folder.events() if event["event"] == "session"]
    if not sessions:
        raise SweepError(f"there is no sweep to resume in {folder.path}")
    before, now = sessions[-1]["sweep"], sweep.described()
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        raise SweepError(
            f"the sweep in {folder.path} was begun with another {', '.join(changed)}: its trials "
            "cannot be compared with new ones. Change it back, or begin another sweep"
        )


def _kept(task: Task, folder: Path) -> tuple[Any, Any]:
    """Return the data; tables are written once into the sweep's folder for all trials."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, data in (("train", task.data()), ("evaluation", task.evaluation_data())):
        path = folder / f"{name}.arrow"
        if not isinstance(data, pa.Table):
            found.append(data)
            continue
        if not path.exists():
            unfinished = folder / f".{name}.{os.getpid()}"
            with pa.ipc.new_file(unfinished, data.schema) as file:
                file.write_table(data.combine_chunks())
            unfinished.replace(path)
        found.append(str(path))
    return found[0], found[1]


def _summary(sweep: Sweep, folder: SweepFolder) -> dict[str, Any]:
    events = folder.events()
    begun = max(i for i, event in enumerate(events) if event["event"] == "session")
    ends = [event for event in events[begun:] if event["event"] in ("finished", "problem")]
    finished = folder.finished()
    for event in ends:
        if event["event"] == "problem":
            raise FailedSweepError(event["text"])
    return {
        "sweep": sweep.name,
        "folder": str(folder.path),
        "state": "finished" if ends else "interrupted",
        "trials": dict(Counter(trial.outcome for trial in finished)),
        "seconds": round(folder.spent(), 3),
        "device_seconds": round(sum(trial.cost for trial in finished), 3),
    }

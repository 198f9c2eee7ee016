"""A trainer as a trainable of Ray Tune: each trial is a run with some arguments changed.

The trial's placement group holds the run's workers, so that Tune knows what a trial needs, and ends
them with the trial. The run is in the trial's folder. A trial that Tune starts again continues it.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
from ray import cloudpickle

from raytrain_plus import configure
from raytrain_plus.algorithms import Aspect, parse_algorithm
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.protocol.messages import ElasticConfig, import_first
from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event

_OF_TRIAL = ("run_config", "resume")  # what a trial sets by itself
_SETTINGS = ("task_settings", "train_loop_config")  # of the task; the second is Ray Train's name
_NESTED: Mapping[str, Callable[[], Any]] = {
    "scaling_config": ray.train.ScalingConfig,
    "elastic": ElasticConfig,
}
_OWN = ("loss", "steps")


def trainable(kind: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Return a trainable for `ray.tune.Tuner`.

    Args:
        kind: makes a trainer of its arguments.
        arguments: of the trainer that is tuned. What a trial's config names is changed.
    """
    import ray.tune  # noqa: PLC0415 - of seconds

    given = {
        **arguments,
        "task": configure.with_absolute_path(arguments["task"]),
        "data": configure.absolute(arguments.get("data")),
        "evaluation_data": _absolute(arguments.get("evaluation_data")),
    }

    def resources(config: Mapping[str, Any]) -> Any:
        return _resources(changed(kind, given, config))

    def train(config: Mapping[str, Any], pickled: Any) -> None:
        paths, described = pickled
        import_first(paths)
        kind, given = cloudpickle.loads(described)
        _train(kind, given, config)

    # By reference: the arguments may hold tables, and need the user's modules.
    described = configure.import_paths(), cloudpickle.dumps((kind, given))
    with_arguments = ray.tune.with_parameters(train, pickled=described)
    return ray.tune.with_resources(with_arguments, resources)


def _absolute(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: configure.absolute(one) for name, one in data.items()}
    return configure.absolute(data)


def changed(
    kind: Callable[..., Any], arguments: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a trainer's arguments, changed by a trial's config.

    Args:
        kind: makes a trainer of its arguments.
        arguments: before.
        config: argument -> its value. Of `task_settings` (also as `train_loop_config`),
            `scaling_config` and `elastic` a mapping changes what it names. `algorithms` may be
            names with settings, as on the command line.

    Raises:
        ConfigError: the config names something else.
    """
    known = [name for name in inspect.signature(kind).parameters if name not in _OF_TRIAL]
    for name in config:
        if name not in (*known, *_SETTINGS):
            raise ConfigError(_unknown(name, known))
    found = dict(arguments)
    for name, value in config.items():
        if name in _SETTINGS:
            found["task_settings"] = {**(found.get("task_settings") or {}), **value}
        elif name in _NESTED and isinstance(value, Mapping):
            found[name] = _replaced(name, found.get(name) or _NESTED[name](), value)
        elif name == "algorithms":
            found[name] = [_aspect(one) for one in value]
        else:
            found[name] = value
    return found


def _unknown(name: str, known: Sequence[str]) -> str:
    if name in _OF_TRIAL:
        return f"the config of a trial sets {name}, which follows from the trial: leave it out"
    near = difflib.get_close_matches(name, known, 1, 0.7)
    meant = f"Did you mean {near[0]}?" if near else f"The arguments are {', '.join(known)}."
    return (
        f"the config of a trial sets {name!r}, which is no argument of ElasticTrainer. {meant} "
        f"A field of the task is set by task_settings={{{name!r}: ...}}"
    )


def _replaced(name: str, before: Any, value: Mapping[str, Any]) -> Any:
    unknown = [key for key in value if not hasattr(before, key)]
    if unknown:
        raise ConfigError(f"{name} of a trial's config has no field {', '.join(unknown)}")
    return replace(before, **value)


def _aspect(one: Any) -> Aspect:
    made: Aspect = parse_algorithm(one) if isinstance(one, str) else one
    return made


def _resources(arguments: Mapping[str, Any]) -> Any:
    """Return what a trial holds: nothing for the trial itself, and a bundle for each worker."""
    import ray.tune  # noqa: PLC0415

    scaling = arguments.get("scaling_config") or ray.train.ScalingConfig()
    _, most = configure.worker_range(scaling)
    bundle = configure.worker_resources(scaling)
    if not most:
        return ray.tune.PlacementGroupFactory([bundle])
    placement = configure.worker_placement(scaling)
    number = most + (arguments.get("elastic") or ElasticConfig()).spares
    selector = placement.get("label_selector")
    more = {"bundle_label_selector": [{}, *[selector] * number]} if selector else {}
    bundles = [{}, *[bundle] * number]
    return ray.tune.PlacementGroupFactory(bundles, strategy=scaling.placement_strategy, **more)


def _train(
    kind: Callable[..., Any], arguments: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Train the run of this trial, and report its evaluations."""
    import ray.tune  # noqa: PLC0415

    context = ray.tune.get_context()
    name = f"trial_{context.get_trial_id()}"
    given = changed(kind, arguments, config)
    run = given.get("run_config") or ray.train.RunConfig()
    storage = _folder_of(context.get_storage())
    made = kind(
        **{
            **given,
            "run_config": replace(run, name=name, storage_path=storage),
            "resume": (Path(storage) / name / journal.FILE_NAME).exists(),
            "group": given.get("group") or context.get_experiment_name(),
        }
    )
    results = Results(
        total_steps=made.spec.clock.total_steps,
        checkpoint_every=made.spec.clock.checkpoint_every,
        evaluates=made.spec.evaluation_data is not None,
    )

    def watch(events: Sequence[Event]) -> None:
        for event in events:
            for one in results.of(event):
                _report(one)

    made.fit(watch)
    for one in results.rest():
        _report(one)


def _folder_of(storage: Any) -> str:
    """Return the folder of this trial in the storage of the experiment.

    Raises:
        ConfigError: it is not a folder that the run's workers share.
    """
    if not isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem):
        raise ConfigError(
            "the runs of a Tune experiment need a folder that all nodes share: give "
            "ray.tune.RunConfig(storage_path=...) one, and keep the checkpoints elsewhere by "
            "elastic=ElasticConfig(checkpoint_storage='s3://...')"
        )
    return str(storage.trial_fs_path)


@dataclass(frozen=True)
class TrialResult:
    """What a trial reports.

    Attributes:
        metrics: by name.
        checkpoint: the folder of a checkpoint of that step; None for none.
    """

    metrics: Mapping[str, Any]
    checkpoint: str | None = None


def _report(result: TrialResult) -> None:
    import ray.tune  # noqa: PLC0415

    kept = None
    if result.checkpoint is not None and Path(result.checkpoint).is_dir():
        kept = ray.tune.Checkpoint(result.checkpoint)
    ray.tune.report(dict(result.metrics), checkpoint=kept)


@dataclass
class Results:
    """Makes the results of a trial from the events of its run. Pure.

    Each evaluation is a result. If a checkpoint is due at the same step, the result waits for it,
    at most until the next evaluation. A run without evaluation data has a result for each
    checkpoint.

    Attributes:
        total_steps: of the run.
        checkpoint_every: steps between two checkpoints; None for one at the end.
        evaluates: whether the run has evaluation data.
    """

    total_steps: int
    checkpoint_every: int | None
    evaluates: bool
    _loss: float | None = None
    _waiting: dict[str, Any] = field(default_factory=dict)
    _reported: int = -1

    def of(self, event: Event) -> list[TrialResult]:
        """Return the results that are complete after an event."""
        kind, step = event["event"], event.get("step", 0)
        if kind == "step":
            self._loss = event["loss"]
        elif kind == "evaluate":
            return self._evaluated(step, event["metrics"])
        elif kind == "checkpoint" and not event.keys() & {"refused", "removed"}:
            return self._kept(step, event.get("folder") if "error" not in event else None)
        elif kind == "end":
            return self._ended(event)
        return []

    def rest(self) -> list[TrialResult]:
        """Return the result that still waits for its checkpoint."""
        return self._released(None)

    def _evaluated(self, step: int, metrics: Mapping[str, Any]) -> list[TrialResult]:
        before = [] if self._waiting.get("steps") == step else self._released(None)
        named = {f"evaluation_{k}" if k in _OWN else k: v for k, v in metrics.items()}
        self._waiting = {"loss": self._loss, "steps": step, **self._waiting, **named}
        return before if self._is_due(step) else [*before, *self._released(None)]

    def _is_due(self, step: int) -> bool:
        return step == self.total_steps or bool(
            self.checkpoint_every and step % self.checkpoint_every == 0
        )

    def _kept(self, step: int, folder: str | None) -> list[TrialResult]:
        if self._waiting:
            return self._released(folder) if step >= self._waiting["steps"] else []
        if self.evaluates or folder is None or step <= self._reported:
            return []
        self._waiting = {"loss": self._loss, "steps": step}
        return self._released(folder)

    def _ended(self, event: Event) -> list[TrialResult]:
        if self._waiting:
            return self._released(event.get("checkpoint"))
        step = event.get("step", 0)
        if step <= self._reported or event.get("state") != "finished":
            return []
        self._waiting = {"loss": event.get("loss"), "steps": step}
        return self._released(event.get("checkpoint"))

    def _released(self, folder: str | None) -> list[TrialResult]:
        if not self._waiting:
            return []
        made = TrialResult(self._waiting, folder)
        self._reported, self._waiting = self._waiting["steps"], {}
        return [made]

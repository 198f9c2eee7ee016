"""A trained model in a process that computes with it."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from raytrain_plus import configure
from raytrain_plus.algorithms import Aspect, Step, Weave
from raytrain_plus.algorithms.naming import Described, make, portable, unpack
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.worker.process import prepare_process
from raytrain_plus.inference.trained_model import TrainedModel
from raytrain_plus.redaction import HIDDEN
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.storage.store import Store
from raytrain_plus.task import Task, TaskWarning, load_task
from raytrain_plus.task_check import check_form
from raytrain_plus.training.modes import to_evaluation
from raytrain_plus.training.process_state import process_kept
from raytrain_plus.training.state import Replica

_SEED = 17  # the default of a run


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model and how to compute with it, for a process that may be on another node.

    Attributes:
        task: the task, or where to import it from.
        task_settings: fields of the task that are set otherwise.
        model: the model.
        algorithms: the aspects with which it was trained.
        seed: of the run.
        threads: to compute with.
        gpu: compute on a GPU.
        import_paths: folders in which modules are searched first.
        cwd: the driver's working directory.
    """

    task: Task | str
    task_settings: Mapping[str, Any]
    model: TrainedModel
    algorithms: Sequence[Aspect | Described] = ()
    seed: int = _SEED
    threads: int = 1
    gpu: bool = False
    import_paths: Sequence[str] = field(default_factory=configure.import_paths)
    cwd: str = field(default_factory=lambda: str(Path.cwd()))

    def load_task(self) -> Task:
        """Return the task, as the workers of a run make it."""
        seed_global_generators(seed_for(self.seed, "task"))
        task = copy.copy(load_task(self.task, self.task_settings, self.cwd))
        if not self.model.is_checkpoint:
            task.initial_weights, task.partial_weights = self.model.place, False
        return task


def job_of(
    task: Task | str,
    model: TrainedModel,
    *,
    task_settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    threads: int | None = None,
    gpu: bool | None = None,
) -> tuple[Job, Task]:
    """Return a job, with all that is not given as the run had it, and its task.

    Raises:
        AspectError: the checkpoint names an aspect whose module is not imported. Nothing that a
            checkpoint names is ever imported.
        ConfigError: a setting of the task was not kept, since it is secret.
        TaskError: the task cannot be made.
    """
    settings = {**_settings_of(task, model), **(task_settings or {})}
    hidden = [name for name, value in settings.items() if HIDDEN in str(value)]
    if hidden:
        raise ConfigError(
            f"the task's setting {', '.join(hidden)} is secret, and the run has not kept it: give "
            "it again (--setting)"
        )
    job = Job(
        task=configure.with_absolute_path(task),
        task_settings=settings,
        model=model,
        seed=int(model.identity.get("seed", _SEED)) if seed is None else seed,
        threads=threads or int(model.environment.get("threads", 1)),
        gpu=_uses_gpu(model, asked=gpu),
    )
    with process_kept():
        loaded = job.load_task()
    check_form(loaded)
    # The task's module may define some of them.
    aspects = [make(described) for described in model.algorithms]
    _warn_of_changes(loaded, aspects, model)
    return Job(**{**vars(job), "algorithms": tuple(map(portable, aspects))}), loaded


def _settings_of(task: Task | str, model: TrainedModel) -> dict[str, Any]:
    """Return the run's settings of the task; an object has its own."""
    return dict(model.identity.get("task settings", {})) if isinstance(task, str) else {}


def _uses_gpu(model: TrainedModel, *, asked: bool | None) -> bool:
    if asked is not None:
        return asked
    trained_on_gpu = "cuda" in model.environment
    if trained_on_gpu and not torch.cuda.is_available():
        warnings.warn(
            "the model was trained on a GPU and is used on a CPU: the numbers may differ in their "
            "last bits",
            TaskWarning,
            stacklevel=4,
        )
    return trained_on_gpu and torch.cuda.is_available()


def _warn_of_changes(task: Task, aspects: Sequence[Aspect], model: TrainedModel) -> None:
    before = model.identity.get("code", {})
    now = configure.code_of(task, aspects, None)
    changed = [name for name, file in now.items() if before.get(name, file.sha256) != file.sha256]
    if changed:
        warnings.warn(
            f"the code in {', '.join(changed)} has changed since the run: its numbers may differ",
            TaskWarning,
            stacklevel=4,
        )


class Loaded:
    """A trained model, ready to compute.

    Args:
        job: the model, and how to compute with it. This process is prepared for it.

    Attributes:
        task: the task.
        device: where the model is.
        weave: the run's aspects.
        step: after which the model stands.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another model.
        TaskError: the task cannot build the model, or exported weights do not fit it.
    """

    def __init__(self, job: Job) -> None:
        self.device = prepare_process(job.threads, gpu=job.gpu)
        self.task = job.load_task()
        self.weave = Weave(unpack(job.algorithms))
        self._replica = Replica.build(self.task, job.seed, self.device, weave=self.weave)
        if job.model.is_checkpoint:
            checkpointer.load(Store(job.model.place, job.model.options), self._replica)
        to_evaluation(self._replica.optimizer)
        self.step = Step(self._replica.training, self._replica.step)
        self.step.model.eval()


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Put back afterwards what `Loaded` sets in this process."""
    with process_kept():
        yield

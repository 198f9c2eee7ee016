"""A task: what a user writes. A model, its optimizer, its loss, and its metrics."""

import dataclasses
import importlib
import inspect
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus import exits

if TYPE_CHECKING:
    import pyarrow as pa
    import torchmetrics
    from torch.optim.lr_scheduler import LRScheduler

Batch = dict[str, Any]
"""Column name -> tensor of shape (rows, ...), or a list if rows have no fixed shape."""


Log = Callable[[str, Tensor | float, Tensor | float | None], None]

CURRENT_LOG: ContextVar[Log | None] = ContextVar("current_log", default=None)
"""What `Task.log` calls: the log of the step whose part this thread computes, or nothing."""


class TaskError(ValueError):
    """A task that cannot be imported or lacks what training needs."""


class TaskWarning(UserWarning):
    """Something in a task that probably does not do what its author intended."""


class Task:
    """A training task: plain PyTorch inside, nothing about workers.

    Override `model`, `optimizer` and `loss`; the rest has defaults. What `forward` draws from
    torch's, NumPy's or Python's global generators is reproducible: they are seeded for each
    logical rank's part of each step.

    Attributes:
        columns: the data's columns that are loaded, as names, or as a mapping from name to the
            shape of one row (`{"image": (1, 28, 28), "label": ()}`), which is then checked before
            any worker starts. Default: every column.
        target: the column with the labels. The default `forward` ignores it; the default
            `update_metric` uses it. Default `"label"`.
        tokens: the column whose values are tokens; a duration in tokens counts them. Rows may have
            any length. Then, if a duration is given in tokens, the whole column is read at the
            start, and the mean over all rows counts. Default: none.
        vocabulary_size: how many different tokens the model knows. A stream whose tokenizer has
            more of them is refused before any worker starts. Default: not checked.
        ignore_index: the label that means "no label", as in `torch.nn.functional.cross_entropy`.
            Algorithms that smooth or mix labels leave such samples without a label. Default -100.
        evaluate_loss: whether an evaluation measures the mean loss, as `evaluation_loss`. Default:
            only if nothing else is measured.
        keep_frozen: whether checkpoints hold the parameters that are not trained. If not,
            `model()` must make them with the same values each time; that is checked. Default True.
        initial_weights: a safetensors file or a folder with weights that are loaded into the model.
            `ElasticTrainer(initial_weights=...)` sets it. Default: none.
        partial_weights: load those that fit, and warn of the others by name. Default: all must fit.
    """

    columns: Sequence[str] | Mapping[str, tuple[int, ...]] | None = None
    target: str = "label"
    tokens: str | None = None
    vocabulary_size: int | None = None
    ignore_index: int = -100
    evaluate_loss: bool | None = None
    keep_frozen: bool = True
    initial_weights: str | None = None
    partial_weights: bool = False

    def model(self) -> nn.Module:
        """Build the model. It is called on every worker, with the same seed."""
        raise TaskError(f"{type(self).__name__} does not define model()")

    def optimizer(
        self,
        model: nn.Module,  # noqa: ARG002
    ) -> "Optimizer | tuple[Optimizer, LRScheduler] | Mapping[str, Any]":
        """Build the optimizer of the model's parameters, and a torch scheduler if you like.

        Returns:
            The optimizer; or `(optimizer, scheduler)`; or, as in Lightning, `{"optimizer": ...,
            "lr_scheduler": scheduler}`, where `{"scheduler": ..., "interval": "epoch",
            "frequency": 1}` may stand for the scheduler. The interval is `"step"` (the default,
            also for a plain scheduler) or `"epoch"`.
        """
        raise TaskError(f"{type(self).__name__} does not define optimizer(model)")

    def schedule(self, progress: float) -> float:  # noqa: ARG002 - for overriding
        """Return the factor on the learning rate at a point of the run, from 0 to 1.

        A task whose optimizer comes with a torch scheduler does not define it.
        """
        return 1.0

    def collate(self, rows: Sequence[Batch]) -> Batch:  # noqa: ARG002 - for overriding
        """Make a batch of rows, for example by padding them to one length.

        It runs in a background thread for the rows of one part. It depends on these rows alone
        and draws no random numbers.

        Args:
            rows: column name -> value of each row: a tensor, text or bytes.

        Returns:
            Column name -> tensor of shape (rows, ...) or list of as many. By default values of
            one shape are a tensor, and others a list.
        """
        raise TaskError(f"{type(self).__name__} does not define collate(rows)")

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Compute the outputs of one part of a batch. Default: the model of the one input column.

        Args:
            model: the model, in training or evaluation mode.
            batch: column name -> tensor of shape (n, ...).
        """
        inputs = [name for name in batch if name != self.target]
        if len(inputs) != 1:
            raise TaskError(
                f"the batch has {len(inputs)} columns besides the target {self.target!r} "
                f"({', '.join(inputs) or 'none'}) and the default forward() needs one: "
                "set `columns` or `target`, or override forward(model, batch)"
            )
        values = batch[inputs[0]]
        if not isinstance(values, Tensor):
            raise TaskError(
                f"column {inputs[0]!r} is a list, since its values have no fixed shape or are not "
                "numbers, and the default forward() needs a tensor: override forward(model, batch)"
            )
        return model(values)

    def loss(self, outputs: Any, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return one loss per sample, not averaged; or a pair of losses and weights per sample.

        With weights, the mean over a step is `sum(weights * losses) / sum(weights)`, over all
        samples of the batch. Without weights, each sample counts once. For a mean over tokens,
        return the losses of all tokens, and weights of the same shape: 0 for padding, else 1.

        A loss of shape () is the mean over the samples in `batch`, which are one logical rank's
        part of the step, and counts as that many samples. A loss that compares samples with each
        other (contrastive) sees those of its part only, so the result depends on `logical_ranks`.

        Returns:
            Losses, floating, shape (n,); or losses and weights, both of shape (n,) or both of shape
            (n, ...); or a mean of shape (), which may have a weight of shape (). Weights have any
            real type, are not negative, and do not depend on a parameter. A sample of weight zero
            counts nothing, but its loss must be a number.
        """
        raise TaskError(f"{type(self).__name__} does not define loss(outputs, batch)")

    def log(self, name: str, value: Tensor | float, weights: Tensor | float | None = None) -> None:
        """Log a scalar from `forward` or `loss`; the mean over the step's samples is kept.

        The mean has the same bits on any number of workers. It is in the journal, the report, the
        status, the metrics and the loggers. A name that is logged several times in a part counts
        with all its values. NaN is kept as it is. In an evaluation this does nothing.

        Args:
            name: under which it is shown.
            value: one number per sample, shape (n,); or one number, which stands for all samples of
                the part. It is detached.
            weights: of the value or the values, in the same form; the mean is
                `sum(weights * values) / sum(weights)`. Default: the number of samples.

        Raises:
            TaskError: the name or a value has another form.
        """
        log = CURRENT_LOG.get()
        if log is not None:
            log(name, value, weights)

    def metrics(self) -> "dict[str, torchmetrics.Metric]":
        """Return what an evaluation measures. Default: nothing."""
        return {}

    def update_metric(self, metric: "torchmetrics.Metric", outputs: Any, batch: Batch) -> None:
        """Update a metric. Default: `metric.update(outputs, batch[self.target])`."""
        metric.update(outputs, batch[self.target])

    def measure(self, outputs: Any, batch: Batch) -> Mapping[str, Any]:  # noqa: ARG002
        """Return values that an evaluation averages over all samples, by name. Default: none.

        Returns:
            One value per sample, a pair of values and weights, or a mean, as for `loss`.
        """
        return {}

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Compute what `raytrain-plus predict` writes for a batch. Default: what `forward` returns.

        The model is in evaluation mode, and no gradient is kept. The global generators are seeded
        for each batch.

        Args:
            model: the model, as an evaluation uses it.
            batch: column name -> tensor of shape (n, ...), or a list. It may lack `target`.

        Returns:
            Column name -> tensor of shape (n, ...), or a list of n values: numbers, text, bytes,
            tensors, or lists of them. A tensor or a list alone is the column `prediction`.
        """
        return self.forward(model, batch)

    def generate(
        self,
        model: nn.Module,  # noqa: ARG002 - for overriding
        prompt: str,  # noqa: ARG002
        length: int,  # noqa: ARG002
        choose: Callable[[Tensor], int],  # noqa: ARG002
    ) -> str:
        """Write on after a prompt, one token after another; only `Samples(prompts=...)` needs it.

        Args:
            model: the model, in evaluation mode.
            prompt: the text to continue.
            length: how many tokens to write.
            choose: returns the next token from its logits, shape (vocabulary,).

        Returns:
            The text, with the prompt or without it.
        """
        raise TaskError(
            f"{type(self).__name__} does not define generate(model, prompt, length, choose), which "
            "Samples(prompts=...) needs"
        )

    def depends_on(self) -> Mapping[str, str]:
        """Return what else the result depends on, such as hashes of files that `model()` reads.

        It is part of the run's identity: a resume with other values is refused, by these names.
        """
        return {}

    def data(self) -> "pa.Table | str | None":
        """Return the training data for a trainer that is given none. Default: none."""
        return None

    def evaluation_data(self) -> "pa.Table | str | Mapping[str, pa.Table | str] | None":
        """Return the evaluation data for a trainer that is given none. Default: none.

        A mapping has several sets by name.
        """
        return None


def collate_of(task: Task) -> Callable[[Sequence[Batch]], Any] | None:
    """Return the task's own `collate`; None if it does not define it."""
    return None if type(task).collate is Task.collate else task.collate


def load_task(
    task: Task | str, settings: Mapping[str, Any] | None = None, folder: str | None = None
) -> Task:
    """Return the task that a `"module:attribute"` string or `"file.py:attribute"` names.

    The attribute may be a Task, or a class or function that returns one without arguments.

    Args:
        task: the name, or the task itself.
        settings: new values of the task's fields; the task must then be a dataclass.
        folder: where a module is searched first. Default: the working directory.

    Raises:
        TaskError: the name has another form, its import fails, it is not a task, or it has no
            such settings.
    """
    if isinstance(task, Task):
        return _set(task, settings) if settings else task
    return _named(task, folder, settings or {})


def _set(task: Task, settings: Mapping[str, Any]) -> Task:
    if not dataclasses.is_dataclass(task):
        raise TaskError(
            f"task {type(task).__name__} has no settings and cannot be given "
            f"{', '.join(settings)}: make it a dataclass with these fields"
        )
    _check_settings(type(task), settings)
    changed: Task = dataclasses.replace(task, **settings)
    return changed


def _check_settings(kind: Any, settings: Mapping[str, Any]) -> None:
    fields = [field.name for field in dataclasses.fields(kind) if field.init]
    unknown = [name for name in settings if name not in fields]
    if unknown:
        raise TaskError(
            f"task {kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(fields)}"
        )


def _named(task: str, folder: str | None, settings: Mapping[str, Any]) -> Task:
    if not isinstance(task, str):
        raise TaskError(f"a task is a raytrain_plus.Task or 'module:attribute', not {task!r}")
    found = import_named(task, "task", folder)
    if inspect.isclass(found) and issubclass(found, Task) and dataclasses.is_dataclass(found):
        _check_settings(found, settings)
        with exits.as_errors(f"task {task!r}"):
            whole: Task = _made(found, task, settings)
        return whole
    with exits.as_errors(f"task {task!r}"):
        made = _made(found, task) if inspect.isclass(found) or inspect.isfunction(found) else found
    if not isinstance(made, Task):
        raise TaskError(
            f"task {task!r} is a {type(made).__name__}, not a raytrain_plus.Task: derive the "
            "class from Task, or name a function that returns one"
        )
    return _set(made, settings) if settings else made


def _made(found: Any, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    try:
        return found(**(settings or {}))
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(
            f"task {name!r} cannot be made: {found.__name__}() fails:\n"
            + traceback.format_exc().rstrip()
        ) from error


def import_named(name: str, what: str, folder: str | None = None) -> Any:
    """Return the attribute that `"module:attribute"` or `"file.py:attribute"` names.

    Args:
        name: the name.
        what: what is named, for the errors.
        folder: where a module is searched first. Default: the working directory.

    Raises:
        TaskError: the name has another form, or its import fails.
    """
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not module_name or not attribute:
        raise TaskError(f"{what} {name!r} is not of the form module:attribute or file.py:attribute")
    module = _import(module_name, what, folder)
    if not hasattr(module, attribute):
        raise TaskError(f"{what} {name!r}: the module has no attribute {attribute!r}")
    return getattr(module, attribute)


def already_imported(name: str) -> Any:
    """Return what `"module:attribute"` names if its module is imported already, else None.

    Nothing is imported and no code is run. So the name may come from an untrusted file.
    """
    module_name, _, attribute = name.rpartition(":")
    path = Path(module_name).absolute() if module_name.endswith(".py") else None
    module = sys.modules.get(module_name if path is None else path.stem)
    found = getattr(module, "__file__", None)
    if path is not None and (found is None or Path(found).resolve() != path.resolve()):
        return None
    return vars(module).get(attribute) if module is not None else None


def import_code(name: str) -> None:
    """Import a module, or a `.py` file, that the command line names.

    Raises:
        TaskError: it cannot be imported.
    """
    _import(name, "code")


def _import(name: str, what: str, folder: str | None = None) -> Any:
    path: Path | None = None
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.exists():
            raise TaskError(f"{what} file {path} does not exist on {socket.gethostname()}")
        name, folder = path.stem, str(path.parent)
    else:
        folder = folder or str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with exits.as_errors(f"the {what}'s module {name!r}"):
            module = importlib.import_module(name)
    except exits.TaskExitError as error:
        raise TaskError(str(error)) from error
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        why = str(error) if absent else "\n" + traceback.format_exc()
        raise TaskError(f"module {name!r} of the {what} cannot be imported: {why}") from error
    found = getattr(module, "__file__", None)
    if path is not None and (found is None or Path(found).resolve() != path):
        raise TaskError(
            f"{what} file {path} is not what `import {name}` finds, which is "
            f"{found or 'built in'}: rename the file"
        )
    return module

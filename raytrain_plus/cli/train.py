"""The command that trains. Its options are the keys of a run file (`run_file.py`)."""

import contextlib
import inspect
import time
import types
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from rich.console import Console

from raytrain_plus import run_file
from raytrain_plus.chaos.replay import NamedRun, Replay
from raytrain_plus.chaos.trace import changes, read_trace
from raytrain_plus.cli.answers import Debug, Json, answer, without_ray_notices
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.client.following import Watcher
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.frontier.recipe import read_recipe
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.progress import ProgressLine, console_of, summary_table
from raytrain_plus.run_file import KEYS, Layer, RunFile, RunSettings
from raytrain_plus.task import TaskError, import_code, import_named
from raytrain_plus.trainer import ElasticTrainer


def train(  # noqa: PLR0913 - one option each
    task: Annotated[
        str | None, typer.Argument(help="module:attribute or file.py:attribute")
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(metavar="RUN.yaml", help="A file with any of these settings, and the task."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    allow_change: Annotated[
        bool, typer.Option(help="Go on even if seed, data, code or settings have changed.")
    ] = False,
    accept_changed_code: Annotated[
        bool, typer.Option(help="Go on with the task's code as it is now; the run is marked.")
    ] = False,
    extend: Annotated[
        bool, typer.Option(help="Go on for longer than before; schedules follow the new length.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
    **options: Any,
) -> None:
    """Train a task with workers that may come and go.

    An option overrides the same key of the file.
    """

    def run() -> dict[str, Any]:
        file = _file(config)
        given = {"task": task, **options}
        settings = _settings(file, given)
        with file.naming_settings(run_file.layer_of_options(given)):
            made = ElasticTrainer(
                **run_file.arguments(settings),
                resume=resume,
                allow_change=allow_change,
                accept_changed_code=accept_changed_code,
                extend=extend,
            )
        is_local = made.spec.is_local
        console = console_of(is_local=is_local)
        quiet = contextlib.nullcontext() if is_local else without_ray_notices()
        interval = settings.progress_interval
        progress = ProgressLine(
            made.spec.name, console, interval=interval, says_stalls=not is_local
        )
        with quiet, progress as line:
            watcher = _replaying(line, settings, made.spec) if settings.trace else line
            summary: dict[str, Any] = made.fit(watcher).return_value
        if not as_json:
            Console(markup=False).print(summary_table({summary["run"]: summary}))
        return summary

    answer(run, as_json=as_json, debug=debug)


def _file(config: Path | None) -> RunFile:
    return RunFile(Path(), {}) if config is None else run_file.read_run_file(config)


def _settings(file: RunFile, given: Mapping[str, Any]) -> RunSettings:
    """Return the settings of a run; imports its task and the user's code.

    A recipe that the file names comes before the file's other keys, and one that is named by an
    option after them.
    """
    options = run_file.layer_of_options(given)
    settings = run_file.merged([file.layer, options])
    run_file.import_first(settings)
    with file.naming("task", unless="task" in options):
        if settings.task is None:
            raise TaskError(
                "no task is named: give module:attribute or file.py:attribute, or a file that "
                "names it (--config)"
            )
        import_named(settings.task, "task")  # its module may define algorithms that a recipe names
    for module in settings.code:
        import_code(module)
    with file.naming("recipe", unless="recipe" in options):
        recipe = _recipe(settings.recipe) if settings.recipe else {}
    layers = [file.layer, recipe] if "recipe" in options else [recipe, file.layer]
    settings = run_file.merged([*layers, options])
    if settings.name is None:
        settings = settings.model_copy(update={"name": _new_name(str(settings.task))})
    return settings


def _recipe(name: str) -> Layer:
    said = read_recipe(name)
    said.aspects()  # refuses classes that are not imported: a recipe names no code to run
    return {
        "task_settings": dict(said.task),
        "batch_size": said.batch_size,
        "duration": said.duration,
        "algorithms": {name: dict(settings) for name, settings in said.algorithms.items()},
    }


def _replaying(line: Watcher, settings: RunSettings, spec: RunSpec) -> Watcher:
    if spec.is_local:
        raise ConfigError(
            "a trace adds and kills workers, and a local run has none: leave out --trace, or give "
            "--workers 1 or more"
        )
    trace = read_trace(Path(str(settings.trace)))
    replay = Replay(
        changes(trace, most=spec.workers[1], speed=settings.speed),
        NamedRun(spec.name),
        spec.workers,
    )

    def watch(events: list[Event]) -> None:
        line(events)
        replay(events)

    return watch


def _new_name(task: str) -> str:
    """Return a name that no other run has, even of a run that starts in the same second."""
    began = time.strftime("%Y%m%d-%H%M%S")
    return f"{task.rpartition(':')[2].lower()}-{began}-{uuid.uuid4().hex[:8]}"


def _declare_options() -> None:
    """Give `train` an option for each key that has one; Typer reads a function's signature."""
    written = inspect.signature(train)
    own = {k: v for k, v in written.parameters.items() if k != "options"}
    task, config = own.pop("task"), own.pop("config")
    keys = {name: _parameter(name) for name, key in KEYS.items() if key.option != ""}
    parameters = [task, config, *keys.values(), *own.values()]
    train.__signature__ = written.replace(parameters=parameters)  # type: ignore[attr-defined]


def _parameter(name: str) -> inspect.Parameter:
    key, field = KEYS[name], RunSettings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    told = key.help or key.meaning
    if default not in (None, False, [], {}):
        told += f" Default: {default:g}." if isinstance(default, float) else f" Default: {default}."
    option = run_file.option_of(name)
    flags = f"{option}/--no-{option[2:]}" if _plain_type(field.annotation) is bool else option
    kind = list[str] if key.parse is not None else _plain_type(field.annotation)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, typer.Option(flags, metavar=key.metavar, help=told)],
    )


def _plain_type(annotation: Any) -> type:
    """Return the type of an option's value: bool, int or float, or else str."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = {_plain_type(one) for one in get_args(annotation) if one is not type(None)}
        return kinds.pop() if len(kinds) == 1 else str
    return annotation if annotation in (bool, int, float) else str


_declare_options()

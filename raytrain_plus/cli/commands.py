"""The commands that train, show and control runs."""

import sys
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import ray
import ray.train
import typer
from rich.console import Console

from raytrain_plus import trainer
from raytrain_plus.algorithms.naming import parse_algorithm, parse_settings
from raytrain_plus.chaos.replay import NamedRun, Replay
from raytrain_plus.chaos.trace import changes, read_trace
from raytrain_plus.cli import HELP, version_line
from raytrain_plus.cli.algorithms import algorithms, export
from raytrain_plus.cli.answers import (
    DEFAULT_STORAGE,
    Address,
    Code,
    Debug,
    Json,
    RunName,
    Storage,
    answer,
    without_ray_notices,
)
from raytrain_plus.cli.chaos import chaos
from raytrain_plus.cli.data import data_app
from raytrain_plus.cli.frontier import frontier
from raytrain_plus.cli.node_agent import node_agent
from raytrain_plus.cli.nodes import doctor
from raytrain_plus.cli.remote import here_or_there
from raytrain_plus.cli.report import report
from raytrain_plus.cli.steer import checkpoint, scale, status, stop
from raytrain_plus.cli.sweep import sweep
from raytrain_plus.configure import ConfigError, with_options
from raytrain_plus.elastic.client import control
from raytrain_plus.elastic.client.following import Watcher
from raytrain_plus.elastic.protocol.faults import read_faults
from raytrain_plus.elastic.protocol.messages import ElasticConfig, RunSpec
from raytrain_plus.frontier.recipe import Recipe, read_recipe
from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.progress import ProgressLine, summary_table
from raytrain_plus.observe.verify import compare
from raytrain_plus.storage.locations import parse_options
from raytrain_plus.task import import_code, import_named


def train(  # noqa: PLR0913 - one option each
    task: Annotated[str, typer.Argument(help="module:attribute or file.py:attribute")],
    *,
    data: Annotated[
        str | None, typer.Option(help="URL of a stream, or an Arrow or Parquet file or folder.")
    ] = None,
    evaluation_data: Annotated[str | None, typer.Option(help="The same, for evaluation.")] = None,
    storage_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For the data's store; VALUE may be JSON."),
    ] = None,
    workers: Annotated[str, typer.Option(metavar="MIN:MAX or N")] = "1",
    logical_ranks: Annotated[int, typer.Option(help="Parts of a batch, V.")] = 8,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples per step, over all workers. Default: 256.")
    ] = None,
    duration: Annotated[
        str | None, typer.Option(help="10ep, 500ba, 20000sp or 1000000tok. Default: 1ep.")
    ] = None,
    evaluate_every: Annotated[
        str, typer.Option(help="In the same units, or 0.1dur of the whole run.")
    ] = "1ep",
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 17,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:key=value,...]", help="Or module:Class. May be repeated."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="key=value", help="A field of the task. May be repeated."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A YAML file or a bundled one, such as cluttered_digits/medium."),
    ] = None,
    code: Code = None,
    storage: Storage = DEFAULT_STORAGE,
    name: Annotated[str | None, typer.Option(help="The run's name. Default: a new one.")] = None,
    checkpoint_every: Annotated[
        str, typer.Option(help="How often to save the state, in units of evaluate-every; or never.")
    ] = "1ep",
    checkpoint_storage: Annotated[
        str | None, typer.Option(help="Path or URL to keep checkpoints in. Default: the run's.")
    ] = None,
    checkpoint_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For that store; VALUE may be JSON."),
    ] = None,
    keep: Annotated[int, typer.Option(help="How many checkpoints, 0 for all.", min=0)] = 2,
    keep_best: Annotated[
        str | None, typer.Option(metavar="METRIC[:min]", help="Keep the best by a metric.")
    ] = None,
    max_checkpoint_failures: Annotated[
        int | None, typer.Option(help="Failures in a row that end the run. Default: no limit.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    allow_change: Annotated[
        bool, typer.Option(help="Go on even if seed, data, code or settings have changed.")
    ] = False,
    accept_changed_code: Annotated[
        bool, typer.Option(help="Go on with the task's code as it is now; the run is marked.")
    ] = False,
    hash_data: Annotated[
        bool,
        typer.Option("--hash-data", help="Read all data at the start, to identify it by its hash."),
    ] = False,
    faults: Annotated[Path | None, typer.Option(help="YAML list of disturbances.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV of node changes: milliseconds,add|remove,node."),
    ] = None,
    speed: Annotated[float, typer.Option(help="How many times as fast to replay it.")] = 1.0,
    hang_deadline: Annotated[
        float | None, typer.Option(help="Seconds without progress until a worker counts as hung.")
    ] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait for MIN workers.")] = 120.0,
    spares: Annotated[int, typer.Option(help="Workers kept warm in addition to the group.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads per worker.")] = None,
    cpus: Annotated[
        float | None, typer.Option(help="CPUs that each worker holds. Default: one per thread.")
    ] = None,
    gpu: Annotated[bool, typer.Option(help="One GPU per worker.")] = False,
    accelerator_type: Annotated[
        str | None, typer.Option(help="Ray's name of the GPUs to use, such as A100 or H100.")
    ] = None,
    bitwise: Annotated[
        bool, typer.Option(help="Refuse workers whose results differ in a bit.")
    ] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a task with workers that may come and go."""

    def run() -> dict[str, Any]:
        import_named(task, "task")  # its module may define algorithms that the recipe names
        for module in code or []:
            import_code(module)
        said = read_recipe(recipe) if recipe else Recipe(duration="1ep", batch_size=256)
        options = parse_options(storage_option or [])
        train_on, evaluate_on = with_options(options, data, evaluation_data)
        made = trainer.ElasticTrainer(
            task=task,
            task_settings={**said.task, **parse_settings(setting or [], "the task")},
            data=train_on,
            evaluation_data=evaluate_on,
            batch_size=batch_size or said.batch_size,
            duration=duration or said.duration,
            evaluate_every=evaluate_every,
            seed=seed,
            logical_ranks=logical_ranks,
            algorithms=[*said.aspects(), *(parse_algorithm(text) for text in algorithm or [])],
            scaling_config=ray.train.ScalingConfig(
                num_workers=_range(workers),
                use_gpu=gpu,
                accelerator_type=accelerator_type,
                resources_per_worker={"CPU": threads or 1 if cpus is None else cpus},
            ),
            run_config=ray.train.RunConfig(
                name=name or _new_name(task),
                storage_path=storage,
                checkpoint_config=_kept(keep, keep_best),
            ),
            elastic=ElasticConfig(
                hang_deadline=hang_deadline,
                start_timeout=start_timeout,
                threads=threads,
                spares=spares,
                checkpoint_every=None if checkpoint_every == "never" else checkpoint_every,
                checkpoint_storage=checkpoint_storage,
                checkpoint_options=parse_options(checkpoint_option or [], "checkpoint option"),
                max_checkpoint_failures=max_checkpoint_failures,
                bitwise=bitwise,
            ),
            faults=read_faults(faults) if faults else (),
            resume=resume,
            allow_change=allow_change,
            accept_changed_code=accept_changed_code,
            hash_data=hash_data,
        )
        progress = ProgressLine(made.spec.name, Console(stderr=True, markup=False))
        with without_ray_notices(), progress as line:
            watcher = _replaying(line, trace, speed, made.spec) if trace else line
            summary: dict[str, Any] = made.fit(watcher).return_value
        if not as_json:
            Console(markup=False).print(summary_table({summary["run"]: summary}))
        return summary

    answer(run, as_json=as_json, debug=debug)


def demo(
    storage: Storage = "runs",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train twice, once with workers killed, drained, stopped and added, and compare the bits."""

    def run() -> dict[str, Any]:
        from raytrain_plus.demo.show import show  # noqa: PLC0415 - it needs an extra

        out = Console(file=sys.stderr if as_json else sys.stdout, markup=False)
        with without_ray_notices():
            return show(storage, out, Console(stderr=True, markup=False))

    answered = answer(run, as_json=as_json, debug=debug)
    if not answered["equal"]:
        raise typer.Exit(1)


def attach(
    run: RunName,
    storage: Storage = DEFAULT_STORAGE,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Follow a run that another process has started, until it ends."""

    def follow() -> dict[str, Any]:
        progress = ProgressLine(run, Console(stderr=True, markup=False))
        with without_ray_notices(), progress as line:
            summary = here_or_there(
                address,
                ["attach", run, "--storage", storage],
                lambda: trainer.attach(run, storage, line, address).return_value,
            )
        if not as_json:
            Console(markup=False).print(summary_table({summary["run"]: summary}))
        return summary

    answer(follow, as_json=as_json, debug=debug)


def verify(
    one: RunName,
    other: RunName,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two runs step by step; exit status 1 if they differ."""

    def run() -> dict[str, Any]:
        folders = [control.folder_of(name, storage) for name in (one, other)]
        found = compare(*(journal.each(journal.file_of(folder)) for folder in folders))
        if not as_json:
            said = "equal in every bit" if found.equal else f"different: {found.first_difference}"
            Console(markup=False).print(f"{found.steps} common steps; {said}", highlight=False)
        return {"runs": [str(folder) for folder in folders], **vars(found)}

    if not answer(run, as_json=as_json, debug=debug)["equal"]:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


def _replaying(line: Watcher, trace: Path, speed: float, spec: RunSpec) -> Watcher:
    due = changes(read_trace(trace), most=spec.workers[1], speed=speed)
    replay = Replay(due, NamedRun(spec.name), spec.workers)

    def watch(events: list[Event]) -> None:
        line(events)
        replay(events)

    return watch


def _kept(number: int, best: str | None) -> ray.train.CheckpointConfig:
    metric, _, order = (best or "").partition(":")
    if order not in ("", "min", "max"):
        raise ConfigError(f"keep-best {best!r} is not METRIC, METRIC:max or METRIC:min")
    return ray.train.CheckpointConfig(
        num_to_keep=number or None,
        checkpoint_score_attribute=metric or None,
        checkpoint_score_order=order or "max",
    )


def _range(text: str) -> int | tuple[int, int]:
    least, colon, most = text.partition(":")
    try:
        return (int(least), int(most)) if colon else int(least)
    except ValueError as error:
        raise ConfigError(
            f"workers {text!r} is neither a number such as 4 nor a range such as 1:8"
        ) from error


def _new_name(task: str) -> str:
    """Return a name that no other run has, even of a run that starts in the same second."""
    began = time.strftime("%Y%m%d-%H%M%S")
    return f"{task.rpartition(':')[2].lower()}-{began}-{uuid.uuid4().hex[:8]}"


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(version_line())
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


app = typer.Typer(
    help="Elastic, bit-for-bit reproducible PyTorch training on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
app.callback()(_options)
for _panel, _commands in {
    "Train": (train, attach, export, demo),
    "Watch and steer a run": (status, scale, checkpoint, stop, report),
    "Search for recipes": (algorithms, sweep, frontier),
    "Check": (verify, chaos, doctor),
    "Run on each node": (node_agent,),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(data_app, name="data", rich_help_panel="Train")

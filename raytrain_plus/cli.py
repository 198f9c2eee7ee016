"""The command line: `raytrain-plus`, also `python -m raytrain_plus`."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import ray
import ray.train
import typer
from rich.console import Console

from raytrain_plus.algorithms import parse_algorithm
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic import steering
from raytrain_plus.elastic.faults import read_faults
from raytrain_plus.elastic.messages import ElasticConfig
from raytrain_plus.observe import journal
from raytrain_plus.observe.progress import ProgressLine, summary_table
from raytrain_plus.observe.verify import compare
from raytrain_plus.trainer import ElasticTrainer, TrainingFailedError

app = typer.Typer(
    help="Elastic, bit-for-bit reproducible PyTorch training on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of wrong input, too.")]
Storage = Annotated[
    str, typer.Option(help="Where runs are kept, one folder each; shared by all nodes.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.")]

_DEFAULT_STORAGE = "~/ray_results"


@app.command()
def train(  # noqa: PLR0913 - one option each
    task: Annotated[str, typer.Argument(help="module:attribute or file.py:attribute")],
    *,
    data: Annotated[str | None, typer.Option(help="Arrow or Parquet file, or a folder.")] = None,
    evaluation_data: Annotated[str | None, typer.Option(help="Likewise, to evaluate on.")] = None,
    workers: Annotated[str, typer.Option(metavar="MIN:MAX or N")] = "1",
    logical_ranks: Annotated[int, typer.Option(help="Parts of a batch, V.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Samples per step, over all workers.")] = 256,
    duration: Annotated[str, typer.Option(help="10ep, 500ba or 20000sp.")] = "1ep",
    evaluate_every: Annotated[str, typer.Option(help="In the same units.")] = "1ep",
    seed: Annotated[int, typer.Option(help="Where all chance comes from.")] = 17,
    algorithm: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:key=value,...]", help="May be repeated.")
    ] = None,
    storage: Storage = _DEFAULT_STORAGE,
    name: Annotated[str | None, typer.Option(help="The run's name. Default: a new one.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    faults: Annotated[Path | None, typer.Option(help="YAML list of disturbances.")] = None,
    hang_deadline: Annotated[float | None, typer.Option(help="Seconds without progress.")] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait for MIN workers.")] = 120.0,
    threads: Annotated[int | None, typer.Option(help="Threads per worker.")] = None,
    gpu: Annotated[bool, typer.Option(help="One GPU per worker.")] = False,
    bitwise: Annotated[bool, typer.Option(help="Refuse workers that compute other bits.")] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a task with workers that may come and go."""

    def run() -> dict[str, Any]:
        trainer = ElasticTrainer(
            task=task,
            data=data,
            evaluation_data=evaluation_data,
            batch_size=batch_size,
            duration=duration,
            evaluate_every=evaluate_every,
            seed=seed,
            logical_ranks=logical_ranks,
            algorithms=[parse_algorithm(text) for text in algorithm or []],
            scaling_config=ray.train.ScalingConfig(num_workers=_range(workers), use_gpu=gpu),
            run_config=ray.train.RunConfig(name=name or _new_name(task), storage_path=storage),
            elastic=ElasticConfig(
                hang_deadline=hang_deadline,
                start_timeout=start_timeout,
                threads=threads,
                bitwise=bitwise,
            ),
            faults=read_faults(faults) if faults else (),
            resume=resume,
        )
        progress = ProgressLine(trainer.spec.name, Console(stderr=True))
        with _without_ray_notices(), progress as line:
            summary: dict[str, Any] = trainer.fit(line).return_value
        if not as_json:
            Console().print(summary_table({summary["run"]: summary}))
        return summary

    _answer(run, as_json=as_json, debug=debug)


@app.command()
def demo(
    storage: Storage = "runs",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train twice, once with workers killed, drained, stopped and added, and compare the bits."""

    def run() -> dict[str, Any]:
        from raytrain_plus.demo.show import show  # noqa: PLC0415 - what it needs is an extra

        out = Console(file=sys.stderr if as_json else sys.stdout)
        with _without_ray_notices():
            return show(storage, out, Console(stderr=True))

    answer = _answer(run, as_json=as_json, debug=debug)
    if not answer["equal"]:
        raise typer.Exit(1)


@app.command()
def status(
    run: RunName, storage: Storage = _DEFAULT_STORAGE, as_json: Json = False, debug: Debug = False
) -> None:
    """Say how a run stands, live or ended."""
    _steer(lambda: steering.status(run, storage), as_json=as_json, debug=debug)


@app.command()
def scale(
    run: RunName,
    workers: Annotated[int, typer.Argument(min=1, help="How many there should be.")],
    storage: Storage = _DEFAULT_STORAGE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Change the number of workers of a live run."""
    _steer(lambda: steering.scale(run, workers, storage), as_json=as_json, debug=debug)


@app.command()
def stop(
    run: RunName, storage: Storage = _DEFAULT_STORAGE, as_json: Json = False, debug: Debug = False
) -> None:
    """End a live run after the step in flight, keeping its state."""
    _steer(lambda: steering.stop(run, storage), as_json=as_json, debug=debug)


@app.command()
def verify(
    one: RunName,
    other: RunName,
    storage: Storage = _DEFAULT_STORAGE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two runs step by step; exit status 1 if they differ."""

    def run() -> dict[str, Any]:
        folders = [steering.folder_of(name, storage) for name in (one, other)]
        found = compare(*(journal.read(folder) for folder in folders))
        if not as_json:
            said = "equal in every bit" if found.equal else f"different: {found.first_difference}"
            Console().print(f"{found.steps} common steps; {said}", highlight=False)
        return {"runs": [str(folder) for folder in folders], **vars(found)}

    if not _answer(run, as_json=as_json, debug=debug)["equal"]:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


def _steer(call: Callable[[], dict[str, Any]], *, as_json: bool, debug: bool) -> None:
    def run() -> dict[str, Any]:
        answer = call()
        if not as_json:
            for key, value in answer.items():
                Console().print(f"{key:12} {value}", highlight=False)
        return answer

    _answer(run, as_json=as_json, debug=debug)


def _answer(run: Callable[[], dict[str, Any]], *, as_json: bool, debug: bool) -> dict[str, Any]:
    """Run a command; wrong input ends with status 2, a failed run with 1, both told on stderr."""
    try:
        answer = run()
    except TrainingFailedError as error:
        sys.stderr.write(f"{error}\n")
        if error.summary["checkpoint"]:
            sys.stderr.write(f"The last state is kept in {error.summary['checkpoint']}\n")
        _print_json({**error.summary, "error": str(error)}, as_json=as_json)
        raise typer.Exit(1) from error
    except steering.SteeringError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from error
    except (ValueError, FileNotFoundError) as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from error
    _print_json(answer, as_json=as_json)
    return answer


@contextlib.contextmanager
def _without_ray_notices() -> Iterator[None]:
    """Keep Ray's paragraphs about dead workers off stdout: the journal tells of each in a line."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _print_json(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _range(text: str) -> int | tuple[int, int]:
    least, colon, most = text.partition(":")
    try:
        return (int(least), int(most)) if colon else int(least)
    except ValueError as error:
        raise ConfigError(
            f"workers {text!r} is neither a number such as 4 nor a range such as 1:8"
        ) from error


def _new_name(task: str) -> str:
    return f"{task.rpartition(':')[2].lower()}-{time.strftime('%Y%m%d-%H%M%S')}"

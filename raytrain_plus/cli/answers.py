"""How a command answers: what it prints, and its exit status."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from raytrain_plus.cli.remote import RemoteError
from raytrain_plus.elastic.outside.gcs import ClusterError
from raytrain_plus.elastic.outside.steering import RunFailedError, SteeringError
from raytrain_plus.frontier.errors import FailedSweepError
from raytrain_plus.names import InvalidNameError, check_reference

DEFAULT_STORAGE = "~/ray_results"
Storage = Annotated[
    str, typer.Option(help="Where runs are kept, one folder each; shared by all nodes.")
]


def _checked_run(run: str) -> str:
    """Refuse what can mean no run before anything is touched, here or on a cluster."""
    try:
        return check_reference(run)
    except InvalidNameError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from error


RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or folder.", callback=_checked_run)
]
Code = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE",
        help="Module or file.py to import: the code of algorithms of your own that a recipe or a "
        "checkpoint names. May be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        metavar="ADDRESS",
        help="Of the cluster: http://HEAD:8265 from outside, HOST:PORT or auto on one of its nodes,"
        " or ray://HEAD:10001. Default: what is known here.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of wrong input, too.")]


def answer(run: Callable[[], dict[str, Any]], *, as_json: bool, debug: bool) -> dict[str, Any]:
    """Run a command; wrong input ends with status 2, a failed run with 1, both told on stderr."""
    try:
        answered = run()
    except RunFailedError as error:
        sys.stderr.write(f"{error}\n")
        if error.summary.get("checkpoint"):
            sys.stderr.write(f"The last state is kept in {error.summary['checkpoint']}\n")
        _print_json({**error.summary, "error": str(error)}, as_json=as_json)
        raise typer.Exit(1) from error
    except RemoteError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.said is not None:
            _print_json(error.said, as_json=as_json)
        raise typer.Exit(error.status) from error
    except (SteeringError, ClusterError, FailedSweepError) as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from error
    except (ValueError, FileNotFoundError) as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from error
    _print_json(answered, as_json=as_json)
    return answered


@contextlib.contextmanager
def without_ray_notices() -> Iterator[None]:
    """Keep Ray's paragraphs about dead workers off stdout: the journal tells of each in a line."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _print_json(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

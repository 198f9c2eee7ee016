"""How a command ends: its output and its exit status."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from raytrain_plus import extras
from raytrain_plus.cli.remote import RemoteError
from raytrain_plus.elastic.client.control import RunFailedError, SteeringError
from raytrain_plus.frontier.errors import FailedSweepError
from raytrain_plus.interrupts import Interrupted, Interrupts, RunInterrupted, status_of
from raytrain_plus.names import InvalidNameError, check_reference
from raytrain_plus.ray_cluster.gcs import ClusterError
from raytrain_plus.redaction import redact
from raytrain_plus.storage.ownership import LOCAL

_FAILED = (SteeringError, ClusterError, FailedSweepError)
_WRONG_INPUT = (ValueError, FileNotFoundError)

DEFAULT_STORAGE = "~/ray_results"
Storage = Annotated[
    str, typer.Option(help="Where runs are kept, one folder each: a shared folder, or a URL.")
]


def _checked_run(run: str) -> str:
    """Refuse an invalid run name before anything is changed, here or on a cluster."""
    try:
        return check_reference(run)
    except InvalidNameError as error:
        sys.stderr.write(redact(f"error: {error}\n"))
        raise typer.Exit(2) from error


RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name, folder or URL.", callback=_checked_run)
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
        help="Address of the cluster: http://HEAD:8265 from outside, HOST:PORT or auto on one of "
        "its nodes, or ray://HEAD:10001. Default: the cluster that Ray finds from here.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks also for wrong input.")]


def answer(run: Callable[[], dict[str, Any]], *, as_json: bool, debug: bool) -> dict[str, Any]:
    """Run a command; errors go to stderr.

    The status is 2 for wrong input, 1 for a failed run, and 128 plus the signal's number after a
    signal: 130 for Ctrl-C, 143 for SIGTERM.
    """
    with Interrupts(raises=1) as taken:
        answered = _answered(run, taken, as_json=as_json, debug=debug)
    _print_json(answered, as_json=as_json)
    return answered


def _answered(
    run: Callable[[], dict[str, Any]], taken: Interrupts, *, as_json: bool, debug: bool
) -> dict[str, Any]:
    try:
        with extras.needed():
            return run()
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):  # the terminal may have been closed
            sys.stderr.write(redact(f"{str(error) or 'interrupted'}\n"))
            if isinstance(error, RunInterrupted):
                _print_json(error.summary, as_json=as_json)
        # A plain KeyboardInterrupt, as Ray raises it, does not say which signal came.
        status = Interrupted(taken.number).status if taken.number else status_of(error)
        raise typer.Exit(status) from error
    except RunFailedError as error:
        sys.stderr.write(redact(f"{error}\n"))
        if where := error.summary.get("failed_on"):
            sys.stderr.write(redact(f"It failed {_placed(where)}\n"))
        if error.summary.get("checkpoint"):
            sys.stderr.write(redact(f"The last state is kept in {error.summary['checkpoint']}\n"))
        _print_json({**error.summary, "error": redact(str(error))}, as_json=as_json)
        raise typer.Exit(1) from error
    except RemoteError as error:
        sys.stderr.write(redact(f"error: {error}\n"))
        if error.said is not None:
            _print_json(error.said, as_json=as_json)
        raise typer.Exit(error.status) from error
    except (*_FAILED, *_WRONG_INPUT, OSError) as error:
        if debug or getattr(error, "errno", None) == errno.EPIPE:
            raise
        sys.stderr.write(redact(f"error: {error}\n"))
        raise typer.Exit(2 if isinstance(error, _WRONG_INPUT) else 1) from error


def _placed(where: dict[str, Any]) -> str:
    node = f" on {where['host']} (node {where['node'][:8]})" if "node" in where else ""
    step = f" in step {where['step']}" if where.get("step") else " as it came up"
    if where.get("node") == LOCAL:
        return f"in this process{step}"
    return f"on worker {where['worker']}{node}{step}"


@contextlib.contextmanager
def without_ray_notices() -> Iterator[None]:
    """Keep Ray's texts about dead workers off stdout: the journal has one line for each."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _print_json(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

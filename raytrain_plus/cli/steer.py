"""The commands that show and control a live run; import neither torch nor the trainer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from raytrain_plus.cli.answers import (
    DEFAULT_STORAGE,
    Address,
    Debug,
    Json,
    RunName,
    Storage,
    answer,
)
from raytrain_plus.cli.remote import here_or_there
from raytrain_plus.cli.status import Watch, show_status
from raytrain_plus.elastic.client import control


def status(
    run: RunName,
    storage: Storage = DEFAULT_STORAGE,
    watch: Watch = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the state of a run, live or ended; on a terminal as a table that follows it."""
    show_status(run, storage, address, watch=watch, as_json=as_json, debug=debug)


def scale(
    run: RunName,
    workers: Annotated[int, typer.Argument(min=1, help="The number of workers to have.")],
    storage: Storage = DEFAULT_STORAGE,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Change the number of workers of a live run."""
    there = ["scale", run, str(workers), "--storage", storage]
    here = partial(control.scale, run, workers, storage, address)
    _steer(address, there, here, as_json=as_json, debug=debug)


def checkpoint(
    run: RunName,
    storage: Storage = DEFAULT_STORAGE,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a live run save a checkpoint as soon as possible, and go on."""
    there = ["checkpoint", run, "--storage", storage]
    here = partial(control.checkpoint, run, storage, address)
    _steer(address, there, here, as_json=as_json, debug=debug)


def stop(
    run: RunName,
    storage: Storage = DEFAULT_STORAGE,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """End a live run after its present step, and save its state."""
    there = ["stop", run, "--storage", storage]
    here = partial(control.stop, run, storage, address)
    _steer(address, there, here, as_json=as_json, debug=debug)


def _steer(
    address: str | None,
    there: Sequence[str],
    here: Callable[[], dict[str, Any]],
    *,
    as_json: bool,
    debug: bool,
) -> None:
    def run() -> dict[str, Any]:
        answered = here_or_there(address, there, here)
        if not as_json:
            for key, value in answered.items():
                Console(markup=False).print(f"{key:12} {value}", highlight=False)
        return answered

    answer(run, as_json=as_json, debug=debug)

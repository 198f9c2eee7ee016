"""The work of `raytrain-plus status`: shows a run once, or follows it as a table."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from raytrain_plus.cli.answers import answer
from raytrain_plus.cli.remote import here_or_there
from raytrain_plus.elastic.client import control
from raytrain_plus.observe.status_table import status_table
from raytrain_plus.ray_cluster.joining import is_web

Watch = Annotated[
    bool | None,
    typer.Option(
        "--watch/--once",
        help="Follow it until it ends, or show it once. Default: follow on a terminal.",
    ),
]


def show_status(
    run: str,
    storage: str,
    address: str | None,
    *,
    watch: bool | None,
    as_json: bool,
    debug: bool,
) -> dict[str, Any]:
    """Show the state of a run; returns the state that was shown last.

    Args:
        run: its name or folder.
        storage: folder of the runs.
        address: address of its cluster; with a dashboard's address the state is shown once.
        watch: go on until it ends; None does so on a terminal. JSON is always printed once.
        as_json: print only data.
        debug: show tracebacks also for wrong input.
    """
    console = Console(markup=False)
    follows = (console.is_terminal if watch is None else watch) and not is_web(address)

    def once() -> dict[str, Any]:
        told = here_or_there(
            address,
            ["status", run, "--storage", storage],
            lambda: control.status(run, storage, address),
        )
        if not as_json:
            console.print(status_table(told))
        return told

    def follow() -> dict[str, Any]:
        told: dict[str, Any] = {}
        table = Live(console=console, auto_refresh=False)
        with table:
            for told in control.watch(run, storage, address=address):
                table.update(status_table(told), refresh=True)
        return told

    return answer(follow if follows and not as_json else once, as_json=as_json, debug=debug)

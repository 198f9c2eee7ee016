"""The commands that train, show and control runs."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from raytrain_plus import trainer
from raytrain_plus.cli import HELP, version_line
from raytrain_plus.cli.algorithms import algorithms, export
from raytrain_plus.cli.answers import (
    DEFAULT_STORAGE,
    Address,
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
from raytrain_plus.cli.inference import evaluate, predict
from raytrain_plus.cli.init import init
from raytrain_plus.cli.log import log
from raytrain_plus.cli.node_agent import node_agent
from raytrain_plus.cli.nodes import doctor
from raytrain_plus.cli.remote import here_or_there
from raytrain_plus.cli.report import report
from raytrain_plus.cli.steer import checkpoint, scale, status, stop
from raytrain_plus.cli.sweep import sweep
from raytrain_plus.cli.train import train
from raytrain_plus.elastic.client import control
from raytrain_plus.observe import journal
from raytrain_plus.observe.progress import ProgressLine, summary_table
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.observe.verify import compare


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
        found = compare(*(journal.each(journal_of(folder)) for folder in folders))
        if not as_json:
            said = "equal in every bit" if found.equal else f"different: {found.first_difference}"
            Console(markup=False).print(f"{found.steps} common steps; {said}", highlight=False)
        return {"runs": [str(folder) for folder in folders], **vars(found)}

    if not answer(run, as_json=as_json, debug=debug)["equal"]:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


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
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Train": (init, train, attach, demo),
    "Use a trained model": (evaluate, predict, export),
    "Watch and steer a run": (status, scale, checkpoint, stop, report, log),
    "Search for recipes": (algorithms, sweep, frontier),
    "Check": (verify, chaos, doctor),
    "Run on each node": (node_agent,),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(data_app, name="data", rich_help_panel="Train")

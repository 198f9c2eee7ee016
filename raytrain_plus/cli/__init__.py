"""The command line: `raytrain-plus`, also `python -m raytrain_plus`."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from raytrain_plus.interrupts import end_at_signals

if TYPE_CHECKING:
    import typer

    from raytrain_plus.cli.commands import app as app

# These commands are imported without the others. Without torch they start in a third of the time,
# and the node agent, which runs as long as its node, needs little memory.
_ALONE = {
    "node-agent": "node_agent",
    "doctor": "nodes",
    "status": "steer",
    "scale": "steer",
    "checkpoint": "steer",
    "stop": "steer",
}

HELP = {"help_option_names": ["-h", "--help"]}  # of each command


def version_line() -> str:
    """Return what `--version` prints."""
    from importlib.metadata import version  # noqa: PLC0415 - see `main`

    return f"raytrain-plus {version('raytrain-plus')}"


def main() -> None:
    """Run the command line."""
    end_at_signals()  # before anything is imported that takes time
    from importlib.metadata import version  # noqa: PLC0415

    caller, own = os.environ.pop("RAYTRAIN_PLUS_CALLER", None), version("raytrain-plus")
    if caller not in (None, own):
        sys.stderr.write(
            f"note: raytrain_plus is {caller} where the command was given, {own} on the cluster: "
            "install the same on both\n"
        )
    command = "".join(sys.argv[1:2])
    if command == "--version":
        sys.stdout.write(f"{version_line()}\n")
    elif command in _ALONE:
        _alone(command)()
    else:
        importlib.import_module("raytrain_plus.cli.commands").app()


def _alone(command: str) -> "typer.Typer":
    import typer  # noqa: PLC0415 - see `main`

    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=HELP,
    )
    app.callback()(lambda: None)  # so that its name stays on the command line
    module = importlib.import_module(f"raytrain_plus.cli.{_ALONE[command]}")
    app.command()(getattr(module, command.replace("-", "_")))
    return app


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("raytrain_plus.cli.commands").app

"""The command line: `raytrain-plus`, also `python -m raytrain_plus`."""

import importlib
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain_plus.cli.commands import app as app


def main() -> None:
    """Run the command line."""
    caller, own = os.environ.pop("RAYTRAIN_PLUS_CALLER", None), version("raytrain-plus")
    if caller not in (None, own):
        sys.stderr.write(
            f"note: raytrain_plus is {caller} where the command was given, {own} on the cluster: "
            "install the same on both\n"
        )
    # The agent runs on every node for as long as there is one: without torch, it is small.
    alone = sys.argv[1:2] == ["node-agent"]
    module = f"raytrain_plus.cli.{'node_agent' if alone else 'commands'}"
    importlib.import_module(module).app()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("raytrain_plus.cli.commands").app

"""Write the pages of the reference that are made from the code: `python docs/generate.py`."""

import sys
from pathlib import Path

import click
import typer.main

from raytrain_plus.cli.commands import app

PAGE = Path(__file__).parent / "reference" / "command-line.md"

_HEAD = (
    "# Command line\n\n"
    "`raytrain-plus COMMAND`, also `python -m raytrain_plus COMMAND`. Every command takes `--json` "
    "and then prints one JSON object as its last line. Errors go to stderr with exit status 2 "
    "(wrong input) or 1 (the run failed). This page is made by `python docs/generate.py`.\n"
)


def command_line() -> str:
    """Return the page about the command line."""
    group = typer.main.get_command(app)
    return "\n".join([_HEAD, *_described(group, "raytrain-plus")]).rstrip() + "\n"


def _described(command: click.Command, name: str) -> list[str]:
    """Return the lines about a command and those below it."""
    if isinstance(commands := getattr(command, "commands", None), dict):
        return [
            line for key in sorted(commands) for line in _described(commands[key], f"{name} {key}")
        ]
    rows = [row for parameter in command.params for row in _row(parameter)]
    table = ["| argument or option | meaning |", "| --- | --- |", *rows] if rows else []
    return [f"## {name}", "", command.help or "", "", *table, ""]


def _row(parameter: click.Parameter) -> list[str]:
    if parameter.name == "help":
        return []
    text = getattr(parameter, "help", None) or ""
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = str(parameter.name).upper()
    elif parameter.metavar:
        names = f"{names} {parameter.metavar}"
    default = parameter.default
    plain = default not in (None, False, (), []) and not callable(default)
    if plain and parameter.param_type_name == "option" and not parameter.required:
        text = f"{text} Default: `{default}`.".strip()
    cells = [f"`{names}`", text]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"]


if __name__ == "__main__":
    PAGE.write_text(command_line())
    sys.stdout.write(f"wrote {PAGE}\n")

"""The command that writes a small project to start from."""

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from raytrain_plus.cli.answers import Debug, Json, answer
from raytrain_plus.storage import atomic_files

Project = Literal["images", "text", "finetune", "tabular"]
Template = Literal[Project, "sweep"]
PROJECTS: tuple[Project, ...] = get_args(Project)

_NEXT: dict[str, str] = {
    "sweep": "raytrain-plus sweep sweep.py --budget 10m",
    **dict.fromkeys(
        PROJECTS,
        "python prepare_data.py                  # a sample; README.md has your own data\n"
        "raytrain-plus train --config run.yaml",
    ),
}


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    *,
    template: Annotated[
        Template,
        typer.Option(
            help="images: classify images. text: a GPT on text. finetune: adapters in a "
            "pretrained GPT. tabular: classify the rows of a CSV file. sweep: a search for recipes."
        ),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a small project: a task, its data, run.yaml, a test and a README; or a sweep.

    It trains at once, on a sample that needs no network.
    """

    def run() -> dict[str, Any]:
        written = write_project(folder, template)
        if not as_json:
            typer.echo(f"wrote {folder}: {', '.join(written)}")
            typer.echo(f"\ncd {shlex.quote(str(folder))}\n{_NEXT[template]}")
        return {"folder": str(folder), "template": template, "files": written}

    answer(run, as_json=as_json, debug=debug)


def write_project(folder: Path, template: Template) -> list[str]:
    """Write the files of a template into a folder; returns their names.

    Raises:
        ValueError: one of the files exists already; then nothing is written.
    """
    found = {
        file.name: file.read_bytes()
        for file in (files("raytrain_plus") / "templates" / template).iterdir()
        if file.is_file()
    }
    names = sorted(found)
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ValueError(
            f"{folder} has {', '.join(there)} already, and nothing was written: name another folder"
        )
    for name in names:
        atomic_files.create(folder / name, found[name])
    return names

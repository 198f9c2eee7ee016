"""The command that writes a small project to start from."""

import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from raytrain_plus.cli.answers import Debug, Json, answer
from raytrain_plus.storage import atomic_files

Project = Literal["images", "text", "finetune", "tabular"]
Template = Literal[Project, "sweep", "cluster"]
PROJECTS: tuple[Project, ...] = get_args(Project)

_PACKAGE = "raytrain_plus"
# As in pyproject.toml, where a wheel gets them.
_TREE = (
    f"{_PACKAGE}/**/*",
    "cluster/**/*",
    "LICENSE",
    "README.md",
    "cluster.yaml",
    "constraints.txt",
    "pyproject.toml",
)
_ONLY_FOR_DEVELOPERS = (("cluster", "__init__.py"), ("cluster", "lab"))

_NEXT: dict[str, str] = {
    "sweep": "raytrain-plus sweep sweep.py --budget 10m",
    "cluster": (
        "# fill in the marked lines of cluster.yaml (or cluster/aws.yaml, cluster/gcp.yaml)\n"
        "export RAY_AUTH_MODE=token\n"
        "(umask 077; ray get-auth-token --generate >/dev/null)    # once\n"
        "ray up cluster.yaml"
    ),
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
            "pretrained GPT. tabular: classify the rows of a CSV file. sweep: a search for "
            "recipes. cluster: the launch files, and the package that they install on the nodes."
        ),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a small project: a task, its data, run.yaml, a test and a README.

    It trains at once, on a sample that needs no network. Two templates are no projects: a sweep,
    and the launch files of a cluster.
    """

    def run() -> dict[str, Any]:
        written = write_project(folder, template)
        if not as_json:
            typer.echo(f"wrote {folder}: {', '.join(written)}")
            typer.echo(f"\ncd {shlex.quote(str(folder))}\n{_NEXT[template]}")
        return {"folder": str(folder), "template": template, "files": written}

    answer(run, as_json=as_json, debug=debug)


def write_project(folder: Path, template: Template) -> list[str]:
    """Write the files of a template into a folder.

    Returns:
        Their names; of the package that nodes install, the folder's alone.

    Raises:
        ValueError: one of the files exists already (then nothing is written), or this installation
            has no launch files.
    """
    if template == "cluster":
        found = _launch_files()
    else:
        found = {
            file.name: file.read_bytes()
            for file in (files("raytrain_plus") / "templates" / template).iterdir()
            if file.is_file()
        }
    names = sorted({_shown(name) for name in found})
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ValueError(
            f"{folder} has {', '.join(there)} already, and nothing was written: name another folder"
        )
    for name, content in found.items():
        atomic_files.create(folder / name, content)
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
    return names


def _shown(name: str) -> str:
    return f"{_PACKAGE}/" if name.startswith(f"{_PACKAGE}/") else name


def _launch_files() -> dict[str, bytes]:
    """Return the launch files and the package's sources, by their paths in the repository.

    They come from the tree around the package if there is one, else from the installed wheel.

    Raises:
        ValueError: neither has launch files.
    """
    root = Path(str(files(_PACKAGE))).parent
    if (root / "cluster.yaml").is_file() and (root / "pyproject.toml").is_file():
        found = _files_of_tree(root)
    else:
        try:
            found = _files_of_wheel(distribution("raytrain-plus"))
        except PackageNotFoundError:
            found = {}
    if "cluster.yaml" not in found:
        raise ValueError(
            "this installation has no launch files, as it was made from a part of the source (on a "
            "node of a cluster, for example): install the wheel, or use the repository's tree"
        )
    return found


def _files_of_tree(root: Path) -> dict[str, bytes]:
    chosen = [path for pattern in _TREE for path in root.glob(pattern) if path.is_file()]
    names = [path.relative_to(root) for path in chosen]
    return {
        str(name): (root / name).read_bytes()
        for name in names
        if "__pycache__" not in name.parts and name.parts[:2] not in _ONLY_FOR_DEVELOPERS
    }


def _files_of_wheel(installed: Distribution) -> dict[str, bytes]:
    found = {}
    for file in installed.files or []:
        if file.parts[0] == _PACKAGE and file.suffix != ".pyc":
            found[str(file)] = file.read_binary()
        elif file.parts[1:2] == ("extra_metadata",):
            found["/".join(file.parts[2:])] = file.read_binary()
    return found

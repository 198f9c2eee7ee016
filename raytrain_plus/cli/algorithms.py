"""The commands that show algorithms and that remove them from a trained model."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raytrain_plus.algorithms import ALGORITHMS, Aspect, parse_algorithm
from raytrain_plus.algorithms.naming import parse_settings
from raytrain_plus.algorithms.weave import explain as explained
from raytrain_plus.algorithms.weave import in_order
from raytrain_plus.checkpoint import export as exporting
from raytrain_plus.checkpoint.checkpointer import newest_whole
from raytrain_plus.cli.answers import Code, Debug, Json, RunName, answer
from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.client.control import folder_of
from raytrain_plus.storage.store import store_of
from raytrain_plus.streams.stream import parse_bytes
from raytrain_plus.task import import_code, load_task


def algorithms(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME[:key=value,...]]...", help="Also module:Class."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which algorithms act where, in which order.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List algorithms and their settings, or explain how several work together."""

    def run() -> dict[str, Any]:
        chosen = [parse_algorithm(name) for name in names or ALGORITHMS]
        if not explain:
            listed = {a.name: a.model_dump(mode="json") for a in chosen}
            if not as_json:
                _show_settings(chosen)
            return {"algorithms": listed}
        if not names:
            raise ConfigError("--explain needs the names of the algorithms to explain")
        order, points = [a.name for a in in_order(chosen)], explained(chosen)
        if not as_json:
            _show_weave(order, points)
        return {"order": order, "weave": points}

    answer(run, as_json=as_json, debug=debug)


def export(  # noqa: PLR0913, PLR0917 - one option each
    task: Annotated[str, typer.Argument(help="module:attribute or file.py:attribute")],
    run: RunName,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="The safetensors file to write.")],
    storage: Annotated[str, typer.Option(help="Where runs are kept.")] = "~/ray_results",
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="key=value", help="A field of the task. May be repeated."),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Write a folder that from_pretrained opens.")
    ] = False,
    max_shard_size: Annotated[
        str,
        typer.Option(
            help="A larger model is written as several files next to FILE, or in the folder, with "
            "an index, as Hugging Face does."
        ),
    ] = "5GB",
    code: Code = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the plain model of a run's last checkpoint, without the changes of algorithms."""

    def written() -> dict[str, Any]:
        limit = parse_bytes(max_shard_size)
        folder = folder_of(run, storage)
        name, refused = newest_whole(store_of(folder))
        if name is None:
            why = "".join(f"; {one} is refused: {reason}" for one, reason in refused.items())
            raise ConfigError(f"run {run!r} has no checkpoint yet{why}")
        loaded = load_task(task, parse_settings(setting or [], "the task"))
        for module in code or []:
            import_code(module)
        place = store_of(folder).inside(name)
        model = exporting.export(loaded, place)
        files = [to]
        if pretrained:
            _save_pretrained(loaded, model, to, limit)
        else:
            files = exporting.write(model, to, limit)
        if not as_json:
            more = f", in {len(files) - 1} files" if len(files) > 1 else ""
            told = f"{files[-1]}: the plain model of {place}{more}"
            Console(markup=False).print(told, highlight=False)
        return {"checkpoint": str(place), "file": str(files[-1])}

    answer(written, as_json=as_json, debug=debug)


def _save_pretrained(task: Any, model: Any, folder: Path, limit: int) -> None:
    """Write a model of transformers or peft as a folder.

    Raises:
        ConfigError: it is none.
    """

    def sizes(save: Callable[..., Any]) -> dict[str, Any]:
        takes = "max_shard_size" in inspect.signature(save).parameters  # an adapter's does not
        return {"max_shard_size": limit} if takes else {}

    if hasattr(task, "save_pretrained"):
        task.save_pretrained(model, folder, **sizes(task.save_pretrained))
    elif hasattr(model, "save_pretrained"):
        model.save_pretrained(str(folder), **sizes(model.save_pretrained))
    else:
        raise ConfigError(
            f"the model is a {type(model).__name__}, which has no save_pretrained(): leave out "
            "--pretrained"
        )


def _show_settings(chosen: Sequence[Aspect]) -> None:
    table = Table("algorithm", "settings", box=None)
    for aspect in chosen:
        settings = ", ".join(f"{key}={value!r}" for key, value in aspect.model_dump().items())
        table.add_row(aspect.name, settings or "none")
    Console(markup=False).print(table)


def _show_weave(order: Sequence[str], points: dict[str, list[str]]) -> None:
    table = Table("join point", "advice, outermost first", box=None)
    for point, names in points.items():
        table.add_row(point, " > ".join(names))
    Console(markup=False).print(table)
    Console(markup=False).print(f"order: {' > '.join(order)}", highlight=False)

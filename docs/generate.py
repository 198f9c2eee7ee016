"""Write the pages of the reference that are made from the code: `python docs/generate.py`."""

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import griffe
import typer.main

from raytrain_plus import ElasticConfig, ElasticTrainer, Fault, Mixture, Stream, Task, run_file
from raytrain_plus.cli.commands import app
from raytrain_plus.observe import events, gauges
from raytrain_plus.observe.causes import KINDS
from raytrain_plus.streams import format as stream_format

REFERENCE = Path(__file__).parent / "reference"

_COMMANDS = (
    "# Command line\n\n"
    "`raytrain-plus COMMAND`, also `python -m raytrain_plus COMMAND`. Every command takes `--json` "
    "and then prints one JSON object as its last line. Errors go to stderr with exit status 2 "
    "(wrong input) or 1 (the run failed). This page is made by `python docs/generate.py`.\n"
)
_CONFIGURATION = (
    "# Configuration\n\n"
    "Every setting of a run, with its default. A setting that the command line has, too, names the "
    "option of `raytrain-plus train`. This page is made from the docstrings by "
    "`python docs/generate.py`.\n"
)
_EVENTS = (
    "# Journal events\n\n"
    "A run writes everything that happens to `journal.jsonl` in its folder: one JSON object per "
    "line. Each line has `event` (its kind), `time` (seconds since 1970) and, as its last field, "
    '`crc` (CRC-32 of all bytes before `, "crc"`, as eight hexadecimal digits). A reader refuses '
    "a line that is damaged, an event that it does not know, and a journal of another format. "
    f"These are the events of format {events.VERSION}. This page is made from "
    "`observe/events.py` by `python docs/generate.py`.\n\n"
    'A cause is `{"kind": "lost", "worker": "w1"}`: what happened, to which worker, and for '
    "`scaled` in `detail` how many workers are wanted. A field that says nothing is left out. "
    f"The kinds are {', '.join(f'`{kind}`' for kind in KINDS)}. If an event has several causes, "
    "the first of them in this order has forced the pause.\n"
)
_METRICS = (
    "# Metrics\n\n"
    "Every run exports these through Ray to Prometheus; nothing has to be switched on. "
    "`cluster/grafana/README.md` says how to show them. Each has the run's name as the label "
    "`run`, and the labels that Ray adds. The label `cause` is the kind of a cause, see "
    "[journal events](journal-events.md). The coordinator exports the gauges, each worker the "
    "counters of what its process has fetched. This page is made from `observe/gauges.py` by "
    "`python docs/generate.py`.\n"
)
_RUN_FILE = (
    "# Run file\n\n"
    "The keys of a file for `raytrain-plus train --config run.yaml`. "
    "[One file for a run](../guide/run-file.md) says how to use it. Every key may be left out; "
    "the task may also be named on the command line. A key without an option can only be given in "
    "a file. A path is relative to the folder of the file. This page is made from "
    "`raytrain_plus/run_file.py` by `python docs/generate.py`.\n"
)
_RAY = (
    "## Ray Train's objects\n\n"
    "`scaling_config` and `run_config` are Ray Train's own. These of their fields are used; any "
    "other field that is set is refused before the run starts.\n\n"
    "| field | what it does here |\n| --- | --- |\n"
    "| `ScalingConfig.num_workers` | A number, or (least, most). The least is what a run needs to "
    "start. 0: a [local run](../guide/debugging.md#a-local-run-and-breakpoints). |\n"
    "| `ScalingConfig.label_selector`, `placement_strategy` | On which nodes workers may run: one "
    "selector for all workers; PACK or SPREAD. |\n"
    "| `ScalingConfig.use_gpu`, `resources_per_worker`, `accelerator_type` | What each worker asks "
    "Ray for. Default: one CPU, and one GPU with `use_gpu`. |\n"
    "| `RunConfig.name`, `storage_path` | The run's name, and the folder in which its folder lies. "
    "Default: `~/ray_results`. |\n"
    "| `RunConfig.checkpoint_config` | `num_to_keep`, `checkpoint_score_attribute` and "
    "`checkpoint_score_order`: which checkpoints are kept. Default: all. |\n"
    "| `RunConfig.failure_config` | Only `max_failures` of 0 or -1, which change nothing: lost "
    "workers never end a run. |\n"
    "| `RunConfig.callbacks` | `after_report` is called after each evaluation and each checkpoint, "
    "`after_exception` for a lost worker and for a run that has failed; next to the coordinator, "
    "as [loggers](../guide/monitors.md) are. |\n"
    "| `RunConfig.worker_runtime_env` | Ray's runtime environment of the workers. |\n"
)
_SETTINGS = (
    (ElasticTrainer, "What is trained, and how long."),
    (ElasticConfig, "How a run deals with workers that come, go or hang, and with checkpoints."),
    (Task, "Attributes of a task; its methods are in the [Python API](api.md)."),
    (Stream, "A data set that is read from files or object storage."),
    (Mixture, "Several streams that are trained on as one."),
    (Fault, "One disturbance of `faults`, or of a `--faults` file: [faults](../guide/faults.md)."),
)
# Options of `train` whose names do not follow from the names of the settings.
_OPTIONS = {
    "algorithms": "--algorithm",
    "task_settings": "--setting",
    "elastic": "",
    "scaling_config": "--workers",
    "run_config": "--name",
    "checkpoint_options": "--checkpoint-option",
    "storage_options": "--storage-option",
    "columns": "",
}


def command_line() -> str:
    """Return the page about the command line."""
    group = typer.main.get_command(app)
    return "\n".join([_COMMANDS, *_described(group, "raytrain-plus")]).rstrip() + "\n"


def configuration() -> str:
    """Return the page about the settings of a run."""
    parts = [part for kind, about in _SETTINGS for part in _settings(kind, about)]
    return "\n".join([_CONFIGURATION, *parts, _RAY]).rstrip() + "\n"


def run_file_page() -> str:
    """Return the page about the keys of a run file."""
    rows = [
        row(
            f"`{name}`",
            _type_name(field.annotation, field.metadata),
            _shown(field.get_default(call_default_factory=True)),
            f"`{option}`" if (option := run_file.option_of(name)) else "",
            run_file.KEYS[name].meaning,
        )
        for name, field in run_file.RunSettings.model_fields.items()
    ]
    head = ["| key | value | default | option | meaning |", "| --- | --- | --- | --- | --- |"]
    inner = [
        part
        for kind, name, about in (
            (run_file.StreamSettings, "Stream", "As the value of `data` or `evaluation_data`."),
            (run_file.MixtureSettings, "Mixture", "Likewise."),
        )
        for part in _inner_keys(kind, name, about)
    ]
    return "\n".join([_RUN_FILE, *head, *rows, "", *inner]).rstrip() + "\n"


def _inner_keys(kind: Any, name: str, about: str) -> list[str]:
    """Return the lines about the keys inside of a key."""
    settings = {"Stream": Stream, "Mixture": Mixture}[name]
    meanings = {item.name: item.description for item in _documented(settings)}
    rows = [
        row(
            f"`{key}`",
            _type_name(field.annotation, field.metadata),
            "" if field.is_required() else _shown(field.get_default(call_default_factory=True)),
            "`module:function` or `file.py:function`. " * (key == "transform") + meanings[key],
        )
        for key, field in kind.model_fields.items()
    ]
    head = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    return [f"## {name}", "", about, "", *head, *rows, ""]


_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def _type_name(kind: Any, metadata: Any = ()) -> str:
    """Return the type of a key's value in words."""
    if run_file.is_path(metadata):
        return "path or URL"
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type_name(inner[0], inner[1:])
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        names = [_type_name(one) for one in inner if one is not type(None)]
        return " or ".join(dict.fromkeys(names))
    if origin is list:
        return "list" if inner[0] is Fault else f"list of {_type_name(inner[0])}"
    if origin is dict:
        return "mapping"
    return _TYPES.get(kind) or "mapping"


def _shown(default: Any) -> str:
    """Return a default as a run file has it; none for null and what is empty."""
    return "" if default in (None, {}, []) else f"`{json.dumps(default)}`"


def stream_format_page() -> str:
    """Return the page about the stream format, with the tables of its fields."""
    tables = {"manifest": stream_format.StreamManifest, "file": stream_format.ShardEntry}
    return _filled(REFERENCE / "stream-format.md", tables)


def journal_events() -> str:
    """Return the page about the journal's events."""
    index = [row(f"[`{kind}`](#{kind})", _about(kind)) for kind in events.EVENTS]
    parts = [part for kind in events.EVENTS for part in _event(kind)]
    head = ["| event | what it tells |", "| --- | --- |"]
    return "\n".join([_EVENTS, *head, *index, "", *parts]).rstrip() + "\n"


def _about(kind: str) -> str:
    return inspect.getdoc(events.EVENTS[kind]) or ""


def _event(kind: str) -> list[str]:
    """Return the lines about one kind of event."""
    rows = [
        row(f"`{name}`", one.allowed, "yes" if one.required else "", one.meaning)
        for name, one in events.fields_of(kind).items()
    ]
    head = ["| field | type | required | meaning |", "| --- | --- | --- | --- |"]
    return [f"## {kind}", "", _about(kind), "", *((*head, *rows, "") if rows else ())]


def metrics() -> str:
    """Return the page about the metrics."""
    rows = [
        row(f"`{one.seen_as}`", one.kind, f"`{one.label}`" if one.label else "", one.text)
        for one in gauges.METRICS
    ]
    head = ["| name in Prometheus | kind | label | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([_METRICS, *head, *rows]) + "\n"


PAGES: Mapping[Path, Callable[[], str]] = {
    REFERENCE / "command-line.md": command_line,
    REFERENCE / "configuration.md": configuration,
    REFERENCE / "run-file.md": run_file_page,
    REFERENCE / "stream-format.md": stream_format_page,
    REFERENCE / "journal-events.md": journal_events,
    REFERENCE / "metrics.md": metrics,
}


def _described(command: click.Command, name: str) -> list[str]:
    """Return the lines about a command and those below it."""
    if isinstance(commands := getattr(command, "commands", None), dict):
        return [
            line for key in sorted(commands) for line in _described(commands[key], f"{name} {key}")
        ]
    rows = [row for parameter in command.params for row in _option(parameter)]
    table = ["| argument or option | meaning |", "| --- | --- |", *rows] if rows else []
    return [f"## {name}", "", command.help or "", "", *table, ""]


def _option(parameter: click.Parameter) -> list[str]:
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
    return [row(f"`{names}`", text)]


def _settings(kind: type, about: str) -> list[str]:
    """Return the lines about the settings that a class documents."""
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    documented = _documented(kind)
    defaults = _defaults(kind)
    rows = []
    for item in documented:
        option = _OPTIONS.get(item.name, "--" + item.name.replace("_", "-"))
        shown = (
            f"`{option}`" if option in options and kind in (ElasticTrainer, ElasticConfig) else ""
        )
        rows.append(row(f"`{item.name}`", defaults.get(item.name, ""), shown, item.description))
    head = ["| setting | default | option | meaning |", "| --- | --- | --- | --- |"]
    return [f"## {kind.__name__}", "", about, "", *head, *rows, ""]


_FIELDS = (griffe.DocstringSectionKind.attributes, griffe.DocstringSectionKind.parameters)


def _documented(kind: type) -> list[Any]:
    """Return what a class's docstring says of its attributes or arguments."""
    docstring = griffe.Docstring(inspect.getdoc(kind) or "", parser="google")
    sections = docstring.parse(warnings=False, warn_missing_types=False)
    return [item for section in sections if section.kind in _FIELDS for item in section.value]


def _filled(page: Path, tables: Mapping[str, type]) -> str:
    """Return a page with its tables of fields made from the docstrings of classes."""
    text = page.read_text()
    for name, kind in tables.items():
        rows = [row(f"`{item.name}`", item.description) for item in _documented(kind)]
        table = "\n".join(["| field | meaning |", "| --- | --- |", *rows])
        begin, end = f"<!-- made by docs/generate.py: {name} -->", "<!-- /made -->"
        pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
        text = pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)  # noqa: B023
    return text


def _defaults(kind: type) -> dict[str, str]:
    """Return the defaults of a class's settings, as code; none for those that must be given."""
    if not dataclasses.is_dataclass(kind):
        found = {k: v.default for k, v in inspect.signature(kind).parameters.items()}
        found = found if kind is not Task else {k: getattr(kind, k) for k in kind.__annotations__}
    else:
        found = {one.name: _default(one) for one in dataclasses.fields(kind)}
    missing = (inspect.Parameter.empty, dataclasses.MISSING)
    return {name: f"`{value!r}`" for name, value in found.items() if value not in missing}


def _default(one: "dataclasses.Field[Any]") -> Any:
    made = one.default_factory
    return one.default if made is dataclasses.MISSING else made()


def row(*cells: str) -> str:
    """Return a row of a Markdown table."""
    plain = (" ".join(cell.replace("|", "\\|").split()) for cell in cells)
    return f"| {' | '.join(plain)} |"


if __name__ == "__main__":
    for page, made in PAGES.items():
        page.write_text(made())
        sys.stdout.write(f"wrote {page}\n")

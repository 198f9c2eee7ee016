"""A run as one file: the keys of `run.yaml`, which are also the options of `raytrain-plus train`.

`RunSettings` declares each key once: its name, type, default, meaning, and option. From it follow
the command's options (`cli/train.py`), the checks and their errors, what a run writes into its
folder, and the reference page. To add a key, add a field there, turn it into an argument of the
trainer in `arguments`, and describe it in `described`.

A run file is code of its user, like a Makefile: the names of tasks, algorithms and transforms in it
are imported. Nothing in it is evaluated or unpickled.
"""

import contextlib
import dataclasses
import difflib
import inspect
import logging
import math
import os
import re
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ray.train
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationError,
    ValidationInfo,
)

from raytrain_plus import configure
from raytrain_plus.algorithms import Aspect, AspectError
from raytrain_plus.algorithms.naming import (
    Described,
    import_class,
    make,
    parse_description,
    parse_settings,
)
from raytrain_plus.clock import Duration, DurationError
from raytrain_plus.elastic.protocol.faults import Fault, as_data, read_faults
from raytrain_plus.elastic.protocol.messages import ElasticConfig, RunSpec
from raytrain_plus.loggers import LoggerError
from raytrain_plus.loggers.naming import LOGGERS, make_logger, names_of, parse_logger
from raytrain_plus.plain_yaml import Document, YamlError, dump_yaml, read_document
from raytrain_plus.redaction import HIDDEN, redact, redacted
from raytrain_plus.stopping import EarlyStopping, Rule, StopAt
from raytrain_plus.storage.locations import parse_options
from raytrain_plus.storage.store import Folder, store_of
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.stream import Stream
from raytrain_plus.task import TaskError, already_imported, import_named
from raytrain_plus.user_data import is_code

FILE_NAME = "run.yaml"
"""The name of the file in a run's folder."""


_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")


class RunFileError(ValueError):
    """A run file, or an option, that cannot be used; the message says where and what is allowed."""


@dataclass(frozen=True)
class Key:
    """What a key means, and how the command line gives it.

    Attributes:
        meaning: for the reference and the option's help.
        option: of `raytrain-plus train`. Default: the key's name; "" for none.
        parse: makes the value from the texts of an option that may be repeated.
        metavar: the form of the option's text. Default: that of its type.
        help: of the option, if it is not the meaning.
    """

    meaning: str
    option: str | None = None
    parse: Callable[[list[str]], Any] | None = None
    metavar: str | None = None
    help: str = ""


def _from_folder(text: str, info: ValidationInfo) -> str:
    """Return a path that is relative to the file's folder as one relative to the working folder."""
    if not text.strip():
        raise ValueError("it is empty: give a path or a URL")
    folder = (info.context or {}).get("folder", "")
    return text if "://" in text or text.startswith("~") else os.path.join(folder, text)  # noqa: PTH118


def _data_from_folder(text: str, info: ValidationInfo) -> str:
    return _code_from_folder(text, info) if is_code(text) else _from_folder(text, info)


def _code_from_folder(text: str, info: ValidationInfo) -> str:
    return _from_folder(text, info) if text.partition(":")[0].endswith(".py") else text


def _named_from_folder(text: str, info: ValidationInfo) -> str:
    return _from_folder(text, info) if text.endswith((".yaml", ".yml")) else text


def _keys_from_folder(value: Mapping[str, Any], info: ValidationInfo) -> dict[str, Any]:
    return {_code_from_folder(key, info): inner for key, inner in value.items()}


def _duration(text: str) -> str:
    if Duration.parse(text).value <= 0:
        raise DurationError(f"duration {text!r} must be above zero")
    return text


def _duration_or_never(text: str) -> str:
    return text if text == "never" else _duration(text)


def _workers(value: Any) -> Any:
    """Return a number of workers, or a range as MIN:MAX."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    ends = value.split(":") if isinstance(value, str) else value
    try:
        numbers = [int(end) for end in ends]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or isinstance(value, Mapping):
        raise ValueError(f"workers {value!r} is neither a number such as 4 nor a range such as 1:8")
    return numbers[0] if len(set(numbers)) == 1 else f"{numbers[0]}:{numbers[1]}"


def _keep_best(text: str) -> str:
    if text.partition(":")[2] not in ("", "min", "max"):
        raise ValueError(f"{text!r} is not METRIC, METRIC:max or METRIC:min")
    return text


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


Text = Annotated[str, Strict()]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AfterValidator(_finite)]
Flag = Annotated[bool, Strict()]
Location = Annotated[Text, AfterValidator(_from_folder)]
Code = Annotated[Text, AfterValidator(_code_from_folder)]
DataLocation = Annotated[Text, AfterValidator(_data_from_folder)]
Length = Annotated[Text, AfterValidator(_duration)]
Settings = dict[str, Any]


def _transform(name: str) -> Any:
    return import_named(name, "transform")


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StreamSettings(_Keys):
    """A data set in files or object storage: the settings of a Stream."""

    url: Annotated[Location, Key("a folder, or a URL")]
    transform: Annotated[Code | None, Key("module:function or file.py:function")] = None
    per: Literal["sample", "batch"] = "sample"
    columns: list[Text] | None = None
    fill: Settings = Field(default_factory=dict)
    split: Text | None = None
    shuffle: Flag = True
    window: Whole = 8
    cache: Location | None = None
    cache_limit: Whole | Text = 16 << 30
    storage_options: Settings = Field(default_factory=dict)
    deadline: Number = 60.0

    def made(self, options: Mapping[str, Any], find: Callable[[str], Any] = _transform) -> Stream:
        """Return the Stream.

        Args:
            options: for its store, if it has none of its own.
            find: returns the transform of a name. Default: it is imported.
        """
        given = self.model_dump(exclude_unset=True)
        if self.transform is not None:
            given["transform"] = find(self.transform)
        if options:
            given["storage_options"] = {**options, **self.storage_options}
        return Stream(given.pop("url"), **given)


class MixtureSettings(_Keys):
    """Several streams to train on as one: the settings of a Mixture."""

    streams: dict[Text, StreamSettings]
    weights: dict[Text, Number] | None = None
    changes: dict[Whole, dict[Text, Number]] = Field(default_factory=dict)
    block: Whole = 1024

    def made(self, options: Mapping[str, Any], find: Callable[[str], Any] = _transform) -> Mixture:
        """Return the Mixture; see `StreamSettings.made`."""
        streams = {name: stream.made(options, find) for name, stream in self.streams.items()}
        return Mixture(streams, weights=self.weights, changes=self.changes, block=self.block)


def _kind_of_data(value: Any) -> str:
    if isinstance(value, MixtureSettings) or (isinstance(value, Mapping) and "streams" in value):
        return "<mixture>"
    if isinstance(value, list):
        return "<list>"
    return "<stream>" if isinstance(value, Mapping | StreamSettings) else "<text>"


# The tags are in pydantic's paths to a mistake, and are left out there.
Data = Annotated[
    Annotated[DataLocation, Tag("<text>")]
    | Annotated[list[Location], Tag("<list>")]
    | Annotated[StreamSettings, Tag("<stream>")]
    | Annotated[MixtureSettings, Tag("<mixture>")],
    Discriminator(_kind_of_data),
]


def _kind_of_sets(value: Any) -> str:
    is_named = isinstance(value, Mapping) and not {"url", "streams"} & value.keys()
    return "<sets>" if is_named else "<one>"


EvaluationData = Annotated[
    Annotated[Data, Tag("<one>")] | Annotated[dict[Text, Data], Tag("<sets>")],
    Discriminator(_kind_of_sets),
]
Intervals = Annotated[
    Annotated[Length, Tag("<one>")] | Annotated[dict[Text, Length], Tag("<sets>")],
    Discriminator(_kind_of_sets),
]


def _kind_of_faults(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


Faults = Annotated[
    Annotated[Location, Tag("<text>")] | Annotated[list[Fault], Tag("<list>")],
    Discriminator(_kind_of_faults),
]


def by_name(texts: list[str]) -> Any:
    """Return the value of an option that is given once, or NAME=VALUE once for each name."""
    pairs = [_NAMED.fullmatch(text) for text in texts]
    if len(texts) == 1 and pairs[0] is None:
        return texts[0]
    found: dict[str, str] = {}
    for text, pair in zip(texts, pairs, strict=True):
        if pair is None:
            raise RunFileError(
                f"{text!r} has no name, and the option is given {len(texts)} times: write "
                f"NAME={text}"
            )
        if pair[1] in found:
            raise RunFileError(f"{pair[1]!r} is given twice: {found[pair[1]]!r} and {pair[2]!r}")
        found[pair[1]] = pair[2]
    return found


def _parsed_settings(texts: list[str]) -> Settings:
    return parse_settings(texts, "the task")


def _parsed_algorithms(texts: list[str]) -> dict[str, Settings]:
    return dict(map(parse_description, texts))


def _parsed_loggers(texts: list[str]) -> dict[str, Settings]:
    return dict(map(parse_logger, texts))


def _parsed_checkpoint_options(texts: list[str]) -> Settings:
    return parse_options(texts, "checkpoint option")


def _parsed_rules(texts: list[str]) -> dict[str, Settings]:
    found = {}
    for text in texts:
        name, _, given = text.partition(":")
        found[name] = parse_settings(filter(None, given.split(",")), f"stopping by {name}")
    return found


def _rules(settings: "RunSettings") -> list[Rule]:
    """Return the rules that end a run early.

    Raises:
        RunFileError: a rule has other settings.
    """
    return [
        *(_rule(EarlyStopping, "metric", *one) for one in settings.early_stopping.items()),
        *(_rule(StopAt, "name", *one) for one in settings.stop_at.items()),
    ]


def _rule(kind: Callable[..., Rule], field: str, name: str, given: Settings | None) -> Rule:
    known = [one for one in inspect.signature(kind).parameters if one != field]
    unknown = [key for key in given or {} if key not in known]
    if unknown:
        raise RunFileError(
            f"stopping by {name} has no setting {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return kind(**{field: name}, **(given or {}))


class RunSettings(_Keys):
    """All keys of a run file, with their defaults."""

    task: Annotated[
        Code | None, Key("The task: module:attribute or file.py:attribute.", option="")
    ] = None
    task_settings: Annotated[
        Settings,
        Key(
            "New values of the task's fields; the task must then be a dataclass.",
            option="--setting",
            parse=_parsed_settings,
            metavar="key=value",
            help="A field of the task. May be repeated.",
        ),
    ] = Field(default_factory=dict)
    import_paths: Annotated[
        list[Location],
        Key("Folders in which modules are searched first. Default: that of this file.", option=""),
    ] = Field(default_factory=list)
    code: Annotated[
        list[Code],
        Key(
            "Module or file.py to import: the code of algorithms of your own that a recipe names. "
            "May be repeated.",
            parse=list,
            metavar="MODULE",
        ),
    ] = Field(default_factory=list)
    data: Annotated[
        Data | None,
        Key(
            "The training data: the URL of a stream; an Arrow, Parquet, CSV or JSON lines file, a "
            "folder of them, or a pattern; or a function that returns data, module:function. In a "
            "file also a list of files, or the settings of a [Stream](#stream) or a "
            "[Mixture](#mixture).",
            help="A stream's URL; a data file, folder or pattern; or module:function.",
        ),
    ] = None
    evaluation_data: Annotated[
        EvaluationData | None,
        Key(
            "The same, for evaluation; or several sets, as a mapping from their names.",
            parse=by_name,
            metavar="[NAME=]URL",
            help="The same, for evaluation. May be repeated with names.",
        ),
    ] = None
    storage_options: Annotated[
        Settings,
        Key(
            "For the store of data that is named by a URL.",
            option="--storage-option",
            parse=parse_options,
            metavar="KEY=VALUE",
            help="For the data's store; VALUE may be JSON.",
        ),
    ] = Field(default_factory=dict)
    hash_data: Annotated[Flag, Key("Read all data at the start, to identify it by its hash.")] = (
        False
    )
    recipe: Annotated[
        Annotated[Text, AfterValidator(_named_from_folder)] | None,
        Key(
            "A YAML file or a bundled one, such as cluttered_digits/medium. The file's other keys "
            "override it.",
            help="A YAML file or a bundled one, such as cluttered_digits/medium.",
        ),
    ] = None
    algorithms: Annotated[
        dict[Text, Settings | None],
        AfterValidator(_keys_from_folder),
        Key(
            "Name or module:Class -> its settings, in any order.",
            option="--algorithm",
            parse=_parsed_algorithms,
            metavar="NAME[:key=value,...]",
            help="Or module:Class. May be repeated.",
        ),
    ] = Field(default_factory=dict)
    batch_size: Annotated[Whole, Key("Samples per step, over all workers.")] = 256
    duration: Annotated[Length, Key("10ep, 500ba, 20000sp or 1000000tok.")] = "1ep"
    evaluate_every: Annotated[
        Intervals,
        Key(
            "In the same units, or 0.1dur of the whole run; or a mapping from the names of "
            "evaluation sets.",
            parse=by_name,
            metavar="[NAME=]LENGTH",
            help="In the same units, or 0.1dur of the whole run. May be repeated with names.",
        ),
    ] = "1ep"
    seed: Annotated[Whole, Key("Seed of all random numbers.")] = 17
    logical_ranks: Annotated[Whole, Key("Parts of a batch, V.")] = 8
    initial_weights: Annotated[
        Location | None,
        Key("A safetensors file, a folder with one, or a run, to start from its weights."),
    ] = None
    partial_weights: Annotated[
        Flag, Key("Load the initial weights that fit, and warn of the others by name.")
    ] = False
    workers: Annotated[
        Whole | Text,
        BeforeValidator(_workers),
        Key(
            "A number of workers, or a range as MIN:MAX. 0: a local run, in this process alone.",
            metavar="MIN:MAX or N",
        ),
    ] = 1
    threads: Annotated[Whole | None, Key("Threads per worker.")] = None
    cpus: Annotated[Number | None, Key("CPUs that each worker holds. Default: one per thread.")] = (
        None
    )
    gpu: Annotated[Flag, Key("One GPU per worker.")] = False
    accelerator_type: Annotated[
        Text | None, Key("Ray's name of the GPUs to use, such as A100 or H100.")
    ] = None
    label_selector: Annotated[
        dict[Text, Text],
        Key("The labels of the nodes on which workers may run, by name.", option=""),
    ] = Field(default_factory=dict)
    placement_strategy: Annotated[
        Literal["PACK", "SPREAD"],
        Key("SPREAD: workers are spread over as many nodes as possible.", option=""),
    ] = "PACK"
    resources_per_worker: Annotated[
        dict[Text, Number],
        Key("Further resources of Ray that each worker holds, by name.", option=""),
    ] = Field(default_factory=dict)
    worker_runtime_env: Annotated[
        Settings, Key("Ray's runtime environment of the workers.", option="")
    ] = Field(default_factory=dict)
    spares: Annotated[Whole, Key("Workers kept warm in addition to the group.")] = 0
    storage: Annotated[
        Location,
        Key("Where runs are kept, one folder each: a folder that all nodes share, or a URL."),
    ] = "~/ray_results"
    name: Annotated[Text | None, Key("The run's name. Default: a new one.")] = None
    checkpoint_every: Annotated[
        Annotated[Text, AfterValidator(_duration_or_never)],
        Key("How often to save the state, in units of evaluate-every; or never."),
    ] = "1ep"
    checkpoint_storage: Annotated[
        Location | None, Key("Path or URL to keep checkpoints in. Default: the run's.")
    ] = None
    checkpoint_options: Annotated[
        Settings,
        Key(
            "For that store, and for a `storage` that is a URL.",
            option="--checkpoint-option",
            parse=_parsed_checkpoint_options,
            metavar="KEY=VALUE",
            help="For that store, and a --storage that is a URL; VALUE may be JSON.",
        ),
    ] = Field(default_factory=dict)
    keep: Annotated[Whole, Field(ge=0), Key("How many checkpoints, 0 for all.")] = 2
    keep_best: Annotated[
        Annotated[Text, AfterValidator(_keep_best)] | None,
        Key("Keep the best by a metric.", metavar="METRIC[:min]"),
    ] = None
    max_checkpoint_failures: Annotated[
        Whole | None, Key("Failures in a row that end the run. Default: no limit.")
    ] = None
    hang_deadline: Annotated[
        Number | None,
        Key(
            "Seconds without progress until a worker counts as hung. Default: four times the "
            "median step, at least 5."
        ),
    ] = None
    first_step_deadline: Annotated[Number, Key("The same, for the first step.", option="")] = 120.0
    start_timeout: Annotated[Number, Key("Seconds to wait for MIN workers.")] = 120.0
    orphan_seconds: Annotated[
        Number, Key("Seconds that workers wait for their coordinator to come back.", option="")
    ] = 120.0
    coordinator_deadline: Annotated[
        Number,
        Key("Seconds without an answer until the coordinator counts as hung.", option=""),
    ] = 30.0
    bitwise: Annotated[Flag, Key("Refuse workers whose results differ in a bit.")] = True
    check_every: Annotated[
        Whole, Key("Steps between comparisons of the replicas' states.", option="")
    ] = 10
    audit_every: Annotated[
        Whole,
        Key("Steps between gradients that a second worker computes too; 0: never.", option=""),
    ] = 100
    rebalance_above: Annotated[
        Number | None,
        Key("Share of a step that a rebalance by speed must save; null: never.", option=""),
    ] = 0.2
    isa: Annotated[
        Literal["default", "avx2", "avx512"] | None,
        Key("Cap on the CPUs' instruction set. Default: none.", option=""),
    ] = None
    peak_tflops: Annotated[
        Annotated[Number, Field(ge=0)] | None,
        Key(
            "Peak of a worker's device in 10^12 operations per second, for the run's `mfu`; 0: no "
            "mfu. Default: by the GPU's name. See "
            "[monitors](../guide/monitors.md#model-flops-use).",
            help="Peak of a worker's device in TFLOP/s, for the run's mfu. Default: by its name.",
        ),
    ] = None
    loggers: Annotated[
        dict[Text, Settings | None],
        Key(
            "csv, mlflow, tensorboard or wandb -> its settings. See "
            "[loggers](../guide/loggers.md).",
            option="--logger",
            parse=_parsed_loggers,
            metavar="NAME[:key=value,...]",
            help="csv, mlflow, tensorboard or wandb. May be repeated.",
        ),
    ] = Field(default_factory=dict)
    group: Annotated[
        Text | None, Key("The name under which loggers join the run with others.", option="")
    ] = None
    progress_interval: Annotated[
        Annotated[Number, Field(ge=0)] | None,
        Key(
            "Seconds between two lines of progress where the output is no terminal; 0: no "
            "progress. Default: RAYTRAIN_PLUS_PROGRESS_INTERVAL of the environment, or 5."
        ),
    ] = None
    early_stopping: Annotated[
        dict[Text, Settings | None],
        Key(
            "Metric -> `patience`, `mode` and `min_change`: stop when it has not improved.",
            option="--early-stopping",
            parse=_parsed_rules,
            metavar="METRIC[:patience=3,mode=max]",
            help="Stop when a metric has not improved for some evaluations. May be repeated.",
        ),
    ] = Field(default_factory=dict)
    stop_at: Annotated[
        dict[Text, Settings | None],
        Key(
            "Metric, logged scalar or loss -> `above` or `below`: stop when it is reached.",
            option="--stop-at",
            parse=_parsed_rules,
            metavar="NAME:above=0.9",
            help="Stop when a metric, a logged scalar or the loss is above= or below= a bound. "
            "May be repeated.",
        ),
    ] = Field(default_factory=dict)
    faults: Annotated[
        Faults | None,
        Key(
            "Faults to inject: a list, or a YAML file with one. See [faults](../guide/faults.md).",
            help="YAML list of disturbances.",
        ),
    ] = None
    trace: Annotated[Location | None, Key("CSV of node changes: milliseconds,add|remove,node.")] = (
        None
    )
    speed: Annotated[Number, Key("How many times as fast to replay it.")] = 1.0


KEYS: Mapping[str, Key] = {
    name: next(one for one in field.metadata if isinstance(one, Key))
    for name, field in RunSettings.model_fields.items()
}
"""All keys of a run file, in their order."""


def option_of(name: str) -> str:
    """Return the option of a key; empty if it has none."""
    option = KEYS[name].option
    return f"--{name.replace('_', '-')}" if option is None else option


def is_path(metadata: Iterable[Any]) -> bool:
    """Say whether the annotations of a type make it a path or URL."""
    return any(isinstance(one, AfterValidator) and one.func is _from_folder for one in metadata)


ELASTIC = tuple(one.name for one in dataclasses.fields(ElasticConfig) if one.name in KEYS)
"""The keys that are settings of ElasticConfig."""

_Mistake = tuple[tuple[int, int], str]
Layer = Mapping[str, Any]
"""Values of some keys, checked. A later layer overrides an earlier one."""


@dataclass(frozen=True)
class RunFile:
    """A run file that was read.

    Attributes:
        path: of the file.
        layer: the values of its keys; its paths are relative to the working folder.
    """

    path: Path
    layer: Layer
    _document: Document = Document(None)  # noqa: RUF009 - it is frozen

    @contextlib.contextmanager
    def naming(self, key: str, *, unless: bool = False) -> Iterator[None]:
        """Name the place of a key in the errors of the block.

        Args:
            key: the key that the block reads.
            unless: its value is not the file's; then errors stay as they are.

        Raises:
            RunFileError: the block has raised a ValueError.
        """
        try:
            yield
        except ValueError as error:
            if unless or key not in self.layer:
                raise
            line, column = self._document.place([key])
            raise RunFileError(f"{self.path}:{line}:{column}: {error}") from error

    @contextlib.contextmanager
    def naming_settings(self, options: Collection[str]) -> Iterator[None]:
        """Name the place of the key in errors of the block that say which settings they are about.

        Args:
            options: the keys that options have overridden; errors about them stay as they are.

        Raises:
            RunFileError: the block has raised such a ValueError.
        """
        try:
            yield
        except ValueError as error:
            keys = [k for k in configure.keys_of(error) if k in self.layer and k not in options]
            if not keys:
                raise
            line, column = self._document.place([keys[0]])
            raise RunFileError(f"{self.path}:{line}:{column}: {error}") from error


def read_run_file(path: Path) -> RunFile:
    """Read a run file.

    Raises:
        RunFileError: it cannot be read, or has mistakes; each is named with its place.
    """
    try:
        document = read_document(path)
    except (OSError, YamlError) as error:
        raise RunFileError(f"run file {path} cannot be read: {error}") from error
    content = {} if document.value is None else document.value
    if not isinstance(content, Mapping):
        raise RunFileError(
            f"{path}:1:1: a run file is a mapping from keys to values, such as `duration: 10ep`, "
            f"and this is a {type(content).__name__}"
        )
    folder = str(path.parent)
    try:
        layer = _checked(content, folder="" if folder == "." else folder)
        mistakes = [
            *_wrong_algorithms(layer.get("algorithms", {}), document),
            *_wrong_loggers(layer.get("loggers", {}), document),
        ]
    except ValidationError as error:
        mistakes = list(_mistakes(error, document))
    if mistakes:
        told = [f"{path}:{line}:{column}: {text}" for (line, column), text in sorted(mistakes)]
        if len(told) > 1:
            told.insert(0, f"{path} has {len(told)} mistakes:")
        raise RunFileError("\n  ".join(told))
    return RunFile(path, {"import_paths": [folder], **layer}, document)


def layer_of_options(given: Mapping[str, Any]) -> Layer:
    """Return the layer of a command's options.

    Args:
        given: key -> what the command line has parsed; None if the option is not given.

    Raises:
        RunFileError: a value is not allowed.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        parse = KEYS[name].parse
        if value is not None and value != []:
            values[name] = value if parse is None else parse(value)
    try:
        return _checked(values)
    except ValidationError as error:
        told = [text for _, text in _mistakes(error, Document(None))]
        raise RunFileError("; ".join(told)) from None


def merged(layers: Iterable[Layer]) -> RunSettings:
    """Return the settings of several layers. Mappings are merged key by key."""
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            before = values.get(name)
            is_more = isinstance(before, dict | list) and isinstance(value, type(before))
            if KEYS[name].parse is not None and is_more:
                values[name] = [*before, *value] if isinstance(before, list) else before | value
            else:
                values[name] = value
    return RunSettings.model_validate(values)


def _checked(values: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
    made = RunSettings.model_validate(values, context={"folder": folder})
    return {name: getattr(made, name) for name in KEYS if name in made.model_fields_set}


def _wrong_algorithms(given: Mapping[str, Any], document: Document) -> Iterable[_Mistake]:
    """Return the mistakes in the library's algorithms; the user's are not imported yet."""
    for name, settings in given.items():
        try:
            if ":" not in name:
                make(Described(name, dict(settings or {})))
        except AspectError as error:
            yield document.place(("algorithms", name), of_key=True), str(error)


def _wrong_loggers(given: Mapping[str, Any], document: Document) -> Iterable[_Mistake]:
    for name, settings in given.items():
        try:
            make_logger(name, dict(settings or {}))
        except LoggerError as error:
            yield document.place(("loggers", name), of_key=True), str(error)


def _mistakes(error: ValidationError, document: Document) -> Iterable[_Mistake]:
    """Return the place and the text of each mistake that pydantic has found."""
    for one in error.errors():
        keys = [key for key in one["loc"] if not str(key).startswith("<")]
        is_key = keys[-1:] == ["[key]"]
        keys = [key for key in keys if key != "[key]"]
        of_key = one["type"] in _UNKNOWN_KEY or is_key
        yield document.place(keys, of_key=of_key), _told(one, keys)


def _told(one: Mapping[str, Any], keys: Sequence[str | int]) -> str:
    """Return one mistake as a sentence: the key, its value, and what is allowed."""
    name, kind, context = ".".join(map(str, keys)), one["type"], one.get("ctx", {})
    if kind in _UNKNOWN_KEY:
        known = _known(one["loc"])
        near = difflib.get_close_matches(str(keys[-1]).lower().replace("-", "_"), known, 1, 0.5)
        meant = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
        return f"there is no key {name}: {meant}"
    if kind == "missing":
        return f"{'.'.join(map(str, keys[:-1]))} has no {keys[-1]}, which is needed"
    if kind == "value_error":
        text = str(context["error"])
        return text if name in text else f"{name}: {text}"
    return f"{name} is {_short(one['input'])}; it must be {_allowed(kind, context, one['msg'])}"


_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_ALLOWED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text; put quotes around it if it looks like a number",
    "list_type": "a list",
    "dict_type": "a mapping from names to values",
    "model_type": "a mapping from names to values",
    "dataclass_type": "a mapping from names to values",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "literal_error": "{expected}",
}


def _allowed(kind: str, context: Mapping[str, Any], message: str) -> str:
    text = _ALLOWED.get(kind)
    return message if text is None else text.format(**context)


def _short(value: Any) -> str:
    try:
        text = repr(value) if isinstance(value, str) else reprlib.repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "a number of thousands of digits"
    return redact(text if len(text) <= 80 else f"{text[:70]}...")


def _known(place: Sequence[str | int]) -> list[str]:
    """Return the keys that are allowed at a place in pydantic's words."""
    if "<list>" in place:
        return [one.name for one in dataclasses.fields(Fault)]
    if "<mixture>" in place and "streams" not in place:
        return list(MixtureSettings.model_fields)
    return list((StreamSettings if len(place) > 1 else RunSettings).model_fields)


def check_secrets(settings: RunSettings) -> None:
    """Refuse values from which a secret was removed when a run wrote them into its folder.

    Raises:
        RunFileError: there are some; the message names them.
    """
    hidden = sorted(_hidden(settings.model_dump(), ()))
    if hidden:
        options = " or ".join(
            option for name in ("storage_options", "checkpoint_options")
            if any(one.startswith(name) for one in hidden)
            and (option := f"{KEYS[name].option} KEY=VALUE")
        )  # fmt: skip
        raise RunFileError(
            f"{', '.join(hidden)} stands for a secret, which a run does not write into its "
            f"folder ({HIDDEN}): give it again" + (f" ({options})" if options else "")
        )


def _hidden(value: Any, keys: tuple[str, ...]) -> Iterable[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _hidden(inner, (*keys, str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _hidden(inner, keys)
    elif isinstance(value, str) and HIDDEN in value:
        yield ".".join(keys)


def import_first(settings: RunSettings) -> None:
    """Let Python search the settings' folders for modules first."""
    for folder in reversed(settings.import_paths):
        path = str(Path(folder).resolve())
        if path not in sys.path:
            sys.path.insert(0, path)


def aspects(settings: RunSettings) -> list[Aspect]:
    """Return the algorithms; imports those of the user.

    Raises:
        AspectError: one does not exist, or is set wrongly.
    """
    found = []
    for name, given in settings.algorithms.items():
        import_class(name)
        found.append(make(Described(name, dict(given or {}))))
    return found


def arguments(settings: RunSettings) -> dict[str, Any]:
    """Return the arguments of an ElasticTrainer.

    Raises:
        ValueError: something that the settings name does not exist, or is set wrongly.
    """
    if settings.task is None:
        raise TaskError("no task is named: give module:attribute or file.py:attribute")
    check_secrets(settings)
    resources = {"CPU": settings.threads or 1 if settings.cpus is None else settings.cpus}
    least, _, most = str(settings.workers).partition(":")
    metric, _, order = (settings.keep_best or "").partition(":")
    faults = settings.faults or ()
    never = settings.checkpoint_every == "never"
    elastic = {name: getattr(settings, name) for name in ELASTIC}
    return {
        "task": settings.task,
        "task_settings": settings.task_settings,
        **_data(settings),
        **{
            name: getattr(settings, name)
            for name in (
                "batch_size", "duration", "evaluate_every", "seed", "logical_ranks", "hash_data",
                "initial_weights", "partial_weights",
            )
        },
        "algorithms": aspects(settings),
        "scaling_config": _scaling(
            num_workers=(int(least), int(most)) if most else int(least),
            use_gpu=settings.gpu,
            accelerator_type=settings.accelerator_type,
            label_selector=settings.label_selector or None,
            placement_strategy=settings.placement_strategy,
            resources_per_worker={**resources, **settings.resources_per_worker},
        ),
        "run_config": ray.train.RunConfig(
            name=settings.name,
            storage_path=settings.storage,
            worker_runtime_env=settings.worker_runtime_env or None,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=settings.keep or None,
                checkpoint_score_attribute=metric or None,
                checkpoint_score_order=order or "max",
            ),
        ),
        "elastic": ElasticConfig(
            **{**elastic, "checkpoint_every": None if never else settings.checkpoint_every}
        ),
        "group": settings.group,
        "stop": _rules(settings),
        "loggers": [make_logger(n, dict(of or {})) for n, of in settings.loggers.items()],
        "faults": read_faults(Path(faults)) if isinstance(faults, str) else tuple(faults),
    }  # fmt: skip


def _scaling(**settings: Any) -> ray.train.ScalingConfig:
    """Return Ray Train's object, without what it logs of a local mode of its own."""
    logger = logging.getLogger(ray.train.ScalingConfig.__module__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return ray.train.ScalingConfig(**settings)
    finally:
        logger.setLevel(level)


def _data(settings: RunSettings, find: Callable[[str], Any] = _transform) -> dict[str, Any]:
    held_out, options = settings.evaluation_data, settings.storage_options
    sets = held_out if isinstance(held_out, dict) else {"": held_out}
    given = [settings.data, *sets.values()]
    made = [one.made(options, find) if isinstance(one, _Keys) else one for one in given]
    train_on, *evaluate_on = configure.with_options(options, *made)
    named = dict(zip(sets, evaluate_on, strict=True))
    return {"data": train_on, "evaluation_data": named.get("", named)}


def evaluation_data_of(path: Path) -> Any:
    """Return the evaluation data that a run's own file names; None if it names none.

    The file may come from elsewhere. So nothing that it names is imported.

    Raises:
        RunFileError: it has mistakes, it holds no secrets that its store needs, or the module of
            its transform is not imported.
    """

    def find(name: str) -> Any:
        found = already_imported(name)
        if found is None:
            raise RunFileError(
                f"{path} names the transform {name!r}, and its module is not imported: import it "
                "(--code), or give the data (--data)"
            )
        return found

    settings = merged([read_run_file(path).layer]).model_copy(update={"data": None})
    if settings.evaluation_data is None:
        return None
    check_secrets(settings)
    return _data(settings, find)["evaluation_data"]


def described(
    spec: RunSpec,
    scaling: ray.train.ScalingConfig,
    run: ray.train.RunConfig,
    data: Mapping[str, Any],
    loggers: Sequence[Any] = (),
    **lengths: str | Mapping[str, str],
) -> str:
    """Return the run file of a trainer, with all its settings and without secrets.

    The run's name is left out, so that a run that is made from the file gets a new one. What only
    Python has, such as a task that is an object, is named in a comment.

    Args:
        spec: the run.
        scaling: as the trainer was given it.
        run: likewise.
        data: likewise, `data` and `evaluation_data`; None if the task has its own.
        loggers: likewise.
        lengths: `duration` and `evaluate_every`.
    """
    resources = dict(spec.resources)
    kept = run.checkpoint_config or ray.train.CheckpointConfig()
    score, kind = kept.checkpoint_score_attribute, f"accelerator_type:{scaling.accelerator_type}"
    plain = ("task_settings", "hash_data", "batch_size", "seed", "logical_ranks")
    task = spec.task
    values = {
        "task": task if isinstance(task, str) else _OnlyPython(f"the object {type(task)}"),
        "import_paths": list(spec.import_paths),
        **{
            name: _data_as_keys(getattr(spec, name))
            for name, given in data.items()
            if given is not None
        },
        **{name: getattr(spec, name) for name in plain},
        **lengths,
        "initial_weights": spec.initial_weights and spec.initial_weights[0],
        "partial_weights": bool(spec.initial_weights and spec.initial_weights[1]),
        "algorithms": _algorithms_as_keys(spec.algorithms),
        "workers": 0 if spec.is_local else _workers(spec.workers),
        "gpu": bool(resources.pop("GPU", 0)),
        "accelerator_type": scaling.accelerator_type,
        "label_selector": dict(spec.placement.get("label_selector", {})),
        "placement_strategy": scaling.placement_strategy,
        "cpus": resources.pop("CPU", 0.0),
        "resources_per_worker": {k: amount for k, amount in resources.items() if k != kind},
        "worker_runtime_env": dict(spec.runtime_env),
        "storage": str(spec.folder.parent),
        **{name: getattr(spec.elastic, name) for name in ELASTIC},
        "checkpoint_every": spec.elastic.checkpoint_every or "never",
        "checkpoint_options": dict(spec.elastic.checkpoint_options),
        "keep": kept.num_to_keep or 0,
        "keep_best": score and f"{score}:{kept.checkpoint_score_order}",
        "loggers": _loggers_as_keys(loggers),
        "group": spec.group,
        **_rules_as_keys(spec.stop),
        "faults": as_data(spec.faults),
    }
    return _written(values, spec.name)


def write(folder: Folder, text: str) -> None:
    """Write what `described` returned into a run's folder.

    Raises:
        StoreError: it cannot be written.
    """
    store_of(folder).write(FILE_NAME, text.encode())


def _written(values: Mapping[str, Any], run: str) -> str:
    """Return a run file's text; values that are null or empty, as by default, are left out."""
    lines, comments = [], []
    for name in sorted(values, key=list(KEYS).index):
        value = values[name]
        default = RunSettings.model_fields[name].get_default(call_default_factory=True)
        if value in (None, {}, []) and default in (None, {}, []):
            continue
        try:
            if isinstance(value, _OnlyPython):
                raise YamlError(value.what)
            lines.append(dump_yaml({name: redacted(value)}))
        except YamlError as error:
            comments.append(f"#   {name}: {redact(str(error)).splitlines()[0]}\n")
    if comments:
        comments.insert(0, "# Only Python can say these, so that the file needs them added:\n")
    return (
        f"# The settings of run {run}. To train it again under a new name:\n"
        f"#   raytrain-plus train --config {FILE_NAME}\n" + "".join([*comments, *lines])
    )


@dataclass(frozen=True)
class _OnlyPython:
    """A value that no file can say."""

    what: str


def _algorithms_as_keys(algorithms: Sequence[Aspect | Described]) -> Any:
    for one in algorithms:
        if isinstance(one, Aspect):
            return _OnlyPython(f"{type(one).__qualname__} is not in a module")
    return {name: settings for name, settings in algorithms}  # noqa: C416 - pairs by name


def _rules_as_keys(rules: Sequence[Rule]) -> dict[str, Any]:
    found: dict[str, Any] = {"early_stopping": {}, "stop_at": {}}
    for rule in rules:
        given = _changed(rule)
        if isinstance(rule, EarlyStopping):
            found["early_stopping"][given.pop("metric")] = given
        else:
            found["stop_at"][given.pop("name")] = given
    return found


def _loggers_as_keys(loggers: Sequence[Any]) -> Any:
    names = names_of(loggers)
    own = [type(one).__qualname__ for one in loggers if type(one) not in LOGGERS.values()]
    if own or any(name not in LOGGERS for name in names):
        return _OnlyPython(f"the loggers {', '.join(own or names)}")
    return {name: _changed(one) for name, one in zip(names, loggers, strict=True)}


def _is_importable(thing: Any) -> bool:
    name = getattr(thing, "__qualname__", "<none>")
    return "<" not in name and getattr(thing, "__module__", "__main__") != "__main__"


def _data_as_keys(data: Any) -> Any:
    """Return what a trainer is given as data as the value of a key."""
    if data is None:
        return None
    if isinstance(data, Mapping):
        sets = {name: _data_as_keys(one) for name, one in data.items()}
        return next((one for one in sets.values() if isinstance(one, _OnlyPython)), sets)
    if isinstance(data, Mixture):
        streams = {name: _data_as_keys(one) for name, one in data.streams.items()}
        bad = next((one for one in streams.values() if isinstance(one, _OnlyPython)), None)
        return bad or {**_changed(data), "streams": streams}
    if isinstance(data, Stream):
        given = _changed(data)
        transform = given.get("transform")
        if transform is not None:
            if not _is_importable(transform):
                return _OnlyPython("its transform is not in a module")
            given["transform"] = f"{transform.__module__}:{transform.__qualname__}"
        return {name: _as_text(value) for name, value in given.items()}
    if isinstance(data, list):
        return [_as_text(one) for one in data]
    return _as_text(data) if isinstance(data, str | os.PathLike) else _OnlyPython(f"a {type(data)}")


def _changed(made: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults."""
    return {
        one.name: getattr(made, one.name)
        for one in dataclasses.fields(made)
        if getattr(made, one.name) not in (one.default, {})
    }


def _as_text(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value

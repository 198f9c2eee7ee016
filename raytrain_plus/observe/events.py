"""The journal's events: each kind with its fields, their types and their meaning. Pure.

This file is the one list of them. A writer may write no other event and no other field. A reader
refuses an event that is not listed, one that lacks a required field, and one with a field of
another type. The table in `docs/reference/journal-events.md` is made from here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, NotRequired, TypedDict, get_args, get_origin, get_type_hints

from raytrain_plus.observe.causes import KINDS

Event = dict[str, Any]

VERSION = 1
"""Of the format, which each `run` and `session` event states."""

MOST_STEPS = 10**15
_LATEST = 1e11  # seconds since 1970; a later time is damaged


class EventError(ValueError):
    """What is read is no event; the message says why, and has no subject."""


class EventVersionError(EventError):
    """An event of another version of the format."""


# -- types of fields


@dataclass(frozen=True)
class Check:
    """What a field may hold.

    Attributes:
        allowed: in words.
        holds: says whether a value is allowed.
    """

    allowed: str
    holds: Callable[[Any], bool]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_STEPS


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= MOST_STEPS)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_hexadecimal(value: Any) -> bool:
    try:
        float.fromhex(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _are(value: object, holds: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_cause(value: object) -> bool:
    if not isinstance(value, dict) or value.get("kind") not in KINDS:
        return False
    return value.keys() <= {"kind", "worker", "detail"} and all(map(_is_text, value.values()))


def _is_sample(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


NOT_FINITE = ("nan", "inf", "-inf")
"""What stands for a number that JSON does not have."""


def _are_scalars(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_finite(one) or one in NOT_FINITE for one in value.values()
    )


def scalars_for_json(values: Mapping[str, float]) -> dict[str, float | str]:
    """Return named numbers as JSON can hold them; `float()` reads each back."""
    return {name: x if math.isfinite(x) else str(x) for name, x in values.items()}


Text = Annotated[str, Check("a text", _is_text)]
Texts = Annotated[list[str], Check("a list of texts", lambda value: _are(value, _is_text))]
Flag = Annotated[bool, Check("true or false", lambda value: isinstance(value, bool))]
Count = Annotated[int, Check("a whole number that is not negative", _is_count)]
Counts = Annotated[list[int], Check("a list of whole numbers", lambda v: _are(v, _is_count))]
Whole = Annotated[
    int, Check("a whole number", lambda value: type(value) is int and abs(value) < 2**63)
]
Number = Annotated[float, Check("a number", _is_number)]
Finite = Annotated[float, Check("a finite number", _is_finite)]
END_STATES = ("finished", "stopped", "failed")
EndState = Annotated[str, Check("`finished`, `stopped` or `failed`", END_STATES.__contains__)]
Hexadecimal = Annotated[str, Check("a hexadecimal number", _is_hexadecimal)]
Time = Annotated[
    float,
    Check("a time in seconds since 1970", lambda value: _is_finite(value) and 0 <= value < _LATEST),
]
Table = Annotated[dict[str, Any], Check("an object", lambda value: isinstance(value, dict))]
Scalars = Annotated[
    dict[str, float | str],
    Check("an object of numbers, where `nan`, `inf` and `-inf` are texts", _are_scalars),
]
Samples = Annotated[
    list[dict[str, str]], Check("a list of objects of texts", lambda v: _are(v, _is_sample))
]
Causes = Annotated[
    list[dict[str, str]],
    Check("a list of causes, each `{kind, worker, detail}`", lambda v: _are(v, _is_cause)),
]


# -- events of a run


class RunEvent(TypedDict):
    """A driver starts or resumes the run; opens the journal, and each resumed part of it."""

    version: Annotated[Count, "of the journal's format"]
    run: NotRequired[Annotated[Text, "the run's name"]]
    run_id: NotRequired[Annotated[Text, "tells it from other runs of the name"]]
    claim: NotRequired[Annotated[Text, "the driver's claim of the run's folder"]]
    address: NotRequired[Annotated[Text, "of the Ray cluster"]]
    resumed: NotRequired[Annotated[Flag, "whether the driver was asked to resume"]]
    resumed_from: NotRequired[Annotated[Text | None, "the checkpoint from which it goes on"]]
    resumed_step: NotRequired[Annotated[Count, "the step of that checkpoint"]]
    changes: NotRequired[Annotated[Texts, "what is different from before the resume"]]
    refused: NotRequired[Annotated[Table, "newer checkpoints that cannot be used, and why"]]
    bitwise: NotRequired[
        Annotated[Flag, "False: workers before the resume computed other bits, by its checkpoint"]
    ]
    identity: NotRequired[Annotated[Table, "what the run's bits depend on"]]
    total_steps: NotRequired[Annotated[Count, "steps of the whole run"]]
    steps_per_epoch: NotRequired[Annotated[Count, "steps of one epoch"]]
    batch_size: NotRequired[Annotated[Count, "samples per step, over all workers"]]
    batch_tokens: NotRequired[Annotated[Count, "tokens per step; 0 if the data has none"]]
    workers: NotRequired[Annotated[Counts, "the least and the most workers"]]
    threads: NotRequired[Annotated[Count, "threads per worker"]]
    task: NotRequired[Annotated[Text, "the task"]]
    evaluate_every: NotRequired[Annotated[Count, "steps between evaluations"]]
    checkpoint_every: NotRequired[Annotated[Count | None, "steps between checkpoints"]]
    elastic: NotRequired[Annotated[Table, "the settings of `ElasticConfig`"]]
    ray: NotRequired[Annotated[Text, "Ray's version"]]
    platform: NotRequired[Annotated[Text, "the driver's system"]]
    worker_pool: NotRequired[Annotated[Text | None, "the worker pool whose processes it uses"]]
    local: NotRequired[Annotated[Flag, "whether it is in the driver's process alone"]]


class EnvironmentEvent(TypedDict):
    """How the workers compute, by the first worker since the run was started or resumed."""

    fingerprint: NotRequired[Annotated[Table, "versions, hardware, and hashes of a probe"]]
    sample_flops: NotRequired[
        Annotated[Finite, "floating-point operations of a sample, if the device's peak is known"]
    ]
    peak_flops: NotRequired[Annotated[Finite, "peak of one worker's device, per second"]]
    changes: NotRequired[Annotated[Texts, "what is different from before the resume"]]


class WorkerEvent(TypedDict):
    """What has become of a worker."""

    worker: Annotated[Text, "its name"]
    state: Annotated[
        Text, "`ready`, `refused`, `admitted`, `failed`, `lost`, `draining`, `left` or `evicted`"
    ]
    reason: NotRequired[Annotated[Text, "why, for people"]]
    pid: NotRequired[Annotated[Count, "its process"]]
    node: NotRequired[Annotated[Text, "Ray's id of its node"]]
    host: NotRequired[Annotated[Text, "the address of its node"]]


class GenerationEvent(TypedDict):
    """A group of workers starts to train."""

    generation: Annotated[Count, "its number, from 1"]
    step: Annotated[Count, "committed steps at its start"]
    workers: Annotated[Count, "how many"]
    causes: Annotated[Causes, "why the group changed"]
    pause_seconds: Annotated[Finite, "since the last step of the generation before"]
    members: NotRequired[Annotated[Texts, "the workers, in the group's order"]]
    ranks: NotRequired[Annotated[Counts, "how many logical ranks each computes"]]


class StepEvent(TypedDict):
    """A step is committed."""

    step: Annotated[Count, "its number, from 1"]
    loss: Annotated[Number, "its loss"]
    loss_hex: NotRequired[Annotated[Hexadecimal, "the same, every bit"]]
    busy_seconds: NotRequired[Annotated[Finite, "CPU time of all workers since the step before"]]
    generation: NotRequired[Annotated[Count, "in which generation"]]
    workers: NotRequired[Annotated[Count, "of how many workers"]]
    salvaged: NotRequired[
        Annotated[Count, "logical ranks that a failed attempt at the step had computed"]
    ]
    logged: NotRequired[Annotated[Scalars, "what the task and algorithms have logged, by name"]]


class EvaluateEvent(TypedDict):
    """The model was evaluated."""

    step: Annotated[Count, "after which step"]
    metrics: Annotated[Table, "what was found"]
    samples: NotRequired[
        Annotated[Samples, "`row`, `label`, `prediction`, `image`, or `prompt`, `text`"]
    ]


class CheckpointEvent(TypedDict):
    """A checkpoint was written, could not be written, is refused, or was removed."""

    step: NotRequired[Annotated[Count, "the step of its state"]]
    folder: NotRequired[Annotated[Text, "where it is"]]
    metrics: NotRequired[Annotated[Table, "the loss and the last evaluation, once it is there"]]
    error: NotRequired[Annotated[Text, "why it could not be written"]]
    failures: NotRequired[Annotated[Count, "failures in a row"]]
    retry_seconds: NotRequired[Annotated[Finite, "seconds until the next attempt"]]
    elsewhere: NotRequired[Annotated[Text, "the folder of a node that holds the state instead"]]
    refused: NotRequired[Annotated[Text, "why it is not used any more"]]
    removed: NotRequired[Annotated[Flag, "true if it was deleted"]]


class WithdrawnEvent(TypedDict):
    """Committed steps are taken back because of silent data corruption."""

    step: Annotated[Count, "the last step that stands"]
    generation: NotRequired[Annotated[Count, "the last that has computed later steps"]]
    reason: NotRequired[Annotated[Text, "why, for people"]]


class CorruptionEvent(TypedDict):
    """Silent data corruption was found."""

    step: NotRequired[Annotated[Count, "committed steps then"]]
    reason: NotRequired[Annotated[Text, "what was found"]]
    accused: NotRequired[Annotated[Texts, "workers whose state is wrong"]]
    suspects: NotRequired[Annotated[Texts, "two workers of which one has computed wrong"]]
    guilty: NotRequired[Annotated[Texts, "workers that failed a self-test"]]
    trusted: NotRequired[Annotated[Count, "the last step that can be trusted"]]


class HangEvent(TypedDict):
    """The group made no progress for too long."""

    deadline: NotRequired[Annotated[Finite, "seconds without progress that are allowed"]]
    statuses: NotRequired[
        Annotated[Table, "by worker: its phase, for how long, and for whom it waits"]
    ]
    waited: NotRequired[Annotated[Texts, "workers that waited for others"]]
    culprits: NotRequired[Annotated[Table, "by worker that is ended: why"]]
    stacks: NotRequired[Annotated[Table, "by such a worker: where its threads stand"]]


class FaultEvent(TypedDict):
    """A fault was injected."""

    step: Annotated[Count, "the fault's step"]
    action: Annotated[Text, "the fault's action"]
    phase: NotRequired[Annotated[Text | None, "the fault's phase, if it strikes in one"]]
    hit: NotRequired[Annotated[Texts, "the workers that it hit"]]


class TargetEvent(TypedDict):
    """The run is to have another number of workers."""

    workers: Annotated[Count, "how many"]
    reason: NotRequired[Annotated[Text, "who wants that"]]


class CoordinatorRestartEvent(TypedDict):
    """The coordinator was restarted and has found its workers."""

    workers: NotRequired[Annotated[Texts, "those that go on"]]
    generation: NotRequired[Annotated[Count, "the generation that was running"]]


class UsageEvent(TypedDict):
    """Where the workers' time went in a generation: sums over all that could report."""

    generation: Annotated[Count, "which generation"]
    workers: NotRequired[Annotated[Texts, "the workers that have reported"]]
    until: NotRequired[Annotated[Finite, "the Unix time up to which this goes"]]
    seconds: NotRequired[Annotated[Table, "by part of a step: seconds of training threads"]]
    traffic: NotRequired[Annotated[Table, "files and bytes fetched, cache hits and misses"]]


class WarningEvent(TypedDict):
    """Something that people should know."""

    text: Annotated[Text, "what"]


class StopEvent(TypedDict):
    """The run was asked to stop after the step in flight."""


class EndEvent(TypedDict):
    """The run has ended; closes the journal until it is resumed."""

    state: NotRequired[Annotated[EndState, "how"]]
    step: NotRequired[Annotated[Count, "committed steps of the final state"]]
    error: NotRequired[Annotated[Text, "why it failed"]]
    reason: NotRequired[Annotated[Text, "why it has finished before its last step"]]
    failed_on: NotRequired[Annotated[Table, "`{worker, node, host, step}` where the task failed"]]
    digest: NotRequired[Annotated[Text, "sha256 of the final state"]]
    loss: NotRequired[Annotated[Number | None, "of the last step"]]
    metrics: NotRequired[Annotated[Table, "of the last evaluation"]]
    logged: NotRequired[Annotated[Scalars, "the last value of each name that was logged"]]
    device_seconds: NotRequired[Annotated[Finite, "busy time of all workers"]]
    checkpoint: NotRequired[Annotated[Text | None, "where the last state is"]]
    bitwise: NotRequired[
        Annotated[Flag, "whether all workers proved to compute the same bits, before a resume too"]
    ]
    faults_left: NotRequired[Annotated[Count, "faults that did not happen"]]
    samples: NotRequired[Annotated[Count, "trained on"]]
    tokens: NotRequired[Annotated[Count, "trained on"]]
    costs: NotRequired[Annotated[Table, "by algorithm: `{seconds, acted, idle}` of its advice"]]


# -- events of a sweep


class SessionEvent(TypedDict):
    """A process starts or resumes the sweep; opens its journal, and each resumed part of it."""

    version: Annotated[Count, "of the journal's format"]
    sweep: Annotated[Table, "the sweep's definition"]
    workers: NotRequired[Annotated[Count | None, "how many workers it has"]]
    budget: NotRequired[Annotated[Finite | None, "seconds that it may take"]]


class ProposalEvent(TypedDict):
    """A trial is to be run."""

    name: Annotated[Text, "the trial's name"]
    purpose: Annotated[Text, "what it is for"]
    recipe: Annotated[Table, "what it trains"]
    seed: Annotated[Whole, "the run's seed"]


class TrialEvent(TypedDict):
    """A trial has ended."""

    name: NotRequired[Annotated[Text, "the trial's name"]]
    outcome: NotRequired[Annotated[Text, "how it ended"]]
    cost: NotRequired[Annotated[Number | None, "what it cost"]]
    seconds: NotRequired[Annotated[Finite, "how long it took"]]


class ProblemEvent(TypedDict):
    """The sweep cannot go on."""

    text: Annotated[Text, "why"]


class FinishedEvent(TypedDict):
    """There is nothing left to try."""


class SessionEndEvent(TypedDict):
    """The process stops working on the sweep."""


EVENTS: Mapping[str, type] = {
    "run": RunEvent,
    "environment": EnvironmentEvent,
    "worker": WorkerEvent,
    "generation": GenerationEvent,
    "step": StepEvent,
    "evaluate": EvaluateEvent,
    "checkpoint": CheckpointEvent,
    "withdrawn": WithdrawnEvent,
    "corruption": CorruptionEvent,
    "hang": HangEvent,
    "fault": FaultEvent,
    "target": TargetEvent,
    "coordinator_restart": CoordinatorRestartEvent,
    "usage": UsageEvent,
    "warning": WarningEvent,
    "stop": StopEvent,
    "end": EndEvent,
    "session": SessionEvent,
    "proposal": ProposalEvent,
    "trial": TrialEvent,
    "problem": ProblemEvent,
    "finished": FinishedEvent,
    "session_end": SessionEndEvent,
}
"""All events, by the name that each line has under `event`."""

OPENING = frozenset({"run", "session"})
"""The events that state the version of what follows."""

_TIME: Check = get_args(Time)[1]


@dataclass(frozen=True)
class Field:
    """A field of an event.

    Attributes:
        check: what it may hold.
        meaning: in words.
        required: whether each event of the kind has it.
        nullable: whether it may be null.
    """

    check: Check
    meaning: str
    required: bool
    nullable: bool

    @property
    def allowed(self) -> str:
        """What it may hold, in words."""
        return f"{self.check.allowed}, or null" if self.nullable else self.check.allowed


@cache
def fields_of(kind: str) -> dict[str, Field]:
    """Return the fields of a kind of event, by name."""
    found = {}
    for name, hint in get_type_hints(EVENTS[kind], include_extras=True).items():
        required = get_origin(hint) is not NotRequired
        inner, *extras = get_args(hint if required else get_args(hint)[0])
        options = get_args(inner)  # of `X | None`, where X is annotated itself
        nullable = NoneType in options
        if nullable:
            extras = [*get_args(next(one for one in options if one is not NoneType))[1:], *extras]
        check, meaning = extras
        found[name] = Field(check, meaning, required, nullable)
    return found


# -- checks


def check_event(event: object, *, is_new: bool = False) -> Event:
    """Return what was read or is to be written, if it is an event of this version.

    Args:
        event: what.
        is_new: it is to be written. Then it may have no other fields than those that are listed.

    Raises:
        EventVersionError: it is an event of another version.
        EventError: it is none, or a field is missing or of another type.
    """
    if not isinstance(event, dict):
        raise EventError("it is no JSON object")
    kind = event.get("event")
    if type(kind) is not str:
        raise EventError("it does not say its event")
    if kind not in EVENTS or kind in OPENING:
        _check_version(kind, event.get("version"))
    if "time" in event and not _TIME.holds(event["time"]):
        raise EventError("its time is no time in seconds since 1970")
    fields = fields_of(kind)
    for name, field in fields.items():
        if name not in event:
            if field.required:
                raise EventError(f"a {kind!r} event has no {name!r}")
            continue
        value = event[name]
        if not (field.check.holds(value) or (value is None and field.nullable)):
            raise _wrong(kind, name, value, field)
    if is_new and (unknown := event.keys() - fields.keys() - {"event", "time"}):
        raise EventError(f"a {kind!r} event has no field {', '.join(sorted(unknown))}")
    return event


def _check_version(kind: str, version: object) -> None:
    reads = f"this version of raytrain-plus, which reads format {VERSION}"
    if kind not in EVENTS:
        raise EventVersionError(f"the event {kind[:60]!r} is unknown to {reads}")
    if _is_count(version) and version != VERSION:
        raise EventVersionError(f"the journal has format {version}, which is unknown to {reads}")


def _wrong(kind: str, name: str, value: object, field: Field) -> EventError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return EventError(f"the {name!r} of a {kind!r} event is {shown}, not {field.allowed}")

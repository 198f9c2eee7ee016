"""Fault injection: a list of faults that replays a disturbance."""

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field, TypeAdapter

from raytrain_plus.plain_yaml import YamlError, read_yaml

Action = Literal[
    "kill", "stop", "terminate", "spin", "stall", "slow", "flip", "miscompute", "lose_store",
    "kill_all", "kill_coordinator", "drain", "add", "remove",
    "stop_coordinator", "hang_newcomer", "fill_disk", "nan_gradient", "edit_task",
]  # fmt: skip
Phase = Literal[
    "meet", "heal", "evaluate", "gather", "fetch", "forward", "backward", "exchange", "finish",
    "slice", "update",
]  # fmt: skip

ACTIONS: tuple[Action, ...] = get_args(Action)
DEFAULT_SECONDS = 10.0

_WHO_AND_WHEN = ("workers", "phase", "victim")
_TAKES: dict[Action, tuple[str, ...]] = {
    **dict.fromkeys(("kill", "stop", "terminate", "spin", "stall"), _WHO_AND_WHEN),
    **dict.fromkeys(("flip", "miscompute", "nan_gradient"), _WHO_AND_WHEN),
    "slow": (*_WHO_AND_WHEN, "seconds"),
    "lose_store": ("phase", "seconds"),
    "kill_all": ("phase",),
    "kill_coordinator": (),
    "stop_coordinator": (),
    "hang_newcomer": (),
    "edit_task": (),
    "fill_disk": ("seconds",),
    "drain": ("workers", "victim"),
    "add": ("workers",),
    "remove": ("workers",),
}
_OF_NEWCOMERS = ("hang_newcomer", "edit_task")
_ALL_WORKERS = ("kill_all", "lose_store")
SIGNALS: dict[Action, signal.Signals] = {
    "kill": signal.SIGKILL,
    "kill_all": signal.SIGKILL,
    "kill_coordinator": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "stop_coordinator": signal.SIGSTOP,
    "terminate": signal.SIGTERM,
}
# Not part of every step: such a fault waits for the next time that the phase comes.
_OCCASIONAL = ("meet", "heal", "evaluate", "gather")


class FaultError(ValueError):
    """A list of faults that cannot be understood."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Fault:
    """One disturbance.

    Strikes hit workers without notice, in the middle of a step:

    - `kill` (SIGKILL), `stop` (SIGSTOP), `terminate` (SIGTERM: a preemption notice);
    - `spin`: the training thread computes for ever and never releases the interpreter;
    - `stall`: the training thread waits for ever, while the process answers questions;
    - `slow`: another process competes for the worker's CPU for `seconds`;
    - `flip`: one bit of one weight flips, at each victim another one. A lone worker's `update` is
      spared: no other replica is there to tell its outcome from the right one;
    - `miscompute`: all arithmetic is wrong from then on;
    - `nan_gradient`: the next gradient that it computes is NaN, though the loss is a number. The
      run ends by design, with the state before that step, and is to be resumed;
    - `lose_store`: no worker reaches the checkpoint store for `seconds`;
    - `kill_all`: `kill`, for all workers at once.

    The others act when a step is committed: `drain` plans workers out, and they are replaced; `add`
    and `remove` change how many there should be; `kill_coordinator` is SIGKILL to the coordinator,
    `stop_coordinator` SIGSTOP; `fill_disk` lets no line be written to the journal for `seconds`.

    Two wait for the next worker that is requested: with `hang_newcomer` it hangs while it prepares
    itself, and with `edit_task` it finds the file of the task edited. No file is written.

    Attributes:
        step: strikes hit while this step (from 1) is being computed; the others act when it is
            committed, 0 being before the first.
        action: what happens.
        workers: to how many workers. Default 1.
        phase: where in the step it strikes; `meet`, `heal`, `evaluate` and `gather` strike the next
            time that the group does so. `finish` is inside the exchange, between its halves;
            `slice` too, between two slices, which only large models have. Default `backward`.
        victim: the place in the group of the first worker that is struck or drained, counted
            modulo its size. Default: the last workers.
        seconds: how long `slow`, `lose_store` and `fill_disk` last. Default 10.
    """

    step: Annotated[int, Field(ge=0, le=10**15)]
    action: Action
    workers: Annotated[int, Field(ge=1, le=10**6)] = 1
    phase: Phase = "backward"
    victim: Annotated[int, Field(ge=0, le=10**6)] | None = None
    seconds: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None

    @pydantic.model_validator(mode="after")
    def _is_possible(self) -> "Fault":
        if self.strikes and self.step == 0:
            raise ValueError(f"{self.action} strikes during a step, from 1, not at 0")
        takes = _TAKES[self.action]
        given = {"workers": 1, "phase": "backward", "victim": None, "seconds": None}
        for name, default in given.items():
            if name not in takes and getattr(self, name) != default:
                allowed = f"only {', '.join(takes)}" if takes else "nothing but its step"
                raise ValueError(f"{self.action} takes no {name}, {allowed}")
        return self

    @property
    def strikes(self) -> bool:
        """Whether it strikes workers without notice."""
        return "phase" in _TAKES[self.action]

    @property
    def is_planned(self) -> bool:
        """Whether the coordinator causes it when its step is committed."""
        return not self.strikes and not self.waits_for_newcomer

    @property
    def waits_for_newcomer(self) -> bool:
        """Whether it happens to the next worker that is requested."""
        return self.action in _OF_NEWCOMERS

    @property
    def lasts(self) -> float:
        """How many seconds it lasts, where it passes."""
        return DEFAULT_SECONDS if self.seconds is None else self.seconds

    def draw(self, worker: str) -> int:
        """Return a number of 64 bits, from which what the fault leaves to chance is drawn.

        Each victim has another one: replicas that break alike could not be told from whole ones.
        """
        text = json.dumps([*as_data([self]), worker], sort_keys=True)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def pauses_after(self, step: int) -> bool:
        """Whether the group has to pause for it, at some step after this one."""
        return not self.strikes and self.step > step

    def victims(self, size: int) -> list[int]:
        """Return the places in a group of `size` workers that it hits."""
        if self.action in _ALL_WORKERS:
            return list(range(size))
        if self.action == "flip" and self.phase == "update" and size == 1:
            return []
        first = size - self.workers if self.victim is None else self.victim
        return sorted({(first + i) % size for i in range(min(self.workers, size))})

    def due(self, phase: str, step: int) -> bool:
        """Say whether it strikes on entering a phase, with `step` steps committed."""
        if phase != self.phase:
            return False
        return step >= self.step - 1 if phase in _OCCASIONAL else step == self.step - 1


def read_faults(path: Path) -> list[Fault]:
    """Read a YAML list of faults.

    Raises:
        FaultError: the file is missing, is no YAML, or holds something else; every mistake is
            named.
    """
    try:
        content = read_yaml(path)
    except (OSError, YamlError) as error:
        raise FaultError(f"faults file {path} cannot be read: {error}") from error
    return parse_faults(content or [], str(path))


def parse_faults(content: object, where: str = "faults") -> list[Fault]:
    """Check a list of faults that comes from outside.

    Raises:
        FaultError: something is not allowed; every mistake is named.
    """
    try:
        return TypeAdapter(list[Fault]).validate_python(content)
    except pydantic.ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc']))}: {e['msg']}"
            for e in error.errors(include_input=False)[:20]
        ]
        raise FaultError(
            f"{where}: a fault is {{step: N, action: {'|'.join(ACTIONS)}}}, and what goes with its "
            "action of workers: K, phase: P, victim: I, seconds: S:\n" + "\n".join(lines)
        ) from error


def as_data(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Return faults as `--faults` reads them, without what the action does not take."""
    return [
        {
            "step": fault.step,
            "action": fault.action,
            **{
                name: getattr(fault, name)
                for name in _TAKES[fault.action]
                if getattr(fault, name) is not None
            },
        }
        for fault in faults
    ]


def due_at(faults: Sequence[Fault], step: int) -> list[Fault]:
    """Return the planned changes that are due when `step` steps are committed."""
    return [fault for fault in faults if fault.is_planned and fault.step <= step]


def left(faults: Sequence[Fault], events: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """Return the faults that have not happened yet, by the run's journal.

    What happened before its last `run` event does not count: a resumed run suffers all again.
    """
    happened: Counter[tuple[Any, ...]] = Counter()
    for event in events:
        if event["event"] == "run":
            happened.clear()
        elif event["event"] == "fault":
            happened[event["step"], event["action"], event.get("phase")] += 1
    found = []
    for fault in faults:
        key = (fault.step, fault.action, fault.phase if fault.strikes else None)
        if happened[key]:
            happened[key] -= 1
        else:
            found.append(fault)
    return found

"""Faults on purpose: the way anybody can replay a disturbance."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field, TypeAdapter

Action = Literal["kill", "stop", "drain", "add", "remove"]
Phase = Literal[
    "meet", "heal", "evaluate", "gather", "fetch", "forward", "backward", "exchange", "finish",
    "slice", "update",
]  # fmt: skip

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
# Not part of every step: such a fault waits for the next time that the phase comes.
_OCCASIONAL = ("meet", "heal", "evaluate", "gather")
_STRIKES = "strikes.jsonl"


class FaultError(ValueError):
    """A list of faults that cannot be understood."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Fault:
    """One disturbance.

    Attributes:
        step: `kill` and `stop` strike while this step (from 1) is being computed; `drain`, `add`
            and `remove` act when it is committed, 0 being before the first.
        action: `kill` (SIGKILL) and `stop` (SIGSTOP) strike workers without notice; `drain` plans
            workers out, and they are replaced; `add` and `remove` change how many there should be.
        workers: how many workers. Default 1.
        phase: where in the step `kill` and `stop` strike; `meet`, `heal`, `evaluate` and `gather`
            strike the next time that the group does so. `finish` is inside the exchange, between
            its halves; `slice` too, between two slices, which only large models have. Default
            `backward`.
        victim: the place in the group of the first worker that is struck or drained, counted
            modulo its size. Default: the last workers.
    """

    step: Annotated[int, Field(ge=0)]
    action: Action
    workers: Annotated[int, Field(ge=1)] = 1
    phase: Phase = "backward"
    victim: Annotated[int, Field(ge=0)] | None = None

    @pydantic.model_validator(mode="after")
    def _strikes_within_a_step(self) -> "Fault":
        if self.strikes and self.step == 0:
            raise ValueError(f"{self.action} strikes during a step, from 1, not at 0")
        return self

    @property
    def strikes(self) -> bool:
        """Whether it strikes workers without notice."""
        return self.action in _SIGNALS

    def pauses_after(self, step: int) -> bool:
        """Whether the group has to pause for it, at some step after this one."""
        return not self.strikes and self.step > step

    def victims(self, size: int) -> list[int]:
        """Return the places in a group of `size` workers that it hits."""
        first = size - self.workers if self.victim is None else self.victim
        return sorted({(first + i) % size for i in range(min(self.workers, size))})

    def due(self, phase: str, step: int) -> bool:
        """Say whether it strikes on entering a phase, with `step` steps committed."""
        if phase != self.phase:
            return False
        return step >= self.step - 1 if phase in _OCCASIONAL else step == self.step - 1

    def strike(self) -> None:
        """Hit the calling process."""
        os.kill(os.getpid(), _SIGNALS[self.action])


class Strikes:
    """The strikes of a run, each told by the process that it hits, a moment before it does.

    Nobody could tell afterwards which of several faults it was that a lost worker was hit by.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _STRIKES
        self._read = 0

    def forget(self) -> None:
        """Forget those of an earlier run in this folder."""
        self._path.unlink(missing_ok=True)

    def hit(self, worker: str, fault: Fault) -> None:
        """Leave word, and hit the calling process, which is a worker's."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([worker, TypeAdapter(Fault).dump_python(fault)]) + "\n")
        fault.strike()

    def new(self) -> dict[Fault, list[str]]:
        """Return the faults that have struck since the last call, and whom."""
        lines = self._lines()[self._read :]
        self._read += len(lines)
        found: dict[Fault, list[str]] = {}
        for worker, fault in map(json.loads, lines):
            found.setdefault(Fault(**fault), []).append(worker)
        return found

    def _lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []


def read_faults(path: Path) -> list[Fault]:
    """Read a YAML list of faults.

    Raises:
        FaultError: the file is missing, is no YAML, or holds something else; every mistake is
            named.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise FaultError(
            f"{where}: a fault is {{step: N, action: kill|stop|drain|add|remove, workers: K}}:\n"
            + "\n".join(lines)
        ) from error


def due_at(faults: Sequence[Fault], step: int) -> list[Fault]:
    """Return the planned changes (not strikes) that are due when `step` steps are committed."""
    return [fault for fault in faults if not fault.strikes and fault.step <= step]


def not_yet_happened(faults: Sequence[Fault], events: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """Return the faults of which a journal does not tell that they have happened."""
    left = list(faults)
    for event in events:
        if event["event"] != "fault":
            continue
        for fault in left:
            told = (event["step"], event["action"], event.get("phase"))
            if told == (fault.step, fault.action, fault.phase if fault.strikes else None):
                left.remove(fault)
                break
    return left

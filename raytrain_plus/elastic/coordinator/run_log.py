"""The run's log: its steps, evaluations and generations, each written to the journal once."""

import bisect
import math
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from raytrain_plus.elastic.protocol.messages import Outcome, Plan
from raytrain_plus.elastic.protocol.records import GENERATION, Record
from raytrain_plus.observe.causes import Cause
from raytrain_plus.observe.events import scalars_for_json
from raytrain_plus.observe.journal import Event, JournalError
from raytrain_plus.training.flops import Flops

# Steps in a row of which a journal may have lost the lines; each takes 8 bytes here.
_MOST_MISSING = 10_000_000


class Writes(Protocol):
    """What a run log writes to."""

    def write_all(self, events: list[Event]) -> list[Event]:
        """Append finished events; returns them."""

    def sync(self) -> None:
        """Return when all that was written is on the disk."""


class DivergenceError(RuntimeError):
    """A step that was computed again gave another loss."""


class RunLog:
    """Writes the journal, without gaps and without repetitions.

    Several workers may report a step, and a step may be computed again after a failure. It is
    written once. If it is reported again with another loss, the promise of equal bits is broken,
    and that is an error.

    Args:
        journal: where to write.
        events: what the journal holds already, if the run was resumed or its coordinator
            restarted.
        allowed: called before each line; raises if this process must not write any more.
        listener: called with what has been written.

    Attributes:
        environment: the fingerprint of the run's workers since it was started or resumed; empty
            until the first worker is ready.
        bitwise: whether all workers up to here proved to compute the same bits, those before a
            resume or a restart of the coordinator included.
        logged: the last value of each name that the task and algorithms have logged.
    """

    def __init__(
        self,
        journal: Writes,
        events: Iterable[Event] = (),
        allowed: Callable[[], None] = lambda: None,
        listener: Callable[[Sequence[Event]], None] = lambda _: None,
    ) -> None:
        self._journal = journal
        self._allowed = allowed
        self._listener = listener
        self._losses = array("d")  # NaN for a step whose line the journal has lost
        self._evaluations: list[tuple[int, dict[str, Any]]] = []
        self.generations: list[Event] = []
        self.device_seconds = 0.0
        self._pending: dict[int, tuple[Plan, Sequence[Cause], float | None]] = {}
        self._void = (0, 0)  # generation, step
        self._resumed_step = 0
        self.environment: dict[str, str] = {}
        self.bitwise = True
        self.logged: dict[str, float] = {}
        self._logged_last: dict[str, float] = {}  # in the last step
        self._not_finite: set[str] = set()  # names of which the journal says so already
        for event in events:
            self._recall(event)

    @property
    def step(self) -> int:
        """The last step that is written."""
        return len(self._losses)

    @property
    def loss(self) -> float | None:
        """The last step's loss."""
        return self.loss_at(self.step)

    @property
    def evaluated_step(self) -> int:
        """The step of the last evaluation, -1 before the first."""
        return self._evaluations[-1][0] if self._evaluations else -1

    @property
    def metrics(self) -> dict[str, Any]:
        """The result of the last evaluation."""
        return self.metrics_at(self.evaluated_step)

    def loss_at(self, step: int) -> float | None:
        """Return a step's loss, None if it is not known.

        A run that goes on from a checkpoint knows the losses of later steps than its state.
        """
        known = 0 < step <= self.step and not math.isnan(self._losses[step - 1])
        return self._losses[step - 1] if known else None

    def metrics_at(self, step: int) -> dict[str, Any]:
        """Return the result of the last evaluation at or before a step."""
        place = bisect.bisect_right(self._evaluations, step, key=lambda one: one[0])
        return self._evaluations[place - 1][1] if place else {}

    def evaluations_to(self, step: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the evaluations up to a step, in order."""
        return [one for one in self._evaluations if one[0] <= step]

    def values_at(self, step: int) -> dict[str, float]:
        """Return a step's loss and, if it is the last one, what was logged in it."""
        loss = self.loss_at(step)
        logged = self._logged_last if step == self.step else {}
        return {**logged, **({} if loss is None else {"loss": loss})}

    def extend_to(self, step: int) -> None:
        """Note that the state has at least so many steps, even if the journal lacks some."""
        missing = step - self.step
        if missing > _MOST_MISSING:
            raise JournalError(
                f"the journal goes from step {self.step} to {step} and lacks the {missing} steps "
                "in between: it is damaged, or of another run"
            )
        if missing > 0:
            lacking = f"step {step}" if missing == 1 else f"steps {self.step + 1} to {step}"
            self._losses.extend([math.nan] * missing)
            self.note(
                "warning",
                text=f"the journal lacks {lacking}: their records are gone. The state is not "
                "affected",
            )

    def sync(self) -> None:
        """Return when all that was written is on the disk; a checkpoint relies on that."""
        self._journal.sync()

    def withdraw(self, step: int, why: str, generation: int) -> None:
        """Take back the steps after a step: they will be computed again, to other losses.

        Args:
            step: the last that stands.
            why: for people.
            generation: the last whose reports of later steps no longer count.
        """
        self._forget_after(step, generation)
        self.note("withdrawn", step=step, reason=why, generation=generation)

    def is_void(self, generation: int, step: int) -> bool:
        """Say whether a generation's result of a step is withdrawn."""
        return generation <= self._void[0] and step > self._void[1]

    def _forget_after(self, step: int, generation: int) -> None:
        del self._losses[step:]
        self._evaluations = [one for one in self._evaluations if one[0] <= step]
        self._void = (generation, step)
        self._logged_last = {}

    def _go_on_differently(self) -> None:
        """Forget the later steps of the run before the resume: what follows is another run's."""
        self._forget_after(self._resumed_step, 0)
        # The state is the same there, but it may be evaluated on other data.
        self._evaluations = [one for one in self._evaluations if one[0] < self._resumed_step]

    def _recall(self, event: Event) -> None:
        kind = event["event"]
        if kind == "run":
            self.generations, self.device_seconds, self._void = [], 0.0, (0, 0)
            self._resumed_step, self.environment = event.get("resumed_step", 0), {}
            self.bitwise = self.bitwise and event.get("bitwise", True)
            if event.get("changes"):
                self._go_on_differently()
        elif kind == "environment":
            self._compute_with(event.get("fingerprint", {}), event.get("changes", ()))
        elif kind == "worker" and event.get("state") == "admitted":
            self.bitwise = False
        elif kind == "step":
            self.extend_to(event["step"] - 1)
            if event["step"] == self.step + 1:
                self._losses.append(event["loss"])
            self.device_seconds += event.get("busy_seconds", 0.0)
            self._note_logged({n: float(x) for n, x in event.get("logged", {}).items()})
        elif kind == "evaluate":
            self._evaluations.append((event["step"], event["metrics"]))
        elif kind == "withdrawn":
            self._forget_after(event["step"], event.get("generation", 0))
        elif kind == "generation":
            self.generations.append({key: event[key] for key in GENERATION})

    def expect(self, plan: Plan, causes: Sequence[Cause], last_commit: float | None) -> None:
        """Note that a generation is planned; it is written when it starts.

        Args:
            plan: the plan.
            causes: why there is a new generation.
            last_commit: Unix time of the last commit before it, None for the first.
        """
        self._pending[plan.generation] = (plan, causes, last_commit)

    def started(self, generation: int, at: float) -> None:
        """Note that a generation has started its first step at Unix time `at`."""
        self._write(self._beginning(generation, at))

    def _beginning(self, generation: int, at: float) -> list[Event]:
        found = self._pending.pop(generation, None)
        if found is None:
            return []
        plan, causes, last_commit = found
        self._pending.clear()
        entry = {
            "generation": generation,
            "step": plan.step,
            "workers": len(plan.assignments),
            "causes": [cause.as_data() for cause in causes],
            "pause_seconds": round(max(0.0, at - last_commit), 6) if last_commit else 0.0,
        }
        self.generations.append(entry)
        names = [assignment.worker for assignment in plan.assignments]
        ranks = [len(assignment.ranks) for assignment in plan.assignments]
        return [{"event": "generation", "time": at, **entry, "members": names, "ranks": ranks}]

    def add(self, records: Sequence[Record], workers: int) -> list[float]:
        """Write what is new; returns the commit times of all steps, also of those that are not new.

        Raises:
            DivergenceError: a step that is known was computed again, to another loss.
        """
        events: list[Event] = []
        commits = []
        try:
            for record in records:
                if self.is_void(record.generation, record.step):
                    continue
                events += self._beginning(record.generation, record.time)
                if record.metrics is not None:
                    events += self._evaluated(record)
                    continue
                commits.append(record.time)
                events += self._committed(record, workers)
        finally:  # what was new before a divergence is written, too
            self._write(events)
        return commits

    def note(self, event: str, **fields: Any) -> None:
        """Write anything else."""
        self._write([{"event": event, "time": time.time(), **fields}])

    def computes_with(
        self,
        fingerprint: Mapping[str, str],
        changes: Sequence[str] = (),
        flops: Flops = Flops(),  # noqa: B008 - it is frozen
    ) -> None:
        """Write how the workers compute.

        Args:
            fingerprint: of the first worker.
            changes: what is different from before the resume. If anything is, the steps after the
                checkpoint may get other losses.
            flops: of a sample, and the peak of the first worker's device.
        """
        self._compute_with(fingerprint, changes)
        changed = {"changes": list(changes)} if changes else {}
        known = {"sample_flops": flops.per_sample, "peak_flops": flops.peak} if flops.peak else {}
        self.note("environment", fingerprint=self.environment, **known, **changed)

    def _compute_with(self, fingerprint: Mapping[str, str], changes: Sequence[str]) -> None:
        self.environment = dict(fingerprint)
        if changes:
            self.bitwise = False
            self._go_on_differently()

    def end(self, outcome: Outcome) -> None:
        """Write how the run has ended; its generations are written already."""
        told = {k: v for k, v in vars(outcome).items() if k not in ("steps", "generations")}
        told["logged"] = scalars_for_json(outcome.logged)
        self.note("end", **told, step=outcome.steps)

    def _write(self, events: list[Event]) -> None:
        if events:
            self._allowed()
            self._listener(self._journal.write_all(events))

    def _committed(self, record: Record, workers: int) -> list[Event]:
        if record.step <= self.step:
            self._compare(record)
        if record.step != self.step + 1:
            return []  # the missing steps are reported first, and this one again with them
        self._losses.append(record.loss)
        self.device_seconds += record.busy_seconds
        logged = {"logged": scalars_for_json(record.logged)} if record.logged else {}
        return [
            {
                "event": "step",
                "time": record.time,
                "step": record.step,
                "loss": record.loss,
                "loss_hex": record.loss.hex(),
                "busy_seconds": round(record.busy_seconds, 6),
                "generation": record.generation,
                "workers": workers,
                **({"salvaged": record.salvaged} if record.salvaged else {}),
                **logged,
            },
            *(
                {
                    "event": "warning",
                    "time": record.time,
                    "text": f"the logged {name!r} is {record.logged[name]} at step {record.step}; "
                    "later steps are not named again",
                }
                for name in self._note_logged(record.logged)
            ),
        ]

    def _note_logged(self, values: Mapping[str, float]) -> list[str]:
        """Keep the newest values; return the names whose value is not finite for the first time."""
        self._logged_last = dict(values)
        if not values:
            return []
        self.logged.update(values)
        new = [
            name
            for name, value in values.items()
            if not math.isfinite(value) and name not in self._not_finite
        ]
        self._not_finite.update(new)
        return new

    def _evaluated(self, record: Record) -> list[Event]:
        assert record.metrics is not None
        if record.step <= self.evaluated_step or record.step > self.step:
            return []  # the missing steps are reported first, and this one again with them
        self._evaluations.append((record.step, record.metrics))
        return [
            {
                "event": "evaluate",
                "time": record.time,
                "step": record.step,
                "metrics": record.metrics,
                **({"samples": [dict(one) for one in record.samples]} if record.samples else {}),
            }
        ]

    def _compare(self, record: Record) -> None:
        known = self._losses[record.step - 1]
        if known != record.loss and not math.isnan(known):
            raise DivergenceError(
                f"step {record.step} was computed again and gave loss {record.loss.hex()} where it "
                f"had given {known.hex()}: the task is not reproducible. Does it "
                "read the time, a file that changes, or a generator of its own?"
            )

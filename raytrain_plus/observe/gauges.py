"""A live run in numbers: the metrics, and their values from the journal's events.

Pure: the caller passes the time. `ray_cluster/metrics.py` exports the values.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raytrain_plus.observe.causes import KINDS, causes_of, main_kind
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.throughput import Throughput, model_flops_use


@dataclass(frozen=True)
class Metric:
    """One metric; its values have the run's name as a label.

    Attributes:
        name: in Ray; Prometheus sees `seen_as`.
        text: what it is, for people.
        kind: a counter only grows as long as its process lives.
        label: a second label, or empty.
    """

    name: str
    text: str
    kind: Literal["gauge", "counter"] = "gauge"
    label: str = ""

    @property
    def seen_as(self) -> str:
        """Its name in Prometheus: Ray adds a prefix, and a suffix to counters."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


@dataclass(frozen=True)
class Reading:
    """A metric's value now.

    Attributes:
        metric: which.
        value: the number; of a counter, the total.
        of: the value of the second label, if the metric has one.
    """

    metric: Metric
    value: float
    of: str = ""


_STEP = Metric("raytrain_plus_step", "Committed steps.")
_TOTAL = Metric("raytrain_plus_total_steps", "Steps of the whole run.")
_LOSS = Metric("raytrain_plus_loss", "Loss of the last step.")
_RATE = Metric("raytrain_plus_samples_per_second", "Samples trained on per second now.")
_TOKENS = Metric(
    "raytrain_plus_tokens_per_second", "Tokens trained on per second now, if a batch has tokens."
)
_USE = Metric("raytrain_plus_mfu", "Share of the devices' peak that is used now, if it is known.")
_WORKERS = Metric("raytrain_plus_workers", "Workers of the running generation.")
_GENERATION = Metric("raytrain_plus_generation", "The running generation's number.")
_PAUSES = Metric(
    "raytrain_plus_pause_seconds",
    "Seconds without training since the run began, by the kind of cause that forced the pause.",
    label="cause",
)
_LOGGED = Metric(
    "raytrain_plus_logged",
    "The last value of each scalar that the task and algorithms have logged.",
    label="scalar",
)
_CHECKPOINT_AGE = Metric(
    "raytrain_plus_checkpoint_age_seconds",
    "Seconds since the newest checkpoint was committed, or since the run began.",
)
_FETCHED = Metric("raytrain_plus_fetched_bytes", "Bytes fetched from stores.", "counter")
_HITS = Metric(
    "raytrain_plus_cache_hits", "Files that were in the cache when they were needed.", "counter"
)
_MISSES = Metric("raytrain_plus_cache_misses", "Files that a worker waited for.", "counter")

METRICS = (
    *(_STEP, _TOTAL, _LOSS, _RATE, _TOKENS, _USE, _WORKERS, _GENERATION, _PAUSES, _CHECKPOINT_AGE),
    *(_LOGGED, _FETCHED, _HITS, _MISSES),
)


class LiveRun:
    """The current numbers of a run, from its events. Thread-safe.

    Args:
        batch_size: samples per step.
        total_steps: of the whole run.
        began: Unix time of its start, unless its events have one.
        events: of the run so far. Those before the last `run` event do not count.
    """

    def __init__(
        self, batch_size: int, total_steps: int, began: float, events: Sequence[Event] = ()
    ) -> None:
        self._batch_size, self._total = batch_size, total_steps
        self._lock = threading.Lock()
        self._begin(began)
        self.add(events)

    def _begin(self, at: float) -> None:
        self._began = at
        self._throughput = Throughput()
        self._environment: Event = {}
        self._batch_tokens = 0
        self._step = self._generation = self._workers = 0
        self._loss: float | None = None
        self._logged: dict[str, float] = {}
        self._pauses = dict.fromkeys(KINDS, 0.0)
        self._checkpoints: dict[str, tuple[int, float]] = {}  # folder -> step, Unix time

    def add(self, events: Iterable[Event]) -> None:
        """Add new events of the journal."""
        with self._lock:
            for event in events:
                self._add(event)

    def passing(self, events: Iterable[Event], rare: list[Event]) -> Iterator[Event]:
        """Add the events of a long journal one by one, and pass them on.

        Args:
            events: of this run and those before it.
            rare: gets all events but the steps, of which there may be millions.
        """
        for event in events:
            with self._lock:
                self._add(event)
            if event["event"] != "step":
                rare.append(event)
            yield event

    def samples_per_second(self, now: float) -> float:
        """Return the speed of the run at Unix time `now`."""
        with self._lock:
            return self._throughput.rate(now) * self._batch_size

    def tokens_per_second(self, now: float) -> float:
        """Return the tokens per second at Unix time `now`; 0.0 if a batch has none."""
        with self._lock:
            return self._throughput.rate(now) * self._batch_tokens

    def mfu(self, now: float) -> float | None:
        """Return the share of the devices' peak that is used at Unix time `now`, if it is known."""
        rate = self.samples_per_second(now)
        with self._lock:
            return model_flops_use(rate, self._workers, self._environment)

    def checkpoint(self, now: float) -> dict[str, Any] | None:
        """Return the newest checkpoint's `step` and `age_seconds` at Unix time `now`, if any."""
        with self._lock:
            if not self._checkpoints:
                return None
            step, at = max(self._checkpoints.values())
            return {"step": step, "age_seconds": round(max(0.0, now - at), 3)}

    def readings(self, now: float) -> list[Reading]:
        """Return the metrics' values at Unix time `now`."""
        newest = self.checkpoint(now)
        rate, tokens = self.samples_per_second(now), self.tokens_per_second(now)
        use = self.mfu(now)
        with self._lock:
            age = newest["age_seconds"] if newest else max(0.0, now - self._began)
            found = [
                Reading(_STEP, self._step),
                Reading(_TOTAL, self._total),
                Reading(_RATE, rate),
                Reading(_WORKERS, self._workers),
                Reading(_GENERATION, self._generation),
                Reading(_CHECKPOINT_AGE, age),
                *([Reading(_TOKENS, tokens)] if self._batch_tokens else []),
                *([] if use is None else [Reading(_USE, use)]),
                *(Reading(_PAUSES, seconds, cause) for cause, seconds in self._pauses.items()),
                *(Reading(_LOGGED, value, name) for name, value in self._logged.items()),
            ]
            return found if self._loss is None else [*found, Reading(_LOSS, self._loss)]

    def _add(self, event: Event) -> None:
        kind = event["event"]
        if kind == "run":
            self._begin(event.get("time", self._began))
            self._step = event.get("resumed_step", 0)
            self._batch_tokens = event.get("batch_tokens", 0)
        elif kind == "step":
            self._step, self._loss = event["step"], event["loss"]
            self._throughput.add(event.get("time", 0.0), event["step"])
            if "logged" in event:
                self._logged |= {name: float(x) for name, x in event["logged"].items()}
        elif kind == "withdrawn":
            self._step = event["step"]
        elif kind == "environment":
            self._environment = event
        elif kind == "generation":
            self._generation, self._workers = event["generation"], event["workers"]
            self._pauses[main_kind(causes_of(event))] += event["pause_seconds"]
        elif kind == "checkpoint" and event.get("folder"):
            if "refused" in event or "removed" in event:
                self._checkpoints.pop(event["folder"], None)
            else:
                at = event.get("step", 0), event.get("time", self._began)
                self._checkpoints[event["folder"]] = at


def traffic(counts: Mapping[str, int]) -> list[Reading]:
    """Return a process's counts of fetches and cache hits as readings.

    Args:
        counts: `Traffic.counts()`.
    """
    of = {"fetched_bytes": _FETCHED, "hits": _HITS, "misses": _MISSES}
    return [Reading(metric, counts[name]) for name, metric in of.items()]

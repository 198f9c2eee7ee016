"""From the events of a journal to what loggers write. Pure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytrain_plus.loggers.protocol import LoggedRun, Row
from raytrain_plus.observe.causes import causes_of, sentence
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.throughput import Throughput, model_flops_use

_NO_CONFIG = ("event", "time", "claim", "address", "refused", "resumed", "version")


class Rows:
    """Makes rows of a journal's events, which it must see from the first one on.

    Attributes:
        position: of the last event.
        end: the event of the run's end; None while the run goes on.
        ended_at: the position of that event; 0 while the run goes on.
    """

    def __init__(self) -> None:
        self.position = 0
        self.end: Event | None = None
        self.ended_at = 0
        self._run: Event | None = None
        self._step = 0
        self._throughput = Throughput()
        self._environment: Event = {}

    @property
    def is_known(self) -> bool:
        """Whether the run has been described."""
        return self._run is not None

    def described(self, folder: Path, name: str, group: str | None, step: int) -> LoggedRun:
        """Return the run for a logger to open.

        Args:
            folder: for the logger's files.
            name: of the run's folder.
            group: its sweep.
            step: the last one that the logger has written.
        """
        run = self._run or {}
        return LoggedRun(
            name=run.get("run", name),
            run_id=run.get("run_id", "") or name,
            folder=folder,
            config={key: value for key, value in run.items() if key not in _NO_CONFIG},
            group=group,
            step=step,
        )

    def of(self, event: Event) -> Row | None:
        """Return what an event says; None if it says nothing to log."""
        self.position += 1
        kind = event["event"]
        values: dict[str, float] = {}
        texts: dict[str, str] = {}
        samples: Sequence[Mapping[str, str]] = ()
        if kind == "run":
            self._begin(event)
        elif kind == "step":
            values = self._of_step(event)
        elif kind == "environment":
            self._environment = event
        elif kind == "evaluate":
            values = flat(event["metrics"], "evaluation/")
            samples = event.get("samples", ())
        elif kind == "checkpoint":
            values, texts = _of_checkpoint(event)
        elif kind == "generation":
            values = {
                "workers": float(event["workers"]),
                "generation": float(event["generation"]),
                "pause_seconds": float(event["pause_seconds"]),
            }
            texts = {"group changed": sentence(causes_of(event))}
        elif kind == "end":
            self.end, self.ended_at = event, self.position
        else:
            texts = _news(event)
        if not values and not texts:
            return None
        step = event["step"] if kind in ("step", "evaluate", "generation") else self._step
        return Row(
            position=self.position,
            step=step,
            time=event.get("time", 0.0),
            values=values,
            texts=texts,
            samples=samples,
        )

    def _begin(self, event: Event) -> None:
        self._run, self.end, self.ended_at = event, None, 0
        self._step = event.get("resumed_step", 0)
        self._throughput = Throughput()
        self._environment = {}

    def _of_step(self, event: Event) -> dict[str, float]:
        run, self._step = self._run or {}, event["step"]
        self._throughput.add(event.get("time", 0.0), event["step"])
        rate = self._throughput.rate(event.get("time", 0.0))
        found = {"loss": event["loss"], "workers": event.get("workers", math.nan)}
        if run.get("steps_per_epoch"):
            found["epoch"] = event["step"] / run["steps_per_epoch"]
        if rate:
            found["samples_per_second"] = rate * run.get("batch_size", 0)
            if run.get("batch_tokens"):
                found["tokens_per_second"] = rate * run["batch_tokens"]
            use = model_flops_use(
                found["samples_per_second"], event.get("workers", 0), self._environment
            )
            if use is not None:
                found["mfu"] = use
        logged = {name: float(value) for name, value in event.get("logged", {}).items()}
        return {**logged, **{name: float(value) for name, value in found.items()}}


def _of_checkpoint(event: Event) -> tuple[dict[str, float], dict[str, str]]:
    if "error" in event:
        return {}, {"checkpoint failed": str(event["error"])}
    if "step" not in event or event.keys() & {"refused", "removed"}:
        return {}, {}
    return {"checkpoint_step": float(event["step"])}, {"checkpoint": str(event.get("folder", ""))}


def _news(event: Event) -> dict[str, str]:
    if event["event"] == "warning":
        return {"warning": event["text"]}
    if event["event"] == "worker" and event["state"] == "lost":
        return {"worker lost": f"{event['worker']}: {event.get('reason', '')}"}
    if event["event"] == "withdrawn":
        return {"withdrawn": f"the steps after {event['step']}: {event.get('reason', '')}"}
    return {}


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of texts as a Markdown table with a column for each name."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(n, "") for n in names] for row in rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def flat(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the numbers in nested mappings and lists, by their path.

    Args:
        values: such as the metrics of an evaluation.
        prefix: before each name.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            found |= flat({str(i): one for i, one in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = float(value)
    return found

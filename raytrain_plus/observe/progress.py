"""Progress of a run, fed by the journal: a line that changes on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from raytrain_plus.observe.causes import causes_of, sentence
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.throughput import Throughput

_INTERVAL = 5.0  # seconds between two lines where the output is no terminal


class ProgressLine:
    """Shows steps, loss, samples per second, workers, generation and time left.

    Args:
        title: what is running.
        console: where; unless it is a terminal, a line is printed every few seconds.
        clock: gives seconds.
    """

    def __init__(
        self, title: str, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title = title
        self._clock = clock
        self._printed_at = clock()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._batch_size = self._steps = 0
        self._throughput = Throughput()
        self._generation = 0
        self._workers = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, events: list[Event]) -> None:
        """Show new events of the journal."""
        for event in events:
            if event["event"] == "run":
                self._batch_size = event["batch_size"]
                self._steps = event["total_steps"]
                self._task = self._progress.add_task(
                    self._title, total=event["total_steps"], state="waiting for workers"
                )
            elif event["event"] == "generation":
                self._generation, self._workers = event["generation"], event["workers"]
            elif event["event"] == "warning":
                self._progress.console.print(
                    f"warning: {event['text']}", markup=False, highlight=False, soft_wrap=True
                )
            elif event["event"] == "step":
                self._throughput.add(event["time"], event["step"])
        steps = [event for event in events if event["event"] == "step"]
        if steps and self._task is not None:
            self._progress.update(
                self._task, completed=steps[-1]["step"], state=self._state(steps[-1])
            )
            self._print(steps[-1])

    def _print(self, step: Event) -> None:
        """Print a line, if the output is no terminal and the last line is some seconds old."""
        console = self._progress.console
        if console.is_terminal or self._clock() - self._printed_at < _INTERVAL:
            return
        self._printed_at = self._clock()
        place = f"{self._title}: step {step['step']:,} of {self._steps:,}"
        console.print(
            f"{place}  {self._state(step)}", markup=False, highlight=False, soft_wrap=True
        )

    def _state(self, step: Event) -> str:
        rate = self._throughput.rate(step["time"]) * self._batch_size
        return (
            f"loss {step['loss']:.4f}  {rate:,.0f} samples/s  "
            f"{self._workers} workers  generation {self._generation}"
        )


def summary_table(summaries: dict[str, dict[str, Any]]) -> Table:
    """Return a table of finished runs, one column each."""
    table = Table(show_header=len(summaries) > 1, header_style="bold")
    table.add_column("")
    for title in summaries:
        table.add_column(title)
    rows = {title: _rows(summary) for title, summary in summaries.items()}
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    for key in keys:
        table.add_row(key, *(row.get(key, "") for row in rows.values()))
    return table


def _rows(summary: dict[str, Any]) -> dict[str, str]:
    generations = summary["generations"]
    loss = summary["loss"]
    rows = {
        "run": summary["run"],
        "state": summary["state"],
        "steps": f"{summary['steps']:,}",
        "loss": f"{loss:.6f}" if loss is not None else "none",
    }
    for name, value in summary["metrics"].items():
        rows[name] = f"{value:.4f}" if isinstance(value, float) else str(value)
    for name, value in summary.get("logged", {}).items():
        rows.setdefault(name, f"{float(value):.6g}")
    for what in ("samples", "tokens"):
        if summary[what]["trained"] != summary[what]["loaded"]:
            rows[f"{what} trained"] = (
                f"{summary[what]['trained']:,} of {summary[what]['loaded']:,} loaded"
            )
    for name, cost in summary["algorithms"].items():
        rows[name] = f"{cost['seconds']:.3f} s in its advice, acted {cost['acted']:,} times"
    rows |= {
        "generations": str(len(generations)),
        "workers": " > ".join(str(g["workers"]) for g in generations),
        "longest pause": _longest_pause(generations),
        "device time": f"{summary['device_seconds']:.1f} s",
        "wall time": f"{summary['wall_seconds']:.1f} s",
        "digest": summary["digest"][:16] or "none",
        "folder": summary["folder"],
    }
    if not summary["bitwise"]:
        rows["bitwise"] = "no: workers that compute other bits were admitted"
    if changes := summary.get("changes"):
        rows["changed"] = "; ".join(changes)
    return rows


def _longest_pause(generations: Sequence[Mapping[str, Any]]) -> str:
    """Return the longest pause between two generations, and why the group changed then."""
    longest = max(generations, key=lambda one: one["pause_seconds"], default=None)
    if longest is None or not longest["pause_seconds"]:
        return "none"
    return f"{longest['pause_seconds']:.3f} s ({sentence(causes_of(longest))})"

"""Progress of a run, fed by the journal: a line that changes on a terminal, lines elsewhere."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from raytrain_plus.observe.notebook import NotebookTable, is_in_notebook
from raytrain_plus.observe.throughput import Throughput

INTERVAL_VARIABLE = "RAYTRAIN_PLUS_PROGRESS_INTERVAL"
_INTERVAL = 5.0  # seconds between two lines where the output is no terminal


def chosen_interval(interval: float | None = None) -> float:
    """Return the seconds between two lines of progress; 0 for no progress.

    Args:
        interval: seconds. Default: those of the environment's variable, else 5.

    Raises:
        ValueError: it is no such number.
    """
    text: str | float = interval if interval is not None else os.environ.get(INTERVAL_VARIABLE, "")
    try:
        seconds = _INTERVAL if text == "" else float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        name = INTERVAL_VARIABLE if interval is None else "the progress interval"
        raise ValueError(f"{name} is {text!r}; it must be seconds, or 0 for no progress")
    return seconds


def console_of(*, is_local: bool) -> Console:
    """Return the console for the progress of a run.

    Args:
        is_local: the run prints and stands at breakpoints here, which a live line would overwrite.
    """
    return Console(stderr=True, markup=False, force_terminal=False if is_local else None)


@contextlib.contextmanager
def shown(title: str, *, is_local: bool) -> Iterator[Callable[[list[Event]], None]]:
    """Show the progress of a run that a script or a notebook has started.

    Args:
        title: what is running.
        is_local: the task's code is in this process, and may stand at a breakpoint.

    Yields:
        What is called with the journal's new events.

    Raises:
        ValueError: the environment names an interval that is no number.
    """
    if is_in_notebook() and chosen_interval():
        yield NotebookTable(title)
        return
    with ProgressLine(
        title, console_of(is_local=is_local), says_end=True, says_stalls=not is_local
    ) as line:
        yield line


class ProgressLine:
    """Shows steps, loss, samples per second, workers, generation and time left.

    Args:
        title: what is running.
        console: where; unless it is a terminal, a line is printed every few seconds.
        clock: gives seconds.
        interval: seconds between two lines, 0 for no progress. Default: `chosen_interval()`.
        says_end: print a line when the run has ended, unless the console is a terminal.
        says_stalls: print lines also while there is no new step.

    Raises:
        ValueError: the interval is no number of seconds.
    """

    def __init__(
        self,
        title: str,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        *,
        interval: float | None = None,
        says_end: bool = False,
        says_stalls: bool = True,
    ) -> None:
        self._title = title
        self._clock = clock
        self._interval = chosen_interval(interval)
        self._says_end = says_end
        self._says_stalls = says_stalls
        self._printed_at = self._moved_at = clock()
        self._patience = self._interval
        self._last: Event | None = None
        self._over = self._has_moved = False
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal or not self._interval,
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
                self._steps, self._over = event["total_steps"], False
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
                self._last, self._moved_at = event, self._clock()
                self._has_moved = True
            elif event["event"] == "end":
                self._over = True
                self._print_end(event)
        if any(event["event"] == "step" for event in events) and self._task is not None:
            assert self._last is not None
            self._progress.update(
                self._task, completed=self._last["step"], state=self._state(self._last)
            )
        if self._interval and not self._progress.console.is_terminal:
            self._print_line()

    def _print_line(self) -> None:
        """Print a line, if the last one is some seconds old."""
        now = self._clock()
        has_moved = self._has_moved
        self._patience = self._interval if has_moved else self._patience
        if self._over or self._task is None or now - self._printed_at < self._patience:
            return
        if not has_moved:
            if not self._says_stalls:
                return
            self._patience *= 2  # a run that stands for hours does not fill the log
        self._printed_at, self._has_moved = now, False
        if self._last is None:
            self._print(f"waiting for workers for {now - self._moved_at:.0f} s")
        elif has_moved:
            place = f"step {self._last['step']:,} of {self._steps:,}"
            self._print(f"{place}  {self._state(self._last)}{self._left(self._last)}")
        else:
            place = f"step {self._last['step']:,} of {self._steps:,}"
            self._print(f"{place}  no new step for {now - self._moved_at:.0f} s")

    def _print_end(self, end: Event) -> None:
        if not self._says_end or not self._interval or self._progress.console.is_terminal:
            return
        loss = "" if end.get("loss") is None else f"  loss {end['loss']:.4f}"
        metrics = "".join(
            f"  {name} {value:.4f}"
            for name, value in end.get("metrics", {}).items()
            if isinstance(value, float)
        )
        self._print(f"{end['state']} after {end['step']:,} of {self._steps:,} steps{loss}{metrics}")

    def _print(self, text: str) -> None:
        self._progress.console.print(
            f"{self._title}: {text}", markup=False, highlight=False, soft_wrap=True
        )

    def _state(self, step: Event) -> str:
        rate = self._throughput.rate(step["time"]) * self._batch_size
        return (
            f"loss {step['loss']:.4f}  {rate:,.0f} samples/s  "
            f"{self._workers} workers  generation {self._generation}"
        )

    def _left(self, step: Event) -> str:
        """Return the time that is left at the present speed; empty before it is known."""
        rate = self._throughput.rate(step["time"])
        return f"  {duration((self._steps - step['step']) / rate)} left" if rate else ""


def duration(seconds: float) -> str:
    """Return a time for people, such as 35 s, 12 min or 3 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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
        **({"because": summary["reason"]} if summary.get("reason") else {}),
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

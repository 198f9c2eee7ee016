"""Progress of a run in a notebook: a table that changes in place. IPython is not imported."""

import html
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.throughput import Throughput

_INTERVAL = 0.5  # seconds between two changes
_NOTES = 5  # events below the table
_BAR = 200  # pixels


def is_in_notebook() -> bool:
    """Say whether this process is the kernel of a notebook, which can change what it has shown."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookTable:
    """Shows a run as a table in the output of a notebook's cell.

    Args:
        title: what is running.
        clock: gives seconds.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._clock = clock
        self._run: Event = {}
        self._last: dict[str, Event] = {}
        self._notes: list[str] = []
        self._throughput = Throughput()
        self._shown_at: float | None = None
        self._handle: Any = sys.modules["IPython"].display.display(self, display_id=True)

    def __call__(self, events: Sequence[Event]) -> None:
        """Show new events of the journal."""
        for event in events:
            kind = event["event"]
            self._last[kind] = event
            if kind == "step":
                self._throughput.add(event["time"], event["step"])
            elif kind == "warning":
                self._notes.append(f"warning: {event['text']}")
            elif kind == "worker" and event.get("state") in ("lost", "refused", "evicted"):
                self._notes.append(f"{event['worker']} {event['state']}: {event.get('reason', '')}")
        now = self._clock()
        is_due = self._shown_at is None or now - self._shown_at >= _INTERVAL
        if events and (is_due or "end" in {event["event"] for event in events}):
            self._shown_at = now
            self._handle.update(self)

    def rows(self) -> dict[str, str]:
        """Return the rows of the table."""
        run, step = self._last.get("run", {}), self._last.get("step", {})
        end, group = self._last.get("end", {}), self._last.get("generation", {})
        total, at = run.get("total_steps", 0), end.get("step", step.get("step", 0))
        rate = self._throughput.rate(step["time"]) if step else 0.0
        rows = {
            "run": self._title,
            "state": end.get("state") or ("training" if step else "waiting for workers"),
            "step": f"{at:,} of {total:,}",
        }
        if step:
            rows["loss"] = f"{step['loss']:.4f}"
        for name, value in self._last.get("evaluate", {}).get("metrics", {}).items():
            rows[name] = f"{value:.4f}" if isinstance(value, float) else str(value)
        if group:
            rows["workers"] = f"{group['workers']} (generation {group['generation']})"
        if rate and not end:
            rows["samples/s"] = f"{rate * run.get('batch_size', 0):,.0f}"
            rows["time left"] = f"{(total - at) / rate:,.0f} s"
        return rows

    def _repr_html_(self) -> str:
        cells = {name: html.escape(text) for name, text in self.rows().items()}
        total = self._last.get("run", {}).get("total_steps", 0)
        at = self._last.get("end", self._last.get("step", {})).get("step", 0)
        cells["step"] += f' <progress max="{max(1, total)}" value="{at}" style="width:{_BAR}px">'
        lines = [
            f'<tr><th style="text-align:left">{name}</th>'
            f'<td style="text-align:left">{text}</td></tr>'
            for name, text in cells.items()
        ]
        notes = [f"<div>{html.escape(note)}</div>" for note in self._notes[-_NOTES:]]
        return f"<table>{''.join(lines)}</table>{''.join(notes)}"

    def __repr__(self) -> str:
        """Return the table as text, for what shows no HTML."""
        return "  ".join(f"{name} {text}" for name, text in self.rows().items())

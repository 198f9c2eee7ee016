"""The status of a run as tables for a terminal: what `raytrain-plus status` shows. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raytrain_plus.observe.causes import causes_of, sentence

_BAR = 24  # columns
_STYLES = {
    "training": "green",
    "finished": "green",
    "failed": "red",
    "unreachable": "red",
    "no answer": "red",
    "draining": "yellow",
    "starting": "yellow",
    "waiting": "yellow",
}


def status_table(status: Mapping[str, Any]) -> RenderableType:
    """Return the status of a run for a terminal.

    Args:
        status: the answer of `Coordinator.status` or, of a run that does not live, its journal's.
    """
    parts: list[RenderableType] = [_summary(status)]
    if status.get("members"):
        parts += ["", _members(status["members"])]
    if status.get("generations"):
        parts += ["", _generations(status["generations"])]
    return Group(*parts)


def _summary(status: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    grid.add_row("run", status["run"])
    grid.add_row("state", _styled(status["state"]))
    if status.get("reason"):
        grid.add_row("", status["reason"])
    grid.add_row("step", _steps(status["step"], status["total_steps"]))
    if status["loss"] is not None:
        grid.add_row("loss", f"{status['loss']:.6f}")
    for name, value in status["metrics"].items():
        grid.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    for name, value in status.get("logged", {}).items():
        grid.add_row(name, f"{float(value):.6g}")
    if "samples_per_second" in status:
        grid.add_row("speed", _speed(status))
    if "workers" in status:
        grid.add_row("workers", f"{len(status['workers'])} of {status['target']} wanted")
    grid.add_row("generation", str(status["generation"]))
    if "checkpoint" in status:
        grid.add_row("checkpoint", _checkpoint(status["checkpoint"]))
    if status.get("digest"):
        grid.add_row("digest", status["digest"])
    if status.get("unwritten"):
        told = f"cannot be written, and its lines are kept: {status['unwritten']}"
        grid.add_row("journal", Text(told, style="red"))
    grid.add_row("folder", status["folder"])
    return grid


def _speed(status: Mapping[str, Any]) -> str:
    speed = f"{status['samples_per_second']:,.0f} samples/s"
    if "tokens_per_second" in status:
        speed += f", {status['tokens_per_second']:,.0f} tokens/s"
    if "mfu" in status:
        speed += f", {status['mfu']:.1%} of the devices' peak"
    return speed


def _steps(step: int, total: int) -> Table:
    line = Table.grid(padding=(0, 2))
    share = step / total if total else 0.0
    line.add_row(
        f"{step:,} of {total:,}", f"{share:.0%}", ProgressBar(max(1, total), step, width=_BAR)
    )
    return line


def _checkpoint(newest: Mapping[str, Any] | None) -> str:
    if newest is None:
        return "none yet"
    return f"step {newest['step']:,}, {_duration(newest['age_seconds'])} ago"


def _members(members: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("worker", "node", "pid"):
        table.add_column(name)
    table.add_column("logical ranks")
    table.add_column("ms per rank", justify="right")
    table.add_column("phase")
    for one in members:
        seconds = one["seconds_per_rank"]
        table.add_row(
            one["worker"],
            one["node"] or "-",
            str(one["pid"] or "-"),
            _ranks(one["ranks"]),
            f"{1000 * seconds:,.1f}" if seconds is not None else "-",
            _styled(one["phase"]),
        )
    return table


def _generations(generations: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("generation", "from step", "workers", "pause"):
        table.add_column(name, justify="right")
    table.add_column("because", overflow="fold")
    for one in generations:
        table.add_row(
            str(one["generation"]),
            f"{one['step']:,}",
            str(one["workers"]),
            f"{one['pause_seconds']:.2f} s",
            sentence(causes_of(one)),
        )
    return table


def _ranks(ranks: Sequence[int]) -> str:
    """Return a worker's logical ranks, which are consecutive."""
    if len(ranks) < 2:
        return str(ranks[0]) if ranks else "-"
    return f"{ranks[0]} to {ranks[-1]}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _styled(word: str) -> Text:
    return Text(word, style=_STYLES.get(word, ""))

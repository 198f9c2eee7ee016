"""The contents of a run's page, section by section, as words and rows."""

import json
import time
from collections.abc import Mapping
from typing import Any

from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.pages.rows import Row
from raytrain_plus.observe.quantities import bytes_of, duration, number, share
from raytrain_plus.observe.report import curves
from raytrain_plus.observe.report.changes import changes_of, marks_of
from raytrain_plus.observe.report.curves import COLOURS, NAMES
from raytrain_plus.observe.report.history import RunHistory
from raytrain_plus.observe.report.spending import (
    ENDING,
    STARTUP,
    TRAINING,
    UNKNOWN,
    Spending,
    spending_of,
)
from raytrain_plus.observe.throughput import model_flops_use

_MOST_ROWS = 120  # of a table; a longer one shows its first and last rows
_HASHES = ("initial model", "probe gradient")
_PROOF = ("device", "instruction set", "torch", "numpy", "python", "raytrain_plus", *_HASHES)
_UNITS = {
    **dict.fromkeys(("checkpoint_every", "check_every", "audit_every"), " steps"),
    **dict.fromkeys(("hang_deadline", "first_step_deadline", "start_timeout"), " s"),
    "orphan_seconds": " s",
    "coordinator_deadline": " s",
}
_MOST_SAMPLED = 5  # evaluations whose samples are shown
_DATA = ("data content", "data window", "data shuffle", "data transform", "evaluation data")


def view_of(history: RunHistory, now: float) -> dict[str, Any]:
    """Return what the page's template needs.

    Args:
        history: of the run.
        now: Unix time at which the page is made.
    """
    spent = spending_of(history)
    changes = changes_of(history)
    end, run = history.last.ended, history.run
    numbered = list(enumerate(changes, 1))
    left_out = max(0, len(numbered) - _MOST_ROWS)
    if left_out:
        numbered = [*numbered[: _MOST_ROWS // 2], *numbered[-_MOST_ROWS // 2 :]]
    return {
        "name": run["run"],
        "task": run.get("task", ""),
        "state": state_of(history),
        "sentence": _sentence(history, spent, curves.workers_between(changes)),
        "error": end.get("error", "") if end else "",
        "tiles": _tiles(history, spent),
        "loss_charts": curves.loss_charts(history),
        "metric_charts": [*curves.metric_charts(history), *curves.logged_charts(history)],
        "samples": _samples(history),
        "other_metrics": _other_metrics(curves.last_metrics(history)),
        "workers_chart": curves.workers_chart(history, marks_of(changes)),
        "changes": numbered,
        "changes_left_out": left_out,
        "bars": [curves.wall_bar(spent), curves.worker_seconds_bar(spent)],
        "spending": _spending_rows(spent),
        "pauses": _pause_rows(spent),
        "forming": duration(spent.forming) if spent.forming else "",
        "is_partly_unknown": spent.workers[UNKNOWN] > 0.005 * max(spent.worker_seconds, 1e-9),
        "is_live": end is None,
        "silence": duration(max(0.0, now - history.last.end)),
        "data": _data_rows(history, spent),
        "checkpoints": _checkpoint_rows(history),
        "recipe": _recipe_rows(history, end, spent),
        "verdict": _verdict(history),
        "conditions": _condition_rows(history),
        "configuration": _configuration_rows(run),
        "environment": _environment_rows(history),
        "made_at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)),
        "began_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(history.sessions[0].start)),
        "events": f"{history.events:,}",
    }


def _samples(history: RunHistory) -> list[tuple[int, list[str], list[Mapping[str, str]]]]:
    """Return the last evaluations with their samples, the newest first: step, columns, rows."""
    found = []
    for step, samples in reversed(history.samples[-_MOST_SAMPLED:]):
        names = dict.fromkeys(name for sample in samples for name in sample)
        found.append((step, list(names), samples))
    return found


def state_of(history: RunHistory) -> str:
    """Return `finished`, `stopped`, `failed`, or `running` where no end is written."""
    end = history.last.ended
    return str(end["state"]) if end is not None else "running"


def _sentence(history: RunHistory, spent: Spending, workers: tuple[int, int]) -> str:
    steps = f"{history.steps[-1] if history.steps else 0:,} of {history.run['total_steps']:,} steps"
    least, most = workers
    who = f"{most} worker{'s' * (most != 1)}" if least == most else f"{least} to {most} workers"
    parts = [f"{steps} in {duration(spent.wall)} with {who}"]
    pauses = sum(spent.pause_counts.values())
    if pauses:
        parts.append(
            f"the group changed {pauses} time{'s' * (pauses != 1)}, and training paused "
            f"{duration(spent.paused)} for it ({share(spent.paused, spent.wall)} of the time)"
        )
    if len(history.sessions) > 1:
        again = len(history.sessions) - 1
        parts.append(f"it was resumed {'once' if again == 1 else f'{again} times'}")
    if history.withdrawn:
        parts.append(f"{history.withdrawn:,} steps were withdrawn and computed again")
    return "; ".join(parts) + "."


def _tiles(history: RunHistory, spent: Spending) -> list[Row]:
    tiles = []
    if history.losses:
        tiles.append(Row("loss of the last step", number(history.losses[-1])))
    for name, value in curves.last_metrics(history).items():
        if curves.is_number(value):
            tiles.append(Row(name, number(value), "last evaluation"))
    tiles = tiles[:4]
    steps = sum(_steps_of(history))
    if spent.training > 0 and steps:
        tiles += _speed_tiles(history, spent, steps)
    tiles.append(Row("wall time", duration(spent.wall), f"{duration(spent.training)} training"))
    tiles.append(Row("device time", duration(history.busy_seconds), "busy time of all workers"))
    if spent.pause_counts:
        count = sum(spent.pause_counts.values())
        tiles.append(
            Row(
                "paused",
                duration(spent.paused),
                f"{count} time{'s' * (count != 1)}, at most {duration(spent.longest_pause)}",
            )
        )
    return tiles


def _speed_tiles(history: RunHistory, spent: Spending, steps: int) -> list[Row]:
    rate = steps / spent.training
    samples = rate * history.run["batch_size"]
    tiles = [Row("samples per second", f"{samples:,.0f}", "while it trained")]
    if history.run.get("batch_tokens"):
        tokens = rate * history.run["batch_tokens"]
        tiles.append(Row("tokens per second", f"{tokens:,.0f}", "while it trained"))
    workers = (spent.worker_seconds - spent.workers["pause"]) / spent.training
    use = model_flops_use(samples, workers, history.environment)
    if use is not None:
        tiles.append(Row("model FLOP/s use", f"{use:.1%}", "of the devices' peak"))
    return tiles


def _steps_of(history: RunHistory) -> list[int]:
    """Return how many steps each generation has made."""
    return [g.last_step - g.step for s in history.sessions for g in s.generations]


def _spending_rows(spent: Spending) -> list[tuple[Row, str, str]]:
    """Return rows of worker-seconds, each with wall time and its share."""
    wall = {**spent.shares, "pause": spent.paused, STARTUP: spent.startup, ENDING: spent.ending}
    rows = []
    for part in (*TRAINING, "pause", UNKNOWN, STARTUP, ENDING):
        mine = spent.workers.get(part, 0.0)
        if mine <= 0 and wall.get(part, 0.0) <= 0:
            continue
        worked = duration(mine) if part not in (STARTUP, ENDING) else ""
        row = Row(NAMES[part], worked, share(mine, spent.worker_seconds), COLOURS[part])
        rows.append((row, duration(wall.get(part, 0.0)), share(wall.get(part, 0.0), spent.wall)))
    return rows


def _pause_rows(spent: Spending) -> list[tuple[str, int, str, str]]:
    ordered = sorted(spent.pauses.items(), key=lambda item: -item[1])
    return [
        (cause, spent.pause_counts[cause], duration(seconds), share(seconds, spent.wall))
        for cause, seconds in ordered
    ]


def _data_rows(history: RunHistory, spent: Spending) -> list[Row]:
    traffic: dict[str, int] = {}
    found = [g.usage for s in history.sessions for g in s.generations if g.usage]
    for usage in found:
        for key, count in usage.get("traffic", {}).items():
            traffic[key] = traffic.get(key, 0) + count
    waited = Row(
        "waited for data",
        f"{duration(spent.workers['data'])} of worker time",
        share(spent.workers["data"], spent.worker_seconds),
    )
    if not found:
        return []
    looked = traffic.get("hits", 0) + traffic.get("misses", 0)
    if not looked:
        return [waited, Row("cache", "not used", "the data lies in memory or in local files")]
    return [
        waited,
        Row(
            "fetched from the store",
            bytes_of(traffic.get("fetched_bytes", 0)),
            f"{traffic.get('fetched_files', 0):,} files",
        ),
        Row("cache hits", f"{traffic.get('hits', 0):,}", share(traffic.get("hits", 0), looked)),
        Row("cache misses", f"{traffic.get('misses', 0):,}", "files that a worker waited for"),
    ]


def _checkpoint_rows(history: RunHistory) -> list[Row]:
    events = history.checkpoints
    written = [e for e in events if "step" in e and "folder" in e and "error" not in e]
    failed = [e for e in events if "error" in e]
    refused = [e for e in events if "refused" in e]
    rows = [Row("written", f"{len(written):,}")]
    if written:
        last = written[-1]
        rows.append(Row("last", f"step {last['step']:,}", str(last["folder"])))
    removed = sum(1 for e in events if e.get("removed"))
    if removed:
        rows.append(Row("removed", f"{removed:,}", "as newer ones came"))
    rows += [Row("failed", f"step {e.get('step', '?')}", str(e["error"])) for e in failed[-5:]]
    rows += [Row("refused", str(e.get("folder", "")), str(e["refused"])) for e in refused[-5:]]
    return rows


def _recipe_rows(history: RunHistory, end: Event | None, spent: Spending) -> list[tuple[str, ...]]:
    """Return name, settings and cost of each algorithm."""
    costs = end.get("costs", {}) if end else {}
    rows: list[tuple[str, ...]] = []
    for name, settings in history.run.get("identity", {}).get("algorithms", {}).items():
        cost = costs.get(name)
        told = ("", "")
        if cost:
            told = (
                f"{duration(cost['seconds'])} ({share(cost['seconds'], spent.worker_seconds)})",
                f"acted {cost['acted']:,} times, idle {cost['idle']:,}",
            )
        words = ", ".join(f"{key}={_plain(value)}" for key, value in settings.items())
        rows.append((name, words or "defaults", *told))
    return rows


def _verdict(history: RunHistory) -> tuple[str, str]:
    """Return whether the guarantee holds, as `yes`, `no` or `so far`, and why."""
    changes = [c for s in history.sessions for c in s.run.get("changes", ())]
    if changes:
        return "no", "It was resumed with changes, so that its bits are those of no single run."
    ends = [s.ended for s in history.sessions if s.ended is not None]
    if any(not end.get("bitwise", True) for end in ends):
        return "no", "Workers were admitted that may compute other bits than the group."
    if history.last.ended is None:
        return "so far", "Every worker that was admitted has proved that it computes the same bits."
    return "yes", (
        "Every worker proved that it computes the same bits before it was admitted. A run under "
        "the conditions below, on any number of workers, gives this digest again."
    )


def _condition_rows(history: RunHistory) -> list[Row]:
    run, identity, proof = history.run, history.run.get("identity", {}), history.fingerprint
    end = history.last.ended or {}
    epochs = run["total_steps"] / max(1, run.get("steps_per_epoch", 1))
    rows = [
        Row("task", run.get("task", ""), _settings(identity.get("task settings", {}))),
        Row(
            "code of the task",
            str(identity.get("task code", "")),
            ", ".join(identity.get("code", ())),
            mono=True,
        ),
        *(
            Row(key, _plain(identity[key]), mono=len(_plain(identity[key])) == 64)
            for key in _DATA
            if identity.get(key) is not None
        ),
        Row("seed", _plain(identity.get("seed"))),
        Row("batch size", f"{run['batch_size']:,}", "samples per step, over all workers"),
        Row("logical ranks", _plain(identity.get("logical_ranks")), "V, the parts of each batch"),
        Row("duration", f"{run['total_steps']:,} steps", f"{number(epochs)} epochs"),
        Row("threads per worker", _plain(run.get("threads"))),
    ]
    rows += [Row(key, proof[key], mono=key in _HASHES) for key in _PROOF if key in proof]
    if history.losses:
        rows.append(Row("last loss", history.losses[-1].hex(), "as a hexadecimal float", mono=True))
    if end.get("digest"):
        rows.append(Row("digest of the final state", end["digest"], mono=True))
    return rows


def _configuration_rows(run: Event) -> list[Row]:
    least_most = run.get("workers", [])
    rows = [Row("workers", " to ".join(map(str, least_most)))]
    rows += [
        Row(key.replace("_", " "), f"{run[key]:,} steps")
        for key in ("evaluate_every", "steps_per_epoch")
        if run.get(key)
    ]
    options = {**run.get("elastic", {}), "checkpoint_every": run.get("checkpoint_every")}
    rows += [
        Row(key.replace("_", " "), f"{_plain(value)}{_UNITS.get(key, '')}")
        for key, value in options.items()
        if value is not None
    ]
    return rows


def _environment_rows(history: RunHistory) -> list[Row]:
    run = history.run
    said = [("Ray", "ray"), ("system of the driver", "platform"), ("Ray cluster", "address")]
    return [Row(label, str(run[key])) for label, key in said if run.get(key)]


def _other_metrics(metrics: Mapping[str, Any]) -> list[Row]:
    return [
        Row(name, _plain(value)[:400])
        for name, value in metrics.items()
        if not curves.is_number(value)
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_plain(value)}" for key, value in settings.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value)

"""What coordinator, exchange, meetings and checkpoints cost at 10 to 10,000 workers.

Run as `python -m benchmarks.scale [--measure] [--quick] [--json]`.

Prints the tables of `docs/scale.md` from the constants in `benchmarks/data/scale.json`. `--measure`
measures the constants anew, beside what the model predicts of groups that fit on this machine, and
writes them there; with `--quick` it writes nothing. The sizes in a table's rows up to which a
figure was measured are said in the document.

The case: 100 MB of gradients and Adam's two moments, 8 logical ranks per worker, links of
10 Gbit/s, 2 steps a second.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import report, scale_model
from benchmarks.report import Aim, Row
from benchmarks.scale_model import AtSize, Calls, Case, Wire
from benchmarks.traffic import Traffic, ranges_of

DATA = Path(__file__).parent / "data" / "scale.json"
SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
SHOWN = (10, 100, 1_000, 10_000)
TENSORS = 600
CASE = Case()

_LEAVES = 64  # logical ranks of the groups that are measured
_SMALL, _LARGE = 1 << 12, 1 << 23  # elements: all messages, and all bytes
_FIT, _CHECKED = (2, 8), (3, 4, 6, 16)
_MEETINGS = (2, 8, 16, 24)


@dataclass(frozen=True)
class Constants:
    """All that was measured.

    Attributes:
        at: costs at each of `SIZES`.
        calls: of Ray.
        wire: of exchange and meeting.
        checks: what was predicted and measured of small groups.
        machine: cores and load.
    """

    at: Sequence[AtSize]
    calls: Calls
    wire: Wire
    checks: Sequence[Row]
    machine: dict[str, Any]

    @classmethod
    def read(cls) -> "Constants":
        """Read the last that were measured."""
        said = json.loads(DATA.read_text())
        return cls(
            [AtSize(**one) for one in said["at"]],
            Calls(**said["calls"]),
            Wire(**said["wire"]),
            said["checks"],
            said["machine"],
        )

    def write(self) -> None:
        """Keep them."""
        DATA.write_text(json.dumps(asdict(self), indent=1) + "\n")


def measure(*, quick: bool) -> Constants:
    """Measure everything: some minutes."""
    from benchmarks import scale_measure, scale_wire  # Ray, and torch's process groups

    times = 1 if quick else 5
    machine = scale_measure.machine()

    def exchange(workers: int, elements: int) -> tuple[Traffic, float]:
        found = [
            scale_wire.run(workers, _LEAVES, elements, 30 if elements == _SMALL else 5)
            for _ in range(times)
        ]
        traffic = Traffic(ranges_of(workers, _LEAVES), 4 * elements, found[0][0].buckets)
        return traffic, statistics.median(scale_wire.mean_step_cpu(group) for group in found)

    rows = scale_wire.row_seconds()
    small = [exchange(workers, _SMALL) for workers in _FIT]
    large = exchange(_FIT[0], _LARGE)
    meetings = {
        workers: [scale_wire.run(workers, _LEAVES, _SMALL, 1) for _ in range(times)]
        for workers in _MEETINGS
    }
    wire = fitted(small, large, rows, meetings)
    checks = []
    for workers in _CHECKED:
        for elements in (_SMALL, _LARGE):
            traffic, seconds = exchange(workers, elements)
            checks.append(_checked("exchange", traffic, wire.exchange_seconds(traffic), seconds))
    for workers, found in meetings.items():
        seconds = statistics.median(_meeting_cpu(group) for group in found)
        traffic = Traffic(ranges_of(workers, _LEAVES), 4 * _SMALL, 1)
        checks.append(_checked("meeting", traffic, wire.meeting_seconds(workers), seconds))
    at = [scale_measure.at_size(workers) for workers in SIZES]
    return Constants(at, scale_measure.calls(), wire, checks, machine)


def fitted(
    small: Sequence[tuple[Traffic, float]],
    large: tuple[Traffic, float],
    row_seconds: float,
    meetings: dict[int, list[list[Any]]],
) -> Wire:
    """Fit the wire's constants to the CPU seconds of a few groups.

    Args:
        small: exchanges of next to no bytes, of a small and a larger group.
        large: one of many bytes, of the small group.
        row_seconds: of the control lane.
        meetings: by number of workers.
    """
    (few, few_seconds), (many, many_seconds) = small
    counts = [sum(traffic.messages) / traffic.workers for traffic in (few, many)]
    message = (many_seconds - few_seconds) / (counts[1] - counts[0])
    fixed = max(0.0, few_seconds - counts[0] * message)
    traffic, seconds = large
    messages = sum(traffic.messages) / traffic.workers
    sent = sum(traffic.sent_bytes) / traffic.workers
    byte = (seconds - fixed - messages * message) / sent
    cpu = {w: statistics.median(_meeting_cpu(group) for group in g) for w, g in meetings.items()}
    least, most = min(cpu), max(cpu)
    slope = (cpu[most] - cpu[least]) / (most - least)
    ends = json.dumps([["('10.123.123.123', 12345)", "('10.123.123.124', 54321)"]])
    return Wire(fixed, message, byte, row_seconds, slope, len(ends))


def _meeting_cpu(group: Sequence[Any]) -> float:
    return statistics.mean(one.meet_cpu for one in group)


def _checked(what: str, traffic: Traffic, predicted: float, measured: float) -> Row:
    return {
        "CPU of": what,
        "workers": traffic.workers,
        "MB": round(traffic.gradient_bytes / 1e6, 2),
        "messages": round(sum(traffic.messages) / traffic.workers),
        "predicted ms": round(1e3 * predicted, 2),
        "measured ms": round(1e3 * measured, 2),
        "ratio": round(predicted / measured, 2),
    }


def tables(known: Constants) -> dict[str, list[Row]]:
    """Predict everything, at all sizes."""
    case, calls, wire = CASE, known.calls, known.wire
    at = {one.workers: one for one in known.at}
    return {
        "a step's exchange, per worker": [scale_model.exchange(case, wire, n) for n in at],
        "the coordinator, while a group trains": [
            scale_model.steady(case, one, calls) for one in at.values()
        ],
        "a new generation": [scale_model.regroup(case, one, calls, wire) for one in at.values()],
        f"a checkpoint of {TENSORS} tensors": [
            scale_model.checkpoint(case, one, calls, TENSORS) for one in at.values()
        ],
        "healing a group from one source, and half of it from the other half": [
            {
                "workers": n,
                "from one s": scale_model.healing(case, n, 1),
                "half from half s": scale_model.healing(case, n, n // 2),
            }
            for n in at
        ],
    }


# What is first to be too much, and how much that is.
BOUNDS = (
    ("a step's exchange, per worker", "of it messages", 0.1),
    ("a step's exchange, per worker", "CPU s", 0.5),
    ("a step's exchange, per worker", "connections", 1024),
    ("the coordinator, while a group trains", "CPU %", 20),
    ("a new generation", "calls s", 1.0),
    ("a new generation", "looks s", 1.0),
    ("a new generation", "at the link's speed s", 1.0),
    ("a new generation", "at the link's speed s", 60.0),
    ("a new generation", "asking all s", 1.0),
    ("a checkpoint of 600 tensors", "told CPU s", 10.0),
    ("healing a group from one source, and half of it from the other half", "from one s", 60.0),
)


def breaking(found: dict[str, list[Row]]) -> list[Row]:
    """Say at which of the sizes each cost passes its bound, the earliest first."""
    rows = [
        {"what": key, "of": title, "above": bound, "workers": first}
        for title, key, bound in BOUNDS
        if (first := scale_model.first_above(found[title], key, bound)) is not None
    ]
    return sorted(rows, key=lambda row: row["workers"])


def readable(row: Row) -> Row:
    """Round what is to be read to three figures."""
    return {
        key: f"{value:.3g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, int | float)
        else value
        for key, value in row.items()
    }


def main() -> None:
    """Print the tables."""
    options: argparse.ArgumentParser = report.parser("what 10 to 10,000 workers cost")
    options.add_argument("--measure", action="store_true", help="measure the constants anew")
    chosen = options.parse_args()
    known = measure(quick=chosen.quick) if chosen.measure else Constants.read()
    if chosen.measure and not chosen.quick:
        known.write()
    report.show(f"predicted and measured; measured at {known.machine}", known.checks)
    found = tables(known)
    for title, rows in found.items():
        report.show(title, [readable(row) for row in rows if row["workers"] in SHOWN])
    breaks = breaking(found)
    report.show("what breaks first", [readable(row) for row in breaks])
    off = [
        max(row["ratio"], 1 / row["ratio"]) for row in known.checks if row["CPU of"] == "exchange"
    ]
    aims = [
        Aim("exchange predicted over measured, median off by", statistics.median(off), most=1.5)
    ]
    results: dict[str, Any] = {**found, "checks": list(known.checks), "breaks": breaks}
    report.finish(aims, results, as_json=chosen.json)


if __name__ == "__main__":
    main()

"""The cost of coordinator, exchange, meetings and checkpoints at 10 to 10,000 workers.

Run as `python -m benchmarks.scale [--measure] [--quick] [--json]`.

Prints the tables of `docs/scale.md` from the constants in `benchmarks/data/scale.json`. `--measure`
measures the constants again, compares the model's predictions with groups that fit on this machine,
and writes the constants to the file; with `--quick` it writes nothing. The document says up to
which size each figure was measured.

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
from benchmarks.scale_exchange import Network, bound_seconds, exchange_seconds
from benchmarks.scale_model import AtSize, Case, Messages, Wire
from benchmarks.traffic import Traffic
from raytrain_plus.training.bucket import UNITS
from raytrain_plus.training.halving import halving

DATA = Path(__file__).parent / "data" / "scale.json"
SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
SHOWN = (10, 100, 1_000, 10_000)
SIMULATED = (10, 100, 1_000, 10_000)
CASE = Case()

_LEAVES = 64  # logical ranks of the measured groups
_FEW_WORKERS, _MANY_WORKERS = 2, 8
_MEETINGS = (2, 8, 16, 24)


@dataclass(frozen=True)
class Constants:
    """All measured constants.

    Attributes:
        at: costs at each of `SIZES`.
        messages: costs of messages over lifelines.
        wire: costs of exchange and meeting.
        checks: predicted and measured costs of small groups.
        exchange: the seconds of an exchange on a simulated network, and those of its links alone.
        machine: cores and load.
    """

    at: Sequence[AtSize]
    messages: Messages
    wire: Wire
    checks: Sequence[Row]
    exchange: Sequence[Row]
    machine: dict[str, Any]

    @classmethod
    def read(cls) -> "Constants":
        """Read the constants of the last measurement."""
        said = json.loads(DATA.read_text())
        return cls(
            [AtSize(**one) for one in said["at"]],
            Messages(**said["messages"]),
            Wire(**said["wire"]),
            said["checks"],
            said["exchange"],
            said["machine"],
        )

    def write(self) -> None:
        """Write the constants to the file."""
        DATA.write_text(json.dumps(asdict(self), indent=1) + "\n")


def measure(*, quick: bool) -> Constants:
    """Measure all constants; takes some minutes."""
    from benchmarks import scale_measure, scale_wire  # Ray, and torch's process groups
    from benchmarks.scale_wire import Load

    machine = scale_measure.machine()
    times = 1 if quick else 3
    nothing = Load(_LEAVES, tensors=1, elements=1 << 12, steps=30)
    large = Load(_LEAVES, tensors=32, elements=1 << 18, steps=5)
    # Chunks of 4 KB, as with a thousand workers.
    some, many = (
        Load(_LEAVES, tensors=n, elements=1 << 13, steps=8, bucket_bytes=4) for n in (20, 100)
    )

    def exchange(workers: int, load: Load) -> tuple[Traffic, float]:
        cpu = [scale_wire.mean_step_cpu(scale_wire.run(workers, load)) for _ in range(times)]
        return load.traffic(workers), statistics.median(cpu)

    meetings = {
        workers: statistics.median(
            _meeting_cpu(scale_wire.run(workers, nothing)) for _ in range(times)
        )
        for workers in _MEETINGS
    }
    wire = fitted(
        fixed=exchange(_FEW_WORKERS, nothing),
        large=exchange(_FEW_WORKERS, large),
        some=exchange(_MANY_WORKERS, some),
        many=exchange(_MANY_WORKERS, many),
        value_seconds=scale_wire.value_seconds(),
        meetings={
            statistics.mean(nothing.traffic(workers).partners): seconds
            for workers, seconds in meetings.items()
        },
    )
    checks = []
    for workers, load in (
        (3, large),
        (4, large),
        (8, large),
        (8, many),
        (16, many),
        (24, many),
    ):
        traffic, seconds = exchange(workers, load)
        checks.append(_checked("exchange", traffic, wire.exchange_seconds(traffic), seconds))
    for workers, seconds in meetings.items():
        traffic = nothing.traffic(workers)
        predicted = wire.meeting_cpu(statistics.mean(traffic.partners))
        checks.append(_checked("meeting", traffic, predicted, seconds))
    at = [scale_measure.at_size(workers) for workers in SIZES]
    simulated = [_simulated(workers, wire) for workers in (SIMULATED[:-1] if quick else SIMULATED)]
    return Constants(at, scale_measure.messages(), wire, checks, simulated, machine)


def _simulated(workers: int, wire: Wire) -> Row:
    """Return how long an exchange takes on a simulated network."""
    traffic, network = CASE.traffic(workers), Network(wire.message_seconds, wire.byte_seconds)
    planned = halving(traffic.ranges, UNITS)
    bound = bound_seconds(workers, CASE.gradient_bytes, CASE.link)
    free = Network(wire.message_seconds, 0.0)  # as if other cores copied and added
    seconds, without = (
        exchange_seconds(planned, CASE.gradient_bytes, traffic.buckets, one)
        for one in (network, free)
    )
    return {
        "workers": workers,
        "ms": round(1e3 * seconds),
        "ms without CPU per byte": round(1e3 * without),
        "links alone ms": round(1e3 * bound),
        "ratio": round(seconds / bound, 2),
        "ratio without CPU per byte": round(without / bound, 2),
    }


def fitted(
    *,
    fixed: tuple[Traffic, float],
    large: tuple[Traffic, float],
    some: tuple[Traffic, float],
    many: tuple[Traffic, float],
    value_seconds: float,
    meetings: dict[float, float],
) -> Wire:
    """Fit the wire's constants to the CPU seconds of a few groups.

    Args:
        fixed: an exchange of almost no bytes.
        large: an exchange of many bytes in few messages.
        some: an exchange of few bytes in some messages.
        many: an exchange of few bytes in many messages, of the same group.
        value_seconds: CPU seconds of each worker's own values in the step header.
        meetings: CPU seconds of each worker, by the connections that it makes.
    """

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    more = [mean(many[0].messages) - mean(some[0].messages), many[1] - some[1]]
    message = more[1] / more[0]
    step = max(0.0, fixed[1] - mean(fixed[0].messages) * message)
    rest = large[1] - step - mean(large[0].messages) * message
    least, most = min(meetings), max(meetings)
    return Wire(
        step_seconds=step,
        message_seconds=message,
        byte_seconds=max(0.0, rest) / mean(large[0].sent_bytes),
        value_seconds=value_seconds,
        meeting_seconds=meetings[least],
        connection_seconds=(meetings[most] - meetings[least]) / (most - least),
    )


def _meeting_cpu(group: Sequence[Any]) -> float:
    return statistics.mean(one.meet_cpu for one in group)


def _checked(what: str, traffic: Traffic, predicted: float, measured: float) -> Row:
    return {
        "CPU of": what,
        "workers": traffic.workers,
        "MB": round(traffic.gradient_bytes / 1e6, 2),
        "messages": round(sum(traffic.messages) / traffic.workers),
        "connections": round(sum(traffic.partners) / traffic.workers),
        "predicted ms": round(1e3 * predicted, 2),
        "measured ms": round(1e3 * measured, 2),
        "ratio": round(predicted / measured, 2),
    }


def tables(known: Constants) -> dict[str, list[Row]]:
    """Predict all costs, at all sizes."""
    case, messages, wire = CASE, known.messages, known.wire
    at = {one.workers: one for one in known.at}
    return {
        "a step's exchange, per worker": [scale_model.exchange(case, wire, n) for n in at],
        "the coordinator, while a group trains": [
            scale_model.steady(case, one, messages) for one in at.values()
        ],
        "a new generation: the coordinator": [
            scale_model.regroup(one, messages) for one in at.values()
        ],
        "a new generation: the workers meet": [
            scale_model.meeting(case, wire, one) for one in at.values()
        ],
        "a checkpoint of 60 GB": [scale_model.checkpoint(one, messages) for one in at.values()],
        "healing: seconds until all have the state": [
            {
                "workers": n,
                "from one": scale_model.healing(case, n, 1),
                "half from half": scale_model.healing(case, n, n // 2),
            }
            for n in at
        ],
    }


# Bounds, above which a cost is too much.
BOUNDS = (
    ("a step's exchange, per worker", "messages s", 0.1),
    ("a step's exchange, per worker", "messages s", 1.0),
    ("a step's exchange, per worker", "connections", 1024),
    ("the coordinator, while a group trains", "CPU %", 20),
    ("a new generation: the coordinator", "plan s", 1.0),
    ("a new generation: the coordinator", "messages s", 1.0),
    ("a new generation: the coordinator", "looks s", 1.0),
    ("a new generation: the coordinator", "asking all s", 1.0),
    ("a new generation: the workers meet", "CPU s", 1.0),
    ("a checkpoint of 60 GB", "coordinator CPU s", 1.0),
    ("healing: seconds until all have the state", "from one", 60.0),
)


def breaking(found: dict[str, list[Row]]) -> list[Row]:
    """Return at which of the sizes each cost passes its bound, the smallest size first."""
    rows = [
        {"what": key, "of": title, "above": bound, "workers": first}
        for title, key, bound in BOUNDS
        if (first := scale_model.first_above(found[title], key, bound)) is not None
    ]
    return sorted(rows, key=lambda row: row["workers"])


def readable(row: Row) -> Row:
    """Round numbers to three figures."""
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
    options: argparse.ArgumentParser = report.parser("the cost of 10 to 10,000 workers")
    options.add_argument("--measure", action="store_true", help="measure the constants again")
    chosen = options.parse_args()
    known = measure(quick=chosen.quick) if chosen.measure else Constants.read()
    if chosen.measure and not chosen.quick:
        known.write()
    report.show(f"predicted and measured; measured at {known.machine}", known.checks)
    report.show("an exchange on a simulated network", known.exchange)
    found = tables(known)
    for title, rows in found.items():
        report.show(title, [readable(row) for row in rows if row["workers"] in SHOWN])
    breaks = breaking(found)
    report.show("what breaks first", [readable(row) for row in breaks])
    ratios = [row["ratio"] for row in known.checks if row["CPU of"] == "exchange"]
    off = statistics.median(max(ratio, 1 / ratio) for ratio in ratios)
    aims = [Aim("exchange, predicted against measured: off by", round(off, 2), most=1.5)]
    results: dict[str, Any] = {**found, "checks": list(known.checks), "breaks": breaks}
    report.finish(aims, results, as_json=chosen.json)


if __name__ == "__main__":
    main()

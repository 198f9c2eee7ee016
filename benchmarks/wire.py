"""Bytes on the wire and the time of a step on slow and on long cables, against a ring all-reduce.

Run as `python -m benchmarks.wire [--messages] [--quick] [--json]`; as root, except with
`--messages`: see `cluster/lab/README.md`.

First comes the CPU time of a message (`message_cost.py`). `--messages` measures nothing else.

Two to four hosts of a lab have one worker each. The systems take turns: raytrain_plus, and as its
peer DistributedDataParallel on gloo, whose all-reduce is a ring. Both train the communication-bound
model (`wire_host.py`) on the same parts, one thread each.

Bytes come from the kernel's counters of each host's own interface, read before and after a number
of steps, while nothing is being sent. They include gradients, the step header, the checks for
corruption that are on by default, TCP's headers and acknowledgements. (A virtual cable carries up
to 64 KB with one header, so a real one carries about 4 % more, for both systems.) `planned` is the
number from the plan.

Cables: one of three hosts has a slow cable, then a long one (`Lab.slow`, `Lab.delay`). A delay of d
ms makes each round trip to that host 2 d longer. The figure is the median step time of the slowest
worker; both systems take turns on each cable.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import message_cost, report, wire_host
from benchmarks.report import Aim, Row
from benchmarks.traffic import Traffic, ranges_of
from benchmarks.wire_host import workload_of
from cluster.lab.hosts import Lab, why_not

_WORKERS = (2, 3, 4)
_LOGICAL_RANKS = (8, 64)
_WARM_UP = 3  # steps
_STEPS, _QUICK_STEPS = 40, 10
_CABLE_STEPS, _QUICK_CABLE_STEPS = 9, 3
_SYSTEMS = ("ours", "ring")
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "eth0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # hosts of the lab have no reverse name resolution
}
_SLOW = 100.0  # Mbit/s
_DELAYS = (0.0, 1.0, 10.0, 50.0)  # ms


class Group:
    """The workers of one system, one on each host, which wait for requests to run steps.

    Args:
        lab: the lab; all its hosts are used.
        system: a system of `wire_host`.
        logical_ranks: the number of logical ranks, V.
    """

    def __init__(self, lab: Lab, system: str, logical_ranks: int) -> None:
        addresses = list(lab.addresses.values())
        self._programs = []
        for index, host in enumerate(lab.addresses):
            numbers = [str(n) for n in (index, len(addresses), logical_ranks)]
            line = [
                sys.executable,
                "-m",
                wire_host.__name__,
                system,
                *numbers,
                addresses[index],
                addresses[0],
            ]
            self._programs.append(
                subprocess.Popen(
                    lab.command(host, line, _ENVIRONMENT),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        reached = [json.loads(self._answer(program)) for program in self._programs]
        for program in self._programs:
            self._tell(program, json.dumps(reached))
        for program in self._programs:
            self._answer(program)  # it is ready

    def run(self, steps: int) -> list[float]:
        """Run steps on all workers; returns the slowest worker's seconds for each step."""
        for program in self._programs:
            self._tell(program, str(steps))
        found = [json.loads(self._answer(program)) for program in self._programs]
        return [max(seconds) for seconds in zip(*found, strict=True)]

    def close(self) -> None:
        """End the programs."""
        for program in self._programs:
            program.kill()
            program.communicate()

    def _tell(self, program: subprocess.Popen[str], line: str) -> None:
        assert program.stdin is not None
        program.stdin.write(f"{line}\n")
        program.stdin.flush()

    def _answer(self, program: subprocess.Popen[str]) -> str:
        assert program.stdout is not None
        line = program.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended: {' '.join(map(str, program.args))}")
        return line


@contextmanager
def groups(workers: int, logical_ranks: int) -> Iterator[tuple[Lab, dict[str, Group]]]:
    """Make a lab with a group of each system on its hosts, both warm."""
    hosts = [f"n{i}" for i in range(workers)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        lab = stack.enter_context(Lab.of(Path(folder) / "lab", hosts))
        found = {}
        for system in _SYSTEMS:
            found[system] = Group(lab, system, logical_ranks)
            stack.callback(found[system].close)
            found[system].run(_WARM_UP)
        yield lab, found


def counted(lab: Lab) -> dict[str, tuple[int, int]]:
    """Return the bytes that each host has sent and received over its cable."""
    found = {}
    for host in lab.addresses:
        line = lab.command(host, ["cat", "/proc/net/dev"])
        text = subprocess.run(line, capture_output=True, text=True, check=True).stdout
        fields = next(row for row in text.splitlines() if "eth0:" in row).split(":")[1].split()
        found[host] = int(fields[8]), int(fields[0])
    return found


def gradient_bytes(logical_ranks: int) -> int:
    """Return the size of the model's gradients."""
    return sum(p.nbytes for p in workload_of(logical_ranks).load().model().parameters())


def bytes_of(workers: int, logical_ranks: int, steps: int) -> Row:
    """Count what both systems send."""
    size = gradient_bytes(logical_ranks)
    traffic = Traffic(ranges_of(workers, logical_ranks), size, buckets=1)
    sent: dict[str, float] = {}
    busiest: dict[str, float] = {}
    with groups(workers, logical_ranks) as (lab, found):
        for system, group in found.items():
            before = counted(lab)
            group.run(steps)
            after = counted(lab)
            by_host = [(after[h][0] - before[h][0]) / steps / 1e6 for h in lab.addresses]
            sent[system], busiest[system] = statistics.mean(by_host), max(by_host)
    return {
        "workers": workers,
        "V": logical_ranks,
        "subtrees": "+".join(map(str, traffic.partials)),
        "ours MB": round(sent["ours"], 2),
        "busiest": round(busiest["ours"], 2),
        "ring MB": round(sent["ring"], 2),
        "2(W-1)/W MB": round(traffic.ring_bytes / 1e6, 2),
        "ours / ring": round(sent["ours"] / sent["ring"], 3),
        "planned": round(traffic.ratio, 3),
    }


def cables(steps: int) -> list[Row]:
    """Measure the steps of three hosts, one of which has another cable."""
    workers, logical_ranks = 3, _LOGICAL_RANKS[0]
    rows = []
    with groups(workers, logical_ranks) as (lab, found):
        host = list(lab.addresses)[-1]
        changes: list[tuple[str, Callable[[], None]]] = [
            ("its own", lambda: None),
            (f"{_SLOW:g} Mbit/s", lambda: lab.slow(host, _SLOW)),
            ("its own again", lambda: lab.slow(host)),
            *((f"{ms:g} ms", lambda ms=ms: lab.delay(host, ms)) for ms in _DELAYS),
        ]
        for name, change in changes:
            change()
            times: dict[str, list[float]] = {system: [] for system in _SYSTEMS}
            for _ in range(3):
                for system, group in found.items():
                    group.run(1)
                    times[system] += group.run(max(1, steps // 3))
            ours, ring = (statistics.median(times[system]) for system in _SYSTEMS)
            rows.append(
                {
                    "one host's cable": name,
                    "ours s": round(ours, 3),
                    "ring s": round(ring, 3),
                    "ours / ring": round(ours / ring, 2),
                }
            )
    return rows


def aims_of(rows: Sequence[Row]) -> list[Aim]:
    """Compare the counted bytes with the planned ones."""
    return [
        Aim(
            f"bytes counted over those planned, W = {row['workers']}, V = {row['V']}",
            round(row["ours MB"] / (row["planned"] * row["2(W-1)/W MB"]), 3),
            most=1.02,
        )
        for row in rows
    ]


def main() -> None:
    """Measure."""
    parser = report.parser("bytes on the wire, and steps on slow and long cables")
    parser.add_argument("--messages", action="store_true", help="only the cost of a message")
    options = parser.parse_args()
    costs = message_cost.costs(quick=options.quick)
    report.show("microseconds of CPU per message, one sent and one received", costs)
    if options.messages:
        report.finish(message_cost.aims_of(costs), {"messages": costs}, as_json=options.json)
        return
    if reason := why_not():
        sys.exit(f"error: {reason}")
    steps = _QUICK_STEPS if options.quick else _STEPS
    rows = [bytes_of(w, v, steps) for v in _LOGICAL_RANKS for w in _WORKERS]
    size = gradient_bytes(_LOGICAL_RANKS[0]) / 1e6
    report.show(f"MB sent per worker and step, {size:.1f} MB of gradients", rows)
    times = cables(_QUICK_CABLE_STEPS if options.quick else _CABLE_STEPS)
    report.show(f"seconds of a step of three workers, V = {_LOGICAL_RANKS[0]}", times)
    results: dict[str, Any] = {"messages": costs, "bytes": rows, "cables": times}
    aims = [*message_cost.aims_of(costs), *aims_of(rows)]
    report.finish(aims, results, as_json=options.json)


if __name__ == "__main__":
    main()

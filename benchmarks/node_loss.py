"""From the loss of a host to the next committed step, between hosts of a lab.

Run as `python -m benchmarks.node_loss [--quick] [--json]`, as root: see `cluster/lab/README.md`.

Each round is a separate run on three hosts with one worker each, and driver and coordinator on a
fourth, at the default settings of Ray and of raytrain_plus. One host's power is cut. When the
others have gone on for a while, another host's cable is pulled. The hosts take turns. Steps are
limited to ten per second, so up to 0.1 s of each figure is a step's own time. Recovery ends with
the first step that is committed without the lost host. Lost steps are read from the journal.
"""

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Aim
from cluster.lab.hosts import why_not
from raytrain_plus.chaos.flaws import lost_steps
from raytrain_plus.observe import journal
from tests.end_to_end import lab_run
from tests.end_to_end.lab_driver import NAME
from tests.end_to_end.runs import program

_AIMS = {"power_off": 2.0, "cable_pull": 10.0}  # seconds, of the worst case
_ROUNDS, _QUICK_ROUNDS = 10, 2


def one_round(powered_off: str, cut: str) -> dict[str, Any]:
    """Lose two hosts in one run; returns for each the seconds, and the lost steps."""
    with tempfile.TemporaryDirectory() as storage:
        told = program(lab_run.__name__, storage, powered_off, cut)
        events = journal.read(Path(storage) / NAME)
    seconds = {event: told[event]["seconds"] for event in _AIMS}
    return {**seconds, "digest": told["summary"]["digest"], "lost": lost_steps(events)}


def main() -> None:
    """Measure, and print the results."""
    options = report.options("from the loss of a host to the next committed step")
    if reason := why_not():
        sys.exit(f"error: {reason}")
    pairs = itertools.cycle(itertools.permutations(lab_run.HOSTS, 2))
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    found = [one_round(*pair) for pair in itertools.islice(pairs, rounds)]
    rows = []
    for event in _AIMS:
        seconds = [one[event] for one in found]
        rows.append(
            {
                "event": event.replace("_", " "),
                "times": len(seconds),
                "median s": report.median(seconds),
                "worst s": max(seconds),
            }
        )
    report.show("from the loss of a host to the next committed step", rows)
    aims = [
        Aim(f"seconds after a {row['event']}, worst", row["worst s"], most=most)
        for row, most in zip(rows, _AIMS.values(), strict=True)
    ]
    aims += [
        Aim("committed steps lost", sum(len(one["lost"]) for one in found), most=0),
        Aim("different digests", len({one["digest"] for one in found}), most=1),
    ]
    report.finish(aims, {"node_loss": rows, "rounds": found}, as_json=options.json)


if __name__ == "__main__":
    main()

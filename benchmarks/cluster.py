"""How long a cluster takes to start, to begin a job, and to go on when a host is lost or added.

Run as `python -m benchmarks.cluster [--quick] [--json]`, as root: see `cluster/lab/README.md`.

Each round launches `cluster.yaml` on the hosts of a new lab, submits jobs from another host, cuts
one host's power and adds one by hand. All hosts share this machine's cores, so the start of
processes takes longer than on separate machines.
"""

import sys
import tempfile
from typing import Any

from benchmarks import report
from cluster.lab import ssh
from cluster.lab.hosts import why_not
from tests.end_to_end import cluster_run
from tests.end_to_end.runs import program

_ROUNDS, _QUICK_ROUNDS = 3, 1


def main() -> None:
    """Measure, and print the results."""
    options = report.options("how long a cluster takes")
    if reason := why_not() or ssh.why_not():
        sys.exit(f"error: {reason}")
    rounds: list[dict[str, Any]] = []
    for _ in range(_QUICK_ROUNDS if options.quick else _ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(program(cluster_run.__name__, folder)["took"])
    rows = [
        {
            "what": what,
            "median s": report.median([took[what] for took in rounds]),
            "worst s": max(took[what] for took in rounds),
        }
        for what in rounds[0]
    ]
    report.show("how long a cluster takes", rows)
    report.finish([], {"cluster": rows}, as_json=options.json)


if __name__ == "__main__":
    main()

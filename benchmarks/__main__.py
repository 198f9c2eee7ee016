"""All benchmarks, one after the other: `python -m benchmarks [--quick] [--json]`.

Each runs in its own process, so that it inherits no threads, memory or Ray cluster.
"""

import json
import subprocess
import sys
from typing import Any

from benchmarks import report

NAMES = (
    "plan",
    "step_cost",
    "checkpoint_pause",
    "aspects",
    "monitors",
    "corruption_cost",
    "blurpool",
    "steady_state",
    "grow",
    "balance",
    "recovery",
    "goodput",
    "predict",
    "streams",
    "downloads",
    "idle",
)


def run(name: str, *, quick: bool) -> dict[str, Any]:
    """Run one benchmark and pass its output on; returns its JSON object."""
    command = [sys.executable, "-u", "-m", f"benchmarks.{name}", "--json"]
    command += ["--quick"] if quick else []
    line = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"benchmark {name} failed with exit status {process.returncode}")
    found: dict[str, Any] = json.loads(line)
    return found


def main() -> None:
    """Run all benchmarks, and print which aims are met."""
    options = report.options(__doc__.splitlines()[0])
    results = {name: run(name, quick=options.quick) for name in NAMES}
    rows = [
        {"benchmark": name, **row} for name, result in results.items() for row in result["aims"]
    ]
    report.show("all aims", rows)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()

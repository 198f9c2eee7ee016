"""Samples per second, side by side with PyTorch's own ways.

Run as `python -m benchmarks.steady_state [--quick] [--json]`.

raytrain_plus is run by `ElasticTrainer.fit` and its speed is read from the journal. The peer has
the same model, optimizer, data, batch, micro-batches and threads (one per process). With one worker
it is a plain loop that accumulates gradients; with two it is DistributedDataParallel on gloo, which
sends once per step. Both are run in turn, several times. The window begins after a fifth of the
steps.

Ratios are medians over pairs of consecutive runs, since the speed of a shared machine changes.
`ratio` compares the whole windows. `undisturbed` compares the lower quartiles of the step times,
which are hardly affected if other load on the machine slows some steps down.
"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import peers, report
from benchmarks.elastic import of_kind, train
from benchmarks.report import Aim, Row
from benchmarks.tasks import COMMUNICATION_BOUND, COMPUTE_BOUND, Workload

_WARM_UP = 0.2  # of the steps


@dataclass(frozen=True)
class Case:
    """A workload on a number of workers, and the ratio to the peer that we aim at."""

    name: str
    workload: Workload
    workers: int
    steps: int
    least: float


CASES = (
    Case("compute-bound", COMPUTE_BOUND, 1, 80, 0.97),
    Case("compute-bound", COMPUTE_BOUND, 2, 160, 0.97),
    Case("communication-bound", COMMUNICATION_BOUND, 1, 80, 0.95),
    Case("communication-bound", COMMUNICATION_BOUND, 2, 120, 0.95),
)


@dataclass(frozen=True)
class Speed:
    """Samples per second over a window, and at the lower quartile of its step times."""

    whole: float
    undisturbed: float


def speed(times: Sequence[float], batch_size: int) -> Speed:
    """Return the speed over the steady window of a run, from the times at which steps ended."""
    window = times[int(len(times) * _WARM_UP) :]
    seconds = [after - before for before, after in itertools.pairwise(window)]
    quartile = statistics.quantiles(seconds, n=4)[0]
    return Speed(batch_size / statistics.mean(seconds), batch_size / quartile)


def ours(case: Case, steps: int) -> Speed:
    """Return the speed of raytrain_plus."""
    events = of_kind(train(case.workload, case.workers, steps), "step")
    return speed([event["time"] for event in events], case.workload.batch_size)


def theirs(case: Case, steps: int) -> Speed:
    """Return the speed of the peer."""
    times = peers.measure(case.workload, case.workers, steps).times
    return speed(times, case.workload.batch_size)


def compare(case: Case, *, quick: bool) -> Row:
    """Run both in turn; each is first every other time."""
    steps = case.steps // 2 if quick else case.steps
    pairs = []
    for repetition in range(2 if quick else 5):
        if repetition % 2:
            second = theirs(case, steps)
            pairs.append((ours(case, steps), second))
        else:
            pairs.append((ours(case, steps), theirs(case, steps)))
    ratios = [one.whole / other.whole for one, other in pairs]
    return {
        "model": case.name,
        "workers": case.workers,
        "peer": "plain loop" if case.workers == 1 else "DDP, gloo",
        "raytrain_plus /s": report.median([one.whole for one, _ in pairs], 1),
        "peer /s": report.median([other.whole for _, other in pairs], 1),
        "ratio": report.median(ratios),
        "from": round(min(ratios), 3),
        "to": round(max(ratios), 3),
        "undisturbed": report.median([a.undisturbed / b.undisturbed for a, b in pairs]),
        "aim": case.least,
    }


def main() -> None:
    """Measure all cases."""
    options = report.options("samples per second against a plain loop and DDP")
    rows = [compare(case, quick=options.quick) for case in CASES]
    report.show("steady state: samples per second", rows)
    aims = [
        Aim(f"ratio, {row['model']}, {row['workers']} workers", row["ratio"], least=row["aim"])
        for row in rows
    ]
    report.finish(aims, {"steady_state": rows}, as_json=options.json)


if __name__ == "__main__":
    main()

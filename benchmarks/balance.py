"""The gain from choosing the allowed imbalance by the time of the exchange.

Run as `python -m benchmarks.balance [--quick] [--json]`.

Three workers train in turns with the default settings and with `rebalance_above=None`, which keeps
the allowed imbalance at an eighth (`raytrain_plus/elastic/policy/imbalance.py`). One task waits for
each logical rank, as for a device that computes, and its exchange takes almost no time. The other
task sends 23 MB of gradients and computes little. Rates are those of the last half of the steps.
"""

import time
from typing import Any

from torch import Tensor, nn

from benchmarks import report
from benchmarks.elastic import of_kind, train
from benchmarks.report import Aim, Row
from benchmarks.tasks import Tiny, Workload
from raytrain_plus.task import Batch

_WORKERS = 3
_STEPS = 160
_SECONDS = 0.002  # that a device needs for a logical rank


class Device(Tiny):
    """A model that waits, as if another device computed."""

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Wait as long as the device would take."""
        time.sleep(_SECONDS)
        outputs: Tensor = super().forward(model, batch)
        return outputs


WORKLOADS = {
    "compute-bound": Workload("benchmarks.balance:Device", 512, 128),
    "communication-bound": Workload("benchmarks.tasks:Perceptron", 128, 32),
}


def measure(name: str, **elastic: Any) -> Row:
    """Train once; returns the final number of ranks per worker, and steps per second.

    Args:
        name: name of the workload.
        elastic: settings of ElasticConfig; with any, the allowed imbalance is fixed.
    """
    events = train(WORKLOADS[name], _WORKERS, _STEPS, **elastic)
    begin, end = (of_kind(events, "step", step=step)[0]["time"] for step in (_STEPS // 2, _STEPS))
    return {
        "task": name,
        "slack": "stays" if elastic else "follows",
        "ranks": sorted(of_kind(events, "generation")[-1]["ranks"]),
        "changed at": [g["step"] for g in of_kind(events, "generation")[1:]],
        "steps/s": round(_STEPS / 2 / (end - begin), 2),
    }


def main() -> None:
    """Measure both tasks, in turn."""
    options = report.options("the gain from an allowed imbalance that follows the exchange")
    rows: list[Row] = []
    ratios: dict[str, list[float]] = {name: [] for name in WORKLOADS}
    for _ in range(1 if options.quick else 3):
        for name, found in ratios.items():
            follows, stays = measure(name), measure(name, rebalance_above=None)
            rows += [follows, stays]
            found.append(follows["steps/s"] / stays["steps/s"])
    report.show(f"{_WORKERS} workers", rows)
    aims = [
        Aim(f"rate over that with an eighth: {name}", report.median(found), least=least)
        for (name, found), least in zip(ratios.items(), (1.05, 0.97), strict=True)
    ]
    report.finish(aims, {"balance": rows}, as_json=options.json)


if __name__ == "__main__":
    main()

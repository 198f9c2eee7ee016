"""What a run has trained on, what its aspects cost, and where the workers' time went."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from raytrain_plus.elastic.protocol.messages import Report


class Usage:
    """Adds up the workers' reports, generation by generation.

    The share of a worker that died in a generation is unknown, and missing.

    Attributes:
        samples, tokens: trained on, by the worker with the most steps; fewer than were loaded if
            an aspect drops some.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.tokens = 0
        self._costs: dict[str, dict[str, Any]] = {}

    def add(self, reports: Mapping[str, Report]) -> dict[str, Any]:
        """Add the reports that end a generation.

        Returns:
            The fields of the journal's `usage` event: `workers` that have reported, their summed
            `seconds` by part and `traffic`, and `until` which Unix time that goes.
        """
        for report in reports.values():
            self.samples = max(self.samples, report.samples)
            self.tokens = max(self.tokens, report.tokens)
            for name, cost in report.costs.items():
                total = self._costs.setdefault(name, {"seconds": 0.0, "acted": 0, "idle": 0})
                for key in total:
                    total[key] += cost[key]
        return {
            "workers": sorted(reports),
            "until": max((report.settled_at for report in reports.values()), default=0.0),
            "seconds": _sums(report.seconds for report in reports.values()),
            "traffic": _sums(report.traffic for report in reports.values()),
        }

    @property
    def costs(self) -> dict[str, dict[str, Any]]:
        """By aspect: seconds in its advice, how often it acted and did not, over all workers."""
        return {
            name: {**cost, "seconds": round(cost["seconds"], 6)}
            for name, cost in sorted(self._costs.items())
        }


def _sums(told: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for one in told:
        sums.update(one)
    return {key: round(value, 6) for key, value in sorted(sums.items())}

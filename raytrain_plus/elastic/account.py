"""What a run has trained on, and what its aspects cost."""

from collections.abc import Iterable
from typing import Any

from raytrain_plus.elastic.messages import Report


class Account:
    """Adds up the workers' reports, generation by generation.

    What the advice cost on a worker that died is not known, and missing.

    Attributes:
        samples, tokens: trained on, by the worker that is furthest; fewer than were loaded where
            an aspect drops some.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.tokens = 0
        self._costs: dict[str, dict[str, Any]] = {}

    def add(self, reports: Iterable[Report]) -> None:
        """Take in the reports that end a generation."""
        for report in reports:
            self.samples = max(self.samples, report.samples)
            self.tokens = max(self.tokens, report.tokens)
            for name, cost in report.costs.items():
                total = self._costs.setdefault(name, {"seconds": 0.0, "acted": 0, "idle": 0})
                for key in total:
                    total[key] += cost[key]

    @property
    def costs(self) -> dict[str, dict[str, Any]]:
        """By aspect: seconds in its advice, how often it acted and did not, over all workers."""
        return {
            name: {**cost, "seconds": round(cost["seconds"], 6)}
            for name, cost in sorted(self._costs.items())
        }

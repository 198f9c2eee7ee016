"""Exports a process's metrics to Ray, whose agent on each node shows them to Prometheus."""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ray.util.metrics import Counter, Gauge

from raytrain_plus.observe.gauges import Reading, traffic
from raytrain_plus.streams.cache import TRAFFIC

_INTERVAL = 1.0  # seconds between two looks


class Exporter:
    """Exports readings to Ray every second, from a thread of its own.

    A run never fails because of it: if Ray refuses a metric, there is one warning, and the export
    ends.

    Args:
        run: the run's name, a label of every value.
        read: returns the readings; called from the thread.
    """

    def __init__(self, run: str, read: Callable[[], Iterable[Reading]]) -> None:
        self._run = run
        self._read = read
        self._made: dict[str, Any] = {}
        self._told: dict[tuple[str, str], float] = {}
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start."""
        threading.Thread(target=self._go_on, daemon=True, name="metrics").start()

    def stop(self) -> None:
        """End the export."""
        self._stopped.set()

    def _go_on(self) -> None:
        try:
            while not self._stopped.wait(_INTERVAL):
                self.export()
        except Exception:  # the run matters more than any error here
            logging.getLogger(__name__).warning(
                "the metrics of run %s are not exported any more", self._run, exc_info=True
            )

    def export(self) -> None:
        """Export the current values once."""
        for reading in self._read():
            metric = reading.metric
            labels = {"run": self._run}
            if metric.label:
                labels[metric.label] = reading.of
            made = self._made.get(metric.name)
            if made is None:
                kind = Counter if metric.kind == "counter" else Gauge
                made = self._made[metric.name] = kind(metric.name, metric.text, tuple(labels))
            if metric.kind == "gauge":
                made.set(reading.value, labels)
            else:
                self._count(made, reading, labels)

    def _count(self, counter: Any, reading: Reading, labels: dict[str, str]) -> None:
        """Add what is new to a counter; Ray refuses an increment of zero."""
        key = (reading.metric.name, reading.of)
        added = reading.value - self._told.get(key, 0.0)
        if added > 0:
            counter.inc(added, labels)
            self._told[key] = reading.value


def export_traffic(run: str) -> Exporter:
    """Start to export what this process fetches, and finds in its node's cache."""
    exporter = Exporter(run, lambda: traffic(TRAFFIC.counts()))
    exporter.start()
    return exporter

"""Giving a process's numbers to Ray, whose agent on each node shows them to Prometheus."""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ray.util.metrics import Counter, Gauge

from raytrain_plus.observe.gauges import Reading, traffic
from raytrain_plus.streams.traffic import TRAFFIC

_INTERVAL = 1.0  # seconds between two looks


class Exporter:
    """Gives readings to Ray now and then, from a thread of its own, for as long as it lives.

    A run never fails because of it: if Ray takes no metrics, a warning says so once, and that is
    all.

    Args:
        run: the run's name, which every value has as a label.
        read: returns the readings; called from the thread.
    """

    def __init__(self, run: str, read: Callable[[], Iterable[Reading]]) -> None:
        self._run = run
        self._read = read
        self._made: dict[str, Any] = {}
        self._told: dict[tuple[str, str], float] = {}
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._go_on, daemon=True, name="metrics").start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _go_on(self) -> None:
        try:
            while not self._stopped.wait(_INTERVAL):
                self.export()
        except Exception:  # whatever it is, the run matters more
            logging.getLogger(__name__).warning(
                "the metrics of run %s are not exported any more", self._run, exc_info=True
            )

    def export(self) -> None:
        """Give Ray the values that the readings have now."""
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
        """A counter is told what has been added; Ray refuses nothing at all."""
        key = (reading.metric.name, reading.of)
        added = reading.value - self._told.get(key, 0.0)
        if added > 0:
            counter.inc(added, labels)
            self._told[key] = reading.value


def export_traffic(run: str) -> Exporter:
    """Begin to give Ray what this process fetches, and finds in its node's cache."""
    exporter = Exporter(run, lambda: traffic(TRAFFIC.counts()))
    exporter.start()
    return exporter

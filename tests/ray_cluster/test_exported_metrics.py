"""Values are exported to Ray as gauges and counters; a run never fails because of them."""

import threading

import pytest

from raytrain_plus.observe.gauges import Metric, Reading
from raytrain_plus.ray_cluster import metrics
from raytrain_plus.ray_cluster.metrics import Exporter

LOSS = Metric("loss", "a gauge")
PAUSES = Metric("pauses", "a gauge with a label", label="cause")
BYTES = Metric("bytes", "a counter", "counter")


class Recorded:
    """Replaces Ray's metrics."""

    told = []  # noqa: RUF012 - emptied by each test

    def __init__(self, name, text, tag_keys):
        assert text
        self.name, self.keys = name, tag_keys

    def set(self, value, tags):
        assert tuple(tags) == self.keys
        self.told.append((self.name, "set", value, tags))

    def inc(self, value, tags):
        assert value > 0  # Ray refuses anything else
        assert tuple(tags) == self.keys
        self.told.append((self.name, "inc", value, tags))


@pytest.fixture
def told(monkeypatch):
    Recorded.told = []
    monkeypatch.setattr(metrics, "Gauge", Recorded)
    monkeypatch.setattr(metrics, "Counter", Recorded)
    return Recorded.told


def test_each_value_has_the_runs_name_and_its_own_label(told):
    Exporter("demo", lambda: [Reading(LOSS, 0.5), Reading(PAUSES, 2.0, "lost")]).export()
    assert told == [
        ("loss", "set", 0.5, {"run": "demo"}),
        ("pauses", "set", 2.0, {"run": "demo", "cause": "lost"}),
    ]


def test_a_counter_gets_the_added_amount(told):
    counts = iter([0, 5, 5, 12])
    exporter = Exporter("demo", lambda: [Reading(BYTES, next(counts))])
    for _ in range(4):
        exporter.export()
    assert [(how, value) for _, how, value, _ in told] == [("inc", 5), ("inc", 7)]


def test_readings_are_repeated_until_the_exporter_is_stopped(told, monkeypatch):
    monkeypatch.setattr(metrics, "_INTERVAL", 0.001)
    thrice = threading.Semaphore(0)

    def read():
        thrice.release()
        return [Reading(LOSS, 1.0)]

    exporter = Exporter("demo", read)
    exporter.start()
    assert all(thrice.acquire(timeout=10) for _ in range(3))
    (thread,) = [t for t in threading.enumerate() if t.name == "metrics"]
    assert thread.daemon
    exporter.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert len(told) >= 2


def test_an_export_error_is_reported_once_and_disturbs_no_run(told, monkeypatch, caplog):
    monkeypatch.setattr(metrics, "_INTERVAL", 0.001)

    def read():
        raise OSError("no metrics today")

    exporter = Exporter("demo", read)
    exporter.start()
    for thread in [t for t in threading.enumerate() if t.name == "metrics"]:
        thread.join(10)
    assert [record.message for record in caplog.records] == [
        "the metrics of run demo are not exported any more"
    ]
    assert "no metrics today" in caplog.text
    assert told == []

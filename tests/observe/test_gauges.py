"""The journal's events add up to the values that are exported."""

import math

import pytest

from raytrain_plus.observe.causes import KINDS
from raytrain_plus.observe.gauges import METRICS, LiveRun, traffic

EVENTS = [
    {"event": "run", "time": 100.0},
    {"event": "worker", "time": 105.0, "worker": "w0", "state": "ready"},
    {"event": "generation", "time": 110.0, "generation": 1, "workers": 2,
     "causes": [{"kind": "start"}], "pause_seconds": 0.0},
    *({"event": "step", "time": 110.0 + n, "step": n, "loss": 1 / n} for n in range(1, 11)),
    {"event": "checkpoint", "time": 120.0, "step": 10, "folder": "/runs/c_10"},
    {"event": "generation", "time": 121.5, "generation": 2, "workers": 1,
     "causes": [{"kind": "lost", "worker": "w1"}], "pause_seconds": 0.75},
    {"event": "step", "time": 122.0, "step": 11, "loss": 0.5,
     "logged": {"accuracy": 0.75, "odd": "nan"}},
    {"event": "generation", "time": 125.0, "generation": 3, "workers": 2,
     "causes": [{"kind": "joined", "worker": "w2"}, {"kind": "lost", "worker": "w1"}],
     "pause_seconds": 0.5},
]  # fmt: skip


def live(events=EVENTS):
    return LiveRun(batch_size=64, total_steps=300, began=50.0, events=events)


def values(run, now):
    found = {}
    for reading in run.readings(now):
        key = reading.metric.name.removeprefix("raytrain_plus_")
        found[f"{key}:{reading.of}" if reading.of else key] = reading.value
    return found


def test_the_values_are_those_of_the_events():
    found = values(live(), 125.0)
    expected = {
        "step": 11,
        "total_steps": 300,
        "loss": 0.5,
        "workers": 2,
        "generation": 3,
        "pause_seconds:lost": 1.25,
        "pause_seconds:joined": 0.0,
        "checkpoint_age_seconds": 5.0,
        "logged:accuracy": 0.75,
    }
    assert math.isnan(found["logged:odd"])
    assert {key: found[key] for key in expected} == expected
    assert {key for key in found if key.startswith("pause")} == {
        f"pause_seconds:{cause}" for cause in KINDS
    }


def test_samples_are_counted_in_batches_and_stop_without_training():
    run = live(EVENTS[:13])
    assert values(run, 120.0)["samples_per_second"] == 64.0
    assert values(run, 180.0)["samples_per_second"] < 2.0


def test_tokens_and_the_use_of_the_peak_are_there_if_they_are_known():
    environment = {"event": "environment", "sample_flops": 1e6, "peak_flops": 1e9}
    run = live([EVENTS[0] | {"batch_tokens": 640}, environment, *EVENTS[1:13]])
    found = values(run, 120.0)
    assert found["tokens_per_second"] == 640.0
    assert found["mfu"] == 64.0 * 1e6 / (2 * 1e9)  # of two workers
    assert not {"tokens_per_second", "mfu"} & values(live(), 120.0).keys()


def test_before_the_first_checkpoint_its_age_is_that_of_the_run():
    assert values(live(EVENTS[:5]), 130.0)["checkpoint_age_seconds"] == 30.0
    assert values(live([]), 130.0)["checkpoint_age_seconds"] == 80.0  # since it is known
    assert live([]).checkpoint(130.0) is None


def test_a_loss_is_there_when_there_was_a_step():
    assert "loss" not in values(live(EVENTS[:3]), 111.0)


@pytest.mark.parametrize("how", [{"refused": "it is damaged"}, {"removed": True}])
def test_a_removed_checkpoint_does_not_count(how):
    run = live()
    run.add([{"event": "checkpoint", "time": 126.0, "step": 20, "folder": "/runs/c_20"}])
    assert run.checkpoint(127.0) == {"step": 20, "age_seconds": 1.0}
    run.add([{"event": "checkpoint", "time": 127.0, "folder": "/runs/c_20", **how}])
    assert run.checkpoint(130.0) == {"step": 10, "age_seconds": 10.0}
    run.add([{"event": "checkpoint", "time": 131.0, "step": 20, "error": "no room"}])
    assert run.checkpoint(132.0) == {"step": 10, "age_seconds": 12.0}


def test_withdrawn_steps_do_not_count():
    run = live()
    run.add([{"event": "withdrawn", "time": 126.0, "step": 10, "generation": 3}])
    assert values(run, 126.0)["step"] == 10


def test_a_resumed_run_starts_its_values_again():
    run = live([*EVENTS, {"event": "run", "time": 500.0}])
    found = values(run, 501.0)
    assert (found["step"], found["generation"], found["pause_seconds:lost"]) == (0, 0, 0.0)
    assert found["checkpoint_age_seconds"] == 1.0


def test_a_processs_fetches_are_three_counters():
    counts = {"hits": 5, "misses": 2, "fetched_files": 2, "fetched_bytes": 999}
    found = {reading.metric.seen_as: reading.value for reading in traffic(counts)}
    assert found == {
        "ray_raytrain_plus_fetched_bytes_total": 999,
        "ray_raytrain_plus_cache_hits_total": 5,
        "ray_raytrain_plus_cache_misses_total": 2,
    }


def test_the_catalogue_lists_the_values_that_are_read():
    environment = {"event": "environment", "sample_flops": 1e6, "peak_flops": 1e9}
    all_known = live([EVENTS[0] | {"batch_tokens": 640}, environment, *EVENTS[1:]])
    read = {reading.metric for reading in [*all_known.readings(125.0), *traffic(_Zeros())]}
    assert read == set(METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


class _Zeros(dict):
    def __missing__(self, key):
        return 0

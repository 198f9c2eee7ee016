"""A live run is watched from outside: its metrics in Prometheus, and its status."""

import os
import signal
import threading
import time
import urllib.request

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from raytrain_plus import Stream, StreamWriter
from raytrain_plus.cli.commands import app
from raytrain_plus.elastic.client import control
from raytrain_plus.observe.gauges import METRICS
from tests.cluster.dashboard import DASHBOARD, named
from tests.end_to_end.runs import PATIENCE, UNHURRIED, Script, at_step, train
from tests.end_to_end.tasks import ROWS, Hold, LogsHalves, Streamed, pictures

V = 4
STEPS, HELD = 60, 40
OF_TEXT = "ray_raytrain_plus_tokens_per_second"  # the images of this run have no tokens
SLOW = 2 * PATIENCE  # Ray's processes report to their node's agent every 10 s


@pytest.fixture
def task(tmp_path):
    """A task with compressed data, which is read through the node's cache."""
    for folder, rows in ("train", pictures().slice(0, ROWS)), ("held_out", pictures().slice(ROWS)):
        with StreamWriter(tmp_path / folder, file_size=4000, compression="zstd") as writer:
            writer.write(rows)
    cache = tmp_path / "cache"
    return Streamed(*(Stream(tmp_path / name, cache=cache) for name in ("train", "held_out")))


def scraped(run):
    """Return a run's metrics over all nodes of the cluster: name -> labels -> value."""
    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("run") == run:
                    of = sample.labels.get("cause", sample.labels["WorkerId"])
                    found.setdefault(sample.name, {})[of] = sample.value
    return found


def await_that(true):
    deadline = time.monotonic() + SLOW
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


class Watcher:
    """Reads a run's status and metrics while the run is held, and then releases it."""

    def __init__(self, storage, release):
        self.storage, self.release = str(storage), release
        self.seen = []

    def look(self, name):
        self.metrics = await_that(lambda: self._whole(name))
        self.shown = CliRunner().invoke(app, ["status", name, "--storage", self.storage]).stdout
        self.told = await_that(lambda: self._settled(name))
        self.hung, self.seconds = self._while_one_hangs(name)
        self.thread = threading.Thread(target=self._watch, args=(name,))
        self.thread.start()
        await_that(lambda: self.seen)
        self.release.touch()

    def _whole(self, name):
        found = scraped(name)
        arrived = set(found.get("ray_raytrain_plus_step", {}).values()) == {HELD}
        return arrived and len(found) >= len(METRICS) - 1 and found

    def _settled(self, name):
        told = control.status(name, self.storage)
        return told["step"] == HELD and told

    def _while_one_hangs(self, name):
        pid = self.told["pids"]["w1"]
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            return control.status(name, self.storage), time.monotonic() - began
        finally:
            os.kill(pid, signal.SIGCONT)

    def _watch(self, name):
        for told in control.watch(name, self.storage, every=0.05):
            self.seen.append(told)


def test_a_live_run_shows_its_metrics_and_its_status(task, storage, tmp_path):
    watcher = Watcher(storage, tmp_path / "released")
    script = Script((at_step(HELD), watcher.look))
    run = train(
        task,
        storage,
        logical_ranks=V,
        workers=(2, 2),
        steps=STEPS,
        aspects=[Hold(step_number=HELD + 1, file=watcher.release), LogsHalves()],
        director=script,
        checkpoint_every="20ba",
        hang_deadline=UNHURRIED["hang_deadline"],
        peak_tflops=0.001,  # of a CPU no peak is known
    )
    assert script.is_over
    assert run.summary["state"] == "finished"

    # Exactly the exported metrics are on the dashboard.
    assert OF_TEXT not in watcher.metrics
    exported = {*watcher.metrics, OF_TEXT}
    assert named(DASHBOARD.read_text()) == exported
    renamed = DASHBOARD.read_text().replace("cache_hits", "cache_hit")
    assert named(renamed) - exported == {"ray_raytrain_plus_cache_hit_total"}  # the control
    values = {
        name.removeprefix("ray_raytrain_plus_"): sum(of.values())
        for name, of in watcher.metrics.items()
    }
    expected = {"step": HELD, "total_steps": STEPS, "workers": 2, "generation": 1}
    assert {name: values[name] for name in expected} == expected
    assert values["loss"] == run.of("step", step=HELD)[0]["loss"]
    assert values["logged"] == sum(range(V)) / V / 2
    assert run.summary["logged"] == {"half": values["logged"]}
    assert values["cache_misses_total"] >= 1
    assert values["fetched_bytes_total"] > 10_000
    assert 0 < values["checkpoint_age_seconds"] < 10 * SLOW  # not a point in time

    # The status has each worker, also while one does not answer.
    workers = {one["worker"]: one for one in watcher.told["members"]}
    assert sorted(workers) == ["w0", "w1"]
    assert {w: one["pid"] for w, one in workers.items()} == run.pids
    assert sorted(rank for one in workers.values() for rank in one["ranks"]) == list(range(V))
    assert all(one["seconds_per_rank"] > 0 for one in workers.values())
    assert {one["phase"] for one in workers.values()} == {"computing"}  # where they are held
    assert [one["phase"] for one in watcher.hung["members"]] == ["computing", "no answer"]
    assert watcher.seconds < PATIENCE / 4
    assert watcher.told["checkpoint"]["step"] in (20, 40)
    for text in ("training", f"{HELD} of {STEPS}", "computing", "0 to 1", "2 to 3"):
        assert text in watcher.shown

    # A watcher sees the run go on to its end.
    watcher.thread.join(PATIENCE)
    assert not watcher.thread.is_alive()
    states = [told["state"] for told in watcher.seen]
    assert (states[0], states[-1]) == ("training", "finished")
    assert watcher.seen[-1]["digest"] == run.summary["digest"]

"""A daemon of our own Ray that has ended is named, and the other one ends with it."""

import subprocess
from types import SimpleNamespace

import pytest
import ray

from raytrain_plus.ray_cluster import own_ray


@pytest.fixture
def daemons(monkeypatch):
    processes = {kind: subprocess.Popen(["sleep", "1000"]) for kind in ("gcs_server", "raylet")}
    infos = {kind: [SimpleNamespace(process=one)] for kind, one in processes.items()}
    node = SimpleNamespace(all_processes=infos)
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    yield processes
    for one in processes.values():
        one.kill()
        one.wait()


def test_daemons_that_live_are_not_named(daemons):
    assert own_ray.dead_daemon() is None
    assert all(one.poll() is None for one in daemons.values())


def test_the_raylet_does_not_outlive_its_head(daemons):
    daemons["gcs_server"].kill()
    daemons["gcs_server"].wait()
    named = f"gcs_server (process {daemons['gcs_server'].pid}, status -9)"
    assert own_ray.dead_daemon() == named
    own_ray.end_daemons()
    assert daemons["raylet"].poll() is not None
    assert own_ray.dead_daemon() == named


def test_a_ray_of_another_process_has_no_daemons_here(monkeypatch):
    monkeypatch.setattr(ray._private.worker, "_global_node", None)
    assert own_ray.dead_daemon() is None
    own_ray.end_daemons()

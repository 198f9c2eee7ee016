"""An ended daemon of our own Ray is named, and the other daemon ends with it."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private import utils

from raytrain_plus.ray_cluster import own_ray


@pytest.fixture
def daemons(monkeypatch):
    # Each has a child, as the raylet has workers.
    command = ["bash", "-c", "sleep 1000 & echo $!; wait"]
    processes = {
        kind: subprocess.Popen(command, stdout=subprocess.PIPE) for kind in ("gcs_server", "raylet")
    }
    infos = {kind: [SimpleNamespace(process=one)] for kind, one in processes.items()}
    node = SimpleNamespace(all_processes=infos)
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    children = {kind: int(one.stdout.readline()) for kind, one in processes.items()}
    yield SimpleNamespace(**processes, children=children)
    for kind, one in processes.items():
        one.kill()
        one.wait()
        one.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[kind], signal.SIGKILL)


def lives(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_daemons_that_live_are_not_named(daemons):
    assert own_ray.dead_daemon() is None
    assert (daemons.gcs_server.poll(), daemons.raylet.poll()) == (None, None)


def test_neither_the_raylet_nor_its_workers_outlive_their_head(daemons):
    daemons.gcs_server.kill()
    daemons.gcs_server.wait()
    named = f"gcs_server (process {daemons.gcs_server.pid}, status -9)"
    assert own_ray.dead_daemon() == named
    assert lives(daemons.children["raylet"])
    own_ray.end_daemons()
    assert daemons.raylet.poll() is not None
    assert not lives(daemons.children["raylet"])
    assert own_ray.dead_daemon() == named


def test_a_ray_of_another_process_has_no_daemons_here(monkeypatch):
    monkeypatch.setattr(ray._private.worker, "_global_node", None)
    assert own_ray.dead_daemon() is None
    own_ray.end_daemons()


def test_ray_lists_this_process_without_its_passwords(monkeypatch):
    line = (
        "raytrain-plus train a:B --data http://ann:hunter2@host/x --storage-option secret=hunter2 "
        '--checkpoint-option "pin=hunter2" --storage-option=key=hunter2 --name mine'
    )
    monkeypatch.setattr(utils, "get_entrypoint_name", lambda: line)
    with own_ray.command_without_secrets():
        told = utils.get_entrypoint_name()
    assert "hunter2" not in told
    assert told.startswith("raytrain-plus train a:B --data http://***@host/x --storage-option")
    assert told.endswith("--name mine")
    assert utils.get_entrypoint_name() == line

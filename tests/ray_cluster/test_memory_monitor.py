"""A node's memory is read as Ray's monitor reads it; processes that the monitor ended are named."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest
import ray
from ray.core.generated import common_pb2, gcs_pb2

from raytrain_plus.ray_cluster import memory_monitor

GIB = 2**30
# The message of Ray 2.60.
TOLD = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "192.0.2.2, ID: b72d4) was 22.50GB used / 23.54GB limit (0.955820)\n"
    f"OOM kill reason: Memory usage {22.5 * GIB:.0f}B exceeded threshold of {22 * GIB}B "
    f"(93.6% of {23.5 * GIB:.0f}B limit)\nObject store memory usage: [- objects spillable: 0\n"
)
PROCESS = bytes(range(28))


class Tables:
    """Ray's tables of actors and of processes."""

    def __init__(self, exit_type, told=TOLD, *, restarting=True):
        self.actor = gcs_pb2.ActorTableData()
        if restarting:
            self.actor.previous_incarnations.add(worker_id=PROCESS)
        else:
            self.actor.address.worker_id = PROCESS
        self.end = gcs_pb2.WorkerTableData(
            exit_type=exit_type, exit_detail=told, memory_used_bytes_at_death=7 * GIB
        )

    def get_actor_info(self, _):
        return self.actor.SerializeToString()

    def get_worker_info(self, worker):
        return self.end.SerializeToString() if worker.binary() == PROCESS else None


@pytest.fixture
def asked(monkeypatch):
    def ask(tables):
        state = SimpleNamespace(_connect_and_get_accessor=lambda: tables)
        monkeypatch.setattr(ray._private.state, "state", state)
        return memory_monitor.kill_of(SimpleNamespace(_actor_id=None))

    return ask


@pytest.mark.parametrize("restarting", [True, False])
def test_a_process_that_rays_memory_monitor_ended(asked, restarting):
    assert asked(Tables(common_pb2.NODE_OUT_OF_MEMORY, restarting=restarting)) == (
        "Ray's memory monitor ended its process, which used 7.0 GiB: its node used 22.5 of 23.5 "
        "GiB of memory, and Ray allows 22.0 GiB (RAY_memory_usage_threshold)"
    )


def test_an_unknown_message_of_ray_is_passed_on(asked):
    assert asked(Tables(common_pb2.NODE_OUT_OF_MEMORY, "memory is low")) == (
        "Ray's memory monitor ended its process, which used 7.0 GiB: its node was short of memory"
    )


def test_a_process_that_ended_otherwise(asked):
    assert asked(Tables(common_pb2.SYSTEM_ERROR)) == ""


def test_an_actor_that_ray_does_not_know(asked):
    tables = Tables(common_pb2.NODE_OUT_OF_MEMORY)
    tables.get_actor_info = lambda _: None
    assert asked(tables) == ""


def test_a_ray_that_does_not_answer_causes_no_long_wait(asked, monkeypatch):
    gate = threading.Event()

    def silent(_):
        gate.wait(60)

    tables = Tables(common_pb2.NODE_OUT_OF_MEMORY)
    tables.get_actor_info = silent
    monkeypatch.setattr(memory_monitor, "_ANSWER_SECONDS", 0.01)
    assert asked(tables) == ""
    gate.set()


MEMINFO = "MemTotal:       24000000 kB\nMemFree:  1000 kB\nMemAvailable:   18000000 kB\nHuge:\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files of a system; those of a container can be added."""
    for name in ("RAY_memory_usage_threshold", "RAY_min_memory_free_bytes"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_memory_monitor_refresh_ms", raising=False)
    (tmp_path / "meminfo").write_text(MEMINFO)

    def read(**files):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("_of_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return memory_monitor.node_memory(tmp_path / "meminfo", tmp_path / "cgroup")

    return read


def test_the_memory_of_a_node_is_what_is_not_available(system):
    assert system() == memory_monitor.NodeMemory(
        6_000_000 * 1024, 24_000_000 * 1024, 24_000_000 * 1024 * 0.95
    )


def test_a_container_has_its_own_memory_without_cached_files(system, monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.5")
    stat = "anon 1\ninactive_file 300\nactive_file 200\n"
    found = system(memory_of_max="4000\n", memory_of_current="2500\n", memory_of_stat=stat)
    assert found == memory_monitor.NodeMemory(2000, 4000, 2000)


def test_a_container_of_the_older_kind(system):
    stat = "cache 9\ntotal_inactive_file 300\ntotal_active_file 200\n"
    found = system(
        memory__memory_of_limit_in_bytes="4000\n",
        memory__memory_of_usage_in_bytes="2500\n",
        memory__memory_of_stat=stat,
    )
    assert found == memory_monitor.NodeMemory(2000, 4000, 3800)


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n"])
def test_a_container_without_a_limit_has_the_systems_memory(system, limit):
    stat = "inactive_file 300\nactive_file 200\n"
    found = system(memory_of_max=limit, memory_of_current="2500\n", memory_of_stat=stat)
    assert found == system()
    assert found.total == 24_000_000 * 1024


def test_memory_that_ray_must_leave_free_counts_if_it_allows_more(system, monkeypatch):
    monkeypatch.setenv("RAY_min_memory_free_bytes", "1024")
    assert system().allowed == 24_000_000 * 1024 - 1024


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_memory_monitor_refresh_ms", "0"), ("RAY_memory_usage_threshold", "much")],
)
def test_without_rays_monitor_memory_is_not_watched(system, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert system() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_this_system():
    memory = memory_monitor.node_memory()
    assert 0 < memory.used < memory.total
    largest, size = memory_monitor.is_largest_here()
    assert largest in (True, False)
    assert size > 2**20


def test_a_node_above_the_threshold_is_named_in_errors():
    high = memory_monitor.NodeMemory(23 * GIB, 24 * GIB, 22 * GIB)
    assert memory_monitor.trouble(lambda: high) == (
        "; this node uses 23.0 of 24.0 GiB of memory, and Ray allows 22.0 GiB "
        "(RAY_memory_usage_threshold), so that Ray's memory monitor ends what is started here: "
        "free memory, use a larger node, or raise the threshold"
    )
    assert memory_monitor.trouble(lambda: memory_monitor.NodeMemory(1, 24 * GIB, 22 * GIB)) == ""
    assert memory_monitor.trouble(lambda: None) == ""


def test_what_a_process_and_its_node_use(tmp_path):
    make_process(tmp_path, os.getpid(), 1, 3 * GIB // os.sysconf("SC_PAGE_SIZE"))
    node = memory_monitor.NodeMemory(9 * GIB, 24 * GIB, 22 * GIB)
    assert memory_monitor.memory_use(lambda: node, tmp_path) == (
        "its process used 3.0 GiB; its node used 9.0 of 24.0 GiB of memory, and Ray allows "
        "22.0 GiB (RAY_memory_usage_threshold)"
    )
    assert memory_monitor.memory_use(lambda: None, tmp_path) == ""


def make_process(folder, pid, parent, pages, shared=0):
    (folder / str(pid)).mkdir(parents=True)
    (folder / str(pid) / "stat").write_text(f"{pid} (ray::A (b) c) S {parent} 1 1 0")
    (folder / str(pid) / "statm").write_text(f"9999 {pages} {shared} 1 0 1 0")


def test_only_processes_of_the_same_ray_are_compared_by_their_own_memory(tmp_path):
    page = os.sysconf("SC_PAGE_SIZE")
    make_process(tmp_path, 10, 1, 5000)  # Ray's own, the parent
    make_process(tmp_path, 11, 10, 300)
    make_process(tmp_path, 12, 10, 900, shared=700)
    make_process(tmp_path, 13, 7, 5000)
    (tmp_path / "14").mkdir()  # it has ended
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert memory_monitor.is_largest_here(tmp_path, 11) == (True, 300 * page)
    assert memory_monitor.is_largest_here(tmp_path, 12) == (False, 200 * page)

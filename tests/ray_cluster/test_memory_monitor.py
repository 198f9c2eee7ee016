"""How a worker that Ray's memory monitor has ended is named."""

import threading
from types import SimpleNamespace

import pytest
import ray
from ray.core.generated import common_pb2, gcs_pb2

from raytrain_plus.ray_cluster import memory_monitor

GIB = 2**30
# As Ray 2.60 says it.
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
def test_a_process_that_was_ended_for_want_of_memory(asked, restarting):
    assert asked(Tables(common_pb2.NODE_OUT_OF_MEMORY, restarting=restarting)) == (
        "Ray's memory monitor ended its process, which used 7.0 GiB: its node used 22.5 of 23.5 "
        "GiB of memory, and Ray allows 22.0 GiB (RAY_memory_usage_threshold)"
    )


def test_what_ray_says_in_other_words_is_still_named(asked):
    assert asked(Tables(common_pb2.NODE_OUT_OF_MEMORY, "memory is low")) == (
        "Ray's memory monitor ended its process, which used 7.0 GiB: its node was short of memory"
    )


def test_a_process_that_ended_otherwise(asked):
    assert asked(Tables(common_pb2.SYSTEM_ERROR)) == ""


def test_an_actor_that_ray_does_not_know(asked):
    tables = Tables(common_pb2.NODE_OUT_OF_MEMORY)
    tables.get_actor_info = lambda _: None
    assert asked(tables) == ""


def test_a_ray_that_does_not_answer_keeps_nobody_waiting(asked, monkeypatch):
    gate = threading.Event()

    def silent(_):
        gate.wait(60)

    tables = Tables(common_pb2.NODE_OUT_OF_MEMORY)
    tables.get_actor_info = silent
    monkeypatch.setattr(memory_monitor, "_ANSWER_SECONDS", 0.01)
    assert asked(tables) == ""
    gate.set()

"""What a fault does to the process that it hits, and its entry in the fault log."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from raytrain_plus.elastic.liveness.fault_log import FaultLog
from raytrain_plus.elastic.protocol.faults import Fault, FaultError
from raytrain_plus.elastic.worker import process_faults
from raytrain_plus.elastic.worker.process_faults import Injector, strike
from raytrain_plus.storage.store import Store

STRIKE = """
import os, signal, sys, threading
from pathlib import Path
from raytrain_plus.elastic.liveness.fault_log import FaultLog
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.worker.process_faults import Injector
def beat():
    print("beat", flush=True)
    threading.Timer(0.05, beat).start()
if "beat" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    beat()
Injector("w3", FaultLog(Path(sys.argv[1]))).hit(Fault(step=4, action=sys.argv[2]))
print("still here", flush=True)
"""
PATIENCE = 60.0


def struck(folder, action, *options):
    """Start a process that logs a fault and then injects it into itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", STRIKE, str(folder), action, *options], stdout=subprocess.PIPE
    )
    await_it(lambda: (folder / "faults.jsonl").exists() or process.poll() is not None)
    return process


def await_it(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("action", "number"),
    [("kill", signal.SIGKILL), ("kill_all", signal.SIGKILL), ("terminate", signal.SIGTERM)],
)
def test_a_fault_is_logged_before_it_ends_its_process(tmp_path, action, number):
    strikes = FaultLog(tmp_path)
    assert strikes.new() == {}
    done = struck(tmp_path, action)
    assert done.communicate(timeout=PATIENCE) == (b"", None)
    assert done.returncode == -number
    assert strikes.new() == {Fault(step=4, action=action): ["w3"]}
    assert strikes.new() == {}  # reported once
    assert len(FaultLog(tmp_path).new()) == 1  # but again to a restarted coordinator
    strikes.forget()
    assert FaultLog(tmp_path).new() == {}  # and not to a run that is resumed later


def test_a_spinning_process_runs_no_other_thread_and_ends_by_sigkill_only(tmp_path):
    process = struck(tmp_path, "spin", "beat")
    try:
        before = cpu_seconds(process.pid)  # the fault is in the log already
        await_it(lambda: cpu_seconds(process.pid) > before + 0.5)
        process.terminate()  # its handler cannot run
        await_it(lambda: cpu_seconds(process.pid) > before + 1.5)
        process.kill()
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL
        assert said.count(b"beat") < 20  # it spins: 100 clock ticks are one CPU second
        assert b"still here" not in said
    finally:
        process.kill()


def test_a_process_that_stalls_answers_and_is_idle(tmp_path):
    process = struck(tmp_path, "stall", "beat")
    try:
        for _ in range(20):  # the other thread goes on
            assert process.stdout.readline() == b"beat\n"
        assert process.poll() is None
        process.kill()
        assert b"still here" not in process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == -signal.SIGKILL
    finally:
        process.kill()


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_hog_works_next_to_the_process_and_ends_in_time():
    pid = process_faults.hog(0.5)
    await_it(lambda: not Path(f"/proc/{pid}").exists())  # and leaves no zombie
    pid = process_faults.hog(600.0)
    try:
        before = cpu_seconds(pid)
        await_it(lambda: cpu_seconds(pid) > before + 0.3)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_hog_ends_with_the_process_that_started_it():
    code = (
        "from raytrain_plus.elastic.worker.process_faults import hog; print(hog(600.0), flush=True)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code + "; input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.communicate()
    await_it(lambda: not Path(f"/proc/{pid}").exists() or state(pid) == "Z")


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_a_slow_worker_has_a_hog_on_its_node(monkeypatch):
    asked = []
    monkeypatch.setattr(process_faults, "hog", asked.append)
    strike(Fault(step=1, action="slow"))
    strike(Fault(step=1, action="slow", seconds=2.5))
    assert asked == [10.0, 2.5]


@pytest.mark.parametrize(
    ("action", "number"),
    [
        ("kill", signal.SIGKILL),
        ("kill_all", signal.SIGKILL),
        ("kill_coordinator", signal.SIGKILL),
        ("stop_coordinator", signal.SIGSTOP),
        ("stop", signal.SIGSTOP),
        ("terminate", signal.SIGTERM),
    ],
)
def test_a_fault_sends_a_signal_to_its_own_process(monkeypatch, action, number):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *to: sent.append(to))
    strike(Fault(step=1, action=action))
    assert sent == [(os.getpid(), number)]


class Target:
    """Records the faults that it gets."""

    def __init__(self):
        self.suffered = []

    def flip_bit(self, draw):
        self.suffered.append(("flip_bit", draw))

    def miscompute(self):
        self.suffered.append(("miscompute",))

    def spoil_gradient(self):
        self.suffered.append(("spoil_gradient",))

    def lose_store(self, seconds):
        self.suffered.append(("lose_store", seconds))


def test_faults_of_the_workers_state_are_done_by_the_worker(tmp_path):
    target = Target()
    injector = Injector("w0", FaultLog(tmp_path), target)
    flip = Fault(step=4, action="flip")
    for fault in (
        flip,
        Fault(step=4, action="miscompute"),
        Fault(step=4, action="nan_gradient"),
        Fault(step=4, action="lose_store", seconds=3),
        flip,  # a step may enter a phase twice: flipping the bit back would hide the fault
    ):
        injector.hit(fault)
    assert target.suffered == [
        ("flip_bit", flip.draw("w0")),
        ("miscompute",),
        ("spoil_gradient",),
        ("lose_store", 3.0),
    ]


@pytest.mark.parametrize(
    "action", ["flip", "miscompute", "nan_gradient", "lose_store", "drain", "add", "fill_disk"]
)
def test_a_fault_without_its_target_is_refused(action):
    with pytest.raises(FaultError, match=f"{action} cannot strike here"):
        strike(Fault(step=1, action=action))


def test_faults_are_reported_with_all_workers_that_they_hit(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: None)
    strikes = FaultLog(tmp_path)
    one, other = Fault(step=4, action="kill", workers=2), Fault(step=4, action="stop", victim=0)
    for worker, fault in [("w1", one), ("w0", other), ("w2", one)]:
        Injector(worker, FaultLog(tmp_path)).hit(fault)
    assert strikes.new() == {one: ["w1", "w2"], other: ["w0"]}


def test_each_fault_is_told_once_in_a_folder_and_in_an_object_store(tmp_path):
    kill, stop = Fault(step=4, action="kill"), Fault(step=5, action="stop")
    for folder in (tmp_path, Store(f"memory://{uuid.uuid4().hex}")):
        log = FaultLog(folder)
        assert log.new() == {}
        FaultLog(folder).add("w1", kill)
        FaultLog(folder).add("w2", kill)
        assert log.new() == {kill: ["w1", "w2"]}
        FaultLog(folder).add("w3", stop)
        assert log.new() == {stop: ["w3"]}
        log.forget()
        assert FaultLog(folder).new() == {}

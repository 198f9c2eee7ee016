"""What loggers and monitors cost the training thread.

Run as `python -m benchmarks.monitors [--quick] [--json]`.

Four copies of a tiny model train by turns in one process: alone; with three loggers (CSV,
TensorBoard, MLflow in a folder); with all monitors at their default intervals; with both. A second
process writes the four journals from what a reporter's thread sends, and feeds the loggers, as the
coordinator and its process for loggers do in a run. A window begins when the loggers have written
the one before. The model is tiny, so that all other costs show. The final states must be equal in
every bit.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from ray import cloudpickle

from benchmarks import report
from benchmarks.corruption_cost import batches
from benchmarks.one_process import CPU, Alone
from benchmarks.report import Aim, Row
from benchmarks.tasks import TINY
from raytrain_plus.algorithms import Aspect, Weave
from raytrain_plus.algorithms.monitors import (
    LearningRateMonitor,
    MemoryMonitor,
    NormMonitor,
    Profile,
)
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.coordinator.loggers import LoggerProcess
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.worker.progress import Progress
from raytrain_plus.elastic.worker.reporter import Records, Reporter
from raytrain_plus.loggers import CSVLogger, MLflowLogger, TensorBoardLogger
from raytrain_plus.loggers.feed import await_all, read_cursor
from raytrain_plus.observe.journal import FILE_NAME, Journal
from raytrain_plus.task import Batch
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica

_MOST = 0.05  # milliseconds
_TOGETHER = 10  # steps that are measured at a time
_PATIENCE = 120.0  # seconds for loggers to write a window
LOGGERS = ("csv", "tensorboard", "mlflow")


@dataclass(frozen=True)
class Variant:
    """What watches a copy of the model."""

    name: str
    logs: bool = False
    monitors: bool = False


VARIANTS = (
    Variant("nothing"),
    Variant("3 loggers", logs=True),
    Variant("4 monitors", monitors=True),
    Variant("loggers and monitors", logs=True, monitors=True),
)


def all_monitors() -> list[Aspect]:
    """Return each monitor with its defaults; no step of the benchmark is traced."""
    return [LearningRateMonitor(), NormMonitor(), MemoryMonitor(), Profile(steps=(10**9,))]


class Copy:
    """One copy of the model, with its reporter.

    Args:
        variant: what watches it.
        parts: the parts of each step.
        send: sends records to the other process.
    """

    def __init__(self, variant: Variant, parts: Sequence[Batch], send: Any) -> None:
        self.variant = variant
        self._parts = parts
        task = TINY.load()
        clock = Clock(
            total_steps=10**9,
            steps_per_epoch=10**9,
            batch_size=TINY.batch_size,
            evaluate_every=10**9,
        )
        weave = Weave(all_monitors() if variant.monitors else [])
        self.replica = Replica.build(task, 17, CPU, weave=weave, clock=clock)
        progress, self._records = Progress(), Records()
        self._loop = TrainingLoop(task, self.replica, weave, progress.enter)
        self._loop.begin_generation([range(TINY.logical_ranks)], Alone())
        self._sent = 0  # the last step that was sent
        self._send = send
        self._reporter = Reporter(self._report, progress, self._records)
        self._reporter.start(1, sends=True)

    def _report(self, message: Any) -> bool:
        self._send(("records", self.variant.name, message.records))
        if message.records:
            self._sent = message.records[-1].step
        self._reporter.received(message.number)
        return True

    def window(self, steps: int) -> list[tuple[float, float]]:
        """Run some steps, ten at a time.

        Returns:
            Milliseconds of a step: of the thread's CPU, and of the wall.
        """
        times = []
        for _ in range(steps // _TOGETHER):
            wall, cpu = time.perf_counter(), time.thread_time()
            for _ in range(_TOGETHER):
                self._records.add_step(1, self._loop.run_step(self._parts))
            cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
            times.append((cpu / _TOGETHER * 1e3, wall / _TOGETHER * 1e3))
        while self._sent < self.replica.step:
            time.sleep(0.01)
        return times

    def close(self) -> None:
        """End the reporter."""
        self._reporter.stop()


def coordinate(connection: Connection, folder: Path) -> None:
    """Write the journals and feed the loggers: what the second process does."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    logs, processes = {}, []
    for variant in VARIANTS:
        (folder / variant.name).mkdir()
        journal = Journal(folder / variant.name)
        journal.write("run", run=variant.name, total_steps=10**9, batch_size=TINY.batch_size)
        logs[variant.name] = RunLog(journal)
        if variant.logs:
            mlruns = f"file:{folder / 'mlruns'}"
            loggers = [CSVLogger(), TensorBoardLogger(), MLflowLogger(tracking_uri=mlruns)]
            pickled, place = cloudpickle.dumps(loggers), folder / variant.name
            processes.append(LoggerProcess(pickled, LOGGERS, place, place, "benchmark", ()))
    while (message := connection.recv()) is not None:
        kind, name, content = message
        if kind == "records":
            logs[name].add(content, 1)
        else:  # a window is over
            deadline = time.monotonic() + _PATIENCE
            while any(
                read_cursor(folder / name, logger).step < logs[name].step for logger in content
            ):
                assert time.monotonic() < deadline, "a logger does not get on"
                time.sleep(0.05)
            connection.send(logs[name].step)
    for variant in VARIANTS:
        logs[variant.name].note("end", state="finished", step=logs[variant.name].step)
        if variant.logs:
            left = await_all(folder / variant.name, LOGGERS, time.time() - _PATIENCE)
            assert not left, left
    for process in processes:
        process.close()


def measure(folder: Path, rounds: int, steps: int) -> list[Row]:
    """Train all copies by turns; returns a row for each.

    Args:
        folder: for journals and what loggers write.
        rounds: windows of each copy.
        steps: of a window.
    """
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=coordinate, args=(other, folder))
    process.start()
    other.close()  # so that an end of the process is noticed
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            connection.send(message)

    copies = [Copy(variant, batches(TINY), send) for variant in VARIANTS]
    found: dict[str, list[tuple[float, float]]] = {one.variant.name: [] for one in copies}
    try:
        for i in range(rounds + 1):
            for copy in copies if i % 2 else reversed(copies):
                times = copy.window(steps)
                send(("wait", copy.variant.name, LOGGERS if copy.variant.logs else ()))
                assert connection.recv() == copy.replica.step
                if i:  # the first round warms everything up
                    found[copy.variant.name] += times
        digests = {copy.replica.digest() for copy in copies}
        assert len(digests) == 1, "monitors or loggers have changed bits"
    finally:
        for copy in copies:
            copy.close()
        send(None)
        process.join()
    lines = (folder / "3 loggers" / FILE_NAME).read_bytes().count(b'"event": "step"')
    assert lines == (rounds + 1) * steps
    return [_row(name, times, found["nothing"]) for name, times in found.items()]


def _row(name: str, times: list[tuple[float, float]], nothing: list[tuple[float, float]]) -> Row:
    (cpu, wall), (bare, bare_wall) = (zip(*one, strict=True) for one in (times, nothing))
    return {
        "watched by": name,
        "CPU ms, least": round(min(cpu), 4),
        "median": report.median(cpu, 4),
        "wall ms, least": round(min(wall), 4),
        "cost, CPU least": round(min(cpu) - min(bare), 4),
        "CPU median": round(report.median(cpu, 4) - report.median(bare, 4), 4),
        "wall least": round(min(wall) - min(bare_wall), 4),
        "ratio": round(min(cpu) / min(bare), 3),
    }


def main() -> None:
    """Measure all variants by turns."""
    options = report.options("cost of loggers and monitors per step")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), 5 if options.quick else 20, 300 if options.quick else 1000)
    report.show("milliseconds per step of the training thread", rows)
    aims = [
        Aim(
            f"ms per step of the training thread, {row['watched by']}",
            row["cost, CPU least"],
            most=_MOST,
        )
        for row in rows[1:]
    ]
    report.finish(aims, {"monitors": rows}, as_json=options.json)


if __name__ == "__main__":
    main()

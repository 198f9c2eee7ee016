"""How the coordinator learns of steps: one worker reports them, several times a second.

Every worker keeps its records of recent steps, so that nothing is lost with the one that reports.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError

from raytrain_plus.elastic.protocol.handles import CoordinatorHandle
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.elastic.worker.progress import Progress
from raytrain_plus.training.loop import StepResult

_KEPT = 80_000
_TIMES_BYTES = 8 << 20  # of all workers' times in a step, which the latest records alone have
_FLOAT_BYTES = 32
_INTERVAL = 0.2  # seconds between two messages
_PATIENCE = 30.0
# Seconds to report the rest, for which the whole group waits. A call to a coordinator that Ray is
# restarting hangs for up to 2 s. The coordinator later fetches the steps that were not reported.
_PARTING = 0.1


class Records:
    """A worker's records of recent steps, in less than 50 MB.

    The times of each worker are kept for the latest steps only: they are for decisions about the
    present group, and their number grows with it.
    """

    def __init__(self) -> None:
        self._kept: deque[Record] = deque(maxlen=_KEPT)
        self._added = 0
        self._lock = threading.Lock()
        self.last_time = 0.0

    def add_step(self, generation: int, result: StepResult) -> None:
        """Keep a committed step."""
        self.last_time = time.time()
        self._add(
            Record(
                result.step,
                generation,
                self.last_time,
                result.loss,
                result.busy_seconds,
                compute_seconds=result.compute_seconds,
                exchange_seconds=result.exchange_seconds,
                salvaged=result.salvaged,
                logged=dict(result.logged),
            )
        )

    def add_evaluation(
        self,
        generation: int,
        step: int,
        metrics: dict[str, Any],
        samples: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Keep an evaluation."""
        self._add(Record(step, generation, time.time(), metrics=metrics, samples=samples))

    def after(self, step: int) -> list[Record]:
        """Return the records of all steps after a step, and of evaluations at it or after it."""
        with self._lock:
            return [r for r in self._kept if r.step > step or (r.step == step and r.metrics)]

    def since(self, count: int) -> tuple[list[Record], int]:
        """Return what has been added since `count` records had been, and the new count."""
        with self._lock:
            new = min(self._added - count, len(self._kept))
            return [self._kept[i] for i in range(len(self._kept) - new, len(self._kept))], (
                self._added
            )

    def _add(self, record: Record) -> None:
        with self._lock:
            self._kept.append(record)
            self._added += 1
            full = max(1, _TIMES_BYTES // (_FLOAT_BYTES * max(1, len(record.compute_seconds))))
            if len(self._kept) > full:
                old = self._kept[-1 - full]
                if old.compute_seconds:
                    self._kept[-1 - full] = replace(old, compute_seconds=())


class Reporter:
    """Reports new records and the heartbeat to the coordinator, from a thread of its own.

    Args:
        coordinator: its handle.
        worker: this worker's name.
        progress: the heartbeat.
        records: what is reported.
    """

    def __init__(
        self, coordinator: CoordinatorHandle, worker: str, progress: Progress, records: Records
    ) -> None:
        self._coordinator = coordinator
        self._worker = worker
        self._progress = progress
        self._records = records
        self._sent = records.since(0)[1]
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, generation: int, *, sends: bool) -> None:
        """Start to report that the group trains; does nothing unless `sends`."""
        self._generation = generation
        if sends:
            self._started_at = time.time()
            self._thread = threading.Thread(target=self._tell, daemon=True, name="reporter")
            self._thread.start()

    def stop(self) -> None:
        """Report the rest, as far as the coordinator answers, and end."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_PARTING)

    def _tell(self) -> None:
        last = False
        while not last:
            last = self._stopped.is_set()
            records, count = self._records.since(self._sent)
            try:
                told = self._coordinator.report_steps.remote(
                    self._worker,
                    self._generation,
                    self._started_at,
                    self._progress.moves,
                    records,
                )
                told.future().result(_PATIENCE)
                self._sent = count
            except (RayError, TimeoutError):
                pass  # told again with the next, or asked of any worker when the generation ends
            self._stopped.wait(_INTERVAL)

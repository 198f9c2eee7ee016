"""How the coordinator learns of steps: one worker reports them, several times a second.

Every worker keeps its records of recent steps, so that nothing is lost with the one that reports.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raytrain_plus.elastic.protocol.control import Steps, ToCoordinator
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.elastic.worker.progress import Progress
from raytrain_plus.training.loop import StepResult

_KEPT = 80_000
_TIMES_BYTES = 8 << 20  # of all workers' times in a step, which the latest records alone have
_FLOAT_BYTES = 32
_INTERVAL = 0.2  # seconds between two messages
# Seconds to send the rest, for which the whole group waits. A coordinator that is stopped reads
# nothing. It later fetches the steps that were not reported.
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

    The next report waits until the coordinator has the one before, so that one that is stopped is
    not sent more than it can take.

    Args:
        send: sends a message to the coordinator; says whether one is connected.
        progress: the heartbeat.
        records: what is reported.
    """

    def __init__(
        self, send: Callable[[ToCoordinator], bool], progress: Progress, records: Records
    ) -> None:
        self._send = send
        self._progress = progress
        self._records = records
        self._sent = records.since(0)[1]
        self._number = self._received = 0
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def start(self, generation: int, *, sends: bool) -> None:
        """Start to report that the group trains; does nothing unless `sends`."""
        self._generation = generation
        if sends:
            self._started_at = time.time()
            self._thread = threading.Thread(target=self._tell, daemon=True, name="reporter")
            self._thread.start()

    def received(self, number: int) -> None:
        """Note that the coordinator has a report."""
        with self._changed:
            self._received = max(self._received, number)
            self._changed.notify_all()

    def stop(self) -> None:
        """Report the rest, if a coordinator is connected and reads, and end."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_PARTING)

    def _tell(self) -> None:
        last = False
        while not last:
            last = self._is_stopped
            records, count = self._records.since(self._sent)
            self._number += 1
            number, moves = self._number, self._progress.moves
            told = Steps(number, self._generation, self._started_at, moves, records)
            if self._send(told) and self._is_received(number):
                self._sent = count
            # What is not reported is asked of any worker when the generation ends.
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped, _INTERVAL)

    def _is_received(self, number: int) -> bool:
        """Wait until the coordinator has a report, or until `stop`; says whether it has it."""
        with self._changed:
            self._changed.wait_for(lambda: self._received >= number or self._is_stopped)
            return self._received >= number

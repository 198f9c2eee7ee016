"""The coordinator's end of the control channel: messages to workers, their messages, questions."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from ray.exceptions import RayError

from raytrain_plus.elastic.liveness.lifeline import Address, Gone, Lifelines
from raytrain_plus.elastic.protocol.control import (
    Answer,
    ControlError,
    ToCoordinator,
    ToWorker,
    encode,
    to_coordinator,
)

Received = Callable[[str, ToCoordinator], None]


class WorkerGoneError(RayError):  # type: ignore[misc]  # Ray's types are not known
    """A worker cannot be reached any more, or could not do what it was asked for."""


class ControlChannel(Protocol):
    """Connects the coordinator with its workers. Messages to one worker arrive in order."""

    def hold(self, worker: str, address: Address) -> None:
        """Connect to a worker; one that cannot be reached counts as gone."""

    def send(self, worker: str, message: ToWorker) -> bool:
        """Send a message, without a wait; returns whether the worker is connected."""

    def release(self, worker: str) -> None:
        """End the connection to a worker."""

    def close(self) -> None:
        """End all connections."""


class LifelineChannel:
    """Messages over lifelines.

    Args:
        gone: called, from a thread, with a worker that is gone and what is known of its end.
        received: called, from that thread, with each message of a worker; it must not wait.
    """

    def __init__(self, gone: Gone, received: Received) -> None:
        self._gone = gone
        self._received = received
        self._lifelines = Lifelines(gone, self._decode)
        self._encoded: tuple[ToWorker, bytes] | None = None

    def hold(self, worker: str, address: Address) -> None:
        """Connect to a worker; one that cannot be reached counts as gone."""
        self._lifelines.hold(worker, address)

    def send(self, worker: str, message: ToWorker) -> bool:
        """Send a message; one that is sent to many workers in a row is encoded once."""
        encoded = self._encoded
        if encoded is None or encoded[0] is not message:
            encoded = self._encoded = (message, encode(message))
        return self._lifelines.send(worker, encoded[1])

    def release(self, worker: str) -> None:
        """End the connection to a worker."""
        self._lifelines.release(worker)

    def close(self) -> None:
        """End all connections."""
        self._lifelines.close()

    def _decode(self, worker: str, frame: bytes) -> None:
        try:
            message = to_coordinator(frame)
        except ControlError as error:
            self._lifelines.release(worker)
            self._gone(worker, str(error))
        else:
            self._received(worker, message)


class Questions:
    """Questions to workers that wait for their answers. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._waiting: dict[int, tuple[str, Future[Answer]]] = {}

    def ask(self, channel: ControlChannel, worker: str, make: Callable[[int], ToWorker]) -> int:
        """Ask a worker; returns the question's number.

        Args:
            channel: to the worker.
            worker: its name.
            make: returns the question with a number.
        """
        with self._lock:
            self._number += 1
            number = self._number
            self._waiting[number] = (worker, Future())
        if not channel.send(worker, make(number)):
            self.fail(worker)
        return number

    def future(self, number: int) -> "Future[Answer]":
        """Return what a question's answer comes in, which may fail with `WorkerGoneError`."""
        with self._lock:
            if number in self._waiting:
                return self._waiting[number][1]
        gone: Future[Answer] = Future()
        gone.set_exception(WorkerGoneError("the worker is gone"))
        return gone

    def forget(self, numbers: Sequence[int]) -> None:
        """Wait for these answers no longer."""
        with self._lock:
            for number in numbers:
                self._waiting.pop(number, None)

    def answered(self, answer: Answer) -> None:
        """Take an answer; one that is not waited for any more is ignored."""
        with self._lock:
            found = self._waiting.get(answer.number)
        if found is not None and not found[1].done():
            found[1].set_result(answer)

    def fail(self, worker: str) -> None:
        """Let the questions to a worker fail: it is gone."""
        with self._lock:
            waiting: Mapping[int, tuple[str, Future[Answer]]] = dict(self._waiting)
        for whom, future in waiting.values():
            if whom == worker and not future.done():
                future.set_exception(WorkerGoneError(f"worker {worker} is gone"))

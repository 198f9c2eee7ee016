"""A run in this process alone: no Ray, no other process, and the task's code in the calling thread.

The coordinator and the worker are those of any other run. The coordinator leads in a thread of its
own. What would be a call to the worker's actor is put into a queue, and the calling thread serves
it; so a breakpoint in the task works. A third thread follows the journal, as a driver does.
"""

import contextlib
import os
import queue
import random
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from ray.exceptions import RayError

from raytrain_plus.elastic.client.following import Ended, Watcher, follow
from raytrain_plus.elastic.coordinator.control_channel import Received
from raytrain_plus.elastic.coordinator.coordinator import Coordinator
from raytrain_plus.elastic.coordinator.loggers import fed_loggers
from raytrain_plus.elastic.coordinator.workers import WorkerActors
from raytrain_plus.elastic.liveness.lifeline import Address, Gone
from raytrain_plus.elastic.protocol import control
from raytrain_plus.elastic.protocol.handles import CoordinatorHandle, WorkerHandle
from raytrain_plus.elastic.protocol.messages import (
    CoordinatorHealth,
    Outcome,
    RunSpec,
    WorkerProcess,
)
from raytrain_plus.elastic.worker.host import Addresses, Receive
from raytrain_plus.elastic.worker.process import prepare_process, users_traceback
from raytrain_plus.elastic.worker.worker import Worker
from raytrain_plus.interrupts import Interrupts
from raytrain_plus.observe.output import OutputCapture
from raytrain_plus.storage.ownership import LOCAL
from raytrain_plus.storage.staging import staged

_Answer = TypeVar("_Answer")

_SERVED = frozenset({"prepare"})
"""Methods of a worker that run the task's code. The others are called by the caller's thread."""

_END_SECONDS = 30.0  # for the coordinator to end after the worker has left it


class CallError(RayError):  # type: ignore[misc]  # Ray's types are not known
    """A call to the worker or the coordinator of this process has failed."""


def train(
    spec: RunSpec, watcher: Watcher | None, interrupts: Interrupts, offset: int
) -> tuple[Ended, BaseException | None]:
    """Train a run to its end in this process.

    The first signal ends it after the step in flight. The second one ends it at once.

    Args:
        spec: the run.
        watcher: called with the journal's new events, from a thread.
        interrupts: notes the signals.
        offset: in the journal, from which on events are new.

    Returns:
        How it has ended, and the error of the task's that has ended it, if one has.

    Raises:
        LostError: another driver has the run, or the coordinator has failed.
        Exception: whatever the watcher raises; the run is stopped first.
    """
    served = _Calls()
    channel = _LocalChannel(served)
    host = _LocalHost(channel)
    source = _LocalSource(served, host, channel)
    actors = WorkerActors(spec, source, LOCAL, channel.connect)
    coordinator = Coordinator(_patient(spec), actors)
    source.coordinator = cast("CoordinatorHandle", _Handle(coordinator))

    def led() -> Outcome:
        with fed_loggers(spec, coordinator.warn):
            return coordinator.run()

    leading = _in_thread(led, "coordinator")
    leading.add_done_callback(lambda _: served.end())
    watch = _LocalWatch(coordinator, leading)

    def watched() -> Ended:
        return follow(
            spec.name, spec.folder, watcher, offset, spec.claim,
            interrupts=interrupts, is_ours=True, watch=watch,
        )  # fmt: skip

    following = _in_thread(watched, "follower")
    following.add_done_callback(lambda done: done.exception() and coordinator.stop())
    try:
        served.serve(lambda: interrupts.at_once or host.is_quit)
    except KeyboardInterrupt:
        if host.is_quit:  # from the debugger, which is no signal
            interrupts.note()
        coordinator.stop()
    finally:
        served.refuse()
        source.close()
    with contextlib.suppress(TimeoutError):
        leading.exception(_END_SECONDS)
    return following.result(), host.error


def _patient(spec: RunSpec) -> RunSpec:
    """Return a run without deadlines: a person may stand at a breakpoint."""
    forever = float("inf")
    elastic = replace(
        spec.elastic,
        hang_deadline=forever,
        first_step_deadline=forever,
        start_timeout=forever,
    )
    return replace(spec, elastic=elastic)


class _Calls:
    """Calls from other threads that one thread serves, in order."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue()
        self._refuses = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], _Answer]) -> "Future[_Answer]":
        """Let the serving thread call a function; it may raise `CallError`."""
        answer: Future[_Answer] = Future()
        with self._lock:
            if self._refuses:
                answer.set_exception(CallError("the run was left at once"))
            else:
                self._waiting.put((answer, function))
        return answer

    def end(self) -> None:
        """Let `serve` return after the calls so far."""
        self._waiting.put(None)

    def serve(self, leaves: Callable[[], bool]) -> None:
        """Serve calls until the end.

        Args:
            leaves: says after each call whether its answer is not wanted any more.

        Raises:
            KeyboardInterrupt: it is not.
        """
        while (call := self._waiting.get()) is not None:
            answer, function = call
            try:
                result = function()
                if leaves():
                    raise KeyboardInterrupt
            except BaseException as error:
                answer.set_exception(CallError(str(error) or type(error).__name__))
                if isinstance(error, KeyboardInterrupt):
                    raise
            else:
                answer.set_result(result)

    def refuse(self) -> None:
        """Refuse the calls that wait, and all later ones."""
        with self._lock:
            self._refuses = True
        with contextlib.suppress(queue.Empty):
            while True:
                call = self._waiting.get_nowait()
                if call is not None:
                    call[0].set_exception(CallError("the run was left at once"))


class _Ref:
    """The answer of an object in this process."""

    def __init__(self, future: "Future[Any]") -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, Any]:
        raise NotImplementedError("a local run has no event loop")

    def future(self) -> "Future[Any]":
        return self._future


class _Handle:
    """An object of this process, called as if it was an actor.

    Args:
        target: the object.
        calls: serve the methods in `_SERVED`; the others are called by the caller's thread.
    """

    def __init__(self, target: object, calls: _Calls | None = None) -> None:
        self._target = target
        self._calls = calls

    def __getattr__(self, method: str) -> Any:
        function = getattr(self._target, method)

        def remote(*args: Any) -> _Ref:
            if method == "serve":  # the calling thread serves, and this call never ends
                return _Ref(Future())
            if self._calls is not None and method in _SERVED:
                return _Ref(self._calls.submit(lambda: function(*args)))
            return _Ref(_called(lambda: function(*args)))

        return SimpleNamespace(remote=remote)


def _called(function: Callable[[], Any]) -> "Future[Any]":
    answer: Future[Any] = Future()
    try:
        answer.set_result(function())
    except Exception as error:  # noqa: BLE001 - as an actor would
        answer.set_exception(CallError(str(error) or type(error).__name__))
    return answer


class _LocalChannel:
    """The control channel within this process.

    Args:
        calls: let the calling thread run the task's code.
    """

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls
        self._workers: dict[str, Worker] = {}
        self._gone: Gone | None = None
        self._received: Received | None = None

    def connect(self, gone: Gone, received: Received) -> "_LocalChannel":
        """Connect the coordinator: call these with what happens to a worker and what it says."""
        self._gone, self._received = gone, received
        return self

    def add(self, name: str, worker: Worker) -> None:
        """Connect a worker."""
        self._workers[name] = worker

    def hold(self, worker: str, address: Address) -> None:
        """Do nothing: the worker is connected."""

    def send(self, worker: str, message: control.ToWorker) -> bool:
        """Give a worker a message."""
        found = self._workers.get(worker)
        if found is None:
            return False
        if isinstance(message, control.Job):
            done = self._calls.submit(lambda: found.execute(message))
            done.add_done_callback(lambda done: self._served(worker, done))
        else:
            found.receive(message)
        return True

    def receive(self, worker: str, message: control.ToCoordinator) -> bool:
        """Give the coordinator a message of a worker."""
        assert self._received is not None
        self._received(worker, message)
        return True

    def release(self, worker: str) -> None:
        """Forget a worker."""
        self._workers.pop(worker, None)

    def close(self) -> None:
        """Forget all workers."""
        self._workers.clear()

    def _served(self, worker: str, done: "Future[None]") -> None:
        error = done.exception()
        if error is not None and self._gone is not None:
            self._gone(worker, str(error))


class _LocalSource:
    """Provides workers that live in this process; there is one at a time.

    Args:
        calls: let the calling thread run the task's code.
        host: this process.
        channel: the control channel.

    Attributes:
        coordinator: the handle that workers report to.
    """

    coordinator: CoordinatorHandle

    def __init__(self, calls: _Calls, host: "_LocalHost", channel: _LocalChannel) -> None:
        self._calls = calls
        self._host = host
        self._channel = channel
        self._workers: dict[str, Worker] = {}

    def request(self, worker: str, avoid: str = "") -> "Future[WorkerHandle]":
        """Make a worker."""
        del avoid  # there is no other node
        made = self._workers[worker] = Worker(worker, self.coordinator, self._host)
        self._channel.add(worker, made)
        granted: Future[WorkerHandle] = Future()
        granted.set_result(cast("WorkerHandle", _Handle(made, self._calls)))
        return granted

    def give_back(self, worker: str, handle: WorkerHandle | None) -> None:
        """Close a worker, in the thread that has run the task's code."""
        del handle
        self._calls.submit(lambda: self._close(worker))

    def end(self, worker: str, handle: WorkerHandle) -> None:
        """Close a worker."""
        self.give_back(worker, handle)

    def find(self) -> dict[str, WorkerHandle]:
        """Return no workers: none outlives a local run."""
        return {}

    def memory_kill(self, handle: WorkerHandle) -> str:
        """Return nothing: no memory monitor watches this process."""
        del handle
        return ""

    def draining_nodes(self) -> set[str]:
        """Return no nodes: nothing is known of this machine's end."""
        return set()

    def close(self) -> None:
        """Close all workers that are left. To be called by the thread that has served them."""
        for worker in list(self._workers):
            self._close(worker)

    def _close(self, worker: str) -> None:
        closed = self._workers.pop(worker, None)
        if closed is None:
            return
        try:
            closed.close()
        except Exception as error:  # noqa: BLE001 - an aspect's own; the run has ended well
            text = f"what the run has changed in this process could not be undone: {error!r}"
            warnings.warn(text, stacklevel=2)


class _LocalHost:
    """This process, as the host of a run's worker. It is left as it was found.

    Args:
        channel: the control channel.

    Attributes:
        error: of the task's, the last one.
        is_quit: whether the debugger was left by `quit`.
    """

    def __init__(self, channel: _LocalChannel) -> None:
        self._channel = channel
        self._worker = ""
        self.error: BaseException | None = None
        self.is_quit = False

    def process(self) -> WorkerProcess:
        """Return this process."""
        return WorkerProcess(pid=os.getpid(), node=LOCAL, host=socket.gethostname())

    def guard(
        self,
        spec: RunSpec,
        worker: str,
        coordinator: CoordinatorHandle,
        closing: contextlib.ExitStack,
    ) -> None:
        """Keep what the process prints. Its stack and its memory are its user's."""
        del coordinator
        self._worker = worker
        paths = list(sys.path)
        closing.callback(lambda: sys.path.__setitem__(slice(None), paths))
        closing.enter_context(staged(spec.folder, spec.output_folder(worker)))
        capture = OutputCapture(forwards=True)
        closing.callback(capture.close)
        capture.serve(spec.output_folder(worker), worker)

    def device(self, spec: RunSpec, closing: contextlib.ExitStack) -> torch.device:
        """Set what the bits depend on, and undo that when the worker is closed."""
        restore = [
            _later(torch.set_num_threads, torch.get_num_threads()),
            _later(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            _later(torch.set_rng_state, torch.get_rng_state()),
            _later(random.setstate, random.getstate()),
            _later(np.random.set_state, np.random.get_state()),  # noqa: NPY002 - tasks draw from it
        ]
        for one in restore:
            closing.callback(one)
        return prepare_process(spec.threads, gpu=bool(spec.resources.get("GPU")))

    def open(self, spec: RunSpec, closing: contextlib.ExitStack, receive: Receive) -> Addresses:
        """Open nothing: no other process reaches the worker."""
        del spec, closing, receive
        send = partial(self._channel.receive, self._worker)
        return Addresses(endpoint=None, lifeline=("", 0, ""), stacks=-1, send=send)

    def told(self, error: BaseException) -> tuple[str, bool]:
        """Return an error of the task as text. There is no other machine to try it on."""
        self.error = error
        self.is_quit = type(error).__name__ == "BdbQuit"
        return users_traceback(error), False


def _later(function: Callable[..., Any], *args: Any, **named: Any) -> Callable[[], Any]:
    return lambda: function(*args, **named)


class _LocalWatch:
    """Watches the coordinator of this process, on behalf of the thread that follows the run.

    Args:
        coordinator: the coordinator.
        leading: ends with the coordinator's thread.
    """

    given_up = False

    def __init__(self, coordinator: Coordinator, leading: "Future[Any]") -> None:
        self._coordinator = coordinator
        self._leading = leading

    @property
    def health(self) -> CoordinatorHealth | None:
        """What the journal lacks."""
        health: CoordinatorHealth = self._coordinator.health()
        return health

    def ask_stop(self, now: float) -> None:
        """Let the run end after the step in flight."""
        del now
        self._coordinator.stop()

    def look(self, now: float) -> str | None:
        """Return why the run cannot go on."""
        del now
        error = self._leading.exception() if self._leading.done() else None
        if error is None:
            return None
        return f"the coordinator has failed:\n{''.join(traceback.format_exception(error))}"


def _in_thread(function: Callable[[], _Answer], name: str) -> "Future[_Answer]":
    """Call a function in a thread of its own."""
    answer: Future[_Answer] = Future()

    def call() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is wanted
            answer.set_exception(error)
        else:
            answer.set_result(result)

    threading.Thread(target=call, daemon=True, name=name).start()
    return answer

"""Asking Ray for workers; what Ray knows of their deaths and of draining nodes."""

import contextlib
import os
import queue
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from raytrain_plus.elastic import stacks
from raytrain_plus.elastic.keeping import Committed
from raytrain_plus.elastic.lifeline import Lifelines
from raytrain_plus.elastic.messages import (
    NAMESPACE,
    Found,
    Plan,
    Ready,
    Report,
    RunSpec,
    Standing,
    Unready,
)
from raytrain_plus.elastic.reporter import Record
from raytrain_plus.elastic.uploads import Share
from raytrain_plus.elastic.worker import Worker

_STACK_SECONDS = 3.0
_SELF_TEST_SECONDS = 60.0
_ISA = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_CBWR": "AVX512",
    },
}


@dataclass
class Seat:
    """A worker as the coordinator sees it.

    Attributes:
        worker: its name.
        ready: what it said when it had come up, None before.
        step: committed steps of its state.
        draining: it is to leave at the next step boundary.
        warm: it has run steps.
    """

    worker: str
    ready: Ready | None = None
    step: int = 0
    draining: bool = False
    warm: bool = False


@dataclass(frozen=True)
class Came:
    """A worker has come up, or failed to."""

    worker: str
    ready: Ready | None
    died: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Returned:
    """A worker's generation has ended, or the worker has."""

    worker: str
    generation: int
    report: Report | None
    died: str = ""


@dataclass(frozen=True)
class Gone:
    """A worker's lifeline was cut: its process or its host is gone."""

    worker: str
    why: str


@dataclass(frozen=True)
class Noticed:
    """A worker got notice that it will be ended."""

    worker: str
    why: str


@dataclass(frozen=True)
class Written:
    """A worker has something to tell of its share of a checkpoint."""

    worker: str
    share: Share


@dataclass(frozen=True)
class Wanted:
    """Somebody wants another number of workers; `lost` of the group are taken away for it."""

    workers: int
    lost: int = 0


@dataclass(frozen=True)
class Woken:
    """Somebody wants something of the coordinator."""


Event = Came | Returned | Gone | Noticed | Written | Committed | Wanted | Woken


class Pool:
    """The workers of one run, as Ray actors, one each, so that none blocks another.

    Everything that happens to them arrives in one queue. They are detached, under names that begin
    with the run's: a coordinator that comes back finds them again.

    Args:
        spec: the run.
        coordinator: the handle that workers report to.
    """

    def __init__(self, spec: RunSpec, coordinator: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self._spec = spec
        self._coordinator = coordinator
        self._handles: dict[str, Any] = {}
        self._lifelines = Lifelines(lambda worker, why: self.events.put(Gone(worker, why)))
        self._node = ray.get_runtime_context().get_node_id()
        self._actor = ray.remote(concurrency_groups={"control": 2})(Worker)

    def start(self, worker: str) -> None:
        """Ask Ray for a worker; while Ray cannot place it, it is demand that an autoscaler sees."""
        env = dict(self._spec.runtime_env)
        if self._spec.elastic.isa is not None:
            env["env_vars"] = {**env.get("env_vars", {}), **_ISA[self._spec.elastic.isa]}
        wanted = dict(self._spec.resources)
        handle = self._actor.options(
            name=f"{self._spec.name}/{worker}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=wanted.pop("CPU", 0),
            num_gpus=wanted.pop("GPU", 0),
            resources=wanted,
            max_restarts=0,
            max_task_retries=0,
            runtime_env=env or None,
        ).remote(worker, self._coordinator)
        self._handles[worker] = handle
        handle.prepare.remote(self._spec).future().add_done_callback(
            lambda future: self.events.put(_came(worker, future))
        )

    def find(self) -> list[str]:
        """Find the workers that a coordinator of this run has started before; returns their names.

        Those of an earlier run of the same name are among them.
        """
        prefix = f"{self._spec.name}/"
        named = [
            entry["name"]
            for entry in ray.util.list_named_actors(all_namespaces=True)
            if entry["namespace"] == NAMESPACE and entry["name"].startswith(prefix)
        ]
        for name in named:
            with contextlib.suppress(ValueError):  # it has died meanwhile
                self._handles[name.removeprefix(prefix)] = ray.get_actor(name, NAMESPACE)
        return sorted(self._handles)

    def hold(self, worker: str, ready: Ready) -> None:
        """Take up a worker's lifeline: from now on its end is told at once."""
        self._lifelines.hold(worker, ready.lifeline)

    def train(self, worker: str, plan: Plan) -> None:
        """Let a worker run a generation."""
        ref = self._handles[worker].train.remote(plan)
        ref.future().add_done_callback(
            lambda future: self.events.put(_returned(worker, plan.generation, future))
        )

    def ask_pause(self, worker: str, generation: int) -> None:
        """Let a worker raise the flag that pauses the group."""
        self._handles[worker].ask_pause.remote(generation)

    def ask_checkpoint(self, worker: str, generation: int, step: int) -> None:
        """Let a worker raise the flag that has all take a snapshot after a step."""
        self._handles[worker].ask_checkpoint.remote(generation, step)

    def abort(self, workers: Sequence[str], generation: int, reason: str) -> None:
        """Tell workers that a generation is over."""
        for worker in workers:
            self._handles[worker].abort.remote(generation, reason)

    def standings(self, workers: Sequence[str], timeout: float) -> dict[str, Standing | None]:
        """Ask workers what they are doing; None for those that do not answer. From any thread."""
        return self._ask("standing", workers, timeout)

    def found(self, workers: Sequence[str], timeout: float) -> dict[str, Found | None]:
        """Ask workers how they stand, when they have been found again; None for no answer."""
        return self._ask("found", workers, timeout)

    def _ask(self, method: str, workers: Sequence[str], timeout: float) -> dict[str, Any]:
        answers: dict[str, Any] = dict.fromkeys(workers)
        handles = self._handles.copy()  # another thread may end somebody meanwhile
        refs = {w: getattr(handles[w], method).remote() for w in workers if w in handles}
        if not refs:
            return answers
        there, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=timeout)
        answered = set(there)
        for worker, ref in refs.items():
            if ref in answered:
                with contextlib.suppress(RayError):
                    answers[worker] = ray.get(ref)
        return answers

    def computes_right(self, worker: str) -> bool:
        """Let a worker compute what is known; one that cannot does not compute right."""
        try:
            right: bool = ray.get(
                self._handles[worker].computes_right.remote(), timeout=_SELF_TEST_SECONDS
            )
        except RayError:
            return False
        return right

    def stack_of(self, seat: Seat, neighbours: Sequence[Seat]) -> str:
        """Return where a worker stands that does not answer: somebody on its node can see it."""
        ready = seat.ready
        if ready is None:
            return ""
        if ready.node == self._node:
            return stacks.of_neighbour(ready.pid, ready.stacks)
        for handle in self._on_node_of(seat, ready, neighbours):
            with contextlib.suppress(RayError):
                seen: str = ray.get(
                    handle.stack_of_neighbour.remote(ready.pid, ready.stacks),
                    timeout=_STACK_SECONDS,
                )
                return seen
        return "nobody else is on its node, who could see it"

    def _on_node_of(self, seat: Seat, ready: Ready, seats: Sequence[Seat]) -> list[Any]:
        """Return the handles of the other workers on a worker's node."""
        return [
            self._handles[other.worker]
            for other in seats
            if other is not seat and other.ready is not None and other.ready.node == ready.node
        ]

    def records(self, worker: str, after: int, timeout: float) -> list[Record]:
        """Ask a worker what it knows of the steps after a step; nothing if it does not answer."""
        try:
            found: list[Record] = ray.get(
                self._handles[worker].records.remote(after), timeout=timeout
            )
        except (RayActorError, GetTimeoutError):
            return []
        return found

    def save(self, worker: str, step: int) -> str:
        """Let a worker write the checkpoint of a step; returns the digest.

        Raises:
            RayError: the worker has gone, or could not write.
        """
        digest: str = ray.get(self._handles[worker].save.remote(step))
        return digest

    def end(self, seat: Seat, neighbours: Sequence[Seat] = (), *, hangs: bool = False) -> None:
        """End a worker at once.

        Ray's own kill is a message to the process; one that hangs does not read it, so somebody on
        the same node sends it the signal.
        """
        self._lifelines.release(seat.worker)
        handle = self._handles.pop(seat.worker, None)
        if handle is None:
            return
        if hangs and seat.ready is not None:
            if seat.ready.node == self._node:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(seat.ready.pid, signal.SIGKILL)
            else:
                for other in self._on_node_of(seat, seat.ready, neighbours)[:1]:
                    other.kill_neighbour.remote(seat.ready.pid)
        ray.kill(handle)

    def kill(self, worker: str) -> None:
        """Kill a worker as if its machine had been taken away; that it is lost is then noticed."""
        handle = self._handles.get(worker)
        if handle is not None:
            ray.kill(handle)

    def end_strangers(self, seated: Collection[str]) -> None:
        """End everybody of this run who has no seat."""
        for worker in list(self._handles):
            if worker not in seated:
                self.end(Seat(worker))

    def next_event(self, timeout: float) -> Event | None:
        """Return what happened next, or None after `timeout` seconds."""
        with contextlib.suppress(queue.Empty):
            return self.events.get(timeout=timeout)
        return None

    def tell(self, event: Event) -> None:
        """Let the coordinator know of something."""
        self.events.put(event)


def missing_resources(resources: Mapping[str, float], workers: int) -> str:
    """Say what a cluster lacks for some workers."""
    total = ray.cluster_resources()
    free = ray.available_resources()
    lines = [
        f"{name}: {workers} x {amount:g} = {workers * amount:g} needed, {total.get(name, 0):g} in "
        f"the cluster, {free.get(name, 0):g} free"
        for name, amount in resources.items()
    ]
    return "; ".join(lines)


def _came(worker: str, future: Any) -> Came:
    error = future.exception()
    if isinstance(error, RayTaskError) and not isinstance(error, RayActorError):
        return Came(worker, None, failed=str(error))  # before the worker's own code could run
    if error is not None:
        return Came(worker, None, died=_first_line(error))
    answer = future.result()
    if isinstance(answer, Unready):
        return Came(worker, None, failed=answer.error)
    return Came(worker, answer)


def _returned(worker: str, generation: int, future: Any) -> Returned:
    error = future.exception()
    if error is None:
        return Returned(worker, generation, future.result())
    return Returned(worker, generation, None, died=_first_line(error))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

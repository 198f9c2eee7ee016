"""The worker pool: an actor that owns warm worker processes and shares them between runs.

A run with a worker pool starts no processes. Its coordinator and its workers are processes of the
pool. A worker goes back to the pool when its run ends, or when the run is scaled down. The pool
gives a free worker to the run that would end last (`shares.py`). That run takes it in at its next
step boundary. The pool replaces a process that died, and one that cannot be reset.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError

from raytrain_plus.elastic.coordinator.worker_sources import RunRequest, placed, process_options
from raytrain_plus.elastic.protocol.handles import (
    Ref,
    ReusedCoordinatorHandle,
    ReusedWorkerHandle,
    WorkerPoolHandle,
)
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.names import NAMESPACE
from raytrain_plus.worker_pool.reused_actors import ReusedCoordinator, ReusedWorker
from raytrain_plus.worker_pool.shares import Demand, shares

_POLL = 0.5  # seconds between two looks at the runs' progress
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds before another try to start a process
_RESET_SECONDS = 15.0  # for a worker to close its run


class WorkerPoolError(RuntimeError):
    """A run asks for what the worker pool does not have."""


@dataclass
class PoolProcess:
    """A worker's process.

    Attributes:
        handle: of the actor.
        node: the id of its node.
        run: that it works for; empty for none.
        worker: its name in that run.
    """

    handle: ReusedWorkerHandle
    node: str
    run: str = ""
    worker: str = ""


@dataclass
class WorkerRequest:
    """A run's request for a worker.

    Attributes:
        answer: will get the handle of a process.
        avoid: node whose processes are given only if no other process is free; empty for none.
    """

    answer: "asyncio.Future[ReusedWorkerHandle]"
    avoid: str


@dataclass
class RunShare:
    """A live run's share of the pool.

    Attributes:
        request: what the run asked for.
        spec: the run, for its coordinator: a list of one reference, so that Ray does not resolve it
            in the pool.
        slot: number of the coordinator process that leads it.
        target: workers that the pool has granted; 0 until the run has begun.
        done: part of the run's work that is done, in [0, 1].
        waiting: requests for workers by their names, in order.
    """

    request: RunRequest
    spec: Sequence[Ref[RunSpec]]
    slot: int
    target: int
    done: float = 0.0
    waiting: dict[str, WorkerRequest] = field(default_factory=dict)

    @property
    def demand(self) -> Demand:
        """How many workers it can use; its work is counted in samples."""
        work = (1.0 - self.done) * self.request.samples
        return Demand(least=self.request.least, most=self.request.most, work=work)


class WorkerPool:
    """The pool's actor (see the head of this file). All methods run in one event loop.

    Args:
        options: what each worker's process asks Ray for: resources, environment, instruction set.
            Every run must ask for the same.
        workers: how many worker processes.
        coordinators: how many runs at a time; each has a coordinator process.
        elastic: whether runs are given more than their least. Default True.
    """

    def __init__(
        self, options: Mapping[str, Any], workers: int, coordinators: int, *, elastic: bool = True
    ) -> None:
        self._options = dict(options)
        self._workers = workers
        self._elastic = elastic
        self._free: list[PoolProcess] = []
        self._in_use: list[PoolProcess] = []
        self._runs: dict[str, RunShare] = {}
        self._free_slots: asyncio.Queue[int] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._replaced: list[str] = []
        self._changed = asyncio.Event()
        self._worker_actor = ray.remote(concurrency_groups={"control": 2, "life": 1})(ReusedWorker)
        self._me = ray.get_runtime_context().current_actor
        self._coordinator_actor = ray.remote(concurrency_groups={"control": 4})(ReusedCoordinator)
        self._coordinators = [self._start_coordinator(slot) for slot in range(coordinators)]

    def _start_coordinator(self, slot: int) -> ReusedCoordinatorHandle:
        options = {"num_cpus": 0, "memory": 1, "max_restarts": -1, "max_task_retries": 0}
        started: ReusedCoordinatorHandle = self._coordinator_actor.options(**options).remote(
            self._me, slot
        )
        return started

    async def open(self) -> None:
        """Start all processes; returns when all are warm."""
        for slot in range(len(self._coordinators)):
            self._free_slots.put_nowait(slot)
        self._in_background(self._follow_progress())
        await asyncio.gather(*(self._start_worker() for _ in range(self._workers)))

    # -- what runs call

    async def start_run(
        self, request: RunRequest, spec: Sequence[Ref[RunSpec]]
    ) -> ReusedCoordinatorHandle:
        """Start a run as soon as there is room for it; returns its coordinator's handle.

        Args:
            request: what the run asks for.
            spec: the run, for its coordinator; a list of one reference, which is not resolved here.

        Raises:
            WorkerPoolError: a run of that name is live, or the run does not fit the pool.
        """
        self._check(request)
        slot = await self._free_slots.get()
        share = self._runs[request.run] = RunShare(request, spec, slot, target=0)
        self._balance()  # other runs give workers back
        while not (free := min(self._shares()[request.run], self._ungranted())) >= request.least:
            await self._changed.wait()
        share.target = free
        coordinator = self._coordinators[slot]
        await coordinator.start_run.remote(spec, share.target)
        self._balance()
        return coordinator

    async def request_worker(self, run: str, worker: str, avoid: str = "") -> ReusedWorkerHandle:
        """Return the handle of a process for a worker, as soon as one is free.

        Args:
            run: that asks.
            worker: the name that the process will have in the run.
            avoid: node whose processes are given only if no other process is free.
        """
        share = self._runs[run]
        request = WorkerRequest(asyncio.get_running_loop().create_future(), avoid)
        share.waiting[worker] = request
        self._assign_free()
        return await request.answer

    async def return_worker(self, run: str, worker: str, closed: Sequence[Ref[str]]) -> None:
        """Take a worker back, or withdraw the request for one.

        Args:
            run: that had the worker.
            worker: its name in that run.
            closed: what `ReusedWorker.close_run` will return; empty if the worker had not come.
        """
        share = self._runs.get(run)
        request = share.waiting.pop(worker, None) if share is not None else None
        if request is not None:
            request.answer.cancel()
        found = [one for one in self._in_use if (one.run, one.worker) == (run, worker)]
        for process in found:
            try:
                problem = await asyncio.wait_for(_answer(closed), _RESET_SECONDS)
            except (RayError, TimeoutError) as error:
                problem = f"it does not answer: {error!r}"
            self._take_back(process, problem)

    async def run_ended(self, run: str) -> None:
        """Free the coordinator's slot: it has led its run to the end."""
        share = self._runs.pop(run, None)
        if share is not None:
            self._free_slots.put_nowait(share.slot)
            self._balance()

    async def stop_run(self, run: str) -> None:
        """Let a run end after the step in flight."""
        share = self._runs.get(run)
        if share is not None:
            self._coordinators[share.slot].call.remote(run, "stop")

    async def abandon_run(self, run: str) -> None:
        """End a run that does not stop: kill its coordinator and its workers."""
        share = self._runs.get(run)
        if share is None:
            return
        ray.kill(self._coordinators[share.slot])
        self._coordinators[share.slot] = self._start_coordinator(share.slot)
        for process in [one for one in self._in_use if one.run == run]:
            ray.kill(process.handle)
        await self.run_ended(run)

    async def workers_of(self, run: str) -> dict[str, ReusedWorkerHandle]:
        """Return the handles of a run's workers by name, for a restarted coordinator."""
        return {one.worker: one.handle for one in self._in_use if one.run == run}

    async def coordinator_of(self, run: str) -> ReusedCoordinatorHandle | None:
        """Return the handle of a live run's coordinator, or None."""
        share = self._runs.get(run)
        return None if share is None else self._coordinators[share.slot]

    async def spec_in(self, slot: int) -> Sequence[Ref[RunSpec]]:
        """Return the run that a restarted coordinator leads: a list of one reference or none."""
        run = self._run_in(slot)
        return () if run is None else self._runs[run].spec

    async def abandon_run_in(self, slot: int) -> None:
        """End the run of a restarted coordinator that cannot lead it."""
        run = self._run_in(slot)
        if run is not None:
            await self.abandon_run(run)

    def _run_in(self, slot: int) -> str | None:
        return next((run for run, share in self._runs.items() if share.slot == slot), None)

    async def status(self) -> dict[str, Any]:
        """Return `free` workers, workers `in_use` and `targets` by run, and those `replaced`."""
        return {
            "free": len(self._free),
            "in_use": {run: self._held_by(run) for run in self._runs},
            "targets": {run: share.target for run, share in self._runs.items()},
            "replaced": list(self._replaced),
        }

    # -- shares

    def _balance(self) -> None:
        """Scale runs to their shares; never grant more workers than there are."""
        wanted = self._shares()
        for run, share in self._runs.items():
            if 0 < wanted[run] < share.target:
                self._scale(run, wanted[run])
        for run, share in self._runs.items():
            more = min(wanted[run] - share.target, self._ungranted())
            if share.target and more > 0:
                self._scale(run, share.target + more)
        self._assign_free()
        self._changed.set()
        self._changed = asyncio.Event()

    def _shares(self) -> dict[str, int]:
        demands = {run: share.demand for run, share in self._runs.items()}
        if not self._elastic:
            demands = {run: replace(one, most=one.least) for run, one in demands.items()}
        return shares(self._workers, demands)

    def _held_by(self, run: str) -> int:
        return sum(one.run == run for one in self._in_use)

    def _ungranted(self) -> int:
        """Return how many free processes are granted to no run."""
        owed = sum(max(0, one.target - self._held_by(run)) for run, one in self._runs.items())
        return max(0, len(self._free) - owed)

    def _scale(self, run: str, target: int) -> None:
        share = self._runs[run]
        share.target = target
        self._coordinators[share.slot].call.remote(run, "scale", target)

    def _assign_free(self) -> None:
        """Give free processes to the runs that wait, in the order of their requests."""
        for run, share in self._runs.items():
            for worker in list(share.waiting):
                if not self._free:
                    return
                request = share.waiting.pop(worker)
                elsewhere = [one for one in self._free if one.node != request.avoid]
                process = (elsewhere or self._free)[0]
                self._free.remove(process)
                process.run, process.worker = run, worker
                self._in_use.append(process)
                self._in_background(self._assign(process, request.answer, share.slot))

    async def _assign(
        self, process: PoolProcess, future: "asyncio.Future[ReusedWorkerHandle]", slot: int
    ) -> None:
        coordinator = self._coordinators[slot]
        with contextlib.suppress(RayError):  # it has died: the run will notice
            await process.handle.start_run.remote(process.worker, process.run, coordinator)
        if not future.done():
            future.set_result(process.handle)

    # -- processes

    async def _start_worker(self) -> None:
        waiting = (one for share in self._runs.values() for one in share.waiting.values())
        avoid = next((one.avoid for one in waiting if one.avoid), "")
        handle = self._worker_actor.options(**self._options, **placed(avoid)).remote()
        process = PoolProcess(handle, await handle.warm.remote())
        self._in_background(self._replace_at_end(process))
        self._free.append(process)
        self._balance()

    async def _replace_at_end(self, process: PoolProcess) -> None:
        """Wait until a process ends, and start another one."""
        with contextlib.suppress(RayError):
            await process.handle.live.remote()
        for held in (self._free, self._in_use):
            if process in held:
                held.remove(process)
        delay = _FIRST_DELAY
        while True:
            try:
                return await self._start_worker()
            except RayError:  # for example, the node is short of memory
                await asyncio.sleep(delay)
                delay = min(_LONGEST_DELAY, 2 * delay)

    def _take_back(self, process: PoolProcess, problem: str) -> None:
        if process not in self._in_use:  # it died, and another one is starting
            return
        if problem:
            self._replaced.append(f"{process.run}/{process.worker}: {problem}")
            ray.kill(process.handle)
            return
        self._in_use.remove(process)
        process.run = process.worker = ""
        self._free.append(process)
        self._balance()

    async def _follow_progress(self) -> None:
        """Ask the runs for their progress, as long as the pool lives."""
        while True:
            await asyncio.sleep(_POLL)
            for run, share in list(self._runs.items()):
                with contextlib.suppress(RayError, TimeoutError):
                    asked = self._coordinators[share.slot].call.remote(run, "status")
                    status = await asyncio.wait_for(_answer([asked]), 2.0)
                    if status:
                        share.done = status["step"] / status["total_steps"]
                        if status["target"] != share.target:  # it was restarted when we scaled it
                            self._scale(run, share.target)

    def _in_background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)

    def _check(self, request: RunRequest) -> None:
        if request.run in self._runs:
            raise WorkerPoolError(f"a run {request.run!r} is live already: give another name")
        other = [key for key, value in request.options.items() if value != self._options.get(key)]
        if other:
            raise WorkerPoolError(
                f"run {request.run!r} asks for workers with other "
                + ", ".join(
                    f"{k} ({request.options[k]}, not {self._options.get(k)})" for k in other
                )
                + " than those of the worker pool: ask for the same"
            )
        if request.least > self._workers:
            raise WorkerPoolError(
                f"run {request.run!r} needs at least {request.least} workers, and the worker pool "
                f"has {self._workers}"
            )


async def _answer(answers: Sequence[Any]) -> Any:
    return await answers[0] if answers else ""


def start_worker_pool(
    name: str,
    *,
    workers: int,
    coordinators: int,
    resources: Mapping[str, float],
    elastic: bool = True,
    isa: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> WorkerPoolHandle:
    """Start a worker pool and all its processes; returns its handle when they are warm.

    The pool and its processes end with the calling process.

    Args:
        name: by which runs find it (`ElasticConfig(worker_pool=name)`).
        workers: how many worker processes.
        coordinators: how many runs at a time.
        resources: what each worker asks Ray for.
        elastic: whether runs are given more than their least. Default True.
        isa: cap on the workers' instruction set, as in ElasticConfig. Default: none.
        runtime_env: Ray's runtime environment of the workers. Default: none.
    """
    options = process_options(resources, isa, runtime_env or {})
    pool: WorkerPoolHandle = (
        ray.remote(WorkerPool)
        .options(name=name, namespace=NAMESPACE, num_cpus=0, memory=1, max_concurrency=1000)
        .remote(options, workers, coordinators, elastic=elastic)
    )
    ray.get(pool.open.remote())
    return pool


def lives(worker_pool: str) -> bool:
    """Say whether a worker pool has not ended."""
    try:
        ray.get_actor(worker_pool, namespace=NAMESPACE)
    except Exception:  # noqa: BLE001 - Ray itself may have ended
        return False
    return True


def stop_run(worker_pool: str, run: str) -> None:
    """Let a run end after the step in flight."""
    pool: WorkerPoolHandle = ray.get_actor(worker_pool, namespace=NAMESPACE)
    ray.get(pool.stop_run.remote(run))


def abandon_run(worker_pool: str, run: str) -> None:
    """End a run that does not stop: its processes are killed."""
    pool: WorkerPoolHandle = ray.get_actor(worker_pool, namespace=NAMESPACE)
    ray.get(pool.abandon_run.remote(run))

"""The lender: owns worker processes that are warm, and lends them to the runs of a sweep.

A run that has a lender does not start processes. Its coordinator is one of the lender's, and so are
its workers; they go back when the run is over, or when it is told to make do with fewer. What comes
back is given to whoever would end last (`leases.py`), who takes it in at its next step boundary. A
process that died, or that a run has left other than it was, is replaced.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError

from raytrain_plus.elastic.coordinator.worker_sources import RunRequest, process_options
from raytrain_plus.elastic.protocol.handles import (
    LenderHandle,
    Ref,
    ReusedCoordinatorHandle,
    ReusedWorkerHandle,
)
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.names import NAMESPACE
from raytrain_plus.worker_pool.reused_actors import LentCoordinator, LentWorker
from raytrain_plus.worker_pool.shares import Claim, shares

_LOOK = 0.5  # seconds between two looks at how far the runs are
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # before another try to start a process
_FORGET_SECONDS = 15.0  # for a worker to forget a run


class LendingError(RuntimeError):
    """A run asks for what the lender cannot lend."""


@dataclass
class Process:
    """A worker's process.

    Attributes:
        handle: of the actor.
        run: whom it serves, empty for nobody.
        worker: its name there.
    """

    handle: ReusedWorkerHandle
    run: str = ""
    worker: str = ""


@dataclass
class Lease:
    """A live run.

    Attributes:
        request: what it asks for.
        spec: the run, for its coordinator; one, as a reference.
        place: which coordinator leads it.
        target: workers that it was told it should have; 0 until it has begun.
        done: the part of its work that is behind it.
        waiting: workers that it has asked for, in order, and which are to come.
    """

    request: RunRequest
    spec: Sequence[Ref[RunSpec]]
    place: int
    target: int
    done: float = 0.0
    waiting: "dict[str, asyncio.Future[ReusedWorkerHandle]]" = field(default_factory=dict)

    @property
    def claim(self) -> Claim:
        """What it asks for; its work is counted in samples."""
        work = (1.0 - self.done) * self.request.samples
        return Claim(least=self.request.least, most=self.request.most, work=work)


class Lender:
    """See the head of this file. All methods run in one event loop.

    Args:
        terms: a run as all those that will come: its workers' resources, environment and
            instruction set are those of the processes.
        workers: how many processes.
        coordinators: how many runs at a time; each has a process of its own, too.
        elastic: whether runs are given more than their least. Default True.
    """

    def __init__(
        self, terms: Mapping[str, Any], workers: int, coordinators: int, *, elastic: bool = True
    ) -> None:
        self._options = dict(terms)
        self._workers = workers
        self._elastic = elastic
        self._free: list[Process] = []
        self._lent: list[Process] = []
        self._leases: dict[str, Lease] = {}
        self._idle_places: asyncio.Queue[int] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._replaced: list[str] = []
        self._changed = asyncio.Event()
        self._actor = ray.remote(concurrency_groups={"control": 2, "life": 1})(LentWorker)
        self._me = ray.get_runtime_context().current_actor
        self._leading = ray.remote(concurrency_groups={"control": 4})(LentCoordinator)
        self._coordinators = [self._coordinator(place) for place in range(coordinators)]

    def _coordinator(self, place: int) -> ReusedCoordinatorHandle:
        options = {"num_cpus": 0, "memory": 1, "max_restarts": -1, "max_task_retries": 0}
        started: ReusedCoordinatorHandle = self._leading.options(**options).remote(self._me, place)
        return started

    async def open(self) -> None:
        """Start all processes; returns when all are warm."""
        for place in range(len(self._coordinators)):
            self._idle_places.put_nowait(place)
        self._later(self._watch())
        await asyncio.gather(*(self._start() for _ in range(self._workers)))

    # -- what a run says

    async def lead(
        self, request: RunRequest, spec: Sequence[Ref[RunSpec]]
    ) -> ReusedCoordinatorHandle:
        """Begin a run, as soon as there is room for it; returns its coordinator's handle.

        Args:
            request: what the run asks for.
            spec: the run, for its coordinator; one, as a reference, which is not resolved here.

        Raises:
            LendingError: a run of that name lives, or this one asks for other processes than there
                are.
        """
        self._check(request)
        place = await self._idle_places.get()
        lease = self._leases[request.run] = Lease(request, spec, place, target=0)
        self._balance()  # others make room
        while (
            not (can_have := min(self._shares()[request.run], self._unpromised())) >= request.least
        ):
            await self._changed.wait()
        lease.target = can_have
        leader = self._coordinators[place]
        await leader.lead.remote(spec, lease.target)
        self._balance()
        return leader

    async def take(self, run: str, worker: str) -> ReusedWorkerHandle:
        """Return a worker's process, as soon as there is one for it."""
        lease = self._leases[run]
        future: asyncio.Future[ReusedWorkerHandle] = asyncio.get_running_loop().create_future()
        lease.waiting[worker] = future
        self._hand_out()
        return await future

    async def give_back(self, run: str, worker: str, left: Sequence[Ref[str]]) -> None:
        """Take back a process that does nothing, or give up one that is to come.

        Args:
            run: whose it was.
            worker: its name there.
            left: what says what the run has left in it; empty if it has not served yet.
        """
        lease = self._leases.get(run)
        future = lease.waiting.pop(worker, None) if lease is not None else None
        if future is not None:
            future.cancel()
        found = [one for one in self._lent if (one.run, one.worker) == (run, worker)]
        for process in found:
            try:
                left_over = await asyncio.wait_for(_said(left), _FORGET_SECONDS)
            except (RayError, TimeoutError) as error:
                left_over = f"it does not answer: {error!r}"
            self._returned(process, left_over)

    async def ended(self, run: str) -> None:
        """A coordinator's word that its run is over; it can lead another one."""
        lease = self._leases.pop(run, None)
        if lease is not None:
            self._idle_places.put_nowait(lease.place)
            self._balance()

    async def stop(self, run: str) -> None:
        """Let a run end after the step in flight."""
        lease = self._leases.get(run)
        if lease is not None:
            self._coordinators[lease.place].hear.remote(run, "stop")

    async def abandon(self, run: str) -> None:
        """Give up a run that does not end by itself: its coordinator and workers are ended."""
        lease = self._leases.get(run)
        if lease is None:
            return
        ray.kill(self._coordinators[lease.place])
        self._coordinators[lease.place] = self._coordinator(lease.place)
        for process in [one for one in self._lent if one.run == run]:
            ray.kill(process.handle)
        await self.ended(run)

    async def lent_to(self, run: str) -> dict[str, ReusedWorkerHandle]:
        """Return the workers that a run has, by name: its coordinator has come back."""
        return {one.worker: one.handle for one in self._lent if one.run == run}

    async def leader_of(self, run: str) -> ReusedCoordinatorHandle | None:
        """Return the coordinator of a live run."""
        lease = self._leases.get(run)
        return None if lease is None else self._coordinators[lease.place]

    async def led_by(self, place: int) -> Sequence[Ref[RunSpec]]:
        """Return the run that a coordinator leads, if any: it has come back and does not know."""
        led = self._led_by(place)
        return () if led is None else self._leases[led].spec

    async def abandon_led_by(self, place: int) -> None:
        """Give up the run that a coordinator leads: nobody knows any more what it is."""
        led = self._led_by(place)
        if led is not None:
            await self.abandon(led)

    def _led_by(self, place: int) -> str | None:
        return next((run for run, one in self._leases.items() if one.place == place), None)

    async def status(self) -> dict[str, Any]:
        """Say who has how many workers."""
        return {
            "free": len(self._free),
            "lent": {run: sum(one.run == run for one in self._lent) for run in self._leases},
            "targets": {run: lease.target for run, lease in self._leases.items()},
            "replaced": list(self._replaced),
        }

    # -- who gets what

    def _balance(self) -> None:
        """Tell runs how many workers they should have; nobody is told more than there are."""
        wanted = self._shares()
        for run, lease in self._leases.items():
            if 0 < wanted[run] < lease.target:
                self._tell(run, wanted[run])
        for run, lease in self._leases.items():
            more = min(wanted[run] - lease.target, self._unpromised())
            if lease.target and more > 0:
                self._tell(run, lease.target + more)
        self._hand_out()
        self._changed.set()
        self._changed = asyncio.Event()

    def _shares(self) -> dict[str, int]:
        claims = {run: lease.claim for run, lease in self._leases.items()}
        if not self._elastic:
            claims = {run: replace(claim, most=claim.least) for run, claim in claims.items()}
        return shares(self._workers, claims)

    def _unpromised(self) -> int:
        """Processes that are free, and that nobody is waiting for or has been told of."""
        held = {run: sum(one.run == run for one in self._lent) for run in self._leases}
        owed = sum(max(0, one.target - held[run]) for run, one in self._leases.items())
        return max(0, len(self._free) - owed)

    def _tell(self, run: str, target: int) -> None:
        lease = self._leases[run]
        lease.target = target
        self._coordinators[lease.place].hear.remote(run, "scale", target)

    def _hand_out(self) -> None:
        """Give free processes to those who wait, in the order in which they came."""
        for run, lease in self._leases.items():
            for worker in list(lease.waiting):
                if not self._free:
                    return
                process = self._free.pop(0)
                process.run, process.worker = run, worker
                self._lent.append(process)
                self._later(self._serve(process, lease.waiting.pop(worker), lease.place))

    async def _serve(
        self, process: Process, future: "asyncio.Future[ReusedWorkerHandle]", place: int
    ) -> None:
        leader = self._coordinators[place]
        with contextlib.suppress(RayError):  # it has died: whoever takes it will see
            await process.handle.serve.remote(process.worker, process.run, leader)
        if not future.done():
            future.set_result(process.handle)

    # -- processes

    async def _start(self) -> None:
        process = Process(self._actor.options(**self._options).remote())
        await process.handle.warm.remote()
        self._later(self._live(process))
        self._free.append(process)
        self._balance()

    async def _live(self, process: Process) -> None:
        """Wait for a process's end, and start another one."""
        with contextlib.suppress(RayError):
            await process.handle.live.remote()
        for held in (self._free, self._lent):
            if process in held:
                held.remove(process)
        delay = _FIRST_DELAY
        while True:
            try:
                return await self._start()
            except RayError:  # as when the node is short of memory just now
                await asyncio.sleep(delay)
                delay = min(_LONGEST_DELAY, 2 * delay)

    def _returned(self, process: Process, left_over: str) -> None:
        if process not in self._lent:  # it died, and another is coming
            return
        if left_over:
            self._replaced.append(f"{process.run}/{process.worker}: {left_over}")
            ray.kill(process.handle)
            return
        self._lent.remove(process)
        process.run = process.worker = ""
        self._free.append(process)
        self._balance()

    async def _watch(self) -> None:
        """Learn now and then how far the runs are."""
        while True:
            await asyncio.sleep(_LOOK)
            for run, lease in list(self._leases.items()):
                with contextlib.suppress(RayError, TimeoutError):
                    leader = self._coordinators[lease.place]
                    said = await asyncio.wait_for(_said([leader.hear.remote(run, "status")]), 2.0)
                    if said:
                        lease.done = said["step"] / said["total_steps"]
                        if said["target"] != lease.target:  # it has come back, and did not hear
                            self._tell(run, lease.target)

    def _later(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)

    def _check(self, request: RunRequest) -> None:
        if request.run in self._leases:
            raise LendingError(f"run {request.run!r} lives: give another name")
        other = [key for key, value in request.options.items() if value != self._options[key]]
        if other:
            raise LendingError(
                f"run {request.run!r} asks for workers with other "
                + ", ".join(f"{k} ({request.options[k]}, not {self._options[k]})" for k in other)
                + " than the lender has"
            )
        if request.least > self._workers:
            raise LendingError(
                f"run {request.run!r} needs {request.least} workers, and the lender has "
                f"{self._workers}"
            )


async def _said(answers: Sequence[Any]) -> Any:
    return await answers[0] if answers else ""


def start_lender(
    name: str,
    *,
    workers: int,
    coordinators: int,
    resources: Mapping[str, float],
    elastic: bool = True,
    isa: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> LenderHandle:
    """Start a lender, and all of its processes; returns its handle when they are warm.

    It ends with this process, and all that it has lent ends with it.

    Args:
        name: under which runs find it (`ElasticConfig(lender=name)`).
        workers: how many worker processes.
        coordinators: how many runs at a time.
        resources: what each worker asks Ray for.
        elastic: whether runs are given more than their least.
        isa: cap on their instruction set, as in ElasticConfig.
        runtime_env: of the workers.
    """
    terms = process_options(resources, isa, runtime_env or {})
    lender: LenderHandle = (
        ray.remote(Lender)
        .options(name=name, namespace=NAMESPACE, num_cpus=0, memory=1, max_concurrency=1000)
        .remote(terms, workers, coordinators, elastic=elastic)
    )
    ray.get(lender.open.remote())
    return lender


def stop(lender: str, run: str) -> None:
    """Let a run end after the step in flight."""
    handle: LenderHandle = ray.get_actor(lender, namespace=NAMESPACE)
    ray.get(handle.stop.remote(run))


def abandon(lender: str, run: str) -> None:
    """Give up a run that does not end by itself."""
    handle: LenderHandle = ray.get_actor(lender, namespace=NAMESPACE)
    ray.get(handle.abandon.remote(run))

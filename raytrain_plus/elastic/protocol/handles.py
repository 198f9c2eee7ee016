"""What a process may call on the actors of a run, by their handles. Types only, no Ray."""

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from raytrain_plus.elastic.protocol.faults import Action
from raytrain_plus.elastic.protocol.messages import (
    CoordinatorHealth,
    Ready,
    RunSpec,
    Sighting,
    Unready,
    WorkerProcess,
    WorkerState,
)
from raytrain_plus.observe.events import Event

if TYPE_CHECKING:
    pass

_Given = ParamSpec("_Given")
_Answer_co = TypeVar("_Answer_co", covariant=True)


class Ref(Protocol[_Answer_co]):
    """The answer of an actor, which may be still to come; `ray.get` or `await` waits for it."""

    def __await__(self) -> Generator[Any, None, _Answer_co]:
        """Wait for the answer."""

    def future(self) -> "Future[Any]":
        """Return the answer as a future."""


class Remote(Protocol[_Given, _Answer_co]):
    """A method of an actor, as its handle has it."""

    def remote(self, *args: _Given.args, **kwargs: _Given.kwargs) -> Ref[_Answer_co]:
        """Call it; returns at once."""


class WorkerHandle(Protocol):
    """A worker. `state`, `leave` and what concerns a neighbour are answered while it trains."""

    prepare: Remote[[RunSpec, Action | None], Ready | Unready]
    serve: Remote[[], None]
    leave: Remote[[], None]
    state: Remote[[], WorkerState]
    stack_of_neighbour: Remote[[int, int], Sighting]
    kill_neighbour: Remote[[int], None]


class ReusedWorkerHandle(WorkerHandle, Protocol):
    """A worker's process that serves one run after another."""

    warm: Remote[[], str]
    start_run: "Remote[[str, str, ReusedCoordinatorHandle], None]"
    close_run: Remote[[], str]
    live: Remote[[], None]


class CoordinatorHandle(Protocol):
    """A run's coordinator."""

    report_starting: Remote[[str, WorkerProcess], None]
    report_notice: Remote[[str, str], None]
    report_memory_shortage: Remote[[str, str], None]
    status: Remote[[], Event]
    scale: Remote[[int], Event]
    lose: Remote[[int, int], Event]
    checkpoint: Remote[[], Event]
    stop: Remote[[], Event]
    health: Remote[[], CoordinatorHealth]


class ReusedCoordinatorHandle(CoordinatorHandle, Protocol):
    """A coordinator's process that leads one run after another."""

    start_run: Remote[[Sequence[Ref[RunSpec]], int], None]
    call: Remote[..., Any]


class WorkerPoolHandle(Protocol):
    """The worker pool of a sweep."""

    open: Remote[[], None]
    start_run: Remote[[Any, Sequence[Ref[RunSpec]]], CoordinatorHandle]
    request_worker: Remote[[str, str, str], ReusedWorkerHandle]
    return_worker: Remote[[str, str, Sequence[Ref[str]]], None]
    workers_of: Remote[[str], dict[str, ReusedWorkerHandle]]
    coordinator_of: Remote[[str], CoordinatorHandle | None]
    spec_in: Remote[[int], Sequence[Ref[RunSpec]]]
    run_ended: Remote[[str], None]
    abandon_run_in: Remote[[int], None]
    stop_run: Remote[[str], None]
    abandon_run: Remote[[str], None]
    status: Remote[[], dict[str, Any]]

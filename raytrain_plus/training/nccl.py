"""NCCL as the backend of a transport: its environment, connect, post, fence and abort.

NCCL differs from connections of our own in four ways, and each decides something here:

- Its `wait` only orders streams. After an abort the stream continues with whatever the memory
  holds. So a fence on the host must come before anything that is kept (`NcclGroup.fence`).
- It connects at the first message. An abort cannot reach a communicator that does not exist yet,
  so members greet each other while they meet (`NcclGroup.greet`).
- Its watchdog ends the process of a survivor by default (`environment`).
- Its abort may hang, so it runs in a thread of its own, with a deadline.

These paths are tested on a double of the backend. They have not run on a GPU.
"""

import datetime as dt
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed

from raytrain_plus.connections import listen_on
from raytrain_plus.training.wire import Message

# Much of what is used here is not declared in torch's type stubs.
dist: Any = torch.distributed

LEAST_VERSION = (2, 26, 2)
"""Before this version `ncclCommAbort` can hang for ever (pytorch/pytorch#149153)."""

TIMEOUT = dt.timedelta(days=7)  # progress is watched from outside
_MEETING_TIMEOUT = dt.timedelta(seconds=60)
_PLACE_BYTES = 128  # of a host, a port and a secret
_ABORT_SECONDS = 5.0
_POLL_SECONDS = 50e-6
_GREETING_ELEMENTS = 4
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")
_NCCL = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",  # 3, the default, ends the survivors' processes
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
}


class NcclVersionError(RuntimeError):
    """The installed NCCL cannot be aborted safely."""


class Event(Protocol):
    """A mark in a stream of the device."""

    def query(self) -> bool:
        """Say whether the device has done everything that was queued before the mark."""


def environment(current: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a worker on a GPU needs before CUDA starts.

    Deterministic matrix products need one of cuBLAS's two fixed workspaces; a valid choice of the
    user's is kept.

    Args:
        current: the environment as it is.
    """
    chosen = current.get(_CUBLAS)
    workspace = chosen if chosen in _CUBLAS_VALUES else _CUBLAS_VALUES[0]
    return {**_NCCL, _CUBLAS: workspace}


def check_version(version: tuple[int, ...]) -> None:
    """Check that this NCCL can be aborted.

    Raises:
        NcclVersionError: it may hang when a worker is lost.
    """
    if version < LEAST_VERSION:
        raise NcclVersionError(
            f"NCCL {'.'.join(map(str, version))} can hang when a worker is lost: install a torch "
            f"that brings NCCL {'.'.join(map(str, LEAST_VERSION))} or later"
        )


class NcclGroup:
    """The communicator of one generation, on one device.

    Args:
        backend: c10d's `ProcessGroupNCCL`. It is a Backend, whose coalescing calls take no
            argument; those of a ProcessGroup take a device.
        device: where the tensors live.
        record: marks the present place in the device's current stream.
        synchronize: waits until the device has done all its work.
        give_up: called with a reason when an abort hangs; ends the process.
    """

    def __init__(
        self,
        backend: Any,
        device: torch.device,
        *,
        record: Callable[[torch.device], Event] | None = None,
        synchronize: Callable[[torch.device], None] = torch.accelerator.synchronize,
        give_up: Callable[[str], None] | None = None,
        abort_seconds: float = _ABORT_SECONDS,
    ) -> None:
        self._backend = backend
        self._device = device
        self._record = record or _record
        self._synchronize = synchronize
        self._give_up = give_up or _end_process
        self._abort_seconds = abort_seconds

    def greet(self, peers: Sequence[int]) -> None:
        """Exchange a few bytes with all peers, so that every connection exists."""
        boxes = [
            torch.zeros(_GREETING_ELEMENTS, dtype=torch.uint8, device=self._device)
            for _ in range(2 * len(peers))
        ]
        sends = [Message(p, box) for p, box in zip(peers, boxes, strict=False)]
        receives = [Message(p, box) for p, box in zip(peers, boxes[len(peers) :], strict=True)]
        for work in self.post(sends, receives, lambda _peer, _sending: 0):
            work.wait(TIMEOUT)

    def post(
        self,
        sends: Sequence[Message],
        receives: Sequence[Message],
        tag: Callable[[int, bool], int],
    ) -> list[Any]:
        """Start sending and receiving in one group call."""
        backend = self._backend
        backend._start_coalescing()  # noqa: SLF001 - c10d has no public name for it
        try:
            for message in receives:
                backend.recv([message.tensor], message.peer, tag(message.peer, False))
            for message in sends:
                backend.send([message.tensor], message.peer, tag(message.peer, True))
        finally:  # a group call that is left open would swallow the next generation's messages
            work = backend._end_coalescing()  # noqa: SLF001 - as above
        return [work]

    def fence(self, check: Callable[[], None]) -> None:
        """Block until the device has done all that was queued in the current stream.

        Args:
            check: raises if the generation was aborted; the stream then computes garbage.
        """
        event = self._record(self._device)
        while not event.query():
            check()
            time.sleep(_POLL_SECONDS)
        check()

    def abort(self) -> None:
        """End all waits. Returns at once; the process ends if the abort itself hangs."""
        done = threading.Event()

        def end() -> None:
            self._backend.abort()
            self._synchronize(self._device)
            done.set()

        def watch() -> None:
            if not done.wait(self._abort_seconds):
                self._give_up(f"NCCL did not abort within {self._abort_seconds:.0f} s")

        for target in (end, watch):
            threading.Thread(target=target, daemon=True, name=f"nccl-abort-{target}").start()


def open_store(host: str, index: int, share: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return the key-value store over which NCCL hands out its unique id.

    The first member opens it on its own address only. Its keys begin with a secret, so that no
    member reads what a stranger has written.

    Args:
        host: the address at which this worker can be reached.
        index: this worker's place in the generation.
        share: gives all members what the first one has: a tensor of uint8, of the same size.
    """
    place = torch.zeros(_PLACE_BYTES, dtype=torch.uint8)
    store = None
    if index == 0:
        # Without a socket of ours the store would listen on all addresses of the machine.
        listening = listen_on(host)
        port = int(listening.getsockname()[1])
        store = dist.TCPStore(
            host, port, is_master=True, wait_for_workers=False, timeout=_MEETING_TIMEOUT,
            master_listen_fd=listening.detach(),
        )  # fmt: skip
        text = f"{host} {port} {secrets.token_hex(16)}".encode()
        place[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    at, port_text, secret = share(place).numpy().tobytes().rstrip(b"\0").decode().split()
    if store is None:
        store = dist.TCPStore(at, int(port_text), is_master=False, timeout=_MEETING_TIMEOUT)
    return dist.PrefixStore(secret, store)


def connect(store: Any, index: int, size: int, device: torch.device) -> NcclGroup:
    """Make this worker's end of a communicator; it does not wait for the others.

    Raises:
        NcclVersionError: this NCCL cannot be aborted safely.
    """
    check_version(torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = TIMEOUT  # noqa: SLF001 - there is no other way to set it
    options.config.blocking = 0
    backend = dist.ProcessGroupNCCL(store, index, size, options)
    backend.eager_connect_single_device(device)
    return NcclGroup(backend, device)


def _record(device: torch.device) -> Event:
    event: Event = torch.accelerator.current_stream(device).record_event()
    return event


def _end_process(reason: str) -> None:
    sys.stderr.write(f"{reason}: this worker ends; its state is on the other workers\n")
    sys.stderr.flush()
    os._exit(1)

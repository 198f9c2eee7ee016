"""The process group of one generation: meet, exchange, abort.

A transport only moves bytes between the members of one generation; it never adds anything (the
order of additions is that of `training/reduction.py`). All messages are point to point, so that one
abort is enough: closing the sockets of the group ends a wait within milliseconds. The collectives
of gloo would wait for their timeout.
"""

import datetime as dt
import json
import os
import secrets
import socket
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor

from raytrain_plus.training import nccl
from raytrain_plus.training.reduction import Message, Pending

# Much of what is used here is not declared in torch's type stubs.
dist: Any = torch.distributed

_MEETING_TIMEOUT = dt.timedelta(seconds=60)
_EXCHANGE_TIMEOUT = dt.timedelta(days=7)  # progress is watched from outside
_TAGS = 1 << 30

_Ends = tuple[str, str]  # local and remote address

MeetingAddress = tuple[str, int, str]
"""Host and port of a `MeetingPoint`, and the secret that its keys begin with."""


class TransportError(RuntimeError):
    """A peer was lost or the generation was aborted; the replica's state is untouched."""


class Transport:
    """Point-to-point messages between the members of one generation.

    Messages between two members arrive in the order in which they are posted; sender and receiver
    must post the same sizes. The backend follows the device: gloo on CPUs, nccl on CUDA devices.

    Args:
        index: this worker's place in the generation.
        size: how many workers the generation has.
        device: where the tensors live.
    """

    def __init__(self, index: int, size: int, device: torch.device) -> None:
        self.index = index
        self.size = size
        self.device = device
        self.peers = [peer for peer in range(size) if peer != index]
        self._group: Any = None
        self._sockets: dict[int, _Ends] = {}
        self._reason: str | None = None
        self._changed = threading.Condition()
        self._next_tag: dict[tuple[int, bool], int] = {}

    def meet(self, store: MeetingAddress, generation: str, host: str) -> None:
        """Connect to all other members.

        The blocking part runs in a thread of its own. If a member dies before it has connected, an
        abort does not wait for that thread, which ends by its timeout.

        Args:
            store: the address of a `MeetingPoint`.
            generation: a name that no other group of this meeting point uses.
            host: the address at which this worker can be reached.

        Raises:
            TransportError: a member did not connect, or the generation was aborted.
        """
        if self.size == 1:
            return
        failure: list[BaseException] = []
        done = threading.Event()

        def connect() -> None:
            try:
                group, sockets = _connect(self, store, generation, host)
                with self._changed:
                    self._group, self._sockets = group, sockets
                    if self._reason is not None:
                        self._shut()
                if isinstance(group, nccl.NcclGroup):  # an abort can reach it from here on
                    group.greet(self.peers)
            except Exception as error:  # noqa: BLE001 - handed to the waiting thread
                failure.append(error)
            with self._changed:
                done.set()
                self._changed.notify_all()

        threading.Thread(target=connect, daemon=True, name=f"meet-{generation}").start()
        with self._changed:
            self._changed.wait_for(lambda: done.is_set() or self._reason is not None)
        self.check()
        if failure:
            raise TransportError(f"could not meet the other workers: {failure[0]}") from failure[0]

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Start sending and receiving, all at once."""
        self.check()
        try:
            if isinstance(self._group, nccl.NcclGroup):
                works = self._group.post(sends, receives, self._tag)
            else:
                works = [
                    self._group.recv([m.tensor], m.peer, self._tag(m.peer, False)) for m in receives
                ]
                works += [
                    self._group.send([m.tensor], m.peer, self._tag(m.peer, True)) for m in sends
                ]
        except RuntimeError as error:
            self._raise_lost(error)
        return _Works(self, works)

    def fence(self) -> None:
        """Return when all received data is in the memory of the device.

        On a CPU a wait ensures that already. On a GPU a wait only orders streams, and after an
        abort the stream continues with garbage.

        Raises:
            TransportError: the generation was aborted.
        """
        if isinstance(self._group, nccl.NcclGroup):
            self._group.fence(self.check)
        self.check()

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Send and receive, and wait for both.

        Raises:
            TransportError: a peer was lost, or the generation was aborted.
        """
        self.post(sends, receives).wait()

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return every member's bytes, in the order of the generation."""
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        sizes[self.index].fill_(len(payload))
        self.exchange(
            [Message(peer, sizes[self.index]) for peer in self.peers],
            [Message(peer, sizes[peer]) for peer in self.peers],
        )
        boxes = [
            torch.empty(int(size.item()), dtype=torch.uint8, device=self.device) for size in sizes
        ]
        boxes[self.index] = bytes_tensor(payload).to(self.device)
        self.exchange(
            [Message(peer, boxes[self.index]) for peer in self.peers if payload],
            [Message(peer, boxes[peer]) for peer in self.peers if len(boxes[peer])],
        )
        return [tensor_bytes(box) for box in boxes]

    def abort(self, reason: str) -> None:
        """End every wait of this transport, now and later, by a TransportError; thread-safe."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
                self._shut()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise TransportError if the generation was aborted."""
        if self._reason is not None:
            raise TransportError(self._reason)

    def _tag(self, peer: int, sending: bool) -> int:
        tag = self._next_tag.get((peer, sending), 0)
        self._next_tag[peer, sending] = (tag + 1) % _TAGS
        return tag

    def _shut(self) -> None:
        if isinstance(self._group, nccl.NcclGroup):
            self._group.abort()
        for descriptor, ends in self._sockets.items():
            try:
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    # Where a peer has gone, gloo has closed the descriptor, and Ray may have opened
                    # another connection under the same number.
                    if _ends(connection) == ends:
                        connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # that peer has gone already
        self._sockets = {}

    def _raise_lost(self, error: RuntimeError) -> NoReturn:
        """Raise what an error of the backend means: a peer was lost, or this device is broken."""
        if isinstance(error, torch.AcceleratorError) and self._reason is None:
            raise error  # this worker's own device: it is replaced
        raise TransportError(
            self._reason or f"a peer was lost: {str(error).splitlines()[0]}"
        ) from error


class _Works:
    def __init__(self, transport: Transport, works: list[Any]) -> None:
        self._transport = transport
        self._works = works

    def wait(self) -> None:
        try:
            for work in self._works:
                work.wait(_EXCHANGE_TIMEOUT)
        except RuntimeError as error:
            self._transport._raise_lost(error)  # noqa: SLF001 - one module
        self._transport.fence()


class MeetingPoint:
    """A key-value store in this process, at which the members of a generation find each other.

    It listens on this node's address only. Keys begin with a secret that is sent in Ray's calls
    only, so that no worker reads what a stranger has written.

    Args:
        host: the address at which this worker can be reached.
    """

    def __init__(self, host: str) -> None:
        # Without a socket of ours the store would listen on all addresses of the machine.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, 0), family=family)
        port = int(listening.getsockname()[1])
        self._store = dist.TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=_MEETING_TIMEOUT,
            master_listen_fd=listening.detach(),
        )
        self.address: MeetingAddress = (host, port, secrets.token_hex(16))


def _connect(
    transport: Transport, address: MeetingAddress, generation: str, host: str
) -> tuple[Any, dict[int, _Ends]]:
    at, port, secret = address
    store = dist.PrefixStore(
        f"{secret}/{generation}",
        dist.TCPStore(at, port, is_master=False, timeout=_MEETING_TIMEOUT),
    )
    index, size = transport.index, transport.size
    if transport.device.type != "cpu":
        return nccl.connect(store, index, size, transport.device), {}
    before = _connections()
    options = dist.ProcessGroupGloo._Options()  # noqa: SLF001 - the only way to choose the address
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]  # noqa: SLF001
    options._timeout = _MEETING_TIMEOUT  # noqa: SLF001
    group = dist.ProcessGroupGloo(store, index, size, options)
    opened = {fd: ends for fd, ends in _connections().items() if before.get(fd) != ends}
    return group, _confirmed(opened, transport, store)


def _confirmed(opened: dict[int, _Ends], transport: Transport, store: Any) -> dict[int, _Ends]:
    """Return the group's own sockets: those whose other end is held by a member.

    Other threads of this process (Ray's) may have opened connections at the same moment; shutting
    one of those down would end the worker.
    """
    store.set(f"sockets/{transport.index}", json.dumps(list(opened.values())))
    theirs = {
        (remote, local)
        for peer in transport.peers
        for local, remote in json.loads(store.get(f"sockets/{peer}"))
    }
    return {fd: ends for fd, ends in opened.items() if ends in theirs}


def _connections() -> dict[int, _Ends]:
    """Return this process's connected TCP sockets by descriptor."""
    found = {}
    try:
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except FileNotFoundError:  # not Linux: an abort then waits for the peers to hang up
        return {}
    for descriptor in descriptors:
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    found[descriptor] = _ends(connection)
        except OSError:
            continue  # closed meanwhile, or not connected
    return found


def _ends(connection: socket.socket) -> _Ends:
    return str(connection.getsockname()[:2]), str(connection.getpeername()[:2])


def bytes_tensor(payload: bytes) -> Tensor:
    """Return bytes as a tensor of uint8."""
    return (
        torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        if payload
        else torch.empty(0, dtype=torch.uint8)
    )


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a uint8 tensor's bytes."""
    return tensor.cpu().numpy().tobytes()

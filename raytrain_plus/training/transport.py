"""The connections of one generation: meet, exchange, abort.

A transport only moves bytes between the members of one generation; it never adds anything (the
order of additions is that of `training/reduction.py`). All messages are point to point, so that one
abort is enough: closing the connections of the generation ends a wait within milliseconds.
"""

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch

from raytrain_plus.training import nccl
from raytrain_plus.training.bucket import Part
from raytrain_plus.training.doubling import DoublingRound, to_all
from raytrain_plus.training.endpoint import Address, Endpoint
from raytrain_plus.training.frames import GREETING, Links, Posted, tag_of
from raytrain_plus.training.gather import gather, gather_bytes
from raytrain_plus.training.meeting import Meeting
from raytrain_plus.training.wire import Message, Pending

_CHANNEL_BITS = 28  # of a frame's number below the channel


class TransportError(RuntimeError):
    """A peer was lost or the generation was aborted; the replica's state is untouched."""


class Transport:
    """Point-to-point messages between the members of one generation.

    Messages between two members arrive in the order in which they are posted on their channel;
    sender and receiver must post the same sizes. Tensors of a CPU travel over the connections of
    the workers' endpoints, those of a CUDA device by NCCL.

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
        self._meeting: Meeting | None = None
        self._links: Links | None = None
        self._nccl: nccl.NcclGroup | None = None
        self._reason: str | None = None
        self._changed = threading.Condition()
        self._generation = 0
        self._posted: dict[tuple[int, int, bool], int] = {}
        self._partners: frozenset[int] = frozenset()
        self._rounds: Sequence[DoublingRound] = ()

    def meet(
        self,
        endpoint: Endpoint | None,
        members: Sequence[Address],
        generation: int,
        part: Part | None = None,
        others: Iterable[int] = (),
    ) -> None:
        """Connect to those members with which this one exchanges messages.

        It returns when all members have come: those that are not connected tell each other along
        the rounds of their partners.

        The blocking part runs in a thread of its own. If a member dies before it has connected, an
        abort does not wait for that thread, which ends by its timeout.

        Args:
            endpoint: this worker's; a group of one needs none.
            members: the addresses of all members, in order.
            generation: its number; each of a run has another one.
            part: ours in the exchange, which says who our partners are. Default: that of a small
                group, where all are connected to all.
            others: further members that send us messages or receive some from us, such as a state.
                They name us as well.

        Raises:
            TransportError: a member did not connect, or the generation was aborted.
        """
        self.check()
        if self.size == 1:
            return
        assert endpoint is not None
        self._generation = generation
        part = part or Part(to_all([1] * self.size, [], self.index), None)
        self._rounds = part.doubling.rounds
        self._partners = frozenset(part.partners.union(others))
        meeting = Meeting(endpoint, members, self.index, generation, self._partners)
        failure: list[BaseException] = []
        done = threading.Event()

        def connect() -> None:
            try:
                meeting.run()
                links = Links(generation, meeting.connections)
                with self._changed:
                    self._links = links
                    if self._reason is not None:
                        links.end(self._reason)
                endpoint.keep_only({members[place][2] for place in self._partners})
                if part.halving is not None:
                    gather(self, self._rounds, torch.zeros(self.size), range(self.size + 1))
                if self.device.type != "cpu":
                    self._connect_devices(members[self.index][0])
            except Exception as error:  # noqa: BLE001 - handed to the waiting thread
                failure.append(error)
            with self._changed:
                done.set()
                self._changed.notify_all()

        with self._changed:
            self._meeting = meeting
            threading.Thread(target=connect, daemon=True, name=f"meet-{generation}").start()
            self._changed.wait_for(lambda: done.is_set() or self._reason is not None)
        self.check()
        if failure:
            raise TransportError(f"could not meet the other workers: {failure[0]}") from failure[0]

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Start sending and receiving, all at once."""
        self.check()
        if self._nccl is None:
            return self._post_frames(sends, receives)
        try:
            works = self._nccl.post(sends, receives, partial(self._next, 0))
        except RuntimeError as error:
            self._raise_lost(error)
        return _Works(self, works)

    def wait_any(self, pending: Sequence[Pending], *, block: bool = True) -> None:
        """Send and receive until one of them is done.

        Args:
            pending: what `post` has returned, of messages between CPUs.
            block: if False, do only what is possible at once.

        Raises:
            TransportError: a peer was lost, or the generation was aborted.
        """
        frames = [one for one in pending if isinstance(one, _Frames)]
        if self._links is not None and block:
            self._links.wait(*(one.posted for one in frames))
        elif self._links is not None:
            self._links.poll()
        self.check()
        lost = next((one for one in frames if one.posted.lost), None)
        if lost is not None:
            lost.wait()

    def fence(self) -> None:
        """Return when all received data is in the memory of the device.

        On a CPU a wait ensures that already. On a GPU a wait only orders streams, and after an
        abort the stream continues with garbage.

        Raises:
            TransportError: the generation was aborted.
        """
        if self._nccl is not None:
            self._nccl.fence(self.check)
        self.check()

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Send and receive, and wait for both.

        Raises:
            TransportError: a peer was lost, or the generation was aborted.
        """
        self.post(sends, receives).wait()

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return every member's bytes, in the order of the generation."""
        return gather_bytes(self, self._rounds, payload)

    @property
    def waits_for(self) -> int | None:
        """The member whose message keeps this worker waiting; None if that is not known."""
        links, meeting = self._links, self._meeting
        if links is not None:
            return links.awaited()
        return meeting.awaited if meeting is not None else None

    def abort(self, reason: str) -> None:
        """End every wait of this transport, now and later, by a TransportError; thread-safe."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
                if self._meeting is not None:
                    self._meeting.end()
                if self._links is not None:
                    self._links.end(reason)
                if self._nccl is not None:
                    self._nccl.abort()
            self._changed.notify_all()

    def close(self) -> None:
        """End a generation in which all messages have arrived.

        The next one can use its connections. One on which something is still on its way is closed.
        """
        if self._links is None or self._links.idle() != self._partners:
            self.abort("the generation is over")

    def check(self) -> None:
        """Raise TransportError if the generation was aborted."""
        if self._reason is not None:
            raise TransportError(self._reason)

    def _connect_devices(self, host: str) -> None:
        """Make the communicator of the devices; the members find each other by the connections."""

        def share(payload: torch.Tensor) -> torch.Tensor:
            """Return what the first member gives; all give the same size."""
            sends = [Message(peer, payload) for peer in self.peers if self.index == 0]
            receives = [Message(0, payload)] if self.index else []
            self._post_frames(sends, receives).wait()
            return payload

        group = nccl.connect(
            nccl.open_store(host, self.index, share), self.index, self.size, self.device
        )
        with self._changed:
            self._nccl = group
            if self._reason is not None:
                group.abort()
        group.greet(self.peers)  # an abort can reach it from here on

    def _post_frames(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        if self._links is None:  # a group of one
            return _Frames(self, None, Posted(0))
        posted = self._links.post(
            [(m.peer, self._tag(m, True), m.memory) for m in sends],
            [(m.peer, self._tag(m, False), m.memory) for m in receives],
        )
        return _Frames(self, self._links, posted)

    def _tag(self, message: Message, sending: bool) -> int:
        number = self._next(message.channel, message.peer, sending) + GREETING + 1
        return tag_of(self._generation, message.channel << _CHANNEL_BITS | number)

    def _next(self, channel: int, peer: int, sending: bool) -> int:
        number = self._posted.get((channel, peer, sending), 0)
        self._posted[channel, peer, sending] = number + 1
        return number

    def _raise_lost(self, error: RuntimeError) -> NoReturn:
        """Raise what an error of NCCL means: a peer was lost, or this device is broken."""
        if isinstance(error, torch.AcceleratorError) and self._reason is None:
            raise error  # this worker's own device: it is replaced
        raise TransportError(
            self._reason or f"a peer was lost: {str(error).splitlines()[0]}"
        ) from error


class _Frames:
    def __init__(self, transport: Transport, links: Links | None, posted: Posted) -> None:
        self._transport = transport
        self._links = links
        self.posted = posted

    @property
    def is_done(self) -> bool:
        return not self.posted.left

    def wait(self) -> None:
        posted = self.posted
        if self._links is not None and posted.left:
            self._links.wait(posted)
        self._transport.check()
        if posted.left:
            raise TransportError(f"a peer was lost: {posted.lost}")


class _Works:
    def __init__(self, transport: Transport, works: list[Any]) -> None:
        self._transport = transport
        self._works = works

    @property
    def is_done(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def wait(self) -> None:
        try:
            for work in self._works:
                work.wait(nccl.TIMEOUT)
        except RuntimeError as error:
            self._transport._raise_lost(error)  # noqa: SLF001 - one module
        self._transport.fence()

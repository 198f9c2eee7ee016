"""Messages between this process and others, over connections that are open.

A message is a frame: a tag and a length, then the bytes. Small frames are received several at once,
and copied to the memory that waits for their tags; a large one is received straight into it. A tag
begins with the generation, and late frames of an older one are dropped. A frame that comes before
its receive is posted stays where it is, mostly in the kernel, unless another frame behind it is
waited for: then it is kept.

No thread of its own moves the bytes: what can be sent or received at once is done by the thread
that posts it, and the rest by the thread that waits. The kernel's buffers hold what arrives in
between. A thread that only receives would have to take turns with the one that waits.
"""

import contextlib
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_HEADER = struct.Struct("!QQ")  # tag, length
_NUMBER_BITS = 40
_AT_ONCE = 64  # buffers in one call of the kernel
_STAGE_BYTES = 1 << 14  # received at once, of as many frames as there are in them
_GROWTH = 1 << 20  # bytes: memory for an early frame is taken as its bytes arrive
_MOST_EARLY = 4 << 30  # bytes of one early frame
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

GREETING = 0
"""The number of the frame with which a member says that it has come."""


def tag_of(generation: int, number: int) -> int:
    """Return a frame's tag.

    Args:
        generation: below 2**24.
        number: its place among the frames of one generation and direction; counted modulo 2**40.
    """
    return generation << _NUMBER_BITS | number & (1 << _NUMBER_BITS) - 1


def generation_of(tag: int) -> int:
    """Return the generation that a tag begins with."""
    return tag >> _NUMBER_BITS


def greeting(generation: int) -> bytes:
    """Return the frame with which a member says that it has come; it has no content."""
    return _HEADER.pack(tag_of(generation, GREETING), 0)


GREETING_BYTES = _HEADER.size


def greeted(frame: bytes) -> int:
    """Return the generation of a greeting.

    Raises:
        ConnectionError: it is none.
    """
    tag, length = _HEADER.unpack(frame)
    if length or tag & (1 << _NUMBER_BITS) - 1 != GREETING:
        raise ConnectionError("it sent another message than a greeting")
    return generation_of(tag)


@dataclass(eq=False)
class Posted:
    """Some sends and receives that were posted together.

    Attributes:
        left: how many are not done yet.
        lost: why the rest can never be done; empty if it can.
    """

    left: int
    lost: str = ""


@dataclass(eq=False)
class _Arriving:
    """A frame whose header is here.

    Attributes:
        tag: its tag.
        left: its bytes that are not here yet.
        view: where the next ones go; None where they are dropped or kept.
        kept: the bytes of a frame that comes early.
    """

    tag: int
    left: int
    view: memoryview | None = None
    kept: bytearray | None = None


@dataclass(eq=False)
class _Link:
    """One connection: what is to be sent and received on it, and how far that is.

    Attributes:
        stage: memory for what is received; its bytes `first` to `last` are not handled yet.
    """

    socket: socket.socket
    out: deque[tuple[bytes | memoryview, Posted | None]] = field(default_factory=deque)
    expected: dict[int, tuple[memoryview, Posted]] = field(default_factory=dict)
    early: dict[int, bytearray] = field(default_factory=dict)
    arriving: _Arriving | None = None
    stage: memoryview = field(default_factory=lambda: memoryview(bytearray(_STAGE_BYTES)))
    first: int = 0
    last: int = 0
    readable: bool = True
    writable: bool = True
    lost: str = ""

    @property
    def is_idle(self) -> bool:
        """Whether the next generation can use the connection."""
        busy = self.out or self.expected or self.early or self.arriving or self.first < self.last
        return not busy and not self.lost


class Links:
    """The connections of one generation, driven by the threads that post and wait.

    Args:
        generation: its number.
        connections: a connection to each partner, by its place; they become non-blocking.
    """

    def __init__(self, generation: int, connections: Mapping[int, socket.socket]) -> None:
        self._generation = generation
        self._links: dict[int, _Link] = {}
        self._by_descriptor: dict[int, _Link] = {}
        self._epoll = select.epoll()
        self._moved = threading.Condition()
        self._is_polled = False
        self._over = ""
        self._waited: tuple[Posted, ...] = ()  # what the last thread that had to wait waits for
        for place, connection in connections.items():
            connection.setblocking(False)
            link = _Link(connection)
            self._links[place] = self._by_descriptor[connection.fileno()] = link
            self._epoll.register(connection, _EVENTS)

    def post(
        self,
        sends: list[tuple[int, int, memoryview]],
        receives: list[tuple[int, int, memoryview]],
    ) -> Posted:
        """Start sending and receiving.

        Args:
            sends: partner, tag and bytes (not empty) of each frame.
            receives: partner, tag, and the memory to receive into.
        """
        posted = Posted(len(sends) + len(receives))
        with self._moved:
            touched = {}
            for partner, tag, view in receives:
                link = touched[partner] = self._links[partner]
                self._expect(link, tag, view, posted)
            for partner, tag, view in sends:
                link = touched[partner] = self._links[partner]
                link.out.append((_HEADER.pack(tag, len(view)), None))
                link.out.append((view, posted))
                if link.lost:
                    posted.lost = link.lost
            for link in touched.values():
                self._advance(link)
        return posted

    def wait(self, *posted: Posted) -> None:
        """Return when one of them is done, or never can be (`lost`), or after `end`."""
        with self._moved:
            self._waited = posted
            while not self._over and all(one.left and not one.lost for one in posted):
                if self._is_polled:  # the other thread sees whatever arrives
                    self._moved.wait()
                else:
                    self._poll(None)

    def poll(self) -> None:
        """Send and receive what is possible at once."""
        with self._moved:
            if not self._is_polled:
                self._poll(0)

    def _poll(self, timeout: float | None) -> None:
        """Wait for events, with the lock released meanwhile, and do what they allow."""
        self._is_polled = True
        self._moved.release()
        try:
            events = self._epoll.poll(timeout)
        finally:
            self._moved.acquire()
            self._is_polled = False
        for descriptor, event in events:
            link = self._by_descriptor[descriptor]
            link.readable |= bool(event & ~select.EPOLLOUT)
            link.writable |= bool(event & ~select.EPOLLIN)
            self._advance(link)
        self._moved.notify_all()

    def awaited(self) -> int | None:
        """Return a partner whose message keeps a thread waiting; None if no thread waits.

        It takes no lock, so that it answers whatever the threads do.
        """
        waited = self._waited
        for place, link in self._links.items():
            if any(posted in waited for _, posted in list(link.expected.values())):
                return place
        return None

    def end(self, why: str) -> None:
        """End all waits, now and later; thread-safe. The connections are of no use afterwards."""
        self._over = why
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.socket.shutdown(socket.SHUT_RDWR)  # which also ends a poll
        with self._moved:
            self._moved.notify_all()

    def idle(self) -> set[int]:
        """Return the partners whose connection the next generation can use."""
        with self._moved:
            return {place for place, link in self._links.items() if link.is_idle}

    # -- one link; all with the lock held

    def _expect(self, link: _Link, tag: int, view: memoryview, posted: Posted) -> None:
        kept = link.early.pop(tag, None)
        if kept is None:
            link.expected[tag] = view, posted
            if link.lost:
                posted.lost = link.lost
        elif len(kept) != len(view):
            self._lose(link, _mismatch(len(kept), len(view)))
            posted.lost = link.lost
        else:
            view[:] = kept
            posted.left -= 1

    def _advance(self, link: _Link) -> None:
        """Send and receive what is possible at once: what is left waits for an event."""
        try:
            while link.out and link.writable and not link.lost:
                self._send(link)
            while link.expected and not link.lost:
                if link.first < link.last:
                    self._handle(link)
                if link.readable and link.expected and not link.lost:
                    self._receive(link)
                else:
                    break
        except OSError as error:
            self._lose(link, error.strerror or str(error))

    def _send(self, link: _Link) -> None:
        views = [view for view, _ in link.out]
        del views[_AT_ONCE:]
        try:
            sent = link.socket.sendmsg(views)
        except BlockingIOError:
            link.writable = False
            return
        while sent:
            view, posted = link.out[0]
            if sent < len(view):
                link.out[0] = memoryview(view)[sent:], posted
                break
            sent -= len(view)
            link.out.popleft()
            if posted is not None:
                posted.left -= 1

    def _receive(self, link: _Link) -> None:
        """Receive what is there: the rest of a large frame into its place, else into the stage."""
        arriving = link.arriving
        if arriving is None or arriving.left < _STAGE_BYTES:
            if link.first:
                rest = link.last - link.first
                link.stage[:rest] = link.stage[link.first : link.last]
                link.first, link.last = 0, rest
            wanted = link.stage[link.last :]
        elif arriving.view is not None:
            wanted = arriving.view
        else:
            wanted = memoryview(bytearray(min(arriving.left, _GROWTH)))
        try:
            got = link.socket.recv_into(wanted)
        except BlockingIOError:
            link.readable = False
            return
        if not got:
            self._lose(link, "it has closed the connection")
            return
        if got < len(wanted):
            link.readable = False  # until the kernel says otherwise
        if arriving is None or arriving.left < _STAGE_BYTES:
            link.last += got
            self._handle(link)
        else:
            _put(arriving, wanted[:got])
            if not arriving.left:
                self._finish(link, arriving)

    def _handle(self, link: _Link) -> None:
        """Handle what has been received into the stage, as long as anything is waited for."""
        while link.expected and not link.lost:
            arriving, there = link.arriving, link.last - link.first
            if arriving is None:
                if there < _HEADER.size:
                    return
                tag, length = _HEADER.unpack_from(link.stage, link.first)
                link.first += _HEADER.size
                self._start(link, tag, length)
                continue
            if not there:
                return
            some = min(arriving.left, there)
            _put(arriving, link.stage[link.first : link.first + some])
            link.first += some
            if not arriving.left:
                self._finish(link, arriving)

    def _start(self, link: _Link, tag: int, length: int) -> None:
        generation = generation_of(tag)
        if generation < self._generation:
            link.arriving = _Arriving(tag, length)
        elif generation > self._generation:
            self._lose(link, f"it is in generation {generation}, after {self._generation}")
            return
        elif tag in link.expected:
            view, _ = link.expected[tag]
            if len(view) != length:
                self._lose(link, _mismatch(length, len(view)))
                return
            link.arriving = _Arriving(tag, length, view)
        elif length > _MOST_EARLY or tag in link.early:
            self._lose(link, f"it sent a message of {length:,} bytes that nothing waits for")
            return
        else:
            link.arriving = _Arriving(tag, length, kept=bytearray())
        if not length:
            self._finish(link, link.arriving)

    def _finish(self, link: _Link, arrived: _Arriving) -> None:
        link.arriving = None
        if arrived.kept is not None:
            link.early[arrived.tag] = arrived.kept
            if arrived.tag in link.expected:  # posted while it arrived
                view, posted = link.expected.pop(arrived.tag)
                self._expect(link, arrived.tag, view, posted)
        elif arrived.view is not None:
            _, posted = link.expected.pop(arrived.tag)
            posted.left -= 1

    def _lose(self, link: _Link, why: str) -> None:
        link.lost = link.lost or why
        for _, posted in (*link.out, *link.expected.values()):
            if posted is not None:
                posted.lost = posted.lost or link.lost
        with contextlib.suppress(OSError):
            link.socket.shutdown(socket.SHUT_RDWR)  # the partner notices too


def _put(arriving: _Arriving, content: memoryview) -> None:
    """Put what has come of a frame where it belongs, unless it is there already."""
    arriving.left -= len(content)
    if arriving.view is not None:
        if content.obj is not arriving.view.obj:
            arriving.view[: len(content)] = content
        arriving.view = arriving.view[len(content) :]
    elif arriving.kept is not None:
        arriving.kept += content


def _mismatch(sent: int, expected: int) -> str:
    return f"it sent {sent:,} bytes where {expected:,} are expected"

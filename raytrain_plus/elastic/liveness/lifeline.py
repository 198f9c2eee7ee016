"""Lifelines: connections by which the kernel tells at once that a process or its host is gone.

The coordinator holds one TCP connection to each worker. When the process ends, for whatever reason,
its kernel closes the connection. When the host or the cable is gone, the keepalive of our own
kernel gives up after some six seconds. Neither needs an interpreter that may be busy, stopped or
starved: a worker that is merely slow keeps its lifeline.

Frames of bytes travel on it in both directions: what the coordinator and its workers say to each
other (`raytrain_plus/elastic/protocol/control.py`). A frame costs a few microseconds, a call of Ray
a thousand.

Ray reports a dead process as fast, but a dead host only after 15 to 60 seconds at its default
settings (measured with Ray 2.60).
"""

import contextlib
import secrets
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator

from raytrain_plus import connections

Address = tuple[str, int, str]  # host, port, secret

_IDLE, _INTERVAL, _PROBES = 1, 1, 5  # seconds, seconds, unanswered probes: six seconds in all
_UNACKNOWLEDGED = 6000  # milliseconds after which what was sent must have arrived
_CONNECT_SECONDS = 5.0
_LOOK = 0.5  # seconds between two looks at what is to be watched
_LENGTH = struct.Struct(">I")
_MOST = 1 << 30  # bytes of a frame
_PIECE = 1 << 20  # bytes that are received at once

Gone = Callable[[str, str], None]


class LifelineServer:
    """A worker's end of its lifeline: where the coordinator connects.

    Args:
        host: the address at which this process can be reached.
        released: called from a thread each time that the connection ends: the coordinator has
            closed it, has died, or cannot be reached any more.
        received: called from the same thread with each frame that comes. Default: none is read.
    """

    def __init__(
        self,
        host: str,
        released: Callable[[], None],
        received: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        secret = secrets.token_hex(16)
        self._released = released
        self._received = received
        self._held: list[socket.socket] = []  # the newest coordinator last
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._listener = connections.Listener(host, secret, 0, lambda _: True, self._hold)
        self.address: Address = (host, self._listener.port, secret)
        connections.close_in_forked_children(self)

    @property
    def is_held(self) -> bool:
        """Whether a coordinator holds the other end."""
        with self._lock:
            return bool(self._held)

    def send(self, frame: bytes) -> bool:
        """Send a frame to the coordinator; returns whether one holds the other end.

        It may be lost with that coordinator. One that reads nothing lets this call wait.
        """
        with self._lock:
            line = self._held[-1] if self._held else None
        if line is None:
            return False
        try:
            with self._sending:
                line.sendall(_LENGTH.pack(len(frame)) + frame)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Accept no connection any more."""
        self._listener.close()

    def sockets(self) -> list[socket.socket]:
        """Return all sockets that it has open."""
        return [*self._listener.sockets(), *self._held]

    def _hold(self, _: bytes, line: socket.socket) -> None:
        with line:
            _keep_alive(line)
            with self._lock:
                self._held.append(line)
            frames = _Frames()
            try:
                while piece := line.recv(_PIECE):
                    for frame in frames.add(piece):
                        self._received(frame)
            except OSError:
                pass  # the coordinator or its host is gone
            finally:
                with self._lock:
                    self._held.remove(line)
        self._released()


class _Frames:
    """Cuts the bytes of a connection into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def add(self, piece: bytes) -> Iterator[bytes]:
        """Yield the frames that a piece completes.

        Raises:
            ConnectionError: a frame is longer than any that is sent.
        """
        self._rest += piece
        start = 0
        while len(self._rest) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._rest, start)
            if length > _MOST:
                raise ConnectionError(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(self._rest) < end:
                break
            yield bytes(self._rest[start + _LENGTH.size : end])
            start = end
        del self._rest[:start]


class _Line:
    """The coordinator's end of one lifeline."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.frames = _Frames()
        self.waiting: deque[memoryview] = deque()  # what the kernel has not accepted yet

    def flush(self) -> None:
        """Send what waits, as far as the kernel accepts it.

        Raises:
            OSError: the connection has ended.
        """
        while self.waiting:
            try:
                sent = self.connection.send(self.waiting[0])
            except BlockingIOError:
                return
            if sent == len(self.waiting[0]):
                self.waiting.popleft()
            else:
                self.waiting[0] = self.waiting[0][sent:]


class Lifelines:
    """The coordinator's ends of all lifelines, served by one thread.

    Args:
        gone: called, from that thread, with a worker's name and what is known of its end.
        received: called, from that thread, with a worker's name and each frame that it sends; it
            must not wait for anything. Default: frames are ignored.
    """

    def __init__(
        self, gone: Gone, received: Callable[[str, bytes], None] = lambda _worker, _frame: None
    ) -> None:
        self._gone = gone
        self._received = received
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None
        self._closed = False

    def hold(self, worker: str, address: Address) -> None:
        """Connect to a worker; one that cannot be reached counts as gone."""
        host, port, secret = address
        try:
            connection = connections.connect(host, port, secret, b"", _CONNECT_SECONDS)
        except OSError as error:
            self._gone(worker, f"its host cannot be reached at {host}: {error}")
            return
        _keep_alive(connection)
        connection.setblocking(False)
        with self._lock:
            self._lines[worker] = _Line(connection)
            self._selector.register(connection, selectors.EVENT_READ, worker)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, daemon=True, name="lifelines")
                self._thread.start()

    def send(self, worker: str, frame: bytes) -> bool:
        """Send a frame to a worker, without a wait; returns whether it has a lifeline."""
        with self._lock:
            line = self._lines.get(worker)
            if line is None:
                return False
            line.waiting.append(memoryview(_LENGTH.pack(len(frame)) + frame))
            with contextlib.suppress(OSError):  # the thread finds out, too, and reports it
                line.flush()
            self._listen(worker, line)
        return True

    def release(self, worker: str) -> None:
        """Close the connection to a worker, without a call of `gone`."""
        with self._lock:
            line = self._lines.pop(worker, None)
            if line is not None:
                self._drop(line)

    def close(self) -> None:
        """Close all connections."""
        for worker in list(self._lines):
            self.release(worker)
        self._closed = True

    def _listen(self, worker: str, line: _Line) -> None:
        """Let the thread wait for what this connection is to do next."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.waiting else 0)
        if self._selector.get_key(line.connection).events != events:
            self._selector.modify(line.connection, events, worker)

    def _drop(self, line: _Line) -> None:
        self._selector.unregister(line.connection)
        line.connection.close()

    def _serve(self) -> None:
        while not self._closed:
            for key, events in self._selector.select(_LOOK):
                frames, why = self._advance(key.data, events)
                for frame in frames:
                    self._received(key.data, frame)
                if why:
                    self._gone(key.data, why)

    def _advance(self, worker: str, events: int) -> tuple[list[bytes], str]:
        """Move the bytes of one connection; return what has come, and why it has ended."""
        frames: list[bytes] = []
        with self._lock:
            line = self._lines.get(worker)
            if line is None:  # released since
                return [], ""
            why = ""
            try:
                if events & selectors.EVENT_WRITE:
                    line.flush()
                    self._listen(worker, line)
                piece = line.connection.recv(_PIECE) if events & selectors.EVENT_READ else None
                if piece == b"":
                    why = "its process ended"
                elif piece:
                    frames.extend(line.frames.add(piece))
            except BlockingIOError:
                return [], ""
            except TimeoutError as error:
                why = f"its host does not answer any more ({error})"
            except OSError as error:
                why = f"its process or host is gone ({error})"
            if why:
                self._lines.pop(worker)
                self._drop(line)
        return frames, why


def _keep_alive(line: socket.socket) -> None:
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE),
        ("TCP_KEEPINTVL", _INTERVAL),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED),
    ):
        if hasattr(socket, name):  # elsewhere than on Linux, the system's own patience counts
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

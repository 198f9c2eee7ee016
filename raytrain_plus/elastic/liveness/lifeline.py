"""Lifelines: connections by which the kernel tells at once that a process or its host is gone.

The coordinator holds one TCP connection to each worker. It begins with a secret that comes with the
address in a Ray call; nothing else is ever sent on it. When the process ends, for whatever reason,
its kernel closes the connection. When the host or the cable is gone, the keepalive of our own
kernel gives up after some six seconds. Neither needs an interpreter that may be busy, stopped or
starved: a worker that is merely slow keeps its lifeline.

Ray reports a dead process as fast, but a dead host only after 15 to 60 seconds at its default
settings (measured with Ray 2.60).
"""

import contextlib
import functools
import hmac
import os
import secrets
import selectors
import socket
import threading
import weakref
from collections.abc import Callable

Address = tuple[str, int, str]  # host, port, secret

_IDLE, _INTERVAL, _PROBES = 1, 1, 5  # seconds, seconds, unanswered probes: six seconds in all
_CONNECT_SECONDS = 5.0
_SECRET_BYTES = 32  # as hexadecimal digits
_LOOK = 0.5  # seconds between two looks at what is to be watched

Gone = Callable[[str, str], None]


class LifelineServer:
    """A worker's end of its lifeline: where the coordinator connects.

    Args:
        host: the address at which this process can be reached.
        released: called from a thread each time that the connection ends: the coordinator has
            closed it, has died, or cannot be reached any more.
    """

    def __init__(self, host: str, released: Callable[[], None]) -> None:
        self._socket = socket.create_server((host, 0), family=_family(host))
        secret = secrets.token_hex(_SECRET_BYTES // 2)
        self.address: Address = (host, self._socket.getsockname()[1], secret)
        self._released = released
        self._lines = 0
        self._held: set[socket.socket] = set()
        self._lock = threading.Lock()
        _SERVERS.add(self)
        _watch_forks()
        threading.Thread(target=self._accept, daemon=True, name="lifeline").start()

    @property
    def is_held(self) -> bool:
        """Whether a coordinator holds the other end."""
        with self._lock:
            return self._lines > 0

    def close(self) -> None:
        """Accept no connection any more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which ends the wait for a connection
        self._socket.close()

    def leave_to_parent(self) -> None:
        """Close the parent's sockets in a forked child.

        If the child kept them, the end of the parent's process would not close the connection.
        """
        for held in (self._socket, *self._held):
            with contextlib.suppress(OSError):
                held.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._socket.accept()
                with self._lock:
                    self._held.add(line)
                threading.Thread(target=self._hold, args=(line,), daemon=True).start()

    def _hold(self, line: socket.socket) -> None:
        is_ours = False
        with line, contextlib.suppress(OSError):
            is_ours = self._is_ours(line)
            if is_ours:
                with self._lock:
                    self._lines += 1
                _keep_alive(line)
                line.recv(1)  # returns when the other end has gone
        with self._lock:
            self._lines -= is_ours
            self._held.discard(line)
        if is_ours:
            self._released()

    def _is_ours(self, line: socket.socket) -> bool:
        """Say whether the other end knows the secret; a stranger is refused and changes nothing."""
        line.settimeout(_CONNECT_SECONDS)
        said = b""
        while len(said) < _SECRET_BYTES and (more := line.recv(_SECRET_BYTES - len(said))):
            said += more
        return hmac.compare_digest(said, self.address[2].encode())


_SERVERS: "weakref.WeakSet[LifelineServer]" = weakref.WeakSet()


def _in_a_forked_child() -> None:
    for lifeline in list(_SERVERS):
        lifeline.leave_to_parent()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_in_a_forked_child)


class Lifelines:
    """The coordinator's ends of all lifelines, watched by one thread.

    Args:
        gone: called, from that thread, with a worker's name and what is known of its end.
    """

    def __init__(self, gone: Gone) -> None:
        self._gone = gone
        self._lines: dict[str, socket.socket] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None
        self._closed = False

    def hold(self, worker: str, address: Address) -> None:
        """Connect to a worker; one that cannot be reached counts as gone."""
        try:
            line = socket.create_connection(address[:2], timeout=_CONNECT_SECONDS)
            line.sendall(address[2].encode())
        except OSError as error:
            self._gone(worker, f"its host cannot be reached at {address[0]}: {error}")
            return
        _keep_alive(line)
        with self._lock:
            self._lines[worker] = line
            self._selector.register(line, selectors.EVENT_READ, worker)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True, name="lifelines")
                self._thread.start()

    def release(self, worker: str) -> None:
        """Close the connection to a worker, without a call of `gone`."""
        with self._lock:
            line = self._lines.pop(worker, None)
            if line is not None:
                self._selector.unregister(line)
                line.close()

    def close(self) -> None:
        """Close all connections."""
        for worker in list(self._lines):
            self.release(worker)
        self._closed = True

    def _watch(self) -> None:
        while not self._closed:
            ready = self._selector.select(_LOOK)
            for worker, why in self._ended([key.data for key, _ in ready]):
                self._gone(worker, why)

    def _ended(self, workers: list[str]) -> list[tuple[str, str]]:
        found = []
        with self._lock:
            for worker in workers:
                line = self._lines.get(worker)
                if line is None:  # released since
                    continue
                why = "its process ended"
                try:
                    if line.recv(1):
                        continue
                except TimeoutError as error:
                    why = f"its host does not answer any more ({error})"
                except OSError as error:
                    why = f"its process or host is gone ({error})"
                self._lines.pop(worker)
                self._selector.unregister(line)
                line.close()
                found.append((worker, why))
        return found


def _keep_alive(line: socket.socket) -> None:
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE),
        ("TCP_KEEPINTVL", _INTERVAL),
        ("TCP_KEEPCNT", _PROBES),
    ):
        if hasattr(socket, name):  # elsewhere than on Linux, the system's own patience counts
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

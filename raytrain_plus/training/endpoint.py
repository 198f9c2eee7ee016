"""Where a worker can be reached by the others, and its open connections to them.

A worker listens on one socket from its birth to its end. Two workers have at most one connection. A
generation that ends calmly leaves it open for the next one; an abort closes it.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable

from raytrain_plus import connections

Address = tuple[str, int, str]
"""Host, port, and the id of the endpoint, which tells it from others that had the port before."""

NOWHERE: Address = ("", 0, "")
"""Of a worker that no other one reaches."""

_ID_BYTES = 8
_USER_TIMEOUT = 60_000  # milliseconds in which what was sent must be acknowledged


class Endpoint:
    """Listens on one address, and keeps the connections to other endpoints of the same run.

    Args:
        host: the address at which this process can be reached; it listens on this one only.
        secret: known to all endpoints of the run, and to nothing else.

    Attributes:
        address: what others need to connect.

    Raises:
        OSError: the host is no address of this machine.
    """

    def __init__(self, host: str, secret: str) -> None:
        self._secret = secret
        self._id = secrets.token_bytes(_ID_BYTES)
        self._open: dict[str, socket.socket] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._listener = connections.Listener(
            host, secret, 2 * _ID_BYTES, self._is_called, self._admit
        )
        self.address: Address = (host, self._listener.port, self._id.hex())
        connections.close_in_forked_children(self)

    def connection(self, partner: str) -> socket.socket | None:
        """Return the open connection to the endpoint of an id, if there is one."""
        with self._changed:
            found = self._open.get(partner)
            if found is not None and _has_ended(found):
                self._drop(partner)
                return None
            return found

    def connect(self, address: Address, timeout: float) -> socket.socket:
        """Open a new connection to another endpoint; one that is open is closed.

        Args:
            address: of that endpoint.
            timeout: seconds, for all of it.

        Raises:
            OSError: it cannot be reached, or does not answer in time.
            HandshakeError: it does not belong to this run, or is not the one of that address.
        """
        host, port, callee = address
        # The id says which endpoint is meant: another one may have had this port before.
        greeting = self._id + bytes.fromhex(callee)
        made = connections.connect(host, port, self._secret, greeting, timeout)
        self._keep(callee, made)
        return made

    def await_connection(
        self, partner: str, until: float, is_over: Callable[[], bool]
    ) -> socket.socket:
        """Wait until an endpoint has connected.

        Args:
            partner: its id.
            until: monotonic seconds.
            is_over: says whether the wait has lost its purpose; asked again after each `wake`.

        Raises:
            TimeoutError: it has not connected in time.
            InterruptedError: the wait has lost its purpose.
        """
        with self._changed:
            while True:
                if is_over():
                    raise InterruptedError
                found = self._open.get(partner)
                if found is not None:
                    return found
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError("it has not connected")
                self._changed.wait(left)

    def wake(self) -> None:
        """Let all who wait for a connection look whether that has lost its purpose."""
        with self._changed:
            self._changed.notify_all()

    def drop(self, partner: str, connection: socket.socket) -> None:
        """Close a connection; a newer one to the same partner stays."""
        with self._changed:
            if self._open.get(partner) is connection:
                self._drop(partner)

    def keep_only(self, partners: set[str]) -> None:
        """Close the connections to all other endpoints than those of these ids."""
        with self._changed:
            for partner in self._open.keys() - partners:
                self._drop(partner)

    def close(self) -> None:
        """Stop listening, and close all connections."""
        with self._changed:
            self._is_closed = True
            for partner in list(self._open):
                self._drop(partner)
            self._listener.close()
            self._changed.notify_all()

    def sockets(self) -> list[socket.socket]:
        """Return all sockets that it has open."""
        return [*self._listener.sockets(), *self._open.values()]

    def _is_called(self, greeting: bytes) -> bool:
        return greeting[_ID_BYTES:] == self._id

    def _admit(self, greeting: bytes, connection: socket.socket) -> None:
        self._keep(greeting[:_ID_BYTES].hex(), connection)

    def _keep(self, partner: str, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT)
        with self._changed:
            if self._is_closed:
                connection.close()
                return
            self._drop(partner)
            self._open[partner] = connection
            self._changed.notify_all()

    def _drop(self, partner: str) -> None:
        """End a connection. Its descriptor stays open as long as a thread may use it."""
        ended = self._open.pop(partner, None)
        if ended is not None:
            with contextlib.suppress(OSError):
                ended.shutdown(socket.SHUT_RDWR)


def _has_ended(connection: socket.socket) -> bool:
    """Say whether the other end of an idle connection has closed it."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

"""Where a worker can be reached by the others, and its open connections to them.

A worker listens on one socket from its birth to its end. Two workers have at most one connection. A
generation that ends calmly leaves it open for the next one; an abort closes it.

Each end proves that it knows the run's secret before any other byte is accepted. Both send random
numbers, and answer with a keyed hash of both: the secret itself is never sent, and a recorded
answer is worth nothing. What comes first has a fixed size and a deadline, so that a stranger can
neither fill memory nor hold a thread for long.
"""

import contextlib
import functools
import hashlib
import hmac
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable

Address = tuple[str, int, str]
"""Host, port, and the id of the endpoint, which tells it from others that had the port before."""

NOWHERE: Address = ("", 0, "")
"""Of a worker that no other one reaches."""

_ID_BYTES = 8
_NONCE_BYTES = 16
_HASH_BYTES = 32
_CALLS = b"raytrain_plus 1: calls"  # what is hashed names the protocol's version
_ACCEPTS = b"raytrain_plus 1: accepts"

_HANDSHAKE_SECONDS = 5.0
_MOST_STRANGERS = 64  # connections that have not proved anything yet; more are closed at once
_BACKLOG = 1024
_USER_TIMEOUT = 60_000  # milliseconds in which what was sent must be acknowledged


class HandshakeError(ConnectionError):
    """The other end does not know the run's secret, or is another endpoint than the one called."""


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
        self._secret = secret.encode()
        self._listening = listen_on(host)
        self._id = secrets.token_bytes(_ID_BYTES)
        self.address: Address = (host, self._listening.getsockname()[1], self._id.hex())
        self._open: dict[str, socket.socket] = {}
        self._strangers: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._is_closed = False
        _ENDPOINTS.add(self)
        _watch_forks()
        threading.Thread(target=self._accept, daemon=True, name="endpoint").start()

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
        made = socket.create_connection(address[:2], timeout=timeout)
        try:
            made.settimeout(timeout)
            self._call(made, bytes.fromhex(address[2]))
        except BaseException:
            made.close()
            raise
        self._keep(address[2], made)
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
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)  # which ends the wait for a connection
            self._listening.close()
            self._changed.notify_all()

    def leave_to_parent(self) -> None:
        """Close the parent's sockets in a forked child.

        If the child kept them, the end of the parent's process would not close its connections.
        """
        for held in (self._listening, *self._open.values(), *self._strangers):
            with contextlib.suppress(OSError):
                held.close()

    # -- accepting

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                stranger, _ = self._listening.accept()
                with self._changed:
                    welcome = len(self._strangers) < _MOST_STRANGERS and not self._is_closed
                    if welcome:
                        self._strangers.add(stranger)
                if not welcome:
                    stranger.close()
                    continue
                threading.Thread(target=self._admit, args=(stranger,), daemon=True).start()

    def _admit(self, stranger: socket.socket) -> None:
        caller = None
        with contextlib.suppress(OSError):
            stranger.settimeout(_HANDSHAKE_SECONDS)
            caller = self._answer(stranger)
        with self._changed:
            self._strangers.discard(stranger)
        if caller is None:
            stranger.close()
        else:
            self._keep(caller, stranger)

    # -- the handshake: nonce ->, <- ids, nonce and hash, hash ->

    def _answer(self, stranger: socket.socket) -> str | None:
        """Let a caller prove itself, and prove ourselves; return its id, or None."""
        until = time.monotonic() + _HANDSHAKE_SECONDS
        nonce = secrets.token_bytes(_NONCE_BYTES)
        stranger.sendall(nonce)
        call = receive_exactly(stranger, 2 * _ID_BYTES + _NONCE_BYTES + _HASH_BYTES, until)
        said, proof = call[:-_HASH_BYTES], call[-_HASH_BYTES:]
        if not hmac.compare_digest(proof, self._hash(_CALLS, nonce + said)):
            return None
        if said[_ID_BYTES : 2 * _ID_BYTES] != self._id:
            return None  # it calls an endpoint that had this port before
        stranger.sendall(self._hash(_ACCEPTS, nonce + said))
        return said[:_ID_BYTES].hex()

    def _call(self, made: socket.socket, callee: bytes) -> None:
        until = time.monotonic() + (made.gettimeout() or _HANDSHAKE_SECONDS)
        nonce = receive_exactly(made, _NONCE_BYTES, until)
        said = self._id + callee + secrets.token_bytes(_NONCE_BYTES)
        made.sendall(said + self._hash(_CALLS, nonce + said))
        proof = receive_exactly(made, _HASH_BYTES, until)
        if not hmac.compare_digest(proof, self._hash(_ACCEPTS, nonce + said)):
            raise HandshakeError("what listens there is no worker of this run")

    def _hash(self, purpose: bytes, said: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + said, hashlib.sha256)

    # -- connections

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


def listen_on(host: str) -> socket.socket:
    """Return a socket that listens on a free port of this address only.

    Raises:
        OSError: the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=_BACKLOG)


def receive_exactly(connection: socket.socket, count: int, until: float) -> bytes:
    """Receive a fixed number of bytes.

    Args:
        connection: where from.
        count: how many.
        until: monotonic seconds.

    Raises:
        OSError: they do not come in time, or the other end has gone.
    """
    received = b""
    while len(received) < count:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other end does not answer")
        connection.settimeout(left)
        more = connection.recv(count - len(received))
        if not more:
            raise ConnectionResetError("the other end has closed the connection")
        received += more
    return received


def _has_ended(connection: socket.socket) -> bool:
    """Say whether the other end of an idle connection has closed it."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


_ENDPOINTS: "weakref.WeakSet[Endpoint]" = weakref.WeakSet()


def _in_a_forked_child() -> None:
    for endpoint in list(_ENDPOINTS):
        endpoint.leave_to_parent()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_in_a_forked_child)

"""TCP connections between the processes of one run: who listens, who calls, and who is refused.

Each end proves that it knows a secret before any other byte is accepted. Both send random numbers,
and answer with a keyed hash of both: the secret itself is never sent, and a recorded answer is
worth nothing. What comes first has a fixed size and a deadline, so that a stranger can neither fill
memory nor hold a thread for long.
"""

import contextlib
import functools
import hashlib
import hmac
import os
import secrets
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

VERSION = 2
"""Of what processes say to each other. All processes of a run must have the same."""

_HANDSHAKE_SECONDS = 5.0
_MOST_STRANGERS = 64  # connections that have not proved anything yet; more are closed at once
_BACKLOG = 1024
_NONCE_BYTES = 16
_HASH_BYTES = 32
_VERSION = struct.Struct(">H")
_CALLS, _ACCEPTS = b"calls", b"accepts"


class HandshakeError(ConnectionError):
    """The other end does not know the secret, or is another process than the one called."""


class Listener:
    """Listens on one address, and admits the callers that know a secret.

    Args:
        host: the address at which this process can be reached; it listens on this one only.
        secret: known to its callers, and to nothing else.
        greeting_bytes: how much each caller says first.
        is_for_us: says of a greeting whether it means this process.
        admit: called, from a thread of its own for each, with the greeting and the connection of a
            caller that has proved itself. It closes the connection.

    Attributes:
        port: that it listens on.

    Raises:
        OSError: the host is no address of this machine.
    """

    def __init__(
        self,
        host: str,
        secret: str,
        greeting_bytes: int,
        is_for_us: Callable[[bytes], bool],
        admit: Callable[[bytes, socket.socket], None],
    ) -> None:
        self._secret = secret.encode()
        self._greeting_bytes = greeting_bytes
        self._is_for_us = is_for_us
        self._admit = admit
        self._strangers: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._socket = listen_on(host)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True, name="listener").start()

    def close(self) -> None:
        """Accept no connection any more."""
        with self._lock:
            self._is_closed = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # which ends the wait for a connection
            self._socket.close()

    def sockets(self) -> list[socket.socket]:
        """Return all sockets that it has open, for a forked child to close."""
        return [self._socket, *self._strangers]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                stranger, _ = self._socket.accept()
                with self._lock:
                    welcome = len(self._strangers) < _MOST_STRANGERS and not self._is_closed
                    if welcome:
                        self._strangers.add(stranger)
                if not welcome:
                    stranger.close()
                    continue
                threading.Thread(target=self._hear, args=(stranger,), daemon=True).start()

    def _hear(self, stranger: socket.socket) -> None:
        greeting = None
        with contextlib.suppress(OSError):
            greeting = self._answer(stranger)
        with self._lock:
            self._strangers.discard(stranger)
        if greeting is None:
            stranger.close()
        else:
            self._admit(greeting, stranger)

    def _answer(self, stranger: socket.socket) -> bytes | None:
        """Let a caller prove itself, and prove ourselves; return its greeting, or None."""
        until = time.monotonic() + _HANDSHAKE_SECONDS
        stranger.settimeout(_HANDSHAKE_SECONDS)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        stranger.sendall(_VERSION.pack(VERSION) + nonce)
        call = receive_exactly(stranger, self._greeting_bytes + _NONCE_BYTES + _HASH_BYTES, until)
        said, proof = call[:-_HASH_BYTES], call[-_HASH_BYTES:]
        if not hmac.compare_digest(proof, _hash(self._secret, _CALLS, nonce + said)):
            return None
        greeting = said[: self._greeting_bytes]
        if not self._is_for_us(greeting):
            return None
        stranger.sendall(_hash(self._secret, _ACCEPTS, nonce + said))
        return greeting


def connect(host: str, port: int, secret: str, greeting: bytes, timeout: float) -> socket.socket:
    """Connect to a `Listener`.

    Args:
        host: where it listens.
        port: likewise.
        secret: that it knows.
        greeting: of the size that it expects.
        timeout: seconds, for all of it.

    Raises:
        OSError: it cannot be reached, or does not answer in time.
        HandshakeError: it does not know the secret, does not accept the greeting, or is of another
            version.
    """
    until = time.monotonic() + timeout
    made = socket.create_connection((host, port), timeout=timeout)
    try:
        _call(made, secret.encode(), greeting, until)
    except BaseException:
        made.close()
        raise
    return made


def _call(made: socket.socket, secret: bytes, greeting: bytes, until: float) -> None:
    first = receive_exactly(made, _VERSION.size + _NONCE_BYTES, until)
    (version,), nonce = _VERSION.unpack(first[: _VERSION.size]), first[_VERSION.size :]
    if version != VERSION:
        raise HandshakeError(
            f"what listens there speaks version {version} of the protocol, and this process "
            f"version {VERSION}: install the same raytrain_plus on all nodes"
        )
    said = greeting + secrets.token_bytes(_NONCE_BYTES)
    made.sendall(said + _hash(secret, _CALLS, nonce + said))
    proof = receive_exactly(made, _HASH_BYTES, until)
    if not hmac.compare_digest(proof, _hash(secret, _ACCEPTS, nonce + said)):
        raise HandshakeError("what listens there is no process of this run")


def _hash(secret: bytes, purpose: bytes, said: bytes) -> bytes:
    version = f"raytrain_plus {VERSION}: ".encode()
    return hmac.digest(secret, version + purpose + said, hashlib.sha256)


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


class HoldsSockets(Protocol):
    """An object with sockets that a forked child must not keep."""

    def sockets(self) -> list[socket.socket]:
        """Return all sockets that it has open."""


_HOLDERS: "weakref.WeakSet[HoldsSockets]" = weakref.WeakSet()


def close_in_forked_children(holder: HoldsSockets) -> None:
    """Let each process that is forked from this one close its copies of an object's sockets.

    If a child kept them, the end of this process would not close its connections.
    """
    _HOLDERS.add(holder)
    _watch_forks()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_in_a_forked_child)


def _in_a_forked_child() -> None:
    for holder in list(_HOLDERS):
        for one in holder.sockets():
            with contextlib.suppress(OSError):
                one.close()

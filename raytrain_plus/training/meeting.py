"""How the members of a generation come together: a connection between each two that need one.

The member with the lower place calls. It uses the connection that an earlier generation has left
open, or makes a new one, and sends a greeting with the generation's number. The other one answers
with the same greeting. All calls go out before any answer is waited for, so no two members wait for
each other.
"""

import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence

from raytrain_plus.connections import receive_exactly
from raytrain_plus.training.endpoint import Address, Endpoint
from raytrain_plus.training.frames import GREETING_BYTES, greeted, greeting

_MEETING_SECONDS = 60.0
_CONNECT_SECONDS = 5.0
_RETRY = 0.05  # seconds between two attempts to connect


class MeetingError(RuntimeError):
    """The members have not come together."""


class Meeting:
    """One member's part in the meeting of a generation.

    Args:
        endpoint: ours.
        members: the addresses of all members, in order.
        index: our place among them.
        generation: its number.
        partners: the places of those with whom we exchange messages. They name us as well.

    Attributes:
        connections: those that are made, by the partner's place.
        awaited: the place of the member that has to come next; None before the meeting.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        members: Sequence[Address],
        index: int,
        generation: int,
        partners: Collection[int],
    ) -> None:
        self.connections: dict[int, socket.socket] = {}
        self.awaited: int | None = None
        self._endpoint = endpoint
        self._members = members
        self._above = sorted(place for place in partners if place > index)
        self._below = sorted(place for place in partners if place < index)
        self._generation = generation
        self._until = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        """Come together with all partners.

        Raises:
            MeetingError: a partner did not come in time, or the meeting was ended.
        """
        self._until = time.monotonic() + _MEETING_SECONDS
        for place in self._above:
            self._retry(place, self._call)
        for place in self._below:
            self._retry(place, self._be_called)
        for place in self._above:
            self._retry(place, self._hear)

    def end(self) -> None:
        """End the meeting and close what has been connected; thread-safe."""
        self._ended.set()
        self._endpoint.wake()
        for place, connection in list(self.connections.items()):
            self._endpoint.drop(self._members[place][2], connection)

    def _retry(self, place: int, act: Callable[[int], None]) -> None:
        self.awaited = place
        while True:
            try:
                act(place)
            except OSError as error:
                connection = self.connections.pop(place, None)
                if connection is not None:
                    self._endpoint.drop(self._members[place][2], connection)
                if self._ended.wait(_RETRY):
                    raise MeetingError("the meeting was ended") from error
                if time.monotonic() >= self._until:
                    host, port, _ = self._members[place]
                    raise MeetingError(
                        f"the worker at {host}:{port} has not come within {_MEETING_SECONDS:.0f} s "
                        f"({error})"
                    ) from error
            else:
                return

    def _call(self, place: int) -> None:
        address = self._members[place]
        connection = self._endpoint.connection(address[2])
        if connection is None:
            connection = self._endpoint.connect(address, self._left())
        self._use(place, connection)
        connection.settimeout(self._left())
        connection.sendall(greeting(self._generation))

    def _be_called(self, place: int) -> None:
        partner = self._members[place][2]
        connection = self._endpoint.await_connection(partner, self._until, self._ended.is_set)
        self._use(place, connection)
        self._read_greeting(connection)
        connection.sendall(greeting(self._generation))

    def _hear(self, place: int) -> None:
        if place not in self.connections:  # it was lost after the call
            self._call(place)
        self._read_greeting(self.connections[place])

    def _use(self, place: int, connection: socket.socket) -> None:
        self.connections[place] = connection
        if self._ended.is_set():  # `end` may have looked before
            raise InterruptedError("the meeting was ended")

    def _read_greeting(self, connection: socket.socket) -> None:
        generation = greeted(receive_exactly(connection, GREETING_BYTES, self._until))
        if generation != self._generation:
            raise ConnectionError(f"it is in generation {generation}, not in {self._generation}")

    def _left(self) -> float:
        """Return the seconds that a call may take."""
        left = min(_CONNECT_SECONDS, self._until - time.monotonic())
        if left <= 0:
            raise TimeoutError("the time is over")
        return left

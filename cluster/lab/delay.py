"""A long cable: whatever comes in at one end waits before it goes out at the other.

    python -m cluster.lab.delay INTERFACE TAP MILLISECONDS

Runs in the switch's namespace for as long as the cable is long. INTERFACE is the switch's end of a
host's cable, TAP an end that is made here, for the bridge, and goes with this process. Not every
kernel can delay frames by itself (netem); this needs nothing but packet sockets and TUN.

Frames keep their virtio header, in which the kernel says that it has not cut them into packets
yet and has computed no checksum: so one read moves up to 64 KB.
"""

# ruff: noqa: T201 - a command
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable

# Of Linux's headers; Python knows none of them.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_ETH_P_ALL = 3
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_CHECKSUMS, _TSO4, _TSO6 = 1, 2, 4

_LARGEST = 10 + 14 + (1 << 16)  # bytes: the virtio header, the frame's, and the data
_AT_ONCE = 64  # frames of one end before the other has its turn
_BUFFER = 32 << 20  # bytes, for frames that have not been read yet
_LOOK = 1.0  # seconds between two looks whether the cable is still there
_DROPPED = {errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.EIO, errno.ENXIO, errno.EINVAL}


class Delay:
    """Frames on their way, in both directions, each of which takes equally long. Pure.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[tuple[float, int, bytes]] = deque()

    def put(self, now: float, end: int, frame: bytes) -> None:
        """A frame has come in, which is to go out at an end."""
        self._waiting.append((now + self._seconds, end, frame))

    def due(self, now: float) -> list[tuple[int, bytes]]:
        """Return what goes out by now: ends and frames, in the order in which they came in."""
        found = []
        while self._waiting and self._waiting[0][0] <= now:
            found.append(self._waiting.popleft()[1:])
        return found

    def pause(self, now: float) -> float | None:
        """Return the seconds until something goes out; None if nothing is on its way."""
        return max(0.0, self._waiting[0][0] - now) if self._waiting else None


def forward(ends: tuple[int, int], delay: Delay, is_there: Callable[[], bool]) -> None:
    """Carry frames between two descriptors until the cable is gone."""
    other = dict(zip(ends, reversed(ends), strict=True))
    looked = time.monotonic()
    while True:
        pause = delay.pause(time.monotonic())
        ready, _, _ = select.select(ends, [], [], _LOOK if pause is None else min(pause, _LOOK))
        for end in ready:
            with contextlib.suppress(OSError):  # all is read, or the cable is pulled for now
                for _ in range(_AT_ONCE):
                    frame = os.read(end, _LARGEST)
                    delay.put(time.monotonic(), other[end], frame)
        now = time.monotonic()
        for end, frame in delay.due(now):
            try:
                os.write(end, frame)
            except OSError as error:  # what cannot be sent is lost, as on any cable
                if error.errno not in _DROPPED:
                    raise
        if now - looked > _LOOK:
            looked = now
            if not is_there():
                return


def open_interface(name: str) -> socket.socket:
    """Return a socket that gets and sends an interface's frames."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
    end.bind((name, _ETH_P_ALL))
    end.setblocking(False)
    return end


def make_tap(name: str) -> int:
    """Make an interface whose frames are read and written here; returns its descriptor."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(end, _TUNSETOFFLOAD, _CHECKSUMS | _TSO4 | _TSO6)
    return end


def main(interface: str, tap: str, milliseconds: str) -> None:
    """Run as a command; says `ready` when both ends are there."""

    def is_there() -> bool:
        with contextlib.suppress(OSError):
            return socket.if_nametoindex(interface) > 0
        return False

    with open_interface(interface) as end:
        ends = end.fileno(), make_tap(tap)
        print("ready", flush=True)
        forward(ends, Delay(float(milliseconds) / 1e3), is_there)


if __name__ == "__main__":
    main(*sys.argv[1:])

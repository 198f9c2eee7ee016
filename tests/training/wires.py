"""Workers of one process, joined by queues: a transport as a reduction sees it, without sockets.

The transport is as strict as a real one may be: a receive buffer holds garbage until the wait has
returned, and a send buffer must stay unchanged until then.
"""

import queue
import random
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor

import torch

_PATIENCE = 120  # seconds; only a test that is about to fail waits so long
_RUBBISH = 0xAB


class NetworkDownError(RuntimeError):
    """The network was cut."""


class Network:
    """Queues between each two of `size` workers, and the number of messages each has received."""

    def __init__(self, size):
        self.size = size
        self.taken = 0
        self.bells = [queue.Queue() for _ in range(size)]
        self.queues = {(a, b): queue.Queue() for a in range(size) for b in range(size)}

    def wire(self, index):
        return QueueWire(self, index)

    def cut(self):
        """Make every wait fail, now and later."""
        for line in self.queues.values():
            line.put(None)
        for bell in self.bells:
            bell.put(None)

    def run(self, function):
        """Run `function(wire)` for all workers in parallel; return each one's result."""
        if self.size == 1:
            return [function(self.wire(0))]

        def one(index):
            try:
                return function(self.wire(index))
            except BaseException:
                self.cut()
                raise

        with ThreadPoolExecutor(self.size) as threads:
            futures = [threads.submit(one, index) for index in range(self.size)]
        failures = [f.exception() for f in futures if f.exception() is not None]
        causes = [f for f in failures if not isinstance(f, NetworkDownError)]
        for failure in [*causes, *failures][:1]:
            raise failure
        return [future.result() for future in futures]


class QueueWire:
    """One worker's end of a network: the protocol `Wire`."""

    def __init__(self, network, index):
        self.index = index
        self.size = network.size
        self.peers = [peer for peer in range(network.size) if peer != index]
        self.device = torch.device("cpu")
        self.network = network
        self.expected = defaultdict(deque)  # by peer and channel
        self.early = defaultdict(deque)
        self.draws = random.Random(index)

    def post(self, sends, receives):
        for message in receives:
            as_bytes(message.tensor).fill_(_RUBBISH)
            self.expected[message.peer, message.channel].append(message.tensor)
        copies = [message.tensor.clone() for message in sends]
        for message, copy in zip(sends, copies, strict=True):
            self.network.queues[self.index, message.peer].put((message.channel, copy))
            self.network.bells[message.peer].put(None)
        return Pending(self, list(zip(sends, copies, strict=True)), receives)

    def fence(self):
        """Do nothing: after `wait` there is nothing to wait for."""

    def wait_any(self, pending, *, block=True):
        """End any of those whose messages are there."""
        while not any(one.is_done for one in pending):
            for peer in self.peers:
                while not self.network.queues[peer, self.index].empty():
                    self.receive(peer)
            there = [one for one in pending if one.is_there]
            if there:
                self.draws.choice(there).wait()
            elif block:
                self.network.bells[self.index].get(timeout=_PATIENCE)
            else:
                return

    def receive(self, peer):
        arrived = self.network.queues[peer, self.index].get(timeout=_PATIENCE)
        if arrived is None:
            raise NetworkDownError(f"worker {self.index} waited for {peer}")
        self.early[peer, arrived[0]].append(arrived[1])

    def take(self, peer, channel):
        """Receive the next message of a channel, into the tensor that was posted first."""
        early = self.early[peer, channel]
        while not early:
            try:
                self.receive(peer)
            except queue.Empty:
                # Not what an abort raises: a test of an abort must not pass for want of time.
                raise TimeoutError(f"worker {self.index} got nothing from {peer}") from None
        arrived = early.popleft()
        tensor = self.expected[peer, channel].popleft()
        assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
        tensor.copy_(arrived)
        self.network.taken += 1


class Pending:
    """Messages in flight."""

    def __init__(self, wire, sent, receives):
        self.wire = wire
        self.sent = sent
        self.receives = receives

    @property
    def is_done(self):
        return not any(self.is_expected(message) for message in self.receives)

    @property
    def is_there(self):
        return all(self.has_come(message) for message in self.receives)

    def has_come(self, message):
        expected = self.wire.expected[message.peer, message.channel]
        places = [place for place, other in enumerate(expected) if other is message.tensor]
        return not places or places[0] < len(self.wire.early[message.peer, message.channel])

    def is_expected(self, message):
        expected = self.wire.expected[message.peer, message.channel]
        return any(message.tensor is other for other in expected)

    def wait(self):
        for message in self.receives:
            # Messages of one channel arrive in order, also if a later one is waited for first.
            while self.is_expected(message):
                self.wire.take(message.peer, message.channel)
        for message, copy in self.sent:
            assert bits(message.tensor) == bits(copy), "a tensor was changed on its way"


def as_bytes(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def bits(tensor):
    """Return a tensor's bytes: zeros of different signs differ, equal NaNs do not."""
    return as_bytes(tensor.detach().contiguous()).numpy().tobytes() if tensor.numel() else b""

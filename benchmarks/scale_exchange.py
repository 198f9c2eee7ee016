"""How long the exchange of a large group takes: the real plan on a simulated network. Pure.

Each worker does what `Reduction` does: it starts bucket after bucket, and ends each round whose
messages have arrived. The sums of buckets are divided once the step header is there. A message
costs its sender and its receiver CPU time. Then it waits for the sender's link, and then for the
receiver's, so that several at once queue up there.

What this leaves out: TCP, switches, and workers that are not ready at the same time.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from raytrain_plus.training.bucket import UNITS
from raytrain_plus.training.halving import Halving

_HEADER = 0  # what stands for the step header among the buckets


@dataclass(frozen=True)
class Network:
    """The costs of a message.

    Attributes:
        message_seconds: of CPU, for one that is sent and one that is received.
        byte_seconds: of CPU, likewise.
        link: bytes per second, in each direction.
        latency: seconds on the way.
    """

    message_seconds: float
    byte_seconds: float
    link: float = 1.25e9
    latency: float = 100e-6


def exchange_seconds(
    planned: Halving, gradient_bytes: float, buckets: int, network: Network
) -> float:
    """Return the seconds until the last worker has all sums.

    Args:
        planned: the plan by halves.
        gradient_bytes: size of all gradients.
        buckets: number of buckets; all are ready at once.
        network: the costs.
    """
    return _Simulation(planned, gradient_bytes / buckets, buckets, network).run()


def bound_seconds(workers: int, gradient_bytes: float, link: float) -> float:
    """Return the seconds that the links alone need for an all-reduce."""
    return 2 * (workers - 1) / workers * gradient_bytes / link


class _Simulation:
    def __init__(self, planned: Halving, size: float, buckets: int, network: Network) -> None:
        workers = len(planned.pieces)
        self._network = network
        self._sends: dict[tuple[int, int, bool], list[tuple[int, float]]] = {}
        self._needs: Counter[tuple[int, int, bool]] = Counter()
        self._plan(planned, size)
        self._last = [planned.levels, *[2 * planned.levels] * buckets]
        self._levels = planned.levels
        self._ended = [[0] * (buckets + 1) for _ in range(workers)]  # rounds, by bucket
        self._busy = [0.0] * workers  # until when its CPU is
        self._out, self._in = [0.0] * workers, [0.0] * workers  # until when its link is
        self._got: Counter[tuple[int, int, int]] = Counter()
        self._arrivals: list[tuple[float, int, int, int]] = []

    def _plan(self, planned: Halving, size: float) -> None:
        hosts, levels = planned.hosts, planned.levels

        def add(at: int, to: int, round_: int, size: float, *, is_header: bool) -> None:
            self._sends.setdefault((at, round_, is_header), []).append((to, size))
            self._needs[to, round_, is_header] += 1

        for hop in planned.hops:
            at, to = hosts[hop.sender], hosts[hop.receiver]
            share = (hop.stop - hop.start) / UNITS * size
            if at != to:
                add(at, to, hop.level - 1, share, is_header=False)
                if planned.mains[at] == hop.sender:
                    add(to, at, 2 * levels - hop.level, share, is_header=False)
        for join in planned.joins:
            at, to = hosts[join.sender], hosts[join.receiver]
            if at != to:
                values = 24 * (join.workers[1] - join.workers[0])
                add(at, to, join.level - 1, 72 + values, is_header=True)

    def run(self) -> float:
        """Return when the last worker is done."""
        workers, buckets = range(len(self._ended)), range(len(self._last))
        for worker in workers:
            for bucket in buckets:
                self._post(worker, bucket, 0)
        for worker in workers:
            self._end_rounds(worker, buckets)
        while self._arrivals:
            time, worker, bucket, round_ = heapq.heappop(self._arrivals)
            self._got[worker, bucket, round_] += 1
            if self._is_there(worker, bucket):
                self._busy[worker] = max(self._busy[worker], time)
                self._end_rounds(worker, [bucket])
        assert all(ended == self._last for ended in self._ended)
        return max(self._busy)

    def _is_there(self, worker: int, bucket: int) -> bool:
        """Say whether the messages of a bucket's present round have arrived."""
        round_ = self._ended[worker][bucket]
        if round_ == self._last[bucket]:
            return False
        waits = bucket != _HEADER and round_ == self._levels - 1
        if waits and self._ended[worker][_HEADER] < self._last[_HEADER]:
            return False
        needs = self._needs[worker, round_, bucket == _HEADER]
        return self._got[worker, bucket, round_] >= needs

    def _end_rounds(self, worker: int, buckets: Iterable[int]) -> None:
        """End all rounds of some buckets whose messages are there."""
        half, ended = self._network.message_seconds / 2, self._ended[worker]
        for bucket in buckets:
            before = ended[bucket]
            while self._is_there(worker, bucket):
                needs = self._needs[worker, ended[bucket], bucket == _HEADER]
                self._busy[worker] += half * needs
                ended[bucket] += 1
                self._post(worker, bucket, ended[bucket])
            if bucket == _HEADER and before < ended[bucket] == self._last[bucket]:
                self._end_rounds(worker, range(1, len(self._last)))

    def _post(self, worker: int, bucket: int, round_: int) -> None:
        network = self._network
        for to, size in self._sends.get((worker, round_, bucket == _HEADER), ()):
            self._busy[worker] += network.message_seconds / 2 + size * network.byte_seconds
            on_link = size / network.link
            self._out[worker] = max(self._out[worker], self._busy[worker]) + on_link
            begins = max(self._in[to], self._out[worker] + network.latency - on_link)
            self._in[to] = begins + on_link
            heapq.heappush(self._arrivals, (self._in[to], to, bucket, round_))

"""The bytes that one step sends, computed from the plan: pure functions.

The exchange is that of `raytrain_plus/training/bucket.py`. Directly, a worker with k maximal
subtrees in its range sends each of these partial sums, chunk by chunk, to the chunks' owners, and
its own finished chunk to all others. By halves, it sends what the plan says. The cheaper of both is
used. The step header goes the same way (`doubling.py`). A ring all-reduce sends 2 (W - 1) / W times
the gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.training.bucket import UNITS, Group
from raytrain_plus.training.halving import Halving
from raytrain_plus.training.step_header import HEADER_WIDTH, SUMMED
from raytrain_plus.training.tree import maximal_subtrees

SUM_BYTES, OWN_BYTES = 8 * SUMMED, 8 * (HEADER_WIDTH - SUMMED)  # of the step header
BUCKET_BYTES = 4 << 20
SLICES = 4
SLICED_ABOVE = 4 * (1 << 17)  # bytes of a chunk of float32


def ranges_of(workers: int, logical_ranks: int) -> list[range]:
    """Return the planned logical ranks of each worker; all are equally fast."""
    members = [WorkerSpeed(f"w{i:06}") for i in range(workers)]
    return [assignment.ranks for assignment in assign(logical_ranks, members)]


@dataclass(frozen=True)
class Traffic:
    """The exchange of one step, for the busiest worker and on average.

    Attributes:
        ranges: the logical ranks of each worker.
        gradient_bytes: size of one replica's gradients.
        buckets: number of buckets in which they are sent.
    """

    ranges: Sequence[range]
    gradient_bytes: float
    buckets: int

    @property
    def workers(self) -> int:
        """The number of workers."""
        return len(self.ranges)

    @property
    def leaves(self) -> int:
        """The number of logical ranks, V."""
        return self.ranges[-1].stop

    @property
    def partials(self) -> list[int]:
        """The partial sums of each worker, k: its maximal subtrees."""
        return [len(maximal_subtrees(r.start, r.stop, self.leaves)) for r in self.ranges]

    @property
    def ring_bytes(self) -> float:
        """Bytes that each worker sends in a ring all-reduce."""
        return 2 * self._share_of_others * self.gradient_bytes

    @cached_property
    def planned(self) -> Halving | None:
        """The sum by halves; None if a direct one is cheaper."""
        sizes = [self.gradient_bytes / self.buckets] * self.buckets
        return Group.of(self.ranges, torch.device("cpu"), sizes).planned

    @cached_property
    def _halved(self) -> tuple[list[int], list[int]]:
        """By halves: messages per bucket, and units of the vector, that each worker sends."""
        assert self.planned is not None
        return self.planned.sent()

    @property
    def sent_bytes(self) -> list[float]:
        """Bytes of gradients that each worker sends."""
        if self.planned is not None:
            return [units / UNITS * self.gradient_bytes for units in self._halved[1]]
        return [(1 + k) * self._share_of_others * self.gradient_bytes for k in self.partials]

    @cached_property
    def header(self) -> tuple[list[int], list[int]]:
        """The messages of the step header that each worker sends, and their bytes."""
        others = self.workers - 1
        if self.planned is None:
            sent = [others * (k * SUM_BYTES + OWN_BYTES) for k in self.partials]
            return [others] * self.workers, sent
        messages, sent = [0] * self.workers, [0] * self.workers
        for join in self.planned.joins:
            at = self.planned.hosts[join.sender]
            if at != self.planned.hosts[join.receiver]:
                first, last = join.workers
                messages[at] += 1
                sent[at] += SUM_BYTES + (last - first) * OWN_BYTES
        return messages, sent

    @property
    def header_bytes(self) -> list[int]:
        """Bytes of the step header that each worker sends."""
        return self.header[1]

    @cached_property
    def partners(self) -> list[int]:
        """With how many workers each worker is connected."""
        if self.planned is None:
            return [self.workers - 1] * self.workers
        return [len(partners) for partners in self.planned.partners()]

    @property
    def ratio(self) -> float:
        """The bytes that a step sends, relative to a ring; 1 for one worker, which sends none."""
        if self.workers == 1:
            return 1.0
        return (sum(self.sent_bytes) + sum(self.header_bytes)) / self.workers / self.ring_bytes

    @property
    def slices(self) -> int:
        """The number of pieces in which a worker's chunk of a bucket is sent."""
        chunk = self.gradient_bytes / self.buckets / self.workers
        return SLICES if chunk > SLICED_ABOVE else 1

    @property
    def messages(self) -> list[int]:
        """Messages that each worker sends: partial sums, what it has finished, the step header."""
        if self.planned is not None:
            both = zip(self.header[0], self._halved[0], strict=True)
            return [header + self.buckets * many for header, many in both]
        pieces = self.buckets * self.slices
        return [(self.workers - 1) * (pieces * (k + 1) + 1) for k in self.partials]

    @property
    def additions(self) -> int:
        """Additions of two slices that each worker does in a direct sum."""
        return self.buckets * self.slices * (sum(self.partials) - 1)

    @property
    def buffer_bytes(self) -> float:
        """Memory of the busiest worker's exchange: its sums, the totals, and what arrives."""
        incoming = sum(self.partials) / self.workers if self.planned is None else 1
        return (max(self.partials) + 1 + incoming) * self.gradient_bytes

    @property
    def _share_of_others(self) -> float:
        return (self.workers - 1) / self.workers

"""The step header: what all workers know after a step in addition to the gradient.

Each worker fills a row for each of its logical ranks. Most columns are sums over all logical ranks,
which are added in the order of the tree. The others concern one worker alone, and are in the row of
its first logical rank: every worker receives them as they are. The worker of logical rank 0
attaches some bytes for all. All of it travels as `doubling.py` says.

Logged scalars (`scalars.py`) are further columns that are summed. The columns are the names that
the generation has logged up to the step before. All workers know the same names, as each step tells
all of them. Values of other names follow the sums in a message of their own. A step without such
values sends no such message.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raytrain_plus.scalars import Sums, check_count
from raytrain_plus.training.doubling import Doubling, Parcel
from raytrain_plus.training.gather import gather_bytes
from raytrain_plus.training.tree import maximal_subtrees
from raytrain_plus.training.wire import Message, Pending, Wire

Rows = npt.NDArray[np.float64]

# The columns of a worker's rows, one row per logical rank. Those that are summed come first. What
# is not of a part is in the row of the worker's first logical rank.
LOSS, WEIGHT, SAMPLES, TOKENS, PAUSE, CHECKPOINT, BUSY_SECONDS, SALVAGED, NEW_SCALARS = range(9)
SUMMED = 9
COMPUTE_SECONDS, SEEN_SECONDS, UNSEEN_SECONDS = range(9, 12)  # of one worker alone
HEADER_WIDTH = 12
OF_A_PART = [LOSS, WEIGHT, SAMPLES, TOKENS]

_OWN = HEADER_WIDTH - SUMMED
_FLOAT = 8  # bytes


class StepHeader:
    """The step header of one generation's steps.

    Attributes:
        attachment_bytes: the size of what the worker of logical rank 0 attaches, at most; it may
            be changed between two steps, on every worker alike.
        sums: after the last round, HEADER_WIDTH numbers: the sums over all logical ranks, with
            zeros for the columns that are not summed.
        own: after the last round, float64 (workers, 3): the columns that are not summed.
        attached: after the last round, the attached bytes, filled up with zeros.
        pending: the messages of the present round; None if it has none.

    Args:
        ranges: the logical ranks of each worker.
        wire: to the others.
        doubling: our part in the exchange.
        attachment_bytes: the attribute of this name, at first.
    """

    def __init__(
        self, ranges: Sequence[range], wire: Wire, doubling: Doubling, attachment_bytes: int
    ) -> None:
        self.attachment_bytes = attachment_bytes
        self.sums: list[float] = []
        self.own: Rows = np.zeros((wire.size, _OWN))
        self.attached = b""
        self._wire = wire
        self._doubling = doubling
        self._leaves = ranges[-1].stop
        self._ranks = ranges[wire.index]
        start, stop = self._ranks.start, self._ranks.stop
        nodes = maximal_subtrees(start, stop, self._leaves)
        self._nodes = [slice(a - start, b - start) for a, b in nodes]
        self._columns: list[str] = []  # names of logged scalars
        self._table: Rows = np.zeros((doubling.rows, 0))
        self._rounds: list[_Round] = []
        self._made_for = (-1, -1)
        self._at = 0
        self.pending: Pending | None = None

    def open(self, rows: Rows, attachment: bytes, logged: Mapping[int, Sums]) -> None:
        """Start the first round.

        Args:
            rows: float64 (our logical ranks, HEADER_WIDTH).
            attachment: bytes for all workers; only those of the worker of logical rank 0 count.
            logged: by logical rank of ours, the scalars that its part has logged.
        """
        self._rows = rows
        summed = self._with_scalars(rows, logged)
        self._allocate(summed.shape[1])
        for row, node in enumerate(self._nodes, self._doubling.own[0]):
            self._table[row] = tree_sum(summed[node])
        self.own[self._wire.index] = rows[0, SUMMED:HEADER_WIDTH]
        self.attached = attachment.ljust(self.attachment_bytes, b"\0")
        self._at = 0
        self._post()

    @property
    def is_done(self) -> bool:
        """Whether everything is here."""
        return self._at == len(self._rounds)

    def advance(self) -> None:
        """End a round, and start the next one."""
        self._end_round()
        self._at += 1
        self._post()

    def logged(self) -> dict[str, float]:
        """Return the means of all logged scalars, and make columns of new names."""
        sums = self._table[self._doubling.total].tolist()
        if not self._columns and not sums[NEW_SCALARS]:
            return {}
        found = _means(self._columns, sums[SUMMED:])
        if sums[NEW_SCALARS]:
            self._wire.fence()  # after an abort, what was received may be garbage
            new = self._exchange_new()
            names = sorted({name for sums in new.values() for name in sums})
            check_count(len(self._columns) + len(names))
            found |= _means(names, tree_sum(table_of(new, names, self._leaves)).tolist())
            self._columns += names
        return dict(sorted(found.items())) if found else found

    def losses(self) -> list[float]:
        """Return the loss of every logical rank; all workers must call it."""
        own = self._rows[:, LOSS].tobytes()
        told = gather_bytes(self._wire, self._doubling.rounds, own)
        losses: list[float] = np.frombuffer(b"".join(told)).tolist()
        return losses

    # -- rounds

    def _post(self) -> None:
        """Start a round; after the last one, keep what has come."""
        if self._at == len(self._rounds):
            sums = self._table[self._doubling.total, :SUMMED].tolist()
            self.sums = [*sums, *[0.0] * _OWN]
            return
        one = self._rounds[self._at]
        self.pending = None
        if one.sends or one.receives:
            for box in one.sends:
                box.fill(self._table, self.own, self.attached)
            self.pending = self._wire.post(
                [box.message for box in one.sends], [box.message for box in one.receives]
            )

    def _end_round(self) -> None:
        one = self._rounds[self._at]
        if self.pending is not None:
            self.pending.wait()
        for box in one.receives:
            attached = box.empty(self._table, self.own)
            self.attached = self.attached if attached is None else attached
        for into, left, right in one.sums:
            np.add(self._table[left], self._table[right], out=self._table[into])

    def _allocate(self, width: int) -> None:
        """Make the table and the messages, if their sizes have changed."""
        if self._made_for == (width, self.attachment_bytes):
            return
        self._made_for = width, self.attachment_bytes
        self._table = np.zeros((self._doubling.rows, width))

        def box(parcel: Parcel) -> _Box:
            return _Box(parcel, width, self.attachment_bytes, self._wire.device)

        self._rounds = [
            _Round([*map(box, one.sends)], [*map(box, one.receives)], one.sums)
            for one in self._doubling.rounds
        ]

    # -- logged scalars

    def _with_scalars(self, rows: Rows, logged: Mapping[int, Sums]) -> Rows:
        """Return what is summed of our rows, with the columns of known names.

        Values of new names are kept.
        """
        rows[:, NEW_SCALARS] = 0
        self._new: dict[int, Sums] = {}
        if logged:
            known = set(self._columns)
            new = {
                r: {n: v for n, v in sums.items() if n not in known} for r, sums in logged.items()
            }
            self._new = {rank: sums for rank, sums in new.items() if sums}
            rows[0, NEW_SCALARS] = bool(self._new)
        summed = rows[:, :SUMMED]
        if not self._columns:
            return summed
        ours = {rank - self._ranks.start: sums for rank, sums in logged.items()}
        return np.concatenate([summed, table_of(ours, self._columns, len(rows))], axis=1)

    def _exchange_new(self) -> dict[int, Sums]:
        """Return the values of new names of all logical ranks."""
        if self._wire.size == 1:
            return self._new
        own = json.dumps(self._new).encode() if self._new else b""
        payloads = gather_bytes(self._wire, self._doubling.rounds, own)
        self._wire.fence()
        told: dict[int, Sums] = {}
        for payload in filter(None, payloads):
            told |= {int(rank): sums for rank, sums in json.loads(payload).items()}
        return told


class _Box:
    """The memory of a message that is sent or received in every step.

    Args:
        parcel: what it carries.
        width: numbers in a row.
        attachment_bytes: of the attachment, which travels with the values of the first worker.
        device: where the wire wants it.
    """

    def __init__(
        self, parcel: Parcel, width: int, attachment_bytes: int, device: torch.device
    ) -> None:
        (first, last), (begin, end) = parcel.rows, parcel.workers
        self._rows, self._workers = slice(first, last), slice(begin, end)
        self._shape = (last - first, width)
        sums, values = (last - first) * width, (end - begin) * _OWN
        self._attached = attachment_bytes if begin == 0 < end else 0
        memory = np.zeros((sums + values) * _FLOAT + self._attached, np.uint8)
        self._memory = memory
        floats = memory[: (sums + values) * _FLOAT].view(np.float64)
        self._sums = floats[:sums].reshape(self._shape)
        self._values = floats[sums:].reshape(-1, _OWN)
        self._attachment = memory[(sums + values) * _FLOAT :]
        self._host = torch.from_numpy(memory)
        self._tensor: Tensor = self._host.to(device)  # the same memory on a CPU
        self.message = Message(parcel.peer, self._tensor)

    def fill(self, table: Rows, own: Rows, attached: bytes) -> None:
        """Set what is sent."""
        self._sums[:] = table[self._rows]
        self._values[:] = own[self._workers]
        if self._attached:
            self._attachment[:] = np.frombuffer(attached, np.uint8)
        if self._tensor is not self._host:
            self._tensor.copy_(self._host)

    def empty(self, table: Rows, own: Rows) -> bytes | None:
        """Keep what has been received; return the attachment, if it is in it."""
        if self._tensor is not self._host:
            self._host.copy_(self._tensor)
        table[self._rows] = self._sums
        own[self._workers] = self._values
        return self._attachment.tobytes() if self._attached else None


@dataclass(frozen=True)
class _Round:
    """One round's messages, and the additions that follow: result, left and right operand."""

    sends: list[_Box]
    receives: list[_Box]
    sums: Sequence[tuple[int, int, int]]


def table_of(logged: Mapping[int, Sums], names: Sequence[str], rows: int) -> Rows:
    """Return logged scalars as rows of two numbers per name; zeros where nothing was logged."""
    table = np.zeros((rows, 2 * len(names)))
    for row, sums in logged.items():
        for i, name in enumerate(names):
            if name in sums:
                table[row, 2 * i : 2 * i + 2] = sums[name]
    return table


def tree_sum(rows: Rows) -> Rows:
    """Return the sum of rows (V, width) in tree order, float64 (width,)."""
    while len(rows) > 1:
        even = len(rows) // 2 * 2
        sums = rows[0:even:2] + rows[1:even:2]
        # A last node without a sibling moves up unchanged: that is the tree of `tree.py`.
        rows = sums if even == len(rows) else np.concatenate([sums, rows[even:]])
    total: Rows = rows[0]
    return total


def _means(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """Return the mean of each name that was logged with any weight."""
    pairs = zip(names, sums[::2], sums[1::2], strict=True)
    return {
        name: total / weight if weight else math.nan
        for name, total, weight in pairs
        if weight or total  # both are zero if no part has logged the name; NaN is not zero
    }

"""Every worker's part of a vector goes to all workers."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from raytrain_plus.training.doubling import DoublingRound
from raytrain_plus.training.wire import Message, Wire, filled


def gather(
    wire: Wire, rounds: Sequence[DoublingRound], vector: Tensor, cuts: Sequence[int]
) -> None:
    """Fill a vector of which this worker has its own part.

    Args:
        wire: to the others.
        rounds: of the generation (`doubling.py`); the sums in them are left out.
        vector: one-dimensional, and contiguous.
        cuts: worker i's part is `vector[cuts[i] : cuts[i + 1]]`.

    Raises:
        Exception: whatever the wire raises.
    """
    for one in rounds:
        sends, receives = (
            filled([Message(p.peer, vector[cuts[p.workers[0]] : cuts[p.workers[1]]]) for p in side])
            for side in (one.sends, one.receives)
        )
        if sends or receives:
            wire.post(sends, receives).wait()


def gather_bytes(wire: Wire, rounds: Sequence[DoublingRound], payload: bytes) -> list[bytes]:
    """Return every worker's bytes, in the order of the generation.

    Args:
        wire: as for `gather`.
        rounds: as for `gather`.
        payload: this worker's, of any length.

    Raises:
        Exception: whatever the wire raises.
    """
    if wire.size == 1:
        return [payload]
    sizes = torch.zeros(wire.size, dtype=torch.int64, device=wire.device)
    sizes[wire.index] = len(payload)
    gather(wire, rounds, sizes, range(wire.size + 1))
    wire.fence()  # after an abort, what was received may be garbage
    cuts = [0, *itertools.accumulate(sizes.tolist())]
    vector = torch.empty(cuts[-1], dtype=torch.uint8, device=wire.device)
    if payload:
        own = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        vector[cuts[wire.index] : cuts[wire.index + 1]].copy_(own)
    gather(wire, rounds, vector, cuts)
    whole = vector.cpu().numpy().tobytes()
    return [whole[start:stop] for start, stop in itertools.pairwise(cuts)]

"""Healing: a replica's state is sent to a newcomer, or to a survivor that is a step behind.

Where many need it, those that receive it send it on: each piece as soon as it is there, so that the
last one has the state about as soon as the first. Who sends to whom is in the plan.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from raytrain_plus.training.state import Replica
from raytrain_plus.training.transport import Transport
from raytrain_plus.training.wire import Message, Pending

_DTYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
_PIECE_BYTES = 8 << 20  # what is sent on at once
_AHEAD = 4  # pieces that are received or sent at the same time


def send_state(
    replica: Replica, receivers: Sequence[int], transport: Transport, noted: int | None = None
) -> None:
    """Send the whole state to some members: a header in JSON, then tensor by tensor.

    Args:
        replica: has the state.
        receivers: the members' places in the group.
        transport: of the group.
        noted: the fingerprint that the state should have, if it is known.

    Raises:
        TransportError: a member was lost.
    """
    tensors = replica.tensors()
    header = {
        "noted": noted,
        "scalars": replica.scalars(),
        "tensors": [
            [name, str(t.dtype), list(t.shape), t.device.type == "cpu"]
            for name, t in tensors.items()
        ],
    }
    payload = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
    size = torch.tensor([len(payload)], device=transport.device)
    filled = [t.to(transport.device).contiguous() for t in tensors.values() if t.numel()]
    contents = [size, payload.to(transport.device), *_pieces(filled)]
    pending: deque[Pending] = deque()
    for content in contents:
        pending.append(transport.post([Message(peer, content) for peer in receivers], []))
        if len(pending) > _AHEAD:
            pending.popleft().wait()
    for one in pending:
        one.wait()


def receive_state(
    replica: Replica, source: int, transport: Transport, receivers: Sequence[int] = ()
) -> int | None:
    """Receive a member's state, and send it on. The replica does not change before all is there.

    Args:
        replica: gets the state.
        source: the place of the member that sends it.
        transport: of the group.
        receivers: the places of the members to send it on to.

    Returns:
        The fingerprint that the state should have, if it is known.

    Raises:
        TransportError: a member was lost.
    """
    size = torch.zeros(1, dtype=torch.int64, device=transport.device)
    _relay([size], source, receivers, transport)
    payload = torch.empty(int(size.item()), dtype=torch.uint8, device=transport.device)
    _relay([payload], source, receivers, transport)
    header: dict[str, Any] = json.loads(payload.cpu().numpy().tobytes())
    received: dict[str, Tensor] = {
        name: torch.empty(shape, dtype=_DTYPES[dtype], device=transport.device)
        for name, dtype, shape, _ in header["tensors"]
    }
    pieces = _pieces(t for t in received.values() if t.numel())
    _relay(pieces, source, receivers, transport)
    on_cpu = {name for name, _, _, cpu in header["tensors"] if cpu}
    replica.load(
        {name: t.cpu() if name in on_cpu else t for name, t in received.items()},
        header["scalars"],
    )
    noted: int | None = header["noted"]
    return noted


def _relay(
    pieces: Iterable[Tensor], source: int, receivers: Sequence[int], transport: Transport
) -> None:
    """Receive pieces in their order, and send each one on as soon as it is there."""
    arriving: deque[tuple[Tensor, Pending]] = deque()
    leaving: deque[Pending] = deque()

    def pass_on() -> None:
        piece, pending = arriving.popleft()
        pending.wait()
        if receivers:
            leaving.append(transport.post([Message(peer, piece) for peer in receivers], []))
        if len(leaving) > _AHEAD:
            leaving.popleft().wait()

    for piece in pieces:
        arriving.append((piece, transport.post([], [Message(source, piece)])))
        if len(arriving) > _AHEAD:
            pass_on()
    while arriving:
        pass_on()
    for one in leaving:
        one.wait()


def _pieces(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Cut contiguous tensors into pieces that are worth sending on at once."""
    for tensor in tensors:
        yield from torch.split(tensor.view(-1), max(1, _PIECE_BYTES // tensor.element_size()))

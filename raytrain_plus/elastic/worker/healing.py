"""Healing: a replica's state is sent to a newcomer, or to a survivor that is a step behind."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raytrain_plus.training.state import Replica
from raytrain_plus.training.transport import Transport
from raytrain_plus.training.wire import Message

_DTYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}


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
    contents = [size, payload.to(transport.device), *filled]
    transport.exchange([Message(peer, t) for peer in receivers for t in contents], [])


def receive_state(replica: Replica, source: int, transport: Transport) -> int | None:
    """Receive a member's state. The replica does not change until all of it has arrived.

    Returns:
        The fingerprint that the state should have, if it is known.

    Raises:
        TransportError: the member was lost.
    """
    size = torch.zeros(1, dtype=torch.int64, device=transport.device)
    transport.exchange([], [Message(source, size)])
    payload = torch.empty(int(size.item()), dtype=torch.uint8, device=transport.device)
    transport.exchange([], [Message(source, payload)])
    header: dict[str, Any] = json.loads(payload.cpu().numpy().tobytes())
    received: dict[str, Tensor] = {
        name: torch.empty(shape, dtype=_DTYPES[dtype], device=transport.device)
        for name, dtype, shape, _ in header["tensors"]
    }
    transport.exchange([], [Message(source, t) for t in received.values() if t.numel()])
    on_cpu = {name for name, _, _, cpu in header["tensors"] if cpu}
    replica.load(
        {name: t.cpu() if name in on_cpu else t for name, t in received.items()},
        header["scalars"],
    )
    noted: int | None = header["noted"]
    return noted

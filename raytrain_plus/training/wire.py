"""What a sum over workers needs of whatever moves its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Message:
    """A contiguous tensor on its way to or from a peer (an index into the generation)."""

    peer: int
    tensor: Tensor

    @cached_property
    def memory(self) -> memoryview:
        """The bytes of a tensor on a CPU."""
        view: Any = self.tensor.detach().view(-1).view(torch.uint8).numpy()
        return memoryview(view)


class Pending(Protocol):
    """Messages that are on their way."""

    def wait(self) -> None:
        """Return when all have been sent and received, or raise what the wire raises."""


class Wire(Protocol):
    """Moves the bytes: point to point, in the order in which messages are posted."""

    index: int
    size: int
    peers: list[int]
    device: torch.device

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Start sending and receiving, all at once."""

    def fence(self) -> None:
        """Return when everything that was waited for has arrived, or raise what the wire raises.

        A wait alone does not say so: on a GPU it only orders streams, also after an abort.
        """


def filled(messages: Sequence[Message]) -> list[Message]:
    """Return the messages that have any bytes: others are not sent."""
    return [message for message in messages if message.tensor.numel()]

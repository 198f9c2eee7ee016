"""What a sum over workers needs of whatever moves its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Message:
    """A contiguous tensor on its way to or from a peer.

    Attributes:
        peer: an index into the generation.
        tensor: the tensor.
        channel: messages between two workers arrive in the order in which they are posted on their
            channel. Those of different channels do not wait for each other.
    """

    peer: int
    tensor: Tensor
    channel: int = 0

    @cached_property
    def memory(self) -> memoryview:
        """The bytes of a tensor on a CPU."""
        view: Any = self.tensor.detach().view(-1).view(torch.uint8).numpy()
        return memoryview(view)


class Pending(Protocol):
    """Messages that are on their way."""

    @property
    def is_done(self) -> bool:
        """Whether a wait would return at once, as far as this process knows."""

    def wait(self) -> None:
        """Return when all have been sent and received, or raise what the wire raises."""


class Wire(Protocol):
    """Moves the bytes: point to point, in the order in which messages are posted on a channel."""

    index: int
    size: int
    peers: list[int]
    device: torch.device

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Start sending and receiving, all at once."""

    def wait_any(self, pending: Sequence[Pending], *, block: bool = True) -> None:
        """Send and receive until one of them is done.

        Args:
            pending: at least one.
            block: if False, do only what is possible at once.

        Raises:
            Exception: what a wait for one of them raises, if that is known already.
        """

    def fence(self) -> None:
        """Return when everything that was waited for has arrived, or raise what the wire raises.

        A wait alone does not say so: on a GPU it only orders streams, also after an abort.
        """


def filled(messages: Sequence[Message]) -> list[Message]:
    """Return the messages that have any bytes: others are not sent."""
    return [message for message in messages if message.tensor.numel()]

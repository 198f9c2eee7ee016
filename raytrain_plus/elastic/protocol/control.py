"""What the coordinator and its workers say to each other over their lifelines.

Messages are typed, and encoded as MessagePack by msgspec: bytes of another shape are refused, and
nothing is imported or executed to decode them. Both ends have the same version of the protocol
(`connections.VERSION`), which the handshake compares.

A question has a number, which its answer repeats. Messages from one end arrive in order.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.elastic.protocol.messages import Plan, Report, WorkerStatus
from raytrain_plus.elastic.protocol.records import Record

_COMPRESSED_FROM = 16 << 10  # bytes; a plan for a thousand workers is smaller by half
_MOST = 1 << 30  # bytes of a message
_PLAIN, _COMPRESSED = b"\0", b"\1"


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Train(_Message, frozen=True):
    """Run a generation. The worker answers by `GenerationEnded`."""

    plan: Plan


class Pause(_Message, frozen=True):
    """Raise the flag that lets all workers pause after the same step."""

    generation: int


class TakeCheckpoint(_Message, frozen=True):
    """Raise the flag that lets all workers take a snapshot after a step."""

    generation: int
    step: int


class Abort(_Message, frozen=True):
    """End a generation: a peer was lost."""

    generation: int
    reason: str


class StepsReceived(_Message, frozen=True):
    """The coordinator has what a `Steps` told; the next one may come."""

    number: int


class AskStatus(_Message, frozen=True):
    """What is the training thread doing?"""

    number: int


class AskRecords(_Message, frozen=True):
    """Which records are there of the steps after a step?"""

    number: int
    after: int


class Save(_Message, frozen=True):
    """Write the checkpoint of a step alone, to the store or to a new folder of the node."""

    number: int
    step: int
    rescue: bool = False


class CheckArithmetic(_Message, frozen=True):
    """Repeat the probe of the start."""

    number: int


ToWorker = (
    Train
    | Pause
    | TakeCheckpoint
    | Abort
    | StepsReceived
    | AskStatus
    | AskRecords
    | Save
    | CheckArithmetic
)

Job = Train | Save | CheckArithmetic
"""What the thread does that trains. All else is answered while it trains."""


class Steps(_Message, frozen=True):
    """Steps that the group has committed, and how many phases this worker has entered."""

    number: int
    generation: int
    started: float
    moves: int
    records: Sequence[Record]


class GenerationEnded(_Message, frozen=True):
    """A generation has ended for this worker."""

    generation: int
    report: Report


class ShareReported(_Message, frozen=True):
    """This worker reports on its share of a checkpoint."""

    share: Share


class Status(_Message, frozen=True):
    """What the training thread is doing."""

    number: int
    status: WorkerStatus


class FoundRecords(_Message, frozen=True):
    """The records of the steps after the one that was asked for."""

    number: int
    records: Sequence[Record]


class Saved(_Message, frozen=True):
    """The digest of a checkpoint and its folder, or why it could not be written."""

    number: int
    digest: str = ""
    place: str = ""
    error: str = ""


class Arithmetic(_Message, frozen=True):
    """Whether the probe had the same result as at the start."""

    number: int
    right: bool


ToCoordinator = Steps | GenerationEnded | ShareReported | Status | FoundRecords | Saved | Arithmetic
Answer = Status | FoundRecords | Saved | Arithmetic


class ControlError(ConnectionError):
    """A message that cannot be understood."""


def _plain(value: Any) -> Any:
    """Return a value of NumPy as the number or the list that it stands for."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"a {type(value).__name__} cannot be sent: {value!r:.80}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_of_worker = msgspec.msgpack.Decoder(ToCoordinator)
_of_coordinator = msgspec.msgpack.Decoder(ToWorker)


def encode(message: ToWorker | ToCoordinator) -> bytes:
    """Return a message as bytes."""
    encoded = _encoder.encode(message)
    if len(encoded) < _COMPRESSED_FROM:
        return _PLAIN + encoded
    return _COMPRESSED + zlib.compress(encoded, level=1)


def to_worker(frame: bytes) -> ToWorker:
    """Return a message of the coordinator.

    Raises:
        ControlError: it is none.
    """
    try:
        return _of_coordinator.decode(_content(frame))
    except (msgspec.MsgspecError, zlib.error) as error:
        raise ControlError(f"the coordinator's message cannot be understood: {error}") from error


def to_coordinator(frame: bytes) -> ToCoordinator:
    """Return a message of a worker.

    Raises:
        ControlError: it is none.
    """
    try:
        return _of_worker.decode(_content(frame))
    except (msgspec.MsgspecError, zlib.error) as error:
        raise ControlError(f"a worker's message cannot be understood: {error}") from error


def _content(frame: bytes) -> bytes:
    if frame[:1] != _COMPRESSED:
        return frame[1:]
    inflating = zlib.decompressobj()
    content = inflating.decompress(memoryview(frame)[1:], _MOST)
    if not inflating.eof:
        raise zlib.error("it is cut off or too long")
    return content

"""The cost of scale from measured constants: pure functions.

Work that one process can do with any number of members (planning, processing reports) is measured
at each size itself. Costs of processes, connections and messages are measured with few, and
extrapolated here by the structure of the code: which worker sends what to which other one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.traffic import BUCKET_BYTES, Traffic, ranges_of

Row = dict[str, Any]

RANKS_PER_WORKER = 8
TELLS = 5  # messages per second from the one worker that reports steps
PIECE_BYTES = 8 << 20  # of a state that is sent on, as in `elastic/worker/healing.py`
OPTIMIZER_STATES = 3  # the model and two moments, in multiples of the model


@dataclass(frozen=True)
class AtSize:
    """Costs at a number of workers with 8 logical ranks each; seconds are of CPU.

    Attributes:
        workers: number of workers.
        plan_seconds: a first plan or one that replaces a worker, whichever is slower.
        plan_bytes: size of a plan as sent to a worker.
        encode_seconds: encoding a plan.
        additions_seconds: ordering the tree's additions, once per generation.
        subtrees: maximal subtrees per worker, in a plan of all workers.
        subtrees_after_loss: the same after the loss of a worker.
        look_seconds: the coordinator's checks after each event.
        record_bytes: size of one step's record.
        record_seconds: processing a record, once per step, with the decision on a plan after each
            15 steps.
        step_line_bytes, generation_line_bytes: sizes of these lines of the journal.
        share_seconds: finding which files of a checkpoint a worker writes.
        share_bytes: size of all reports on a checkpoint.
        writers: how many workers write one.
        most_written: bytes that a writer writes at most.
        checkpoint_seconds: the coordinator's work for a checkpoint, without receiving the reports.
        judge_seconds: comparing all states, once in 10 steps.
        lifeline_seconds: opening one lifeline.
    """

    workers: int
    plan_seconds: float
    plan_bytes: int
    encode_seconds: float
    additions_seconds: float
    subtrees: float
    subtrees_after_loss: float
    look_seconds: float
    record_bytes: int
    record_seconds: float
    step_line_bytes: int
    generation_line_bytes: int
    share_seconds: float
    share_bytes: int
    writers: int
    most_written: int
    checkpoint_seconds: float
    judge_seconds: float
    lifeline_seconds: float


@dataclass(frozen=True)
class Messages:
    """The cost of messages over lifelines for the coordinator's process, in CPU seconds.

    Attributes:
        train_seconds: a small plan that is sent, and the report that comes.
        byte_seconds: each further byte of the plan.
        told_seconds: a message of a worker.
    """

    train_seconds: float
    byte_seconds: float
    told_seconds: float


@dataclass(frozen=True)
class Wire:
    """The cost of exchange and meeting for each worker, in CPU seconds.

    Attributes:
        step_seconds: an exchange without its messages and bytes.
        message_seconds: each message that is sent, with one that is received and added.
        byte_seconds: each byte that is sent, likewise.
        value_seconds: the own values of each worker in the step header.
        meeting_seconds: a meeting of two workers.
        connection_seconds: each further connection.
    """

    step_seconds: float
    message_seconds: float
    byte_seconds: float
    value_seconds: float
    meeting_seconds: float
    connection_seconds: float

    def exchange_seconds(self, traffic: Traffic) -> float:
        """Return the CPU seconds of one worker's exchange, on average."""
        n = traffic.workers
        messages, sent = sum(traffic.messages) / n, sum(traffic.sent_bytes) / n
        return (
            self.step_seconds
            + messages * self.message_seconds
            + sent * self.byte_seconds
            + n * self.value_seconds
        )

    def meeting_cpu(self, connections: float) -> float:
        """Return the CPU seconds of a worker's meeting with some others."""
        return self.meeting_seconds + (connections - 1) * self.connection_seconds


@dataclass(frozen=True)
class Case:
    """A run whose costs are predicted.

    Attributes:
        gradient_bytes: size of one replica's gradients.
        link: bytes per second of each worker's network link.
        steps: steps per second.
    """

    gradient_bytes: float = 100e6
    link: float = 1.25e9
    steps: float = 2.0

    def traffic(self, workers: int) -> Traffic:
        """Return the traffic of a step's exchange."""
        ranges = ranges_of(workers, workers * RANKS_PER_WORKER)
        buckets = max(1, round(self.gradient_bytes / BUCKET_BYTES))
        return Traffic(ranges, self.gradient_bytes, buckets)

    @property
    def state_bytes(self) -> float:
        """Size of one replica, with its optimizer."""
        return OPTIMIZER_STATES * self.gradient_bytes


def exchange(case: Case, wire: Wire, workers: int) -> Row:
    """Predict a step's exchange, for one worker."""
    traffic = case.traffic(workers)
    sent = max(traffic.sent_bytes)
    return {
        "workers": workers,
        "MB sent": sent / 1e6,
        "ring MB": traffic.ring_bytes / 1e6,
        "header KB": max(traffic.header_bytes) / 1e3,
        "messages": max(traffic.messages),
        "KB each": sent / max(traffic.messages) / 1e3,
        "CPU s": wire.exchange_seconds(traffic),
        "messages s": max(traffic.messages) * wire.message_seconds,
        "link s": sent / case.link,
        "buffers MB": traffic.buffer_bytes / 1e6,
        "connections": max(traffic.partners),
    }


def steady(case: Case, at: AtSize, messages: Messages) -> Row:
    """Predict the coordinator's work while a group trains."""
    busy = TELLS * messages.told_seconds + case.steps * at.record_seconds
    return {
        "workers": at.workers,
        "messages/s": TELLS,
        "KB/s told": case.steps * at.record_bytes / 1e3,
        "ms of CPU per step": at.record_seconds * 1e3,
        "CPU %": 100 * busy,
        "journal KB/s": case.steps * at.step_line_bytes / 1e3,
        "lifelines": at.workers,
    }


def regroup(at: AtSize, messages: Messages) -> Row:
    """Predict the coordinator's work for a new generation."""
    workers = at.workers
    return {
        "workers": workers,
        "plan s": at.plan_seconds,
        "plans MB": workers * at.plan_bytes / 1e6,
        "messages s": at.encode_seconds
        + workers * (messages.train_seconds + at.plan_bytes * messages.byte_seconds),
        "looks s": workers * at.look_seconds,
        "asking all s": workers * messages.told_seconds,
        "journal KB": at.generation_line_bytes / 1e3,
    }


def meeting(case: Case, wire: Wire, at: AtSize) -> Row:
    """Predict the meeting of a new generation's workers."""
    workers, partners = at.workers, case.traffic(at.workers).partners
    return {
        "workers": workers,
        "connections in all": sum(partners) // 2,
        "CPU s": wire.meeting_cpu(max(partners)),
        "order of additions ms": at.additions_seconds * 1e3,
        "subtrees": at.subtrees,
        "after a loss": at.subtrees_after_loss,
    }


def checkpoint(at: AtSize, messages: Messages) -> Row:
    """Predict a checkpoint's cost; each writer reports its share, and the first that it begins."""
    message_seconds = (
        at.writers + 1
    ) * messages.told_seconds + at.share_bytes * messages.byte_seconds
    return {
        "workers": at.workers,
        "writers": at.writers,
        "GB of one": at.most_written / 1e9,
        "share ms": at.share_seconds * 1e3,
        "told KB": at.share_bytes / 1e3,
        "coordinator CPU s": at.checkpoint_seconds + message_seconds,
    }


def healing(case: Case, workers: int, sources: int) -> float:
    """Return the seconds until all workers have received the state over the links.

    A worker that sends to two shares its link among them, and each level of the tree begins a piece
    after the one before.
    """
    receivers = workers - sources
    transfer = case.state_bytes / case.link
    if receivers <= sources:
        return transfer if receivers else 0.0
    levels = 1
    while sources * (2 ** (levels + 1) - 2) < receivers:
        levels += 1
    return 2 * (transfer + (levels - 1) * PIECE_BYTES / case.link)


def first_above(rows: Sequence[Row], key: str, bound: float) -> int | None:
    """Return the least number of workers at which a cost is above a bound, or None."""
    found = [row["workers"] for row in rows if row[key] > bound]
    return min(found, default=None)

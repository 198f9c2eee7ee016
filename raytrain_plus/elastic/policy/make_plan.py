"""From members to a plan: which worker computes what, and which one heals which. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from raytrain_plus.elastic.policy.assignment import IMBALANCE, WorkerSpeed, assign
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import Assignment, Plan, Ready, WorkerProcess


@dataclass
class Member:
    """A worker as the coordinator sees it.

    Attributes:
        worker: its name.
        ready: what it reported when it was ready, None before.
        step: committed steps of its state.
        draining: whether it leaves at the next step boundary.
        warm: whether it has run steps.
        process: its process, None before it starts to prepare itself.
        since: monotonic seconds at which it started to.
    """

    worker: str
    ready: Ready | None = None
    step: int = 0
    draining: bool = False
    warm: bool = False
    process: WorkerProcess | None = None
    since: float | None = None


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a plan depends on, apart from the members.

    Attributes:
        logical_ranks: V.
        generation: the number of the generation that is planned.
        previous: the assignment before.
        faults: those that have not happened yet.
        evaluated_step: the last step whose evaluation is known.
        imbalance: how much imbalance to plan with. Default an eighth.
        bitwise: whether equal steps are proof of equal states.
        checkpoint: the newest that may be used, and its step; or None.
    """

    logical_ranks: int
    generation: int
    previous: Sequence[Assignment]
    faults: Sequence[Fault] = ()
    evaluated_step: int = -1
    imbalance: float = IMBALANCE
    bitwise: bool = True
    checkpoint: tuple[str, int] | None = field(default=None)


def make_plan(
    speeds: Sequence[WorkerSpeed], members: Sequence[Member], situation: Situation
) -> Plan:
    """Plan a generation.

    The members with the latest state heal the others. If the newest checkpoint is later than all
    of them, the first member loads it and heals the others, so that it is read once.

    Args:
        speeds: the workers and their speeds.
        members: the same workers, in any order.
        situation: everything else.
    """
    assignments = assign(situation.logical_ranks, speeds, situation.previous, situation.imbalance)
    by_name = {member.worker: member for member in members}
    placed = [by_name[a.worker] for a in assignments]
    top = max(member.step for member in placed)
    sources = [i for i, member in enumerate(placed) if member.step == top]
    if not situation.bitwise:
        sources = [i for i in sources if placed[i].warm][:1] or sources[:1]
    load = None
    if situation.checkpoint is not None and situation.checkpoint[1] > top:
        load, top = situation.checkpoint
        sources = [0]
    receivers = [i for i in range(len(placed)) if i not in sources]
    return Plan(
        generation=situation.generation,
        step=top,
        assignments=assignments,
        healed_by=healing(sources, receivers),
        endpoints=tuple(member.ready.endpoint for member in placed if member.ready is not None),
        pause_at=min((f.step for f in situation.faults if f.pauses_after(top)), default=None),
        evaluated=situation.evaluated_step >= top,
        faults=[f for f in situation.faults if f.strikes],
        checkpoint=load,
        bitwise=situation.bitwise,
    )


def healing(sources: Sequence[int], receivers: Sequence[int]) -> dict[int, int]:
    """Say which member sends the state to which.

    As long as there are enough sources, each sends to one member, at the full speed of its link.
    Otherwise each one sends to two, and so does each that has received: a tree, whose depth grows
    with the logarithm of the receivers, in which all send on piece by piece.

    Args:
        sources: places of the members that have the state, at least one.
        receivers: places of those that need it.

    Returns:
        Each receiver's source.
    """
    if len(receivers) <= len(sources):
        return dict(zip(receivers, sources, strict=False))
    senders = [*sources, *sources, *(one for one in receivers for _ in range(2))]
    return dict(zip(receivers, senders, strict=False))

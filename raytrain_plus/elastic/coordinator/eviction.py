"""After silent data corruption: which workers are removed, and from where the others go on."""

from raytrain_plus.elastic.coordinator.checkpoint_coordinator import CheckpointCoordinator
from raytrain_plus.elastic.coordinator.membership import Membership
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.workers import WorkerActors
from raytrain_plus.elastic.policy.trust import GroupHistory
from raytrain_plus.elastic.protocol.messages import Corruption


def evict(
    found: Corruption,
    history: GroupHistory,
    generation: int,
    *,
    actors: WorkerActors,
    membership: Membership,
    checkpoints: CheckpointCoordinator,
    run_log: RunLog,
) -> None:
    """End the guilty workers, and go back to a state that can be trusted.

    A self-test with a known result shows whether a worker's arithmetic is wrong. If committed steps
    cannot be trusted, they are withdrawn. All workers then go back to the newest checkpoint before
    them or, if there is none, to the beginning, with new workers.

    Args:
        found: what was found.
        history: which worker has computed what.
        generation: in which it was found.
        actors: reaches the workers.
        membership: knows the members.
        checkpoints: the checkpoints.
        run_log: writes the journal.
    """
    asked = history.group_at(found.step) if found.tie else found.suspects
    # A worker that is gone by now cannot prove that it was right.
    guilty = [w for w in asked if w not in membership.members or not actors.computes_right(w)]
    trusted = history.trusted(found, guilty)
    run_log.note(
        "corruption",
        step=found.step,
        reason=found.why,
        accused=list(found.accused),
        suspects=list(found.suspects),
        guilty=guilty,
        trusted=trusted,
    )
    for worker in dict.fromkeys([*found.accused, *guilty]):
        membership.evict(worker, found.why)
    # The accused's wrong state may be in a checkpoint of that very step.
    clean = min(trusted, found.step - 1) if found.accused else trusted
    if clean < found.step:
        checkpoints.distrust_after(clean, generation)
    if trusted < found.step:
        run_log.withdraw(trusted, found.why, generation)
        membership.distrust_after(trusted)
        evict_all_untrusted(membership, checkpoints)


def evict_all_untrusted(membership: Membership, checkpoints: CheckpointCoordinator) -> None:
    """End all workers if no state can be trusted, neither of theirs nor of a checkpoint."""
    ready = [member for member in membership.members.values() if member.ready is not None]
    if checkpoints.newest() is None and all(member.step < 0 for member in ready):
        for member in ready:
            membership.evict(member.worker, "no worker has a state that can be trusted")

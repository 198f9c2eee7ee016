"""Finds flaws of a disturbed run other than wrong bits: lost steps, missing workers. Pure.

Equal bits do not show that nothing was lost: a run that goes back to its last checkpoint after each
fault ends with the same bits, later.
"""

from collections import Counter
from collections.abc import Sequence

from raytrain_plus.chaos.schedules import IN_REGROUPING
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.observe.journal import Event


def flaws(events: Sequence[Event], faults: Sequence[Fault]) -> list[str]:
    """Return the flaws of a disturbed run whose faults are all known.

    Args:
        events: its journal.
        faults: all planned faults. Nothing else may have ended a worker.

    Returns:
        A sentence for each flaw.
    """
    return [
        *broken_promises(events),
        *_lost_without_fault(events),
        *_came_up_twice(events),
        *_not_injected(events, faults),
    ]


def broken_promises(events: Sequence[Event]) -> list[str]:
    """Return the broken promises among those that hold under all faults.

    Each step is committed once, in order. A group continues where its survivors are, with all
    survivors that do not drain.

    Args:
        events: its journal.

    Returns:
        A sentence for each broken promise.
    """
    steps: list[int] = []
    for event in events:
        if event["event"] == "withdrawn":  # they are computed again
            steps = [step for step in steps if step <= event["step"]]
        elif event["event"] == "step":
            steps.append(event["step"])
    found = lost_steps(events)
    if steps != list(range(1, len(steps) + 1)):
        found.insert(0, f"steps are missing or repeated: {steps}")
    return found


def lost_steps(events: Sequence[Event]) -> list[str]:
    """Return each generation that did not continue at its survivors' step.

    Survivors are after the last step, or after the one before it, if the workers that had committed
    the last step were lost right then. Where no worker survives, the next generation continues from
    a checkpoint, and known steps are not written again. A resume has no survivors.

    Args:
        events: the journal of a run.

    Returns:
        A sentence for each such generation.
    """
    found = []
    last, members = 0, set[str]()
    gone, draining = set[str](), set[str]()
    for event in events:
        if event["event"] == "run":
            last, members = 0, set()
        elif event["event"] == "step":
            last = event["step"]
        elif event["event"] == "withdrawn":
            last = 0  # they go back to a checkpoint
        elif event["event"] == "worker" and event["state"] in ("lost", "left", "evicted"):
            gone.add(event["worker"])
        elif event["event"] == "worker" and event["state"] == "draining":
            draining.add(event["worker"])
        elif event["event"] == "generation":
            survivors = members - gone
            if survivors and event["step"] < last - 1:
                found.append(
                    f"{sorted(survivors)} survived step {last}, "
                    f"and the run continued at {event['step']}"
                )
            if not survivors <= draining | set(event["members"]):
                found.append(
                    f"{sorted(survivors)} survived, but {event['members']} continued without them"
                )
            last, members = event["step"], set(event["members"])
    return found


def _hit(events: Sequence[Event]) -> set[str]:
    return {worker for event in events if event["event"] == "fault" for worker in event["hit"]}


def _workers(events: Sequence[Event], state: str) -> list[str]:
    return [e["worker"] for e in events if e["event"] == "worker" and e["state"] == state]


def _lost_without_fault(events: Sequence[Event]) -> list[str]:
    unexplained = sorted(set(_workers(events, "lost")) - _hit(events))
    return [f"workers were lost that no fault had hit: {unexplained}"] if unexplained else []


def _came_up_twice(events: Sequence[Event]) -> list[str]:
    twice = sorted(w for w, count in Counter(_workers(events, "ready")).items() if count > 1)
    return [f"workers came up more than once: {twice}"] if twice else []


def _not_injected(events: Sequence[Event], faults: Sequence[Fault]) -> list[str]:
    """Return the faults that did not happen although a worker reached their place.

    A lone worker has no slices. Where no worker survived, the steps before are computed again, and
    the group may be whole by the time of a fault that waits for it to form.
    """
    missing = Counter((f.step, f.action, f.phase if f.strikes else None) for f in faults)
    missing.subtract(
        (e["step"], e["action"], e.get("phase")) for e in events if e["event"] == "fault"
    )
    alone = {e["step"] for e in events if e["event"] == "step" and e["workers"] == 1}
    return [
        f"it did not happen: {action} in {phase} at step {step}"
        for (step, action, phase), count in missing.items()
        if count > 0
        and not (phase == "slice" and step in alone)
        and not (phase in IN_REGROUPING and _started_again(events, step))
    ]


def _started_again(events: Sequence[Event], step: int) -> bool:
    """Return whether steps before a step were computed again after the step was reached."""
    reached = False
    for event in events:
        reached |= event["event"] == "step" and event["step"] >= step - 1
        if reached and event["event"] == "generation" and event["step"] < step - 1:
            return True
    return False
